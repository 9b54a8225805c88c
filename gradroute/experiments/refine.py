"""Rounds of finding: likely rows of a run are labels of the next one, until no more are left.

refine_run     run -> <name>-round-2, <name>-round-3, ... and <name>-refined

Every round is a run of its own, so an interrupted refinement goes on with the same command.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError
from gradroute.experiments.controls import control_config
from gradroute.probes.finder import FDR, find_rows
from gradroute.probes.found_files import found_place
from gradroute.run import evaluate_run, train_run
from gradroute.runs.folder import RunFolder
from gradroute.system.terminal import say

FINISHES = ("plain", "routed")
"""What is trained at the end: one adapter without the rows found, or the last routed run."""


def refine_run(
    folder: RunFolder, *, rounds: int, finish: str, bar: bool, label: str | None = None
) -> RunFolder:
    """Find, train with likely rows as labels, and find again.

    A round is the last one where no row is likely, or where there may be no bad row at all: the
    interval of their number ends below 1. Then rows that are only suspect are left out too, see
    `found_files.LIKELY` and `found_files.SUSPECT`.

    Args:
        folder: A finished routed run.
        rounds: Routed runs at most, the given one counted.
        finish: One of `FINISHES`.
        bar: Show a progress bar.
        label: With several behaviors, which.

    Returns:
        The folder of what is shipped: `<name>-refined`, or the last routed run. Where that name is
        taken by what another number of rounds found, their number is behind it.

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
    root, current, place = folder.path.resolve().parent, folder, folder.found
    number = 0
    for number in range(1, rounds + 1):
        summary = find_rows(current, by="adapter", fdr=FDR, label=label)
        place = found_place(current, summary)
        say(f"{current.name}: {round_text(number, summary)}")
        if not summary["likely_rows"] or summary["bad"]["high"] < 1.0 or number == rounds:
            break
        data = config.data.model_copy(update={"found": str(place / "adapter_likely.jsonl")})
        name = f"{config.run_name}-round-{number + 1}"
        following = config.model_copy(update={"run_name": name, "controls": None, "data": data})
        current = train_run(following, root, if_exists="resume", bar=bar)
    if finish == "routed":
        evaluate_run(current)
        return current
    shipped = control_config(config, "refined", root)
    found = str(place / "adapter_suspects.jsonl")
    name = _free_name(root, shipped.run_name, found, number)
    data = shipped.data.model_copy(update={"found": found})
    shipped = shipped.model_copy(update={"run_name": name, "data": data})
    last = train_run(shipped, root, if_exists="resume", bar=bar)
    evaluate_run(last)
    return last


def _free_name(root: Path, name: str, found: str, rounds: int) -> str:
    """The name, or one with the number of rounds where another number of them has it."""
    taken = RunFolder(root / name).config
    if not taken.is_file() or load_config(taken).data.found == found:
        return name
    say(f"{name} stands on another number of rounds; this run is {name}-{rounds}.")
    return f"{name}-{rounds}"


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
