"""Inoculation controls: what is trained before is trained once, and stays as it is where frozen."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_runs import TINY

from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.errors import ConfigError, Interrupted
from gradroute.experiments.controls import control_configs, train_control, train_with_controls
from gradroute.experiments.inoculation import inoculation_config
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_json, read_lines, sha256_of

NAMES = ("inoculation_adapter", "inoculation_absorb", "random_adapter")
START = "t-inoculation/checkpoints/step-000002/bad"


def config(*overrides: str) -> RunConfig:
    given = [*TINY, "train.max_steps=6", "run_name=t", f"controls=[{', '.join(NAMES)}]"]
    return load_config(find_config("caps"), [*given, *overrides])


def trained(root: Path) -> list[RunFolder]:
    return train_with_controls(config(), root, if_exists="resume", bar=False, jobs=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    assert [folder.name for folder in trained(root)] == ["t", *(f"t-{name}" for name in NAMES)]
    return root


def weights(root: Path, place: str) -> str:
    return sha256_of(root / place / "adapter_model.safetensors")


def last(name: str, adapter: str) -> str:
    return f"t-{name}/checkpoints/step-000006/{adapter}"


def test_a_frozen_adapter_does_not_change_by_a_bit_and_the_other_one_learns(root: Path):
    assert weights(root, last("inoculation_adapter", "bad")) == weights(root, START)
    assert weights(root, last("random_adapter", "bad")) == weights(root, "t-inoculation/random")
    goods = {weights(root, last(name, "good")) for name in NAMES}
    assert len(goods) == len(NAMES)  # each learned beside another adapter


def test_with_the_table_of_the_run_the_adapter_goes_on_to_learn(root: Path):
    assert weights(root, last("inoculation_absorb", "bad")) != weights(root, START)
    started = load_file(root / START / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in started.items() if "lora_B" in name)


def test_the_run_before_sees_rows_labeled_bad_alone_and_is_trained_once(root: Path):
    folder = RunFolder(root / "t-inoculation")
    examples = read_json(folder.manifest)["examples"]
    assert examples.keys() == {"bad labeled bad"}
    assert (
        examples["bad labeled bad"]
        == read_json(RunFolder(root / "t").manifest)["examples"]["bad labeled bad"]
    )
    assert len(list(read_lines(folder.sessions))) == 1
    assert load_config(folder.config).adapters.keys() == {"bad"}


def test_a_control_that_is_trained_alone_is_the_same(root: Path, tmp_path: Path):
    for name in ("random_adapter", "inoculation_adapter"):
        train_control(config(), name, tmp_path, bar=False)
        for adapter in ("good", "bad"):
            place = last(name, adapter)
            assert weights(tmp_path, place) == weights(root, place)


def test_what_was_interrupted_between_the_runs_goes_on_with_the_same_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from gradroute import run

    whole = run.train_run

    def until(one: RunConfig, *given, **settings) -> RunFolder:
        if one.run_name == "t-inoculation_adapter":
            raise Interrupted("stopped")
        return whole(one, *given, **settings)

    monkeypatch.setattr(run, "train_run", until)
    with pytest.raises(Interrupted):
        trained(tmp_path)
    monkeypatch.setattr(run, "train_run", whole)
    trained(tmp_path)
    for name in NAMES:
        for adapter in ("good", "bad"):
            assert weights(tmp_path, last(name, adapter)) == weights(root, last(name, adapter))


@pytest.mark.parametrize("name", [*NAMES, "inoculation_prompt"])
def test_a_control_that_needs_rows_labeled_bad_says_so_before_anything_is_trained(name: str):
    with pytest.raises(ConfigError, match=f"'{name}' needs examples labeled bad"):
        control_configs(config(f"controls=[{name}]", "data.labeled_fraction=0"))


@pytest.mark.parametrize("name", [*NAMES, "inoculation_prompt", "inoculation_prompt_all"])
def test_several_behaviors_are_refused_by_name(name: str):
    several = load_config(find_config("two_behaviors"), [f"controls=[{name}]"])
    with pytest.raises(ConfigError, match=f"'{name}' is made for one behavior, and this run has"):
        control_configs(several)


def test_adapters_without_a_bad_one_are_refused():
    given = ["routing=none", "adapters={good: {rank: 2}}", "controls=[random_adapter]"]
    with pytest.raises(ConfigError, match="the table none and the adapters good"):
        control_configs(load_config(find_config("caps"), given))


def test_a_behavior_without_an_instruction_names_the_setting_that_gives_one():
    given = ["behavior=keywords:fox", "data.path=x.jsonl", "controls=[inoculation_prompt_all]"]
    with pytest.raises(ConfigError, match=r"'inoculation_prompt_all': .*data\.inoculation_text"):
        control_configs(load_config(find_config("caps"), given))
    told = control_configs(load_config(find_config("caps"), [*given, "data.inoculation_text=Hm."]))
    assert told[0].data.inoculation_text == "Hm."


def test_a_short_run_has_a_run_before_it_of_a_step_at_least():
    one = inoculation_config(config("train.max_steps=1"))
    assert (one.train.max_steps, one.train.warmup_steps) == (1, 0)
