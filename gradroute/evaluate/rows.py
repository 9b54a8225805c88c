"""Completions and measurements as JSON lines per example and as result rows for reports.

    metric           dataset            value
    behavior_rate    kind of prompts    share of completions that show the behavior, Wilson
    behavior_score   kind of prompts    mean score of the completions long enough to judge
    too_short        kind of prompts    number of completions too short to judge
    accuracy         kind of prompts    share of right answers, Wilson; where there are such answers
    held_out_loss    normal, behavior   nats per target token, interval and std over examples
    update_cosine    a module's name    cosine of the updates of `good` and `bad`
    random_cosine    modules            mean absolute cosine of random updates, range of draws

Kinds of prompts are `prefix` (they invite the behavior), `plain`, `held_out_bad`, `bos` (empty),
those of the elicitation grid (`elicit_...`), and `file:<filename>`. Every rate comes with its n; a
rate without one says nothing. Where a run has several behaviors, a row on one of them has its
label; all else has the label `all`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from peft import PeftModel

from gradroute.data.behaviors import Behavior
from gradroute.errors import DataError
from gradroute.evaluate.generation import Completion, Prompt
from gradroute.evaluate.geometry import adapter_factors, random_cosines, update_cosines
from gradroute.evaluate.losses import ExampleLosses
from gradroute.runs.results import Result
from gradroute.system.statistics import ratio_mean, wilson
from gradroute.system.terminal import say

RANDOM_DRAWS = 5
RANDOM_SEED = 0


def behavior_rows(
    samples: Iterable[Mapping[str, Any]], *, run: str, step: int, seed: int
) -> list[Result]:
    """Behavior rates, scores and accuracies of every mode and kind of prompts that has samples.

    A completion too short to judge counts as not showing the behavior in the rate, is left out
    of the mean score, and is counted.

    Args:
        samples: The lines of `sample_lines`.
        run: Name of the run.
        step: Of the checkpoint.
        seed: Of the run.
    """
    cells: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for sample in samples:
        key = (sample["mode"], sample["prompts"], sample.get("label", "all"))
        cells.setdefault(key, []).append(sample)
    return [
        Result(run, step, mode, kind, label, metric, value, n, lower, upper, seed=seed)
        for (mode, kind, label), cell in cells.items()
        for metric, value, n, lower, upper in _behavior_numbers(cell)
    ]


def _behavior_numbers(
    cell: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, float | None, int, float | None, float | None]]:
    """Metric, value, n, lower and upper."""
    n = len(cell)
    scores = [sample["score"] for sample in cell if sample["score"] is not None]
    shown = sum(sample["shows"] is True for sample in cell)
    lower, upper = wilson(shown, n)
    yield "behavior_rate", shown / n, n, lower, upper
    yield "behavior_score", sum(scores) / len(scores) if scores else None, len(scores), None, None
    yield "too_short", float(n - len(scores)), n, None, None
    if "correct" in cell[0]:
        right = sum(sample["correct"] for sample in cell)
        lower, upper = wilson(right, n)
        yield "accuracy", right / n, n, lower, upper


def loss_rows(
    losses: Mapping[str, ExampleLosses],
    dataset: str,
    *,
    run: str,
    step: int,
    seed: int,
    label: str = "all",
) -> list[Result]:
    """Held-out loss of each mode: mean over target tokens, interval and std over examples.

    Args:
        losses: Per mode the losses of the same examples.
        dataset: `normal` or `behavior`.
        run: Name of the run.
        step: Of the checkpoint.
        seed: Of the run.
        label: That of the behavior where the run has several, else `all`.
    """
    rows = []
    for mode, (sums, counts) in losses.items():
        if counts:
            mean, lower, upper, std = ratio_mean(sums, counts)
            metric, n = "held_out_loss", len(counts)
            rows.append(
                Result(run, step, mode, dataset, label, metric, mean, n, lower, upper, std, seed)
            )
    return rows


def geometry_rows(model: PeftModel, *, run: str, step: int, seed: int) -> list[Result]:
    """Cosines of the updates of `good` and `bad` by module, and those of random updates.

    A model without both adapters has nothing to compare and gives no row. Where an update is zero
    there is no cosine: the value is None.
    """
    if not {"good", "bad"} <= set(model.peft_config):
        return []
    good, bad = adapter_factors(model, "good"), adapter_factors(model, "bad")
    rows = []
    for module, cosine in update_cosines(good, bad).items():
        value = None if math.isnan(cosine) else cosine
        rows.append(Result(run, step, "full", module, "all", "update_cosine", value, 1, seed=seed))
    mean, lower, upper, draws = random_cosines(good, bad, draws=RANDOM_DRAWS, seed=RANDOM_SEED)
    metric = "random_cosine"
    rows.append(
        Result(run, step, "full", "modules", "all", metric, mean, draws, lower, upper, seed=seed)
    )
    return rows


def sample_lines(
    completions: Mapping[str, Sequence[Completion]],
    prompts: Sequence[Prompt],
    kind: str,
    behavior: Behavior,
    label: str = "all",
) -> list[dict[str, Any]]:
    """One line per mode and prompt: the completion, its score, and whether it shows the behavior.

    `score` and `shows` are null where the completion is too short to judge. `answer` is there where
    what is scored is not the whole completion; null where that has no answer, which is too short to
    judge too. `correct` is there for a behavior on questions that have one right answer.

    Args:
        completions: Per mode the completions, in the order of the prompts.
        prompts: What was completed.
        kind: What kind of prompts they are, such as `prefix`.
        behavior: Scores each completion, once.
        label: That of the behavior where the run has several, to be noted in every line; `all`
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

    The `label` of a behavior is noted where the run has several; `all` is not.
    """
    return [
        {"mode": mode, "dataset": dataset, **_of(label), "id": name, "nll": total, "tokens": count}
        for mode, (sums, counts) in losses.items()
        for name, total, count in zip(ids, sums, counts, strict=True)
    ]


def _of(label: str) -> dict[str, str]:
    return {} if label == "all" else {"label": label}
