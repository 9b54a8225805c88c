"""The benchmark for GPUs, tried on the CPU: every way does a step; without CUDA, none."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("gpu", None)
    import gpu

    return gpu


def test_without_cuda_it_says_so_in_one_line_and_ends_well(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == "bench-gpu: there is no CUDA here, so nothing is measured.\n"


def test_every_way_does_a_step_and_the_table_has_its_ratios(gpu):
    import shapes

    shape = shapes.shape("tiny-4x8")
    base = shapes.base(shape.size).bfloat16()
    found = gpu.compare("tiny", base, shape, torch.device("cpu"), rounds=1, seed=0, compiled=False)
    assert set(found["variants"]) == {"floor", "plain", "two", "ours", "ours bf16"}
    assert all(row["median"] > 0 for row in found["variants"].values())
    assert found["waits_in_a_step"] is None and found["peak_gib"] == {}
    assert base.dtype == torch.bfloat16
