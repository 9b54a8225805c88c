"""The demo's runs differ in what their names say, and in nothing else."""

import json

import pytest

from gradroute.config.run_config import config_differences, find_config, load_config
from gradroute.experiments.demo import CELLS, demo_configs
from gradroute.experiments.parallel import run_in_parallel
from gradroute.report.publish import publish
from gradroute.report.results.roles import facts_of, find_controls, role_of


def test_every_run_is_what_its_name_says():
    configs = {c.run_name: c.model_dump(mode="json") for c in demo_configs(0, quick=False)}
    assert list(configs) == [
        "baseline",
        "0.1_0.0",
        "0.1_0.5",
        "0.1_1.0",
        "filter_0.5",
        "known_good",
    ]
    roles = [role_of(config) for config in configs.values()]
    assert roles == ["baseline", "unrouted", "routed", "routed", "filter", "known_good"]
    facts = {name: facts_of(config) for name, config in configs.items()}
    assert find_controls("0.1_0.5", facts) == {
        "baseline": "baseline", "unrouted": "0.1_0.0", "filter": "filter_0.5",
        "known_good": "known_good",
    }  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_a_run_differs_from_the_recipe_only_in_labels_routing_and_adapters(name):
    recipe = load_config(find_config("caps"))
    (config,) = (c for c in demo_configs(3, quick=False) if c.run_name == name)
    assert config.seed == 3
    for difference in config_differences(recipe, config):
        key = difference.split(":")[0]
        assert key in {"run_name", "seed", "routing"} or key.startswith(
            (
                "adapters",
                "data.behavior_fraction",
                "data.labeled_fraction",
                "data.good_labeled_fraction",
                "data.drop",
            )
        ), difference


def test_runs_of_one_adapter_have_the_total_rank_of_the_routed_runs():
    ranks = {
        c.run_name: sum(adapter.rank for adapter in c.adapters.values())
        for c in demo_configs(0, quick=False)
    }
    assert set(ranks.values()) == {64}


def test_quick_is_one_routed_run():
    (quick,) = demo_configs(0, quick=True)
    (whole,) = (c for c in demo_configs(0, quick=False) if c.run_name == "0.1_0.5")
    changed = config_differences(whole, quick).keys()
    assert changed == {"run_name", "train.max_steps", "evaluate.held_out"}


def test_cells_run_in_processes_and_results_do_not_depend_on_how_many(tmp_path):
    tiny = (
        "train.max_steps=2",
        "train.warmup_steps=0",
        "train.batch_size=4",
        "data.train_examples=60",
        "data.behavior_fraction=0.5",
        "evaluate.prompts=3",
        "evaluate.max_new_tokens=4",
        "evaluate.held_out=4",
    )
    configs = [
        load_config(find_config("caps"), [f"run_name={name}", *CELLS[name], *tiny])
        for name in ("0.1_0.0", "0.1_1.0")
    ]
    results = []
    for jobs in (1, 2):
        root = tmp_path / str(jobs)
        folders = run_in_parallel(configs, root, jobs, if_exists="resume", evaluate=True)
        publish(folders, root, page=False)
        document = json.loads((root / "eval_multi_results.json").read_text())
        results.append({name: run["full"] for name, run in document["runs"].items()})
    assert results[0] == results[1]
    assert list(results[0]) == ["0.1_0.0", "0.1_1.0"]
