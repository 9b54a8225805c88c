"""Rounds of finding: likely rows of a run are labels of the next one, until no more are left.

refine_run     run -> <name>-round-2, <name>-round-3, ... and <name>-refined

Every round is a run of its own, so an interrupted refinement goes on with the same command.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError, DataError
from gradroute.experiments.controls import control_config
from gradroute.probes.finder import FDR, find_rows
from gradroute.probes.found_files import found_place, join_rows
from gradroute.probes.rival_scores import INSTALL, installed
from gradroute.run import evaluate_run, train_run
from gradroute.runs.folder import RunFolder
from gradroute.system.terminal import say

FINISHES = ("plain", "routed")
"""What is trained at the end: one adapter without the rows found, or the last routed run."""
NONE = "none"
CLASSIFIERS = ("words", "hidden", "head", NONE)
"""What the adapter is helped by in the first round, see `finder.BY`."""
CHANCE = 0.2
"""A classifier is heard where it finds a row, or where at most this share of its likely rows are
likely by chance. Chosen so that words are not heard on `wrong_pronouns` and `wrong_objects` (at
most 438 likely rows where chance gives 115), which they do not show."""


def refine_run(
    folder: RunFolder,
    *,
    rounds: int,
    finish: str,
    bar: bool,
    label: str | None = None,
    classifier: str = "words",
) -> RunFolder:
    """Find, train with likely rows as labels, and find again.

    In the first round a classifier that the labels alone train is asked too. The rows that it finds
    count, too; where it finds none, its likely ones if it sees bad rows, see `CHANCE`. In later
    rounds the labels are finds, and what words they share says less.

    A round is the last one where no row is likely, or where there may be no bad row at all: the
    interval of their number ends below 1. Then rows that are only suspect of the adapter are left
    out too, see `found_files.LIKELY` and `found_files.SUSPECT`.

    Args:
        folder: A finished routed run.
        rounds: Routed runs at most, the given one counted.
        finish: One of `FINISHES`.
        bar: Show a progress bar.
        label: With several behaviors, which.
        classifier: One of `CLASSIFIERS`.

    Returns:
        The folder of what is shipped: `<name>-refined`, or the last routed run. Where that name is
        taken by what other rows were left out of, more is put behind it, see `_Names`.

    Raises:
        ConfigError: The run is a control or does not route.
        GradrouteError: Whatever stops finding, training or measuring.
    """
    config = load_config(folder.config)
    if not config.policy.routes_anything or config.control:
        raise ConfigError(
            f"run {folder.name} does not route, so no adapter of it explains anything; refine a "
            "routed run."
        )
    names = _Names(config.run_name, folder.path.resolve().parent)
    current, number = folder, 1
    while True:
        likely, suspects, more = _round(current, number, label, classifier if number == 1 else NONE)
        if not more or number == rounds:
            break
        number += 1
        name = names.free(f"round-{number}", str(likely), classifier)
        data = config.data.model_copy(update={"found": str(likely)})
        following = config.model_copy(update={"run_name": name, "controls": None, "data": data})
        current = train_run(following, names.root, if_exists="resume", bar=bar)
    if finish == "plain":
        shipped = control_config(config, "refined", names.root)
        name = names.free("refined", str(suspects), str(number), classifier)
        data = shipped.data.model_copy(update={"found": str(suspects)})
        shipped = shipped.model_copy(update={"run_name": name, "data": data})
        current = train_run(shipped, names.root, if_exists="resume", bar=bar)
    evaluate_run(current)
    return current


class _Round(NamedTuple):
    """What a round found.

    Attributes:
        likely: File of the rows that label the next round.
        suspects: File of the rows that are left out if there is none.
        more: Whether another round may find more.
    """

    likely: Path
    suspects: Path
    more: bool


def _round(folder: RunFolder, number: int, label: str | None, classifier: str) -> _Round:
    """Find with a run's adapter and with a classifier, one of `CLASSIFIERS`."""
    summary = find_rows(folder, by="adapter", fdr=FDR, label=label)
    say(f"{folder.name}: {round_text(number, summary)}")
    place = found_place(folder, summary)
    likely, suspects = place / "adapter_likely.jsonl", place / "adapter_suspects.jsonl"
    helps = _helped(folder, label, classifier)
    if helps is None:
        return _Round(likely, suspects, _may_go_on(summary))
    counts = place / (f"{helps['by']}.jsonl" if helps["found"] else f"{helps['by']}_likely.jsonl")
    more = _may_go_on(summary) or _may_go_on(helps)
    return _Round(join_rows([likely, counts]), join_rows([suspects, counts]), more)


def _may_go_on(summary: Mapping[str, Any]) -> bool:
    return bool(summary["likely_rows"]) and summary["bad"]["high"] >= 1.0


def _helped(folder: RunFolder, label: str | None, classifier: str) -> Mapping[str, Any] | None:
    """What a classifier found, where it sees bad rows; else, or without one, None."""
    if classifier == NONE:
        return None
    if classifier == "words" and not installed():
        say(f"{folder.name}: no classifier is asked, scikit-learn is not here: {INSTALL}.")
        return None
    try:
        summary = find_rows(folder, by=classifier, fdr=FDR, label=label)
    except DataError as error:  # the adapter has found rows, so they are too few for this alone
        say(f"{folder.name}: no classifier is asked: {error}")
        return None
    sees, chance = sees_bad_rows(summary), summary["likely"] * summary["unlabeled"]
    which = "the found ones" if summary["found"] else "they"
    say(
        f"{folder.name}: {summary['likely_rows']} rows are likely by {classifier} ({chance:.0f} by "
        f"chance), {summary['found']} are found; {which} {'count' if sees else 'do not count'}."
    )
    return summary if sees else None


def sees_bad_rows(summary: Mapping[str, Any]) -> bool:
    """Whether a classifier's scores tell bad rows, by its summary of `find`; see `CHANCE`."""
    likely, chance = summary["likely_rows"], summary["likely"] * summary["unlabeled"]
    return bool(summary["found"]) or (likely > 0 and chance <= CHANCE * likely)


class _Names(NamedTuple):
    """Names of the runs that a refinement trains.

    Attributes:
        run: Name of the routed run.
        root: Folder of the runs.
    """

    run: str
    root: Path

    def free(self, what: str, found: str, *more: str) -> str:
        """A name that no run with other rows in `data.found` has.

        Args:
            what: End of the name.
            found: The file of the rows.
            more: What is put behind the name, one after the other, where it is taken.
        """
        first = name = f"{self.run}-{what}"
        for end in ("", *more):
            name += f"-{end}" if end else ""
            taken = RunFolder(self.root / name).config
            if not taken.is_file() or load_config(taken).data.found == found:
                break
        if name != first:
            say(f"{first} stands on other finds; this run is {name}.")
        return name


def round_text(number: int, summary: Mapping[str, Any]) -> str:
    """One line about what a round found."""
    rows, most = summary["unlabeled"], summary["likely"]
    text = (
        f"round {number}: {summary['likely_rows']} of {rows} unlabeled rows are likely (p at most "
        f"{most:g}; {most * rows:.0f} by chance), {summary['found']} are found at a false "
        f"discovery rate of {100 * summary['fdr']:g} %"
    )
    truth = summary["truth_of_likely"]
    if truth["bad"]:
        text += (
            f"; by the true labels {truth['hits']} of the likely ones are bad, of {truth['bad']}"
        )
    return text + "."
