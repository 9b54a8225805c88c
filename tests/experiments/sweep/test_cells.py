"""From the file of a sweep to its cells: names, settings, and what is refused before any starts."""

import re
from pathlib import Path

import pytest

from gradroute.config.run_config import config_differences, find_config, load_config
from gradroute.errors import ConfigError
from gradroute.experiments.sweep import cells
from gradroute.experiments.sweep.cells import read_sweep


def read(folder: Path, text: str, name: str = "grid.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_sweep(path)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value).replace(f"{folder}/", "")


def test_cells_are_every_combination_with_the_seed_fastest_and_names_from_their_values(tmp_path):
    sweep = read(
        tmp_path,
        "recipe: caps\nset: {train.max_steps: 30}\nseeds: [0, 1]\naxes:\n"
        "  data.labeled_fraction: [0.02, 0.1]\n"
        "  size:\n    small: {adapters.good.rank: 4, adapters.bad.rank: 4}\n"
        "    wide: {adapters.good.rank: 64}\n",
    )
    assert sweep.name == "grid"
    assert [cell.name for cell in sweep.cells] == [
        "labeled_fraction_0.02-small-s0",
        "labeled_fraction_0.02-small-s1",
        "labeled_fraction_0.02-wide-s0",
        "labeled_fraction_0.02-wide-s1",
        "labeled_fraction_0.1-small-s0",
        "labeled_fraction_0.1-small-s1",
        "labeled_fraction_0.1-wide-s0",
        "labeled_fraction_0.1-wide-s1",
    ]
    assert sweep.cells[5].values == {"data.labeled_fraction": "0.1", "size": "small"}


def test_a_cell_is_the_configuration_that_train_would_have(tmp_path):
    sweep = read(
        tmp_path,
        "recipe: caps\nset: {train.max_steps: 30, layers: [2, 4]}\nseeds: [5]\n"
        "controls: [filter, oracle]\naxes: {data.labeled_fraction: [0.02]}\n",
    )
    by_hand = load_config(
        find_config("caps"),
        ["train.max_steps=30", "layers=[2, 4]", "seed=5", "controls=[filter, oracle]",
         "data.labeled_fraction=0.02", "run_name=labeled_fraction_0.02-s5"],
    )  # fmt: skip
    assert config_differences(by_hand, sweep.cells[0].config) == {}


def test_a_list_of_mappings_is_an_axis_of_several_keys(tmp_path):
    sweep = read(
        tmp_path,
        "recipe: caps\naxes:\n  pace:\n    - {train.max_steps: 40, train.learning_rate: 1e-3}\n"
        "    - {train.max_steps: 80, train.learning_rate: 5e-4}\n",
    )
    assert [cell.name for cell in sweep.cells] == ["pace_40_1e-3", "pace_80_5e-4"]
    assert [(cell.config.train.max_steps, cell.config.train.learning_rate)
            for cell in sweep.cells] == [(40, 1e-3), (80, 5e-4)]  # fmt: skip


def test_a_key_that_takes_a_mapping_can_be_an_axis(tmp_path):
    sweep = read(
        tmp_path,
        "recipe: caps\naxes:\n  routing:\n    - anchored\n"
        "    - {good: {good: update, bad: freeze}, bad: {good: freeze, bad: update},"
        " unlabeled: {good: update, bad: update}}\n",
    )
    assert sweep.cells[0].name == "routing_anchored"
    assert re.fullmatch(r"routing_\w+_[0-9a-f]{6}", sweep.cells[1].name)
    assert isinstance(sweep.cells[1].config.routing, dict)


def test_axes_with_one_last_word_are_told_apart_by_more_of_the_key(tmp_path):
    sweep = read(tmp_path, "recipe: caps\naxes: {adapters.good.rank: [2], adapters.bad.rank: [3]}")
    assert sweep.cells[0].name == "good.rank_2-bad.rank_3"


def test_a_name_is_safe_for_a_folder_and_does_not_depend_on_the_other_cells(tmp_path):
    texts = ["'regex:a b'", "'regex:a_b'", f"'keywords:{'x' * 90}'"]
    every = read(tmp_path, f"recipe: caps\naxes: {{behavior: [{', '.join(texts)}]}}\nseeds: [0]")
    names = [cell.name for cell in every.cells]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"behavior_[A-Za-z0-9._-]{1,48}-s0", name) for name in names)
    for text, name in zip(texts, names, strict=True):
        alone = read(tmp_path, f"recipe: caps\naxes: {{behavior: [{text}]}}\nseeds: [0]")
        assert alone.cells[0].name == name


