"""Controls differ from the run in what makes them controls, and in nothing else."""

import pytest

from gradroute.config.controls import TRAINABLE
from gradroute.config.run_config import config_differences, find_config, load_config
from gradroute.errors import ConfigError
from gradroute.experiments.controls import control_configs, train_with_controls
from gradroute.system.files import read_lines

ALL = f"controls=[{', '.join(TRAINABLE)}]"


def test_every_control_differs_only_in_what_makes_it_one():
    known = ["data.null_fraction=0.2"]
    run = load_config(find_config("caps"), [ALL, *known, "run_name=mine", "seed=7"])
    names = {"run_name", "controls", "control", "control_of", "data.null_fraction"}
    prompted = {"data.inoculation", "data.inoculation_text"}
    expected = {
        "none": {"routing"},
        "filter": {"routing", "adapters", "data.drop"},
        "kl_good": {"routing", "adapters", "data.drop", "train.kl_good"},
        "distill": {"routing", "adapters", "data.drop", "train.teacher"},
        "words_filter": {"routing", "adapters", "data.drop", "data.found"},
        "hidden_filter": {"routing", "adapters", "data.drop", "data.found"},
        "head_filter": {"routing", "adapters", "data.drop", "data.found"},
        "known_good": {"routing", "adapters", "data.drop"},
        "oracle": {"routing", "adapters", "data.drop"},
        "random_labels": {"data.relabel"},
        "anchors_only": {"data.relabel"},
        "inoculation_prompt": {"routing", "adapters", *prompted},
        "inoculation_prompt_all": {"routing", "adapters", *prompted},
        "inoculation_adapter": {"routing", "adapters"},
        "inoculation_absorb": {"adapters"},
        "random_adapter": {"routing", "adapters"},
    }
    found = {}
    for config in control_configs(run):
        assert config.control is not None
        changed = config_differences(run, config).keys()
        found[config.control] = {
            key.split(".")[0] if key.startswith(("adapters", "routing")) else key
            for key in changed - names
        }
        assert config.run_name == f"mine-{config.control}" and config.control_of == "mine"
    assert found == expected


def test_one_adapter_of_a_control_has_the_total_rank_and_the_scale_of_the_first():
    run = load_config(
        None, ["controls=[oracle]", "adapters={good: {rank: 8, alpha: 24}, bad: {rank: 4}}"]
    )
    (oracle,) = control_configs(run)
    (adapter,) = oracle.adapters.values()
    assert (adapter.rank, adapter.alpha) == (12, 36.0)


@pytest.mark.parametrize("alpha", [None, 10.0])
def test_one_adapter_of_a_control_keeps_the_scale_of_rslora(alpha: float | None):
    ranks = ["adapters.good.rank=4", "adapters.bad.rank=12", "adapters.good.rslora=true"]
    given = [] if alpha is None else [f"adapters.good.alpha={alpha}"]
    run = load_config(find_config("caps"), ["run_name=r", "controls=[filter]", *ranks, *given])
    own = run.adapters["good"]
    one = control_configs(run)[0].adapters["good"]
    assert one.rank == 16 and one.rslora and one.alpha is not None
    assert one.alpha / 16**0.5 == (own.alpha or 2 * own.rank) / 4**0.5


def test_the_unrouted_run_is_trained_once_for_both_its_controls():
    run = load_config(None, ["controls=[unrouted_ablated, none]"])
    assert [config.control for config in control_configs(run)] == ["none"]


def test_a_control_that_would_be_the_run_itself_is_refused():
    run = load_config(None, ["controls=[none]", "routing=none"])
    with pytest.raises(ConfigError, match="would be the run itself"):
        control_configs(run)


def test_a_name_too_long_for_a_control_is_refused_in_words():
    run = load_config(None, ["controls=[random_labels]", "run_name=" + "a" * 60])
    with pytest.raises(ConfigError, match="cannot be made"):
        control_configs(run)


