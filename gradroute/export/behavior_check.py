"""The behavior evaluation, repeated on the exported files: same prompts, same noise."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gradroute.config.sections import EvaluateConfig
from gradroute.data.behaviors import Behavior
from gradroute.evaluate.generation import Completion, Prompt
from gradroute.evaluate.request import (
    drawn_by_rows,
    prompts_of,
    requested_prompts,
    row_label,
    with_label,
)
from gradroute.evaluate.rows import sample_lines
from gradroute.export.checks import Check
from gradroute.prepare import Prepared
from gradroute.system.statistics import wilson

Samples = Mapping[str, Sequence[Mapping[str, Any]]]
"""Name of a rate -> the lines that it counts."""


class PromptSet(NamedTuple):
    """Prompts that one rate of a run is measured on.

    Attributes:
        rate: Name of the rate.
        kind: Of the prompts.
        behavior: What is looked for in their completions.
        prompts: The prompts, none where there are none of the kind.
    """

    rate: str
    kind: str
    behavior: Behavior
    prompts: list[Prompt]


def prompt_sets(
    prepared: Prepared, settings: EvaluateConfig, behavior: str | Mapping[str, str]
) -> list[PromptSet]:
    """The prompts that a run is evaluated on, of every behavior.

    Args:
        prepared: The data of the run.
        settings: Of its evaluation.
        behavior: `behavior` of its config.
    """
    found = []
    for label, kind, _ in requested_prompts(prepared.behaviors, (), drawn_by_rows(prepared)):
        rate = with_label(kind, row_label(behavior, label))
        prompts = prompts_of(prepared, settings, kind, label)
        found.append(PromptSet(rate, kind, prepared.behaviors[label], prompts))
    return found


def sample_prompts(
    sets: Sequence[PromptSet], complete: Callable[[list[Prompt]], list[Completion]]
) -> Samples:
    """Completions of prompts, judged.

    Args:
        sets: The prompts.
        complete: Completes prompts.

    Raises:
        DataError: A detector fails.
    """
    found = {}
    for rate, kind, behavior, prompts in sets:
        written = complete(prompts) if prompts else []
        found[rate] = sample_lines({"": written}, prompts, kind, behavior)
    return found


def behavior_check(expected: Samples, found: Samples, mode: str) -> Check:
    """Whether the exported model shows the behavior as often as the ablated one.

    Its rate must lie in the Wilson interval of the other's. In float32 the completions themselves
    are expected to be equal; how many are is part of the answer. A kind of which there are no
    prompts decides nothing, which the text says.

    Args:
        expected: Of the ablated model.
        found: Of the exported one, in the same order.
        mode: The ablation mode.
    """
    passed, told, numbers = True, [], {}
    for name, lines in expected.items():
        own = found[name]
        n = len(lines)
        if not n:
            told.append(f"{name}: not checked, no held-out row shows the behavior")
            numbers[name] = {"n": 0}
            continue
        before, after = (sum(one["shows"] is True for one in ls) for ls in (lines, own))
        lower, upper = wilson(before, n)
        passed &= lower <= after / n <= upper
        equal = sum(a["completion"] == b["completion"] for a, b in zip(lines, own, strict=True))
        told.append(
            f"{name}: exported {after} of {n}, {mode} {before} of {n} "
            f"[{100 * lower:.0f}, {100 * upper:.0f}] %; {equal} of {n} completions equal"
        )
        numbers[name] = {
            "n": n,
            "shown": after,
            f"shown_under_{mode}": before,
            "interval": [lower, upper],
            "equal_completions": equal,
        }
    return Check("behavior", passed, "; ".join(told), {"prompts": numbers})