def test_a_name_is_cut_only_where_its_controls_would_have_no_room(tmp_path):
    axes = "{train.learning_rate: [0.005], data.labeled_fraction: [0.1]}"
    grid = f"recipe: caps\nseeds: [0]\naxes: {axes}\n"
    whole = "learning_rate_0.005-labeled_fraction_0.1-s0"
    assert [cell.name for cell in read(tmp_path, grid).cells] == [whole]
    assert [cell.name for cell in read(tmp_path, f"{grid}controls: [filter]\n").cells] == [whole]
    long = f"{grid}controls: [inoculation_prompt_all]\n"
    (cell,) = read(tmp_path, long).cells
    assert re.fullmatch(r"learning_rate_0\.005-labeled_fra-[0-9a-f]{6}-s0", cell.name)
    assert len(f"{cell.name}-inoculation_prompt_all") <= 64


def test_without_axes_and_seeds_there_is_the_recipe_alone(tmp_path):
    (cell,) = read(tmp_path, "recipe: caps\n").cells
    assert cell.name == "caps" and cell.config == load_config(find_config("caps"))


def test_keys_that_are_left_to_the_user_can_be_given_by_the_sweep(tmp_path):
    told = refused(tmp_path, "recipe: own\n")
    assert "data.path has no default" in told
    (cell,) = read(tmp_path, "recipe: own\nset: {data.path: rows.jsonl, model: embedded}\n").cells
    assert cell.config.data.path == "rows.jsonl"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "axes: {data.labelled_fraction: [0.1, 0.2]}",
            "grid.yaml:2: data.labelled_fraction: there is no such key; did you mean "
            "data.labeled_fraction?",
        ),
        (
            "axes:\n  data.labeled_fraction: [0.1, 1.5]",
            "grid.yaml:3: data.labeled_fraction: at most 1 is needed, got '1.5'.",
        ),
        ("set: {seed: 3}", "grid.yaml:2: seed: give seeds: [0, 1, 2]."),
        ("set: {run_name: x}", "grid.yaml:2: run_name: it is made of the values of the axes."),
        (
            "set: {train: {max_steps: 3}}",
            "grid.yaml:2: train is a section; give the keys below it, as in train.max_steps: ...",
        ),
        (
            "set: {train.max_steps: 3}\naxes: {train.max_steps: [1, 2]}",
            "grid.yaml:3: train.max_steps is also set under set; keep one of them.",
        ),
        (
            "axes: {adapters.good.rank: [1, 2], size: {a: {adapters.good: {rank: 2}}}}",
            "grid.yaml:2: adapters.good is also set by the axis adapters.good.rank; keep one of "
            "them.",
        ),
        (
            "axes: {data.labeled_fraction: [0.1, 0.10]}",
            "grid.yaml: the cells labeled_fraction_0.1 and labeled_fraction_0.10 are the same run; "
            "leave one of the values out.",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_line_and_the_way_out(tmp_path, text, told):
    assert refused(tmp_path, f"recipe: caps\n{text}\n") == told


def test_names_that_some_file_systems_take_for_one_are_refused(tmp_path):
    told = refused(
        tmp_path, "recipe: caps\naxes: {pace: {a: {train.max_steps: 30}, A: {train.max_steps: 40}}}"
    )
    assert "the cells a and A are the same run" in told


def test_a_problem_of_many_cells_is_told_once(tmp_path):
    told = refused(
        tmp_path,
        "recipe: caps\nset: {train.max_step: 3}\naxes: {data.labeled_fraction: [0.1, 0.2]}\n"
        "seeds: [0, 1, 2]\n",
    )
    assert told == (
        "grid.yaml:2: train.max_step: there is no such key; did you mean train.max_steps?"
    )


def test_a_recipe_that_does_not_exist_is_named(tmp_path):
    assert "there is no file 'cups' and no recipe" in refused(tmp_path, "recipe: cups\n")


def test_more_cells_than_an_array_has_tasks_are_refused_before_any_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "MOST", 5)
    told = refused(tmp_path, "recipe: caps\nseeds: [0, 1, 2]\naxes: {data.label_seed: [1, 2]}\n")
    assert told.startswith("grid.yaml: 6 cells, and at most 5 can be in one sweep")


def test_a_file_whose_name_cannot_be_a_folder_needs_a_name(tmp_path):
    with pytest.raises(ConfigError, match=r"give name: \.\.\."):
        read(tmp_path, "recipe: caps\n", name="my grid.yaml")
    assert read(tmp_path, "recipe: caps\nname: mine\n", name="my grid.yaml").name == "mine"
