"""Starting and resuming conditions of a run: compared, then refused or recorded.

sessions.jsonl   one line per start of training, which also counts what changed before it
                 {"step": 350, "changed": {"train.save_every": [100, 50]},
                  "overridden": ["train.save_every"], "provenance": {...}}
                 and one per event in it, such as {"step": 362, "event": "out of memory", ...}

Keys are those of the configuration, and `identity.data`, `identity.base`, `identity.starts`,
`identity.teacher`, `identity.gradroute` for the texts, the base model, the files its adapters
started from, the run that taught it and the version of gradroute. An earlier gradroute wrote
`ground` for `identity`.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradroute.errors import ConfigError, DataError, MachineError
from gradroute.runs.folder import RunFolder
from gradroute.runs.former_names import current_manifest, current_overrides
from gradroute.system.files import append_line, read_json, read_lines
from gradroute.system.terminal import printable, say

Changes = Mapping[str, tuple[Any, Any]]
"""Key -> (then, now)."""

IDENTITY_KEYS = tuple(
    f"identity.{fact}" for fact in ("data", "base", "starts", "teacher", "gradroute")
)
# The embedded model before its tokenizer said itself that a text begins with the beginning token:
# the same weights and the same tokens, so that runs begun on it go on.
_SAME_BASES = {
    "sha256 f0b48c3c70d9022850995d7b4df10fe014c2031cdf69ab4c061f3930f55aa01a": (
        "sha256 2f5f4638899add4520d0ca17acadf808aeab0c2ed1eee29121104e89df760434"
    )
}
# Of the hardware: free memory and cores decide no number.
_DECIDING = ("system", "processor", "threads", "accelerators", "cuda", "ranks")
_SHOWN = 48


def check_overrides(overrides: Sequence[str], known: Iterable[str]) -> None:
    """Check that every `--override` names a key, or a section of keys.

    Args:
        overrides: what was given.
        known: every key there is; those of `IDENTITY_KEYS` need not be named.

    Raises:
        ConfigError: one names nothing; the message has the nearest key.
    """
    places: dict[str, None] = {}
    for key in (*known, *IDENTITY_KEYS):
        parts = key.split(".")
        places |= dict.fromkeys(".".join(parts[: end + 1]) for end in range(len(parts)))
    for key, given in zip(current_overrides(overrides), overrides, strict=True):
        if key not in places:
            near = difflib.get_close_matches(key, places, n=1, cutoff=0.5)
            near = near or [place for place in places if place.endswith(f".{key}")][:1]
            hint = f"did you mean {near[0]}?" if near else "see `gradroute schema` for the keys."
            raise ConfigError(f"--override {given}: there is no such key or section; {hint}")


def allowed_changes(
    folder: RunFolder, changes: Changes, overrides: Sequence[str], *, free: Iterable[str]
) -> list[str]:
    """The changes that were asked for with `--override`; those that were not are refused.

    Args:
        folder: the run.
        changes: what differs from when the run was begun.
        overrides: the keys and sections that were given with `--override`.
        free: the keys and sections that may change without one.

    Raises:
        ConfigError: something else has changed; a table says what.
    """
    free, overrides = tuple(free), current_overrides(overrides)
    bound = {key: pair for key, pair in changes.items() if not _covered(key, free)}
    refused = {key: pair for key, pair in bound.items() if not _covered(key, overrides)}
    if refused:
        rows = [("key", "then", "now")]
        rows += [(key, _shown(then), _shown(now)) for key, (then, now) in refused.items()]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        table = "\n".join(f"  {k:<{first}}  {then:<{second}}  {now}" for k, then, now in rows)
        flags = " ".join(f"--override {key}" for key in refused)
        raise ConfigError(
            f"run folder {folder.path} was started with other settings:\n{table}\nRestore them, "
            f"choose another run_name or --runs folder, or move the old run aside with --if-exists "
            f"new. To continue with the new ones, which is recorded: {flags}"
        )
    return list(bound)


def identity_changes(folder: RunFolder, facts: Mapping[str, str]) -> Changes:
    """In which of its facts a run stands on something else than when it began.

    Args:
        folder: the run.
        facts: name -> value now, of those in `IDENTITY_KEYS`.
    """
    before = read_manifest(folder)
    if before and "gradroute" not in before:  # of a run that was begun before this was written
        before = {**before, "gradroute": facts.get("gradroute")}
    base = str(before.get("base", ""))
    for earlier, now in _SAME_BASES.items():
        if base.startswith(earlier):
            before = {**before, "base": now + base.removeprefix(earlier)}
    return {
        f"identity.{key}": (before.get(key, "unknown"), value)
        for key, value in facts.items()
        if before.get(key) != value
    }


def check_identity(folder: RunFolder, facts: Mapping[str, str]) -> None:
    """Refuse to measure a run whose data or base model has changed since it was trained.

    Raises:
        ConfigError: something has; the message names it.
    """
    changed = identity_changes(folder, facts)
    if changed:
        told = "; ".join(f"{key}: {then} -> {now}" for key, (then, now) in changed.items())
        raise ConfigError(
            f"run folder {folder.path} was trained with a different base model or data set: "
            f"{told}. Restore it, or train anew with --if-exists new."
        )


def check_logs(folder: RunFolder, step: int) -> None:
    """See that the lines kept of a run are whole up to its checkpoint; say if some are missing.

    Args:
        folder: the run.
        step: of its newest checkpoint; 0 where there is none.

    Raises:
        DataError: a line is damaged.
        MachineError: checkpoints were written, and none is there any more.
    """
    for path in (folder.metrics, folder.measures, folder.audit):
        for number, row in enumerate(read_lines(path), 1):
            if type(row.get("step")) is not int:
                raise DataError(f"{path}:{number} is damaged (it has no step). Delete this line.")
    logged = {row["step"] for row in read_lines(folder.metrics)}
    missing = step - len(logged & set(range(1, step + 1)))
    if missing:
        say(
            f"{folder.name}: {folder.metrics.name} lacks {missing} of the {step} steps done; "
            "training goes on, and its curves have a gap."
        )
    if step == 0:
        saved = [row["saved"] for row in read_lines(folder.timings) if "saved" in row]
        if saved:
            raise MachineError(
                f"run folder {folder.path} has saved {printable(str(saved[-1]))}, and no "
                f"checkpoint is left in {folder.checkpoints}. Restore one from a copy, or start "
                f"anew with --if-exists new."
            )


def read_manifest(folder: RunFolder) -> dict[str, Any]:
    """The content of `manifest.json` under its present names; empty where there is no file.

    Raises:
        DataError: it is damaged.
    """
    if not folder.manifest.is_file():
        return {}
    manifest = read_json(folder.manifest)
    if not isinstance(manifest, dict):
        raise DataError(f"{folder.manifest} is damaged: an object is needed. Restore it.")
    return current_manifest(manifest)


def condition_changes(folder: RunFolder, provenance: Mapping[str, Any]) -> Changes:
    """Versions, threads and hardware that differ from those of the session before."""
    sessions = (row.get("provenance") for row in read_lines(folder.sessions))
    before = [one for one in sessions if one] or [read_manifest(folder).get("provenance")]
    then, now = _conditions(before[-1]), _conditions(provenance)
    return {key: (then[key], now[key]) for key in now if key in then and then[key] != now[key]}


def record_session(
    folder: RunFolder,
    step: int,
    *,
    changed: Changes,
    overridden: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    """Append a start of training to `sessions.jsonl`, durably.

    Args:
        folder: the run.
        step: steps done at that moment.
        changed: what differs from the session before.
        overridden: the keys of it that `--override` allowed.
        provenance: versions, commit and hardware of this session.

    Raises:
        MachineError: the disk refuses.
    """
    row = {
        "step": step,
        "changed": {key: list(pair) for key, pair in changed.items()},
        "overridden": list(overridden),
        "provenance": provenance,
    }
    append_line(folder.sessions, row, durable=True)


def say_changes(folder: RunFolder, conditions: Changes, overridden: Sequence[str]) -> None:
    """Say once what a run goes on with that it was not begun with."""
    if overridden:
        say(f"{folder.name}: continues with other settings, as requested: {', '.join(overridden)}.")
    if conditions:
        told = "; ".join(f"{key} {_shown(a)} -> {_shown(b)}" for key, (a, b) in conditions.items())
        say(
            f"{folder.name}: the environment changed since the last session ({told}); the result "
            f"may not be bit-identical to that of an uninterrupted run."
        )


def _covered(key: str, places: Iterable[str]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _shown(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _conditions(provenance: Any) -> dict[str, Any]:
    """Key -> value of whatever can move the last bits of a result; the commit is not among it."""
    if not isinstance(provenance, dict):
        return {}
    versions, hardware = provenance.get("versions"), provenance.get("hardware")
    found: dict[str, Any] = {}
    if isinstance(versions, dict):
        found |= {f"versions.{name}": v for name, v in versions.items() if name != "gradroute"}
    if isinstance(hardware, dict):
        found |= {f"hardware.{name}": hardware[name] for name in _DECIDING if name in hardware}
    return found
