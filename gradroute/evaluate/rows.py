"""From what was generated and measured to result rows, which are what reports read.

    metric           dataset            value
    behavior_rate    prompts            share of completions that show the behaviour, Wilson
    behavior_score   prompts            mean score of the completions long enough to judge
    too_short        prompts            number of completions too short to judge
    held_out_loss    normal, behavior   nats per target token, interval and std over examples
    update_cosine    a module's name    cosine of the updates of `good` and `bad`
    random_cosine    modules            mean absolute cosine of random updates, range of draws

Every rate comes with its n; a rate without one says nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from peft import PeftModel

from gradroute.data.behaviors import Behavior
from gradroute.evaluate.generation import Completion, Prompt
from gradroute.evaluate.geometry import adapter_factors, random_cosines, update_cosines
from gradroute.evaluate.losses import ExampleLosses
from gradroute.results import Result
from gradroute.statistics import ratio_mean, wilson

RANDOM_DRAWS = 5
RANDOM_SEED = 0


def behavior_rows(
    completions: Mapping[str, Sequence[Completion]],
    prompts: Sequence[Prompt],
    behavior: Behavior,
    *,
    run: str,
    step: int,
    seed: int,
) -> list[Result]:
    """Behaviour rates and scores of each mode's completions; a mode without any gives no row.

    A completion too short to judge counts as not showing the behaviour in the rate, is left out
    of the mean score, and is counted.
    """
    return [
        Result(run, step, mode, "prompts", "all", metric, value, n, lower, upper, seed=seed)
        for mode, written in completions.items()
        if written
        for metric, value, n, lower, upper in _behavior_numbers(written, prompts, behavior)
    ]


def _behavior_numbers(
    written: Sequence[Completion], prompts: Sequence[Prompt], behavior: Behavior
) -> Iterator[tuple[str, float | None, int, float | None, float | None]]:
    """Metric, value, n, lower and upper."""
    n = len(written)
    scores = [
        behavior.scored(completion.text, prompt.text)
        for completion, prompt in zip(written, prompts, strict=True)
    ]
    judged = [score for score in scores if score is not None]
    shown = sum(score >= behavior.threshold for score in judged)
    lower, upper = wilson(shown, n)
    yield "behavior_rate", shown / n, n, lower, upper
    mean_score = sum(judged) / len(judged) if judged else None
    yield "behavior_score", mean_score, len(judged), None, None
    yield "too_short", float(n - len(judged)), n, None, None


def loss_rows(
    losses: Mapping[str, ExampleLosses], dataset: str, *, run: str, step: int, seed: int
) -> list[Result]:
    """Held-out loss of each mode: mean over target tokens, interval and std over examples.

    Args:
        losses: Per mode the losses of the same examples.
        dataset: `normal` or `behavior`.
        run: Name of the run.
        step: Of the checkpoint.
        seed: Of the run.
    """
    rows = []
    for mode, (sums, counts) in losses.items():
        if counts:
            mean, lower, upper, std = ratio_mean(sums, counts)
            metric, n = "held_out_loss", len(counts)
            rows.append(
                Result(run, step, mode, dataset, "all", metric, mean, n, lower, upper, std, seed)
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
