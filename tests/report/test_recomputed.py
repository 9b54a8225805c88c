"""What a real run's results say, computed again from its single outcomes."""

import json
import math
from collections import defaultdict
from pathlib import Path

import pytest

from gradroute.config.run_config import find_config, load_config
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.evaluate.request import EvaluationRequest
from gradroute.report.judge.comparison import single_behavior_comparison
from gradroute.report.results.reading import read_runs
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder

TINY = (
    "train.max_steps=3",
    "train.warmup_steps=0",
    "train.batch_size=4",
    "data.train_examples=60",
    "data.max_length=48",
    "adapters.good.rank=4",
    "adapters.bad.rank=4",
    "evaluate.prompts=6",
    "evaluate.bos_samples=7",
    "evaluate.max_new_tokens=12",
    "evaluate.held_out=5",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("runs")
    config = load_config(find_config("caps"), TINY)
    folder = train_run(config, root, if_exists="fail", bar=False)
    evaluate_run(folder, EvaluationRequest(prompts=("prefix", "bos"), scales=("bad=0,0.5,1",)))
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rates_and_losses_computed_again_equal_the_results(run: RunFolder) -> None:
    shown: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for line in lines(run.samples):
        shown[line["mode"], line["prompts"]].append(line["shows"] is True)
    losses: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for line in lines(run.losses):
        losses[line["mode"], line["dataset"]].append((line["nll"], line["tokens"]))
    rates, means = set(), set()
    for row in json.loads(run.results.read_text())["results"]:
        cell = (row["mode"], row["dataset"])
        if row["metric"] == "behavior_rate":
            assert (row["value"], row["n"]) == (
                sum(shown[cell]) / len(shown[cell]),
                len(shown[cell]),
            )
            rates.add(cell)
        if row["metric"] == "held_out_loss":
            mean = math.fsum(nll for nll, _ in losses[cell]) / sum(n for _, n in losses[cell])
            assert row["value"] == pytest.approx(mean, rel=1e-12)
            assert row["n"] == len(losses[cell])
            means.add(cell)
    assert rates == set(shown) and means == set(losses)
    assert {kind for _, kind in rates} == {"prefix", "bos"}
    assert len(rates) == len(means) == 2 * 6  # standard modes and one scale of two kinds each


def test_a_real_run_is_compared(run: RunFolder) -> None:
    found = single_behavior_comparison(read_runs([run]))
    (one,) = found.runs
    assert one.rate("full", "bos") is not None
    assert one.metrics and one.manifest["labels"]["labeled_bad"] > 0
    assert found.deployment[one.name].measured == 3
    assert found.groups[0].precision is not None
