"""Data of the page's slider and sample browser: numbers by scale, and capped samples.

What a model wrote is not trusted. It stands in the page as JSON inside a script element that no
browser executes, with every character escaped that could end the element; the page's script puts
it in place as text. So no completion can add an element, whatever it holds.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import regex

from gradroute.report.judge.comparison import Comparison, SingleBehaviorComparison
from gradroute.report.results.contrasts import gain_reference
from gradroute.report.results.roles import adapter_names
from gradroute.report.results.run_results import Record, RunResults
from gradroute.report.results.scales import Point, scale_curve
from gradroute.runs.results import PREFIX

LONGEST = 2_000
"""Characters of one completion or prompt on the page; the rest is counted."""
BUDGET = 600_000
"""Characters of all samples on the page, about."""

# What would steer a reader's screen or hide on it. The two joiners stay: scripts and emoji need
# them, and they move nothing.
HIDDEN = regex.compile(r"[[\p{C}\p{Zl}\p{Zp}]--[\n\u200c\u200d]]", regex.V1)
_OUT_OF_PLACE = regex.compile(f"[<>&]|{HIDDEN.pattern}", regex.V1)


class Explorer(NamedTuple):
    """What the page's script reads, and what of the samples is left out.

    Attributes:
        data: Plain values.
        shown: Samples on the page.
        measured: Samples that the runs have.
        cut: Texts that are longer than `LONGEST`.
    """

    data: dict[str, Any]
    shown: int
    measured: int
    cut: int

    @property
    def sentence(self) -> str:
        """How much of the samples the page holds."""
        if self.measured == 0:
            return "No samples were kept beside the results."
        if self.shown == self.measured:
            text = f"All {self.measured:,} samples of these runs are on this page"
        else:
            text = (
                f"{self.shown:,} of {self.measured:,} samples are on this page: the same first "
                "prompts of every run and mode, not chosen by what was written"
            )
        if self.cut:
            text += f"; {self.cut:,} longer than {LONGEST:,} characters are cut there"
        return f"{text}. The whole text is in each run's eval/samples.jsonl."


class _Texts:
    """Every distinct text once, by number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.size = 0

    def number(self, text: str) -> int:
        text = text[:LONGEST]
        if text not in self.numbers:
            self.numbers[text] = len(self.numbers)
            self.size += len(text)
        return self.numbers[text]


# One kind of prompts of one run: prompt id -> mode -> sample.
_PromptSamples = Mapping[str, Mapping[str, Record]]


def explore(comparison: Comparison, budget: int = BUDGET) -> Explorer:
    """Collect what the interactive parts show.

    Args:
        comparison: The runs.
        budget: Characters of samples to stop at; every kind of prompts keeps its first one.
    """
    texts = _Texts()
    asked = {run.name: _samples_by_prompt(run.samples) for run in comparison.runs}
    most = _prompts_that_fit(asked.values(), budget)
    runs = []
    shown = 0
    for run in comparison.runs:
        kinds = []
        for kind, prompts in asked[run.name].items():
            kept = dict(list(prompts.items())[:most])
            shown += sum(len(modes) for modes in kept.values())
            kinds.append(_kind(kind, kept, list(run.cells), texts))
        scales, start = [], 0
        if isinstance(comparison, SingleBehaviorComparison):
            chosen = comparison.deployment.get(run.name)
            deploy = None if chosen is None else chosen.scale
            scales = _scales(run, comparison.runs, deploy)
            start = _start(scales, deploy)
        runs.append(
            {
                "name": run.name,
                "seed": run.seed,
                "kinds": kinds,
                "scales": scales,
                **({} if run.judged_on == PREFIX else {"judged_on": run.judged_on}),
                "start": start,
            }
        )
    routed = [index for index, run in enumerate(comparison.runs) if run.role == "routed"]
    data = {
        "behavior": comparison.behavior,
        "first": routed[0] if routed else 0,
        "texts": list(texts.numbers),
        "runs": runs,
    }
    samples = [row for run in comparison.runs for row in run.samples]
    cut = sum(len(row["completion"]) > LONGEST for row in samples)
    return Explorer(data, shown, len(samples), cut)


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element whatever texts are in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _OUT_OF_PLACE.sub(_escaped, text)


