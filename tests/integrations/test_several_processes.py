"""Routed trainers on two processes: the same steps as one, and the same skipped adapters.

Ranks are real processes, forked and connected by gloo.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError
from gradroute.integrations.processes import ranks_of
from torture.forks import Server
from torture.ranks import launch

MIXED = ["bad", "unlabeled", "good", "odd", None, "good"]
SAVING = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "weight_decay": 0.1}
HALF = {"per_device_train_batch_size": 3}
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        with Server("trainer_ranks") as one:
            yield one


def run(
    server: Server, folder: Path, size: int, kind: str, code: int = 0, **arguments: Any
) -> list[str]:
    """Train on so many ranks; what each has said."""
    given = {"kind": kind, **arguments}
    children = launch(server, "trainer_ranks:trained", given, folder, size)
    found = [child.wait(120) for child in children]
    said = [child.said for child in children]
    assert found == [code] * size, said
    return said


def state(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(folder / f"state-{rank}.safetensors")


def told(folder: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"told-{rank}.json").read_text())


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) for key in one)


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        ({}, HALF),
        (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3},
        ),
    ],
    ids=["batch", "accumulated"],
)
def test_mixed_steps_on_two_processes_end_where_one_ends(tmp_path, server, options, shared):
    given = {"max_steps": 4, "weight_decay": 0.1, **options}
    run(server, tmp_path / "one", 1, "plain", labels=MIXED, options=given)
    run(server, tmp_path / "two", 2, "plain", labels=MIXED, options=given | shared)
    assert apart(state(tmp_path / "one"), state(tmp_path / "two")) < 1e-10
    assert apart(state(tmp_path / "two"), state(tmp_path / "two", 1)) == 0.0
    one, two = (load_config(tmp_path / n / "trained" / "config.yaml") for n in ("one", "two"))
    assert one.train.step_examples == two.train.step_examples == 6


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_trl_on_two_processes_learns_what_it_learns_on_one(tmp_path, server, kind):
    """In float32, which AdamW's division makes large."""
    given = {"optim": "sgd", "max_steps": 2}
    run(server, tmp_path / "one", 1, kind, labels=MIXED, options=given)
    run(server, tmp_path / "two", 2, kind, labels=MIXED, options=given | HALF)
    assert apart(state(tmp_path / "one"), state(tmp_path / "two")) < 1e-6
    assert apart(state(tmp_path / "two"), state(tmp_path / "two", 1)) == 0.0


def test_an_adapter_that_no_process_reaches_has_no_moment_and_one_that_a_process_reaches_has(
    tmp_path, server
):
    run(server, tmp_path / "good", 2, "plain", labels=["good"] * 6, options=HALF)
    run(server, tmp_path / "one", 2, "plain", labels=["good"] * 5 + ["bad"], options=HALF)
    without, with_one = state(tmp_path / "good"), state(tmp_path / "one")
    assert "good/0/exp_avg" in without
    assert not [key for key in without if key.startswith("bad/") and key.count("/") > 1]
    assert "bad/0/exp_avg" in with_one
    assert apart(with_one, state(tmp_path / "one", 1)) == 0.0


@pytest.mark.parametrize("kind", ["plain", "grpo"])
def test_a_training_on_two_processes_goes_on_bit_for_bit(tmp_path, server, kind):
    given = {"labels": MIXED, "options": {**SAVING, **HALF}}
    run(server, tmp_path / "whole", 2, kind, **given)
    start = tmp_path / "whole" / "trained" / "checkpoint-3"
    run(server, tmp_path / "again", 2, kind, **given, start=str(start))
    assert apart(state(tmp_path / "whole"), state(tmp_path / "again")) == 0.0
    assert apart(state(tmp_path / "whole"), state(tmp_path / "whole", 1)) == 0.0
    if kind == "grpo":
        lines = [line for line in told(tmp_path / "whole")["log"] if "labels/bad" in line]
        shares = [sum(line[key] for key in line if key.startswith("labels/")) for line in lines]
        assert shares == pytest.approx([1.0] * 6)


def test_two_processes_measure_what_one_measures(tmp_path, server):
    """Batch by batch: transformers takes the mean over the tokens of all processes' batches."""
    given, size = {"labels": MIXED, "evaluate": True}, "per_device_eval_batch_size"
    run(server, tmp_path / "one", 1, "plain", **given, options={size: 2})
    run(server, tmp_path / "two", 2, "plain", **given, options={**HALF, size: 1})
    one, two = told(tmp_path / "one")["evaluated"], told(tmp_path / "two")["evaluated"]
    losses = {key: value for key, value in one.items() if "loss" in key}
    assert len(losses) == 11
    assert {key: two[key] for key in losses} == pytest.approx(losses, rel=1e-9)


def test_processes_that_begin_with_other_adapters_are_refused(tmp_path, server):
    given = {"labels": MIXED, "options": HALF, "seeds": [1, 2]}
    said = run(server, tmp_path, 2, "plain", code=2, **given)
    assert "do not have the same adapter weights" in said[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_deepspeed_enabled": True}, "set up for DeepSpeed"),
        ({"is_fsdp_enabled": True}, "set up for FSDP"),
        ({"accelerator": SimpleNamespace(torch_device_mesh=object())}, "set up for a device mesh"),
        ({"args": SimpleNamespace(n_gpu=2)}, "one process sees 2 GPUs.*a process for each GPU"),
    ],
)
def test_a_split_that_passes_the_adapters_by_is_refused(changes, message):
    usual = {
        "is_deepspeed_enabled": False,
        "is_fsdp_enabled": False,
        "accelerator": SimpleNamespace(torch_device_mesh=None),
        "args": SimpleNamespace(n_gpu=1),
    }
    trainer: Any = SimpleNamespace(**usual | changes)
    with pytest.raises(ConfigError, match=message):
        ranks_of(trainer)
