"""Several processes train one run: the same gradients, the same skipped adapters, one of each file.

Ranks are real processes, forked and connected by gloo.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gradroute.system.files import read_lines
from torture.forks import Server, serving
from torture.ranks import ADAPTERS, launch

MIXED = ["bad", "good", "unlabeled", "other", "bad", "unlabeled", "good", "unlabeled"]
STEP = ["train.batch_size=4", "train.gradient_accumulation=2", "train.save_every=0"]
TWENTY = [*STEP, "train.max_steps=20", "train.log_gradients_every=7"]


@pytest.fixture(scope="module")
def server():
    with serving() as one:
        yield one


def run(
    server: Server, function: str, folder: Path, size: int, codes=None, **arguments
) -> list[str]:
    """Call a function of `torture.ranks` on so many ranks; what each has said."""
    children = launch(server, f"torture.ranks:{function}", arguments, folder, size)
    found = [child.wait(120) for child in children]
    said = [child.said for child in children]
    assert found == (codes or [0] * size), said
    return said


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [last] = sorted((folder / "x" / "checkpoints").iterdir())[-1:]
    return {
        f"{name}/{key}": value
        for name in (*ADAPTERS, "optimizer")
        for key, value in load_file(
            last / ("optimizer.safetensors" if name == "optimizer" else name)
            if name == "optimizer"
            else last / name / "adapter_model.safetensors"
        ).items()
    }


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference over the largest number."""
    assert one.keys() == other.keys()
    largest = max(float(value.abs().max()) for value in one.values())
    return max(float((one[key] - other[key]).abs().max()) for key in one) / largest


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    ("overrides", "checkpointing"),
    [
        (["train.loss_mean=token"], False),
        (["train.loss_mean=example", "train.packing=true", "data.max_length=24"], False),
        (["train.batch_size=2", "train.gradient_accumulation=4"], True),
    ],
    ids=["padded", "packed, mean of examples", "checkpointing, small batches"],
)
def test_gradients_on_two_ranks_are_those_of_one_process(
    tmp_path, server, parallel, overrides, checkpointing
):
    """Three adapters of unequal ranks, labels by token; fp32."""
    given = {
        "labels": MIXED,
        "overrides": [*STEP, *overrides],
        "dtype": "float32",
        "checkpointing": checkpointing,
    }
    run(server, "gradients", tmp_path / "one", 1, **given)
    run(server, "gradients", tmp_path / "two", 2, **given, parallel=parallel)
    one, two = (load_file(tmp_path / n / "gradients.safetensors") for n in ("one", "two"))
    assert apart(one, two) <= 1e-6
    told = [json.loads((tmp_path / n / "told.json").read_text()) for n in ("one", "two")]
    assert told[1]["missing"] == []
    for name, norms in told[0]["norms"].items():
        assert told[1]["norms"][name] == pytest.approx(norms, rel=1e-5, abs=1e-7)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, server):
    folder = tmp_path_factory.mktemp("alone")
    run(server, "trained", folder, 1, labels=MIXED, overrides=TWENTY)
    return folder


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_twenty_mixed_steps_on_two_ranks_end_where_one_process_ends(
    tmp_path, server, alone, parallel
):
    """In float64: AdamW carries the rounding of fp32 to 1e-4 by itself."""
    run(server, "trained", tmp_path, 2, labels=MIXED, overrides=TWENTY, parallel=parallel)
    assert apart(weights(alone), weights(tmp_path)) <= 1e-12
    lines = [read_lines(folder / "x" / "metrics.jsonl") for folder in (alone, tmp_path)]
    for one, two in zip(*lines, strict=True):
        assert (one["examples"], one["tokens"]) == (two["examples"], two["tokens"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-12)
        for key in ("loss_per_label", "gradient_norm", "gradient_norm_per_label"):
            wanted = flat(one.get(key, {}))
            assert flat(two.get(key, {})) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def flat(table, path=""):
    if not isinstance(table, dict):
        return {path: table}
    return {key: n for k, v in table.items() for key, n in flat(v, f"{path}/{k}").items()}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_rank_with_only_good_examples_and_one_with_only_bad_ones_agree(
    tmp_path, server, parallel
):
    """Each rank has a gradient for an adapter that the other's examples do not reach."""
    given = {"labels": ["good", "good", "bad", "bad"], "overrides": ["train.batch_size=4"]}
    run(server, "gradients", tmp_path / "one", 1, **given)
    run(server, "gradients", tmp_path / "two", 2, **given, parallel=parallel)
    one, two = (load_file(tmp_path / n / "gradients.safetensors") for n in ("one", "two"))
    assert apart(one, two) <= 1e-12
    assert json.loads((tmp_path / "two" / "told.json").read_text())["missing"] == []


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_an_adapter_that_no_example_of_a_step_reaches_stays_bit_identical(
    tmp_path, server, parallel
):
    """`good` examples alone: neither `bad` nor `extra` has a moment or a step count afterwards."""
    few = [*STEP, "train.max_steps=3"]
    run(server, "trained", tmp_path / "a", 2, labels=["good"] * 8, overrides=few, parallel=parallel)
    run(
        server,
        "trained",
        tmp_path / "b",
        1,
        labels=["good"] * 8,
        overrides=[*few, "train.max_steps=1"],
    )
    after, before = weights(tmp_path / "a"), weights(tmp_path / "b")
    still = [key for key in after if key.startswith(("bad/", "extra/"))]
    assert still and all(torch.equal(after[key], before[key]) for key in still)
    moments = [key for key in after if key.startswith("optimizer/")]
    assert moments and all(".good." in key for key in moments)
    assert not all(torch.equal(after[k], before[k]) for k in after if k.startswith("good/"))


def test_a_rank_that_runs_out_of_memory_makes_all_take_fewer_examples_at_a_time(
    tmp_path, server, alone
):
    """Rank 1 does its part of the step again by itself; both take half from the next step on."""
    given = {"labels": MIXED, "overrides": TWENTY}
    said = run(server, "starved", tmp_path, 2, rank=1, most=2, **given)
    assert "step 1: memory ran out with 4 examples at a time; it goes on with 2" in said[0]
    [event] = read_lines(tmp_path / "x" / "sessions.jsonl")
    assert event["micro_batch"] == [4, 2]
    state = json.loads((tmp_path / "x/checkpoints/step-000020/state.json").read_text())
    assert state["micro_batch"] == 2
    assert apart(weights(alone), weights(tmp_path)) <= 1e-12


def test_ranks_of_a_sharded_model_stop_together_where_memory_runs_out(tmp_path, server):
    """Its layers are gathered by all ranks at once, so that none can do its part again."""
    given = {"labels": MIXED, "overrides": TWENTY, "parallel": "fsdp2"}
    said = run(server, "starved", tmp_path, 2, codes=[4, 4], rank=1, most=2, **given)
    assert "rank 1: error: x, step 1: memory ran out on rank 1, with 4 examples" in said[1]
    assert "error: another process of this run has ended" in said[0]
    assert not (tmp_path / "x" / "checkpoints").exists()


def test_one_process_may_hold_its_model_as_a_sharded_one(tmp_path, server, alone):
    run(server, "trained", tmp_path, 1, labels=MIXED, overrides=TWENTY, parallel="fsdp2")
    assert apart(weights(alone), weights(tmp_path)) <= 1e-12


def test_a_step_sends_the_gradients_of_the_adapters_it_reaches_and_a_few_numbers(tmp_path, server):
    given = {"labels": MIXED, "overrides": [*STEP, "train.log_gradients_every=0"]}
    run(server, "gradients", tmp_path, 2, **given)
    gradients = load_file(tmp_path / "gradients.safetensors")
    told = json.loads((tmp_path / "told.json").read_text())
    size = sum(tensor.numel() * tensor.element_size() for tensor in gradients.values())
    labels = 4
    assert told["sent"] == size * (1 + labels)  # `gradients` measures every label before


def test_a_sharded_base_in_bfloat16_with_adapters_in_float32_gives_the_same_bits(tmp_path, server):
    given = {"labels": MIXED, "overrides": STEP, "dtype": "bfloat16"}
    run(server, "gradients", tmp_path / "whole", 1, **given)
    run(server, "gradients", tmp_path / "sharded", 1, **given, parallel="fsdp2")
    whole, sharded = (
        load_file(tmp_path / name / "gradients.safetensors") for name in ("whole", "sharded")
    )
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[key], sharded[key]) for key in whole)
    assert {tensor.dtype for tensor in whole.values()} == {torch.float32}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_and_its_example_is_named_once(
    tmp_path, server, parallel
):
    given = {"labels": MIXED, "overrides": TWENTY, "parallel": parallel}
    said = run(server, "poisoned", tmp_path, 2, codes=[5, 5], rank=1, **given)
    assert re.search(
        r"error: x, step 1: the loss is nan, not finite for 1 examples? \(r\d\)", said[0]
    )
    assert said[1] == ""
    assert not (tmp_path / "x" / "checkpoints").exists()
