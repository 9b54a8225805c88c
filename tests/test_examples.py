"""The example programs run, in small, and what they say comes out."""

import json
from pathlib import Path

import pytest

from examples import export_and_reload, own_data, own_harness, pick_scale, several_behaviors
from gradroute.runs.folder import RunFolder

SMALL = (
    "train.batch_size=4",
    "adapters.good.rank=2",
    "data.max_length=32",
    "evaluate.prompts=4",
    "evaluate.max_new_tokens=5",
    "evaluate.held_out=6",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("own_data")
    own_data.main(place, 3, "adapters.bad.rank=2", *SMALL)
    return place


def test_own_data_ends_in_two_measured_runs_and_a_report(folder: Path):
    for name in ("mine", "mine-filter"):
        assert RunFolder(folder / "runs" / name).results.is_file()
    assert "filter" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_harness_of_ones_own_sees_every_mode(folder: Path):
    found = own_harness.main(folder / "runs" / "mine")
    assert list(found) == ["full", "bad_ablated", "good_ablated", "good_x2", "base"]
    assert all(0 <= rate <= 1 for row in found.values() for rate in row.values())
    assert own_harness.capitals("Ab1 C") == pytest.approx(2 / 3)


def test_the_scale_is_picked_from_a_measured_curve(folder: Path):
    curve, choice = pick_scale.main(folder / "runs" / "mine")
    assert [point.scale for point in curve] == [0, 0.25, 0.5, 0.75, 1]
    assert choice is not None and choice.measured == 5


# Plain PEFT asks a model by a name that newer releases of transformers call deprecated.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_what_is_exported_reloads_in_plain_peft(folder: Path, tmp_path: Path):
    out = tmp_path / "shipped"
    text = export_and_reload.main(folder / "runs" / "mine", out, evaluate=False)
    assert text.startswith("One day") and len(text) > len("One day")
    assert json.loads((out / "proof.json").read_text(encoding="utf-8"))
    assert not list(out.rglob("*bad*"))


def test_two_behaviors_are_measured_without_each_adapter(tmp_path: Path, capsys):
    small = [f"adapters.{name}.rank=2" for name in ("caps", "signature")]
    run = several_behaviors.main(tmp_path, 2, *small, *SMALL, "data.train_examples=80")
    assert run.results.is_file()
    printed = capsys.readouterr().out
    assert "caps" in printed and "signature" in printed
