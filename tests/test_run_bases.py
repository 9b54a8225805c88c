"""Runs that start from an adapter: it takes part, is recorded, and may not change."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import TINY, tiny_run

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.run import train_run

RANKS = ("adapters.good.rank=3", "adapters.bad.rank=2")
ONE_STEP = ("train.max_steps=1", "train.save_every=1")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter `good` of a finished run."""
    folder = tiny_run(tmp_path_factory.mktemp("earlier"), "earlier", *RANKS)
    return next(folder.checkpoints.glob("step-*")) / "good"


def config(name: str, *overrides: str):
    return load_config(None, [*TINY, *RANKS, *ONE_STEP, *overrides, f"run_name={name}"])


def train(root: Path, name: str, *overrides: str):
    longer = ["train.max_steps"]
    asked = config(name, *overrides)
    return train_run(asked, root, if_exists="resume", bar=False, overrides=longer)


def first_losses(root: Path, name: str) -> dict[str, float]:
    line = (root / name / "metrics.jsonl").read_text().splitlines()[0]
    return json.loads(line)


def change(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({key: weight * 1.5 for key, weight in load_file(path).items()}, path)


def test_a_run_goes_on_from_the_start_of_its_adapter_and_refuses_another(
    earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    place = Path(shutil.copytree(earlier, tmp_path / "good"))
    start = f"adapters.good.start={place}"
    folder = train(tmp_path, "run", start)
    told = capsys.readouterr().err
    assert "run: base embedded: 2.16M parameters, float32 on cpu; adapters on 14 linear" in told
    train(tmp_path, "fresh")
    assert first_losses(tmp_path, "run")["loss"] != first_losses(tmp_path, "fresh")["loss"]
    manifest = json.loads(folder.manifest.read_text())
    assert manifest["starts"].startswith("good sha256 ")
    change(place)
    with pytest.raises(ConfigError, match=r"identity\.starts"):
        train(tmp_path, "run", start, "train.max_steps=2")
    # What is trained already does not need it any more.
    shutil.rmtree(place)
    trained = config("run", start)
    restore(trained, finished_checkpoint(folder, trained.train.max_steps))


def test_an_adapter_merged_into_the_base_is_part_of_what_the_run_stands_on(
    earlier: Path, tmp_path: Path
):
    place = Path(shutil.copytree(earlier, tmp_path / "adapter"))
    start = f"start_adapter={place}"
    folder = train(tmp_path, "run", start)
    assert ", adapter sha256 " in json.loads(folder.manifest.read_text())["base"]
    change(place)
    with pytest.raises(ConfigError, match=r"identity\.base"):
        train(tmp_path, "run", start, "train.max_steps=2")
