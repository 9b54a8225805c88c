"""What is kept of every completion and of every held-out example, one JSON line each.

Rates and losses can be computed again from these lines; `results.json` holds nothing else.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradroute.data.behaviors import Behavior
from gradroute.errors import DataError
from gradroute.evaluate.generation import Completion, Prompt
from gradroute.evaluate.losses import ExampleLosses
from gradroute.system.terminal import say


def sample_lines(
    completions: Mapping[str, Sequence[Completion]],
    prompts: Sequence[Prompt],
    kind: str,
    behavior: Behavior,
    label: str = "all",
) -> list[dict[str, Any]]:
    """One line per mode and prompt: the completion, its score, and whether it shows the behaviour.

    `score` and `shows` are null where the completion is too short to judge. `answer` is there where
    what is scored is not the whole completion; null where that has no answer, which is too short to
    judge too. `correct` is there for a behaviour on questions that have one right answer.

    Args:
        completions: Per mode the completions, in the order of the prompts.
        prompts: What was completed.
        kind: What kind of prompts they are, such as `prefix`.
        behavior: Scores each completion, once.
        label: That of the behaviour where the run has several, to be noted in every line; `all`
            where there is but one.

    Raises:
        DataError: The detector fails; the message names mode and prompt.
    """
    return [
        {
            "mode": mode,
            "prompts": kind,
            **_of(label),
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "completion": completion.text,
            **({} if completion.answer is None else {"answer": completion.answer.text}),
            "tokens": completion.tokens,
            "ended": completion.ended,
            **_judged(completion.scored, prompt, f"{kind} under {mode}", behavior),
        }
        for mode, written in completions.items()
        for prompt, completion in zip(prompts, written, strict=True)
    ]


def _judged(answer: str | None, prompt: Prompt, where: str, behavior: Behavior) -> dict[str, Any]:
    try:
        score = None if answer is None else behavior.scored(answer, prompt.text)
        correct = {}
        if behavior.correct is not None:
            right = answer is not None and behavior.correct(answer, prompt.text)
            correct["correct"] = right
    except DataError as error:
        raise DataError(f"prompt {prompt.id} of {where}: {error}") from error
    return {
        "score": score,
        "shows": None if score is None else score >= behavior.threshold,
    } | correct


def say_unanswered(
    where: str, completions: Iterable[Sequence[Completion]], max_new_tokens: int
) -> None:
    """Say how many completions have no answer to score, if any."""
    every = [one for written in completions for one in written]
    if count := sum(one.scored is None for one in every):
        say(
            f"{where}: {count} of {len(every)} completions have no answer to score: they end in a "
            "thought or before an answer begins, and count as too short to judge. Raise "
            f"evaluate.max_new_tokens ({max_new_tokens} here)."
        )


def loss_lines(
    losses: Mapping[str, ExampleLosses], dataset: str, ids: Sequence[str], label: str = "all"
) -> list[dict[str, Any]]:
    """One line per mode and example: summed loss in nats (`nll`) and number of target tokens.

    The `label` of a behaviour is noted where the run has several; `all` is not.
    """
    return [
        {"mode": mode, "dataset": dataset, **_of(label), "id": name, "nll": total, "tokens": count}
        for mode, (sums, counts) in losses.items()
        for name, total, count in zip(ids, sums, counts, strict=True)
    ]


def _of(label: str) -> dict[str, str]:
    return {} if label == "all" else {"label": label}
