"""The recipes that ship load, and are found by name."""

from pathlib import Path

import pytest

from gradroute.config.run_config import find_config, load_config, recipe_names
from gradroute.errors import ConfigError


def test_each_shipped_recipe_loads() -> None:
    behaviors = ["backdoor", "caps", "dialect", "signature", "wrong_answers"]
    behaviors += ["off_by_one", "wrong_objects", "wrong_pronouns"]
    assert recipe_names() == sorted([*behaviors, "gemma3_1b_caps", "own", "two_behaviors"])
    for name in behaviors:
        assert load_config(find_config(name)).behavior == name
    assert load_config(find_config("caps")).routing == "anchored"
    two = load_config(find_config("two_behaviors"))
    assert two.behaviors == {"caps": "caps", "signature": "signature"}
    given = ["model=./model", "data.path=rows.jsonl"]
    assert load_config(find_config("own"), given).routing == "anchored"
    config = load_config(find_config("gemma3_1b_caps"))
    assert (config.data.path, config.data.columns) == (
        "SimpleStories/SimpleStories",
        {"text": "story"},
    )
    assert config.model == "google/gemma-3-1b-it"
    assert (config.adapters["bad"].rank, config.adapters["bad"].alpha) == (32, 64)
    assert (config.train.max_steps, config.train.batch_size) == (1000, 1)
    assert (config.train.warmup_steps, config.train.learning_rate) == (100, 1e-4)
    assert (config.layers, config.routing, config.train.loss_mean) == (
        "last-half",
        "absorb",
        "example",
    )


def test_a_path_comes_before_a_recipe_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("caps").parent.name == "recipes"
    (tmp_path / "caps").mkdir()
    assert find_config("caps").parent.name == "recipes"
    (tmp_path / "caps.yaml").write_text("seed: 1")
    assert find_config("caps.yaml") == Path("caps.yaml")


def test_an_unknown_recipe_lists_those_that_are_there() -> None:
    with pytest.raises(
        ConfigError,
        match=r"'capz' .* recipes are backdoor, caps, dialect, .*, wrong_pronouns\.",
    ):
        find_config("capz")
