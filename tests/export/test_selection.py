"""Which adapters may be kept, and what has to be said about it."""

from collections.abc import Sequence

import pytest

from gradroute.config.run_config import RunConfig, load_config
from gradroute.errors import ConfigError
from gradroute.export.selection import Choice, choose


def chosen(config: RunConfig, keep: Sequence[str]) -> Choice:
    learned = config.behavior_adapters
    return choose(keep, tuple(config.adapters), learned=learned, run_name=config.run_name)


def test_what_is_kept_has_the_name_of_its_mode():
    config = load_config(None)
    choice = chosen(config, ["good"])
    assert (choice.shipped, choice.left_out, choice.mode.name) == (
        ("good",),
        ("bad",),
        "bad_ablated",
    )
    assert choice.warnings == () and config.behavior_adapters == {"bad"}


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (["god"], "has no adapter 'god'; its adapters are good, bad"),
        (["good", "bad"], "keeps every adapter.*audit-adapter"),
        ([], "names no adapter"),
    ],
)
def test_unknown_names_and_all_of_them_are_refused(keep, said):
    with pytest.raises(ConfigError, match=said):
        chosen(load_config(None), keep)


def test_keeping_what_learned_the_behavior_is_said():
    (first, second) = chosen(load_config(None), ["bad"]).warnings
    assert first.startswith("The kept adapter bad was itself updated by examples")
    assert second.startswith("The left-out adapter good was not the one")
    (unrouted,) = chosen(load_config(None, ["routing=none"]), ["good"]).warnings
    assert unrouted.startswith("The kept adapter good was itself updated")


def test_a_run_of_one_adapter_leaves_nothing_out_and_says_so():
    oracle = load_config(None, ["adapters.bad=null", "routing=none", "data.drop=true_bad"])
    assert chosen(oracle, ["good"]).warnings == (
        "The run has one adapter and nothing is left out.",
    )
    assert chosen(oracle, ["good"]).mode.name == "full"


def test_without_names_what_no_behavior_was_routed_to_is_kept():
    found = choose(None, ("good", "bad"), learned={"bad"}, run_name="r")
    assert (found.shipped, found.left_out, found.warnings) == (("good",), ("bad",), ())
    for learned in ((), ("good", "bad")):
        with pytest.raises(ConfigError, match="which ones may be shipped is not known"):
            choose(None, ("good", "bad"), learned=learned, run_name="r")


def test_all_adapters_are_kept_only_where_each_has_a_file_and_with_one_warning():
    names = ("good", "bad")
    found = choose(names, names, learned={"bad"}, run_name="r", all_may_stay=True)
    assert (found.shipped, found.left_out) == (names, ())
    assert [warning.partition(":")[0] for warning in found.warnings] == [
        "Every adapter of the run is here, each in a file of its own, also bad"
    ]
