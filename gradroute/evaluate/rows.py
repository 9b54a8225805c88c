"""From what was generated and measured to result rows, which are what reports read.

    metric           dataset            value
    behavior_rate    kind of prompts    share of completions that show the behaviour, Wilson
    behavior_score   kind of prompts    mean score of the completions long enough to judge
    too_short        kind of prompts    number of completions too short to judge
    accuracy         kind of prompts    share of right answers, Wilson; where there are such answers
    held_out_loss    normal, behavior   nats per target token, interval and std over examples
    update_cosine    a module's name    cosine of the updates of `good` and `bad`
    random_cosine    modules            mean absolute cosine of random updates, range of draws

Kinds of prompts are `prefix` (they invite the behaviour), `plain`, `bos` (empty), and
`file:<filename>`. Every rate comes with its n; a rate without one says nothing. Where a run has
several behaviours, a row on one of them has its label; all else has the label `all`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from peft import PeftModel

from gradroute.evaluate.geometry import adapter_factors, random_cosines, update_cosines
from gradroute.evaluate.losses import ExampleLosses
from gradroute.runs.results import Result
from gradroute.system.statistics import ratio_mean, wilson

RANDOM_DRAWS = 5
RANDOM_SEED = 0


def behavior_rows(
    samples: Iterable[Mapping[str, Any]], *, run: str, step: int, seed: int
) -> list[Result]:
    """Behaviour rates, scores and accuracies of every mode and kind of prompts that has samples.

    A completion too short to judge counts as not showing the behaviour in the rate, is left out
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
        label: That of the behaviour where the run has several, else `all`.
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