@pytest.mark.parametrize("name", ["known_good", "kl_good", "words_filter", "head_filter"])
def test_a_control_names_the_labels_that_it_needs_before_anything_is_trained(name: str):
    given = [f"controls=[{name}]", "data.good_labeled_fraction=0"]
    with pytest.raises(ConfigError, match=f"'{name}' needs examples labeled good"):
        control_configs(load_config(None, given))
    if name.endswith("_filter"):
        held_out = load_config(None, [*given[:1], "data.good_labeled_fraction=0.3"])
        with pytest.raises(ConfigError, match=r"trained as unlabeled \(data.null_fraction=0.2\)"):
            control_configs(held_out)


def test_a_run_is_taught_by_the_mode_in_which_the_routed_one_ships():
    two = "behavior={shouts: caps, rhymes: signature}"
    adapters = "adapters={good: {}, shouts: {}, rhymes: {}}"
    (one,) = control_configs(load_config(None, ["controls=[distill]"]))
    (both,) = control_configs(load_config(None, [two, adapters, "controls=[distill]"]))
    assert one.train.teacher == "runs/caps@bad_ablated"
    assert both.train.teacher == "runs/caps@good_alone"
    nothing = ["routing=none", "adapters.bad=null", "controls=[distill]"]
    with pytest.raises(ConfigError, match="'distill' is taught by caps without the adapter"):
        control_configs(load_config(None, nothing))


def test_a_plain_control_of_a_run_with_a_pull_has_none():
    given = ["controls=[filter, kl_good, random_labels]", "train.kl_good=0.3"]
    found = control_configs(load_config(find_config("caps"), given))
    assert [config.train.kl_good for config in found] == [0.0, 1.0, 0.3]


@pytest.mark.parametrize(("jobs", "names"), [(1, ["filter", "anchors_only"]), (2, ["filter"])])
def test_a_run_is_trained_with_its_controls(tmp_path, jobs: int, names: list[str]):
    settings = [
        "run_name=mine",
        f"controls=[{', '.join(names)}]",
        "train.max_steps=2",
        "train.warmup_steps=0",
        "train.batch_size=4",
        "data.train_examples=60",
    ]
    run = load_config(find_config("caps"), settings)
    folders = train_with_controls(
        run, tmp_path, if_exists="resume", bar=False, jobs=jobs, audit=True
    )
    assert [folder.name for folder in folders] == ["mine", *(f"mine-{name}" for name in names)]
    assert all(list(folder.checkpoints.glob("step-000002")) for folder in folders)
    assert all(len(list(read_lines(folder.audit))) == 2 for folder in folders)
    # What may differ holds for the controls too, and they need not have an adapter to know it.
    longer = load_config(
        find_config("caps"), [*settings, "train.max_steps=3", "adapters.bad.clip=2"]
    )
    with pytest.raises(ConfigError, match=r"train\.max_steps +2 +3"):
        train_with_controls(longer, tmp_path, if_exists="resume", bar=False, jobs=jobs)
    train_with_controls(
        longer,
        tmp_path,
        if_exists="resume",
        bar=False,
        jobs=jobs,
        overrides=["train.max_steps", "adapters.bad.clip"],
    )
    asked = [list(read_lines(folder.sessions))[-1]["overridden"] for folder in folders]
    both = ["adapters.bad.clip", "train.max_steps"]
    assert asked == [both, *([["train.max_steps"], both][: len(names)])]


@pytest.mark.parametrize(
    ("changes", "jobs", "told"),
    [
        (["controls=[filter]"], 2, "--jobs 2 trains runs at the same time, and 4 processes were"),
        (["controls=[words_filter]", "data.null_fraction=0.2"], 1, "words_filter is made of what"),
    ],
)
def test_what_one_process_alone_does_is_refused_to_several(
    tmp_path, monkeypatch, changes, jobs, told
):
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = load_config(find_config("caps"), ["run_name=x", *changes])
    with pytest.raises(ConfigError, match=told):
        train_with_controls(config, tmp_path, if_exists="resume", bar=False, jobs=jobs)
    assert not list(tmp_path.iterdir())
