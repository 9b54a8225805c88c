"""What is kept of every completion and of every held-out example, one JSON line each.

Rates and losses can be computed again from these lines; `results.json` holds nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gradroute.data.behaviors import Behavior
from gradroute.evaluate.generation import Completion, Prompt
from gradroute.evaluate.losses import ExampleLosses


def sample_lines(
    completions: Mapping[str, Sequence[Completion]], prompts: Sequence[Prompt], behavior: Behavior
) -> list[dict[str, Any]]:
    """One line per mode and prompt: the completion, its score, and whether it shows the behaviour.

    `score` and `shows` are null where the completion is too short to judge.
    """
    return [
        {
            "mode": mode,
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "completion": completion.text,
            "tokens": completion.tokens,
            "ended": completion.ended,
            "score": behavior.scored(completion.text, prompt.text),
            "shows": behavior.shows(completion.text, prompt.text),
        }
        for mode, written in completions.items()
        for prompt, completion in zip(prompts, written, strict=True)
    ]


def loss_lines(
    losses: Mapping[str, ExampleLosses], dataset: str, ids: Sequence[str]
) -> list[dict[str, Any]]:
    """One line per mode and example: summed loss in nats (`nll`) and number of target tokens."""
    return [
        {"mode": mode, "dataset": dataset, "id": name, "nll": total, "tokens": count}
        for mode, (sums, counts) in losses.items()
        for name, total, count in zip(ids, sums, counts, strict=True)
    ]