def _escaped(found: regex.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04x}" if code < 0x10000 else json.dumps(found[0])[1:-1]


def _samples_by_prompt(samples: Sequence[Record]) -> dict[str, dict[str, dict[str, Record]]]:
    """Kind of prompts -> prompt id -> mode -> sample, in the order of the file."""
    asked: dict[str, dict[str, dict[str, Record]]] = {}
    for row in samples:
        label = f" of {row['label']}" if "label" in row else ""
        prompts = asked.setdefault(f"{row['prompts']}{label}", {})
        prompts.setdefault(row["prompt_id"], {})[row["mode"]] = row
    return asked


def _prompts_that_fit(every: Iterable[Mapping[str, _PromptSamples]], budget: int) -> int:
    """How many prompts of every kind fit; the same number everywhere, at least one."""
    lists = [list(prompts.values()) for asked in every for prompts in asked.values()]
    longest = max((len(prompts) for prompts in lists), default=0)
    trial = _Texts()
    for number in range(longest):
        for prompts in lists:
            for row in prompts[number].values() if number < len(prompts) else ():
                trial.number(row["completion"])
        if trial.size > budget:
            return max(1, number)
    return longest


def _kind(
    kind: str, prompts: _PromptSamples, modes: Sequence[str], texts: _Texts
) -> dict[str, Any]:
    there = {mode for samples in prompts.values() for mode in samples}
    ordered = [mode for mode in modes if mode in there]
    ordered += sorted(there - set(ordered))
    first = {prompt: next(iter(samples.values())) for prompt, samples in prompts.items()}
    return {
        "kind": kind,
        "prompts": [[prompt, texts.number(row["prompt"])] for prompt, row in first.items()],
        "modes": {
            mode: [_sample(samples.get(mode), texts) for samples in prompts.values()]
            for mode in ordered
        },
    }


def _sample(row: Record | None, texts: _Texts) -> list[Any] | None:
    """Number of the text, score, whether it shows the behavior, right answer, whole length."""
    if row is None:
        return None
    written = row["completion"]
    score = None if row.get("score") is None else round(row["score"], 3)
    return [texts.number(written), score, row.get("shows"), row.get("correct"), len(written)]


def _scales(
    run: RunResults, runs: Sequence[RunResults], deploy: float | None
) -> list[dict[str, Any]]:
    """The measured scales of `bad`, ascending, each with its numbers."""
    adapters = adapter_names(run.config)
    if "bad" not in adapters or len(adapters) < 2:
        return []
    points = scale_curve(run, ["bad"], gain_reference(run, runs))
    return [
        {
            "scale": point.scale,
            "mode": point.mode,
            "note": _note(point, deploy),
            "rates": {
                kind: _finite_or_null(rate._asdict())
                for kind, rate in run.cells[point.mode].rates.items()
            },
            "losses": {
                name: _finite_or_null({"mean": loss.mean, "lower": loss.lower, "upper": loss.upper})
                | {"n": loss.n}
                for name, loss in run.cells[point.mode].loss.items()
            },
            "gain": None if point.gain is None else _finite_or_null(point.gain._asdict()),
        }
        for point in points
    ]


def _finite_or_null(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers with null for those that are not finite, as strict JSON needs it."""
    return {
        name: None if isinstance(number, float) and not math.isfinite(number) else number
        for name, number in numbers.items()
    }


def _note(point: Point, deploy: float | None) -> str:
    name = {"bad_ablated": "bad_ablated", "full": "full, as trained"}.get(point.mode, "")
    chosen = "the scale to deploy" if point.scale == deploy else ""
    return " · ".join(part for part in (name, chosen) if part)


def _start(scales: Sequence[Mapping[str, Any]], deploy: float | None) -> int:
    """Where the slider begins: at the scale to deploy, else at the first."""
    return next((at for at, point in enumerate(scales) if point["scale"] == deploy), 0)
