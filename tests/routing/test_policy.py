import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradroute.errors import ConfigError
from gradroute.routing.policy import (
    NAMED_POLICIES,
    ROUTES,
    AblationMode,
    Route,
    RoutingPolicy,
    named_mode,
    shipped_mode,
    standard_modes,
)

PAIR = ("good", "bad")


@pytest.mark.parametrize(
    ("name", "forward", "update", "passes"),
    [
        ("update", True, 1.0, True),
        ("freeze", True, 0.0, True),
        ("detach", True, 0.0, False),
        ("ablate", False, 0.0, False),
    ],
)
def test_a_route_says_what_it_does_to_forward_weights_and_input(name, forward, update, passes):
    route = Route(name)
    assert (route.forward, route.update, route.passes) == (forward, update, passes)


def test_an_update_route_carries_its_weight():
    assert Route.parse({"update": 0.25}).update == 0.25
    assert Route.parse({"update": 2}).update == 2.0
    assert Route.parse({"update": 0}).update == 0.0


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("frieze", "did you mean 'freeze'"),
        ({"updaet": 0.5}, "did you mean 'update'"),
        ({"freeze": 0.5}, "only `update` takes a weight"),
        ({"update": -1}, "must be finite and >= 0"),
        ({"update": math.nan}, "must be finite and >= 0"),
        ({"update": math.inf}, "must be finite and >= 0"),
        ({"update": True}, "must be a number"),
        ({"update": "0.5"}, "must be a number"),
        ({"update": 1, "freeze": 1}, "a route must be one of"),
        (3, "a route must be one of"),
        (None, "a route must be one of"),
    ],
)
def test_a_wrong_route_is_one_clear_sentence(value, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Route.parse(value)


@pytest.mark.parametrize(
    ("name", "bad", "unlabeled", "good"),
    [
        ("anchored", "freeze update", "update update", "update ablate"),
        ("absorb", "freeze update", "update update", "update update"),
        ("exclusive", "freeze update", "update freeze", "update freeze"),
        ("separate", "freeze update", "update ablate", "update ablate"),
        ("none", "update update", "update update", "update update"),
    ],
)
def test_the_named_tables_are_as_documented(name, bad, unlabeled, good):
    policy = RoutingPolicy.parse(name, PAIR)
    rows = {label: " ".join(row[a].name for a in PAIR) for label, row in policy.table.items()}
    assert rows == {"bad": bad, "unlabeled": unlabeled, "good": good}
    assert policy.routes_anything == (name != "none")


def test_every_named_table_is_tested_above():
    assert set(NAMED_POLICIES) == {"anchored", "absorb", "exclusive", "separate", "none"}


routes = st.sampled_from(ROUTES) | st.floats(0, 8).map(lambda weight: {"update": weight})
tables = st.dictionaries(
    st.text(min_size=1), st.fixed_dictionaries({"a": routes, "b": routes}), min_size=1, max_size=4
)


@given(tables)
def test_a_table_written_out_and_read_again_is_the_same(table):
    policy = RoutingPolicy.parse(table, ["a", "b"])
    assert RoutingPolicy.parse(policy.to_plain(), ["a", "b"]) == policy


@given(tables)
def test_label_ids_are_positions_in_labels(table):
    policy = RoutingPolicy.parse(table, ["a", "b"])
    ids = policy.label_ids(reversed(policy.labels))
    assert [policy.labels[i] for i in ids] == list(reversed(policy.labels))


def test_a_row_keeps_the_order_of_the_adapters_not_of_the_file():
    policy = RoutingPolicy.parse({"x": {"bad": "update", "good": "freeze"}}, PAIR)
    assert policy.adapters == PAIR


def test_updated_by_counts_only_weights_above_zero():
    table = {
        "x": {"good": "freeze", "bad": {"update": 0}},
        "y": {"good": "update", "bad": "ablate"},
    }
    policy = RoutingPolicy.parse(table, PAIR)
    assert policy.updated_by(["x", "x"]) == set()
    assert policy.updated_by(["x", "y"]) == {"good"}
    assert policy.updated_by([]) == set()


def test_a_table_routes_nothing_when_its_rows_are_equal():
    row = {"good": {"update": 0.5}, "bad": "freeze"}
    assert not RoutingPolicy.parse({"x": row, "y": dict(row)}, PAIR).routes_anything
    assert not RoutingPolicy.parse("none", ["only"]).routes_anything


@pytest.mark.parametrize(
    ("value", "adapters", "sentence"),
    [
        ("anchord", PAIR, "did you mean 'anchored'"),
        ("absorb", ("good",), "needs the adapters good and bad, this model has good"),
        ("absorb", ("good", "bad", "ugly"), "needs the adapters good and bad"),
        ({"bad": {"good": "freeze"}}, PAIR, "no route for the adapter bad"),
        ({"bad": {"good": "freeze", "bda": "update"}}, PAIR, "did you mean 'bad'"),
        ({"bad": {"good": "frieze", "bad": "update"}}, PAIR, "did you mean 'freeze'"),
        ({"bad": "update"}, PAIR, "must be a label .text. with a route per adapter"),
        ({True: {"good": "update", "bad": "update"}}, PAIR, "must be a label .text."),
        ({}, PAIR, "is empty"),
        (3, PAIR, "must be a table or one of"),
    ],
)
def test_a_table_that_does_not_fit_is_one_clear_sentence(value, adapters, sentence):
    with pytest.raises(ConfigError, match=sentence):
        RoutingPolicy.parse(value, adapters)


def test_a_table_built_by_hand_needs_the_same_adapters_in_every_row():
    update = Route("update")
    with pytest.raises(ConfigError, match="no route for the adapter bad"):
        RoutingPolicy("mine", {"x": {"good": update, "bad": update}, "y": {"good": update}})


def test_a_label_without_a_row_is_named_with_the_rows_there_are():
    with pytest.raises(ConfigError, match=r"'ugly' has no row .*bad, unlabeled, good"):
        RoutingPolicy.parse("absorb", PAIR).label_ids(["bad", "ugly"])


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("full", 1.0, 1.0),
        ("base", 0.0, 0.0),
        ("bad_ablated", 1.0, 0.0),
        ("good_ablated", 0.0, 1.0),
        ("good_x2", 2.0, 0.0),
        ("good=1,bad=0.5", 1.0, 0.5),
        (" bad = -1 , good = 0 ", 0.0, -1.0),
    ],
)
def test_a_mode_is_read_from_its_name_or_its_scales(text, good, bad):
    mode = AblationMode.parse(text, PAIR)
    assert dict(mode.scales) == {"good": good, "bad": bad}
    assert mode.active == tuple(a for a, s in (("good", good), ("bad", bad)) if s)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ugly_ablated", "the adapters are good, bad"),
        ("god_x2", "did you mean 'good'"),
        ("fuul", "Possible are full, base, good_ablated, good_x2, bad_ablated, bad_x2"),
        ("good=1", "no scale for the adapter bad"),
        ("good=1,bad=x", "must be a number"),
        ("good=1,bad=nan", "finite"),
        ("good=1,good=0", "twice"),
        ("good=1,ugly=0", "the adapters are good, bad"),
    ],
)
def test_a_wrong_mode_is_one_clear_sentence(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        AblationMode.parse(text, PAIR)


@pytest.mark.parametrize(
    ("adapters", "names"),
    [
        (PAIR, ["full", "bad_ablated", "good_ablated", "good_x2", "base"]),
        (("only",), ["full", "base"]),
        (("a", "b", "c"), ["full", "a_ablated", "b_ablated", "c_ablated", "base"]),
        (
            ("good", "a", "b"),
            ["full", "a_ablated", "b_ablated", "good_alone", "good_ablated", "good_x2", "base"],
        ),
    ],
)
def test_the_standard_modes_fit_the_adapters(adapters, names):
    assert [mode.name for mode in standard_modes(adapters)] == names


@pytest.mark.parametrize("name", sorted(NAMED_POLICIES))
def test_a_named_table_of_one_behavior_is_the_same_under_any_label(name):
    pair = RoutingPolicy.parse(name, PAIR).to_plain()
    own = RoutingPolicy.parse(name, ("good", "caps"), ("caps",)).to_plain()
    renamed = {
        label.replace("bad", "caps"): {a.replace("bad", "caps"): route for a, route in row.items()}
        for label, row in pair.items()
    }
    assert own == renamed


@pytest.mark.parametrize("name", sorted(NAMED_POLICIES))
def test_a_named_table_of_several_behaviors_treats_them_alike(name):
    adapters = ("good", "a", "b")
    table = RoutingPolicy.parse(name, adapters, ("a", "b")).to_plain()
    assert list(table) == ["a", "b", "unlabeled", "good"]
    swap = str.maketrans("ab", "ba")
    for label, row in table.items():
        other = label.translate(swap) if label in "ab" else label
        assert {a.translate(swap) if a in "ab" else a: r for a, r in row.items()} == table[other]


def test_an_example_of_one_behavior_runs_without_the_adapters_of_the_others():
    policy = RoutingPolicy.parse("anchored", ("good", "a", "b"), ("a", "b"))
    assert policy.to_plain() == {
        "a": {"good": "freeze", "a": "update", "b": "ablate"},
        "b": {"good": "freeze", "a": "ablate", "b": "update"},
        "unlabeled": {"good": "update", "a": "update", "b": "update"},
        "good": {"good": "update", "a": "ablate", "b": "ablate"},
    }


def test_a_named_table_needs_an_adapter_for_every_label():
    with pytest.raises(
        ConfigError, match="needs the adapters good, a and b, this model has good, a"
    ):
        RoutingPolicy.parse("anchored", ("good", "a"), ("a", "b"))


def test_no_routing_has_a_row_for_every_label_whatever_the_adapters():
    policy = RoutingPolicy.parse("none", ("good",), ("a", "b"))
    assert policy.labels == ("a", "b", "unlabeled", "good")
    assert not policy.routes_anything


@pytest.mark.parametrize(
    ("scales", "name"),
    [
        ({"good": 1.0, "bad": 0.0}, "bad_ablated"),
        ({"good": 0.0, "bad": 2.0}, "good=0,bad=2"),
        ({"good": 1.0, "a": 0.0, "b": 0.0}, "good_alone"),
        ({"good": 0.0, "a": 1.0, "b": 0.0}, "a_alone"),
        ({"good": 1.0, "a": 0.5, "b": 0.0}, "good=1,a=0.5,b=0"),
    ],
)
def test_scales_have_one_name(scales, name):
    mode = named_mode(scales)
    assert (mode.name, dict(mode.scales)) == (name, scales)
    assert dict(AblationMode.parse(name, list(scales)).scales) == scales


@pytest.mark.parametrize(
    ("adapters", "labels", "name"),
    [
        (PAIR, ("bad",), "bad_ablated"),
        (("good", "a", "b"), ("a", "b"), "good_alone"),
        (("good", "style", "a"), ("a",), "a_ablated"),
        (("good",), ("bad",), None),
        (("bad",), ("bad",), None),
    ],
)
def test_what_is_shipped_is_all_but_the_adapters_of_the_behaviors(adapters, labels, name):
    mode = shipped_mode(adapters, labels)
    assert (mode and mode.name) == name


def test_the_tables_do_not_need_torch():
    code = "import sys, gradroute.routing.policy; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
