"""A rare label and a heavy one are worth a note, which names a weight that silences it."""

import pytest

from gradroute.routing.policy import RoutingPolicy
from gradroute.routing.rare_labels import (
    RARE,
    WEIGHED,
    label_weight_note,
    rare_label_note,
    weight_for,
)

ANCHORED = RoutingPolicy.parse("anchored", ["good", "bad"])


def weighted(weight: float) -> RoutingPolicy:
    rows = {
        "bad": {"good": "freeze", "bad": {"update": weight}},
        "unlabeled": {"good": "update", "bad": "update"},
    }
    return RoutingPolicy.parse(rows, ["good", "bad"])


def test_the_weight_makes_rare_examples_weigh_their_share_of_all():
    assert [weight_for(count, 6000) for count in (34, 60, 12)] == [32, 18, 90]
    assert weight_for(5000, 6000) == 1
    for count in (7, 34, 179):
        assert weight_for(count, 6000) * count == pytest.approx(WEIGHED * 6000, rel=0.1)


def test_the_weight_that_a_note_names_silences_it():
    note = rare_label_note(ANCHORED, "bad", 34, 6000)
    assert note is not None and note.endswith("bad: {bad: {update: 32}}.")
    assert rare_label_note(weighted(32), "bad", 34, 6000) is None
    assert rare_label_note(weighted(2), "bad", 34, 6000) == note


def test_a_label_that_enough_examples_have_is_worth_no_note():
    assert rare_label_note(ANCHORED, "bad", round(RARE * 6000), 6000) is None


def test_a_label_that_updates_nothing_is_noted_without_a_weight():
    frozen = {"bad": {"good": "freeze"}, "unlabeled": {"good": "update"}}
    note = rare_label_note(RoutingPolicy.parse(frozen, ["good"]), "bad", 3, 6000)
    assert note is not None and "update" not in note


def test_labels_that_weigh_half_of_all_or_more_are_worth_a_note_too():
    note = label_weight_note(weighted(32), "bad", 171, 6000)
    assert note is not None and "they weigh 91 % of all" in note
    assert note.endswith("18 % is enough, a weight of 6.")
    assert label_weight_note(weighted(6), "bad", 171, 6000) is None
    assert label_weight_note(ANCHORED, "bad", 4000, 6000) is None  # many, but each weighs 1


def test_a_rare_label_is_noted_first():
    assert label_weight_note(ANCHORED, "bad", 34, 6000) == rare_label_note(
        ANCHORED, "bad", 34, 6000
    )
