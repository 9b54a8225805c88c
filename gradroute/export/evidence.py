"""A run's measurements for the model card of its export."""

from collections.abc import Sequence

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError, DataError
from gradroute.report.judge.relearning import relearnings
from gradroute.report.judge.verdicts import judge
from gradroute.report.render.markdown import escaped
from gradroute.report.results.contrasts import controls_of, deployed_mode, gain_kept, gain_reference
from gradroute.report.results.number_text import gain_text, loss_text, rate_text
from gradroute.report.results.reading import read_runs
from gradroute.report.results.run_results import RunResults
from gradroute.runs.folder import RunFolder


def evidence(folder: RunFolder, mode: str) -> str:
    """Tables and sentences in Markdown: rates, losses, gain kept, controls, verdicts, leakage.

    Args:
        folder: The run.
        mode: The ablation mode that was exported.
    """
    if not folder.results.is_file():
        return "The run was not measured before it was exported, so this page has no measurements."
    try:
        run, *others = read_runs([folder, *controls(folder)])
    except (ConfigError, DataError):  # whose message names files of this machine
        return "The results of the run cannot be read, so this page has no measurements."
    parts = [_modes(run), _kept(run, others, mode), _controls(run, others)]
    parts += [_verdicts(run, others), _leakage(run, others, mode)]
    return "\n\n".join(part for part in parts if part)


def controls(folder: RunFolder) -> list[RunFolder]:
    """The measured runs beside a run that were made as its controls, or are a baseline of it."""
    found = []
    for path in sorted(folder.path.resolve().parent.glob("*/config.yaml")):
        other = RunFolder(path.parent)
        if path.parent == folder.path.resolve() or not other.results.is_file():
            continue
        try:
            config = load_config(path)
            baseline = config.data.path is None and config.data.behavior_fraction == 0
            if baseline or config.control_of == folder.name:
                read_runs([folder, other])
                found.append(other)
        except (ConfigError, DataError):
            continue  # of another behavior, or damaged
    return found


def _modes(run: RunResults) -> str:
    kinds = list(dict.fromkeys(kind for cell in run.cells.values() for kind in cell.rates))
    lines = [
        ["mode", *(f"shows it ({kind})" for kind in kinds), "loss on normal text"],
        ["---"] * (len(kinds) + 2),
    ]
    for mode in run.cells:
        rates = [rate_text(run.rate(mode, kind)) for kind in kinds]
        lines.append([mode, *rates, loss_text(run.loss(mode, "normal"))])
    return _table(lines)


def _kept(run: RunResults, others: Sequence[RunResults], mode: str) -> str:
    kept = gain_kept(run, gain_reference(run, [run, *others]), mode)
    return (
        f"Gain kept under {escaped(mode)} (of what tuning gained in loss on normal text): "
        f"{escaped(gain_text(kept))}."
    )


def _controls(run: RunResults, others: Sequence[RunResults]) -> str:
    found = controls_of(run, [run, *others])
    if not found:
        return (
            "No control was measured beside this run, so the effect of its labels and its routing "
            "is unknown."
        )
    lines = [["control", "run", "read under", "shows it", "loss on normal text"], ["---"] * 5]
    for role, other in found.items():
        mode = deployed_mode(other)
        rate, loss = rate_text(other.rate(mode)), loss_text(other.loss(mode, "normal"))
        lines.append([role, other.name, mode, rate, loss])
    return _table(lines)


def _verdicts(run: RunResults, others: Sequence[RunResults]) -> str:
    verdicts = [verdict for verdict in judge([run, *others]) if verdict.run == run.name]
    return "\n".join(
        f"- **{escaped(verdict.outcome)}**: {escaped(verdict.claim)} {escaped(verdict.sentence)}"
        for verdict in verdicts
    )


def _leakage(run: RunResults, others: Sequence[RunResults], mode: str) -> str:
    shown = (
        [f"{kind}: {rate_text(rate)}" for kind, rate in run.cells[mode].rates.items()]
        if mode in run.cells
        else []
    )
    told = "; ".join(shown) or "not measured"
    parts = [f"Known leakage: the exported model still shows the behavior in {told}."]
    twice = run.rate("good_x2")
    if twice is not None and "good" in run.config["adapters"]:
        parts.append(f"With the kept adapters at twice their scale: {rate_text(twice)}.")
    attacks = [one for one in relearnings([run, *others]) if one.run == run.name]
    parts += [f"Relearning by fine-tuning: {one.text}" for one in attacks]
    if run.relearn is None:
        parts.append("Relearning by fine-tuning was not measured.")
    if run.recovery is None:
        parts.append(
            "Recovery, a short tune on good examples that may revive it, was not measured."
        )
    return escaped(" ".join(parts))


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        "| " + " | ".join(cell if cell == "---" else escaped(cell) for cell in line) + " |"
        for line in lines
    )
