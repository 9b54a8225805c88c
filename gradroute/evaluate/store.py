"""The store of a run's measurements, and the addition of new ones.

A cell (a kind of prompts, or the losses, under one mode) is measured when its rows are in
`results.json`, which is written after the lines that they are computed from. The file also says
under which settings its rows were measured, so that rows measured in another way are not taken
for those that are asked for.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradroute.config.roles import Role
from gradroute.config.run_config import keys_with
from gradroute.evaluate.elicitation import ELICITATION
from gradroute.runs.folder import RunFolder
from gradroute.runs.provenance import provenance
from gradroute.runs.results import HELD_OUT_BAD, Result, read_results, write_results
from gradroute.system.files import read_lines, write_lines

_Cell = tuple[str, str, str]  # label of the behavior, kind of prompts, mode

# Settings of `evaluate` on which measured numbers depend.
_MEASURING = tuple(key.removeprefix("evaluate.") for key in keys_with(Role.MEASURING))
_STORIES = ("prompts", "prefix_words")
# What only the rows of one kind of prompts depend on, or only the losses. By hand: a setting's role
# says that measured numbers depend on it, and not which of them.
_OF_KIND = {
    **dict.fromkeys(("prefix", "plain", HELD_OUT_BAD, *ELICITATION), _STORIES),
    "bos": ("bos_samples",),
}
_OF_LOSSES = ("held_out",)
# Every completion depends on all others.
_SAMPLING = tuple(
    key
    for key in _MEASURING
    if key not in {*_OF_LOSSES, *(k for of in _OF_KIND.values() for k in of)}
)


@dataclass
class StoredResults:
    """What is measured of a run.

    Attributes:
        folder: The run.
        rows: Its result rows.
        origin: Their provenance: versions and hardware of the first measurement, and what the rows
            depend on: `checkpoint` (its hash), `evaluate` (the settings), `prompts` (the hash of
            every file of prompts). `judged_on` says by label which kind of prompts verdicts read,
            `unasked` by label and kind why there are no such prompts, `seen` by label in how many
            held-out rows that show the behavior the detector sees it, `learned` by label the rate
            from which it counts as learned, where that is not the usual one.
        stale: How many earlier rows do not count any more; they go with the next `add_to_store`.
        declared: Whether the file says how each behavior is judged: on which prompts, and from
            which rate on it counts as learned.
        writes: Whether this process writes the files; of several ranks, the first does.
    """

    folder: RunFolder
    rows: list[Result]
    origin: dict[str, Any]
    stale: int = 0
    declared: bool = True
    writes: bool = True

    @property
    def unasked(self) -> set[tuple[str, str]]:
        """(label, kind of prompts) of which there are none."""
        found = self.origin.get("unasked", {})
        return {(label, kind) for label, kinds in found.items() for kind in kinds}

    @property
    def rates(self) -> set[_Cell]:
        """(label, kind of prompts, mode) of every behavior rate; of a single behavior `all`."""
        rated = (row for row in self.rows if row.metric == "behavior_rate")
        return {(row.label, row.dataset, row.mode) for row in rated}

    @property
    def losses(self) -> set[str]:
        """The modes of the held-out losses."""
        return {row.mode for row in self.rows if row.metric == "held_out_loss"}

    @property
    def geometry(self) -> bool:
        """Whether the geometry of the updates is among the rows."""
        return any(row.metric == "random_cosine" for row in self.rows)


def read_store(
    folder: RunFolder,
    *,
    step: int,
    checkpoint: str,
    settings: Mapping[str, Any],
    files: Mapping[str, str],
    judged_on: Mapping[str, str],
    learned: Mapping[str, float],
) -> StoredResults:
    """The rows that were measured before on the same checkpoint in the same way, with their lines.

    Args:
        folder: The run.
        step: Of the checkpoint.
        checkpoint: Its hash.
        settings: The config's `evaluate` section as plain values.
        files: Kind -> sha256 of each file of prompts that is asked for.
        judged_on: Label -> the kind of prompts that verdicts read; of behaviors that do not ship
            with gradroute.
        learned: Label -> the rate from which a behavior counts as learned; of behaviors with
            another than the usual one.

    Raises:
        DataError: The results cannot be read, or are those of a newer gradroute.
    """
    settings = {key: value for key, value in settings.items() if key in _MEASURING}
    now: dict[str, Any] = {"checkpoint": checkpoint, "evaluate": settings}
    judged = {"judged_on": dict(judged_on), "learned": dict(learned)}
    now |= {key: by_label for key, by_label in judged.items() if by_label}
    if not folder.results.is_file():
        return StoredResults(folder, [], {**provenance(), **now, "prompts": dict(files)})
    rows, origin = read_results(folder.results)
    same = origin.get("checkpoint", checkpoint) == checkpoint
    before, hashes = origin.get("evaluate", {}), origin.get("prompts", {})
    changed = {key for key in settings if before.get(key) != settings[key]}
    changed |= {kind for kind in files if hashes.get(kind) != files[kind]}
    lines = {None} | {("", "losses", line.get("mode")) for line in read_lines(folder.losses)}
    lines |= {_cell(line) for line in read_lines(folder.samples)}
    kept = [
        row
        for row in rows
        if same
        and row.step == step
        and changed.isdisjoint(_decided_by(row))
        and _lines_of(row) in lines
    ]
    declared = all(origin.get(key, {}) == by_label for key, by_label in judged.items())
    if not same:  # perhaps of other data
        origin = {key: value for key, value in origin.items() if key not in ("unasked", "seen")}
    origin = {**origin, **now, "prompts": {**hashes, **files}}
    return StoredResults(folder, kept, origin, stale=len(rows) - len(kept), declared=declared)


def add_to_store(
    store: StoredResults,
    new: Iterable[Result],
    *,
    samples: Sequence[Mapping[str, Any]] = (),
    losses: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Add what was just measured to what is known and to the files of the run.

    Lines that belong to no row go: of a cell that was interrupted, or measured in another way.

    Args:
        store: What is known; it is brought up to date.
        new: The new rows.
        samples: The lines of `samples.jsonl` that they stand on.
        losses: The same of `losses.jsonl`.

    Raises:
        MachineError: The disk refuses, or the run is gone; the cell is then measured again next
            time.
    """
    folder, rates, modes = store.folder, store.rates, store.losses
    if not store.writes:
        store.rows += new
        return
    folder.check_there()
    rated = (line for line in read_lines(folder.samples) if _cell(line) in rates)
    write_lines(folder.samples, [*rated, *samples])
    lost = (row for row in read_lines(folder.losses) if row["mode"] in modes)
    write_lines(folder.losses, [*lost, *losses])
    store.rows += new
    store.stale = 0
    # The rows come last: they say that the lines are complete.
    write_results(folder.results, store.rows, store.origin)


def _cell(line: Mapping[str, Any]) -> _Cell:
    """The cell of a line of samples; those of the first version named no kind."""
    return line.get("label", "all"), line.get("prompts", "prefix"), line.get("mode", "")


def _lines_of(row: Result) -> _Cell | None:
    """The lines that a row is computed from; None for none."""
    if row.metric in ("update_cosine", "random_cosine"):
        return None
    if row.metric == "held_out_loss":  # all data sets of a mode are kept together
        return "", "losses", row.mode
    return row.label, row.dataset, row.mode


def _decided_by(row: Result) -> tuple[str, ...]:
    """The settings of `evaluate`, or the file of prompts, that a row depends on."""
    if row.metric in ("update_cosine", "random_cosine"):
        return ()
    if row.metric == "held_out_loss":
        return _OF_LOSSES
    return *_OF_KIND.get(row.dataset, (row.dataset,)), *_SAMPLING
