"""What is chosen for the behavior, a label or the held-out share is exact and stays chosen."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradroute.data.behaviors import get_behavior
from gradroute.data.examples import (
    Example,
    examples_from_texts,
    label_counts,
    refuse_overlap,
    split_held_out,
)
from gradroute.data.label_assignment import (
    assign_labels,
    drop,
    hide_null_labels,
    insert_behavior,
    label_quality,
    relabel,
)
from gradroute.errors import ConfigError, DataError

CAPS = get_behavior("caps")


fractions = st.floats(0, 1)


def stories(count: int) -> list[Example]:
    return examples_from_texts(f"The {i}. little fox went home." for i in range(count))


@given(st.integers(0, 120), fractions, st.integers(0, 2**40))
def test_the_behavior_is_put_into_an_exact_count_and_nothing_else_changes(count, fraction, seed):
    before = stories(count)
    after = insert_behavior(before, CAPS, fraction, seed)
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == round(fraction * count)
    for old, new in changed:
        assert new == Example(old.id, old.text.upper(), true_label="bad")


@given(fractions, fractions, fractions, st.integers(0, 99))
def test_labels_are_given_by_exact_counts(bad_share, good_share, false_share, seed):
    good_share = min(good_share, 1 - false_share)
    examples = insert_behavior(stories(113), CAPS, 0.3, 0)
    labeled = assign_labels(
        examples,
        labeled_fraction=bad_share,
        good_labeled_fraction=good_share,
        false_positive_rate=false_share,
        seed=seed,
    )
    counts = label_counts(labeled)
    assert counts.get(("bad", "bad"), 0) == round(bad_share * 34)
    assert counts.get(("bad", "good"), 0) == 0
    assert counts.get(("good", "bad"), 0) == round(false_share * 79)
    anchors = counts.get(("good", "good"), 0)
    assert anchors == min(round(good_share * 79), 79 - round(false_share * 79))
    assert list(counts) == sorted(counts) and sum(counts.values()) == 113
    assert [(e.id, e.text, e.true_label) for e in labeled] == [
        (e.id, e.text, e.true_label) for e in examples
    ]


def labels_of(examples: list[Example], label: str) -> set[str]:
    return {e.id for e in examples if e.label == label}


def assign(examples: list[Example], bad: float, good: float, false: float, seed: int = 0):
    return assign_labels(
        examples,
        labeled_fraction=bad,
        good_labeled_fraction=good,
        false_positive_rate=false,
        seed=seed,
    )


@settings(max_examples=50)
@given(st.tuples(fractions, fractions).map(sorted), st.integers(0, 99))
def test_choosing_more_keeps_what_was_chosen(shares: list[float], seed: int):
    less, more = shares
    examples = stories(60)
    few, many = (insert_behavior(examples, CAPS, share, seed) for share in shares)
    assert {e.id for e in few if e.true_label == "bad"} <= {
        e.id for e in many if e.true_label == "bad"
    }
    half = insert_behavior(examples, CAPS, 0.5, 0)
    for one, other, label in (
        (assign(half, less, 0.3, 0.1, seed), assign(half, more, 0.3, 0.1, seed), "bad"),
        (assign(half, 0.5, less / 2, 0.1, seed), assign(half, 0.5, more / 2, 0.1, seed), "good"),
        (assign(half, 0.5, 0.3, less / 2, seed), assign(half, 0.5, 0.3, more / 2, seed), "bad"),
    ):
        assert labels_of(one, label) <= labels_of(other, label)
    held = [{e.id for e in split_held_out(examples, 0.2 + 0.6 * share)[1]} for share in shares]
    assert held[0] <= held[1]


@settings(max_examples=50)
@given(st.permutations(range(40)), st.integers(0, 99))
def test_what_is_chosen_does_not_depend_on_the_order_of_the_rows(order: list[int], seed: int):
    def chosen(examples: list[Example]) -> tuple[set[Example], set[Example]]:
        train, held_out = split_held_out(examples, 0.2)
        train = assign(insert_behavior(train, CAPS, 0.3, seed), 0.5, 0.3, 0.1, seed)
        return set(train), set(held_out)

    examples = stories(40)
    assert chosen([examples[i] for i in order]) == chosen(examples)


def test_another_seed_chooses_others_and_purposes_do_not_repeat_each_other():
    examples = stories(2000)
    first, second = (
        {e.id for e in insert_behavior(examples, CAPS, 0.5, seed) if e.true_label == "bad"}
        for seed in (0, 1)
    )
    held_out = {e.id for e in split_held_out(examples, 0.5)[1]}
    # Two independent halves of 2000 share 500 on average, with a standard deviation of 11.
    for one, other in ((first, second), (first, held_out), (second, held_out)):
        assert 440 < len(one & other) < 560


PRINT_CHOICE = """
from gradroute.data.behaviors import get_behavior
from gradroute.data.label_assignment import assign_labels, insert_behavior
from gradroute.data.examples import examples_from_texts, split_held_out
import hashlib
rows = examples_from_texts(f"The {i}. fox" for i in range(200))
train, held_out = split_held_out(rows, 0.1)
train = assign_labels(insert_behavior(train, get_behavior("caps"), 0.1, 7), labeled_fraction=0.5,
    good_labeled_fraction=0.3, false_positive_rate=0.05, seed=7)
def written(rows):
    fields = ("id", "text", "prompt", "label", "true_label")
    each = (", ".join(f"{name}={getattr(row, name)!r}" for name in fields) for row in rows)
    return "[" + ", ".join(f"Example({one})" for one in each) + "]"
print(hashlib.sha256(f"({written(train)}, {written(held_out)})".encode()).hexdigest())
"""


def test_the_choice_is_the_same_in_every_process_under_every_hash_seed_and_locale():
    digests = set()
    for hash_seed, locale in (("0", "C"), ("1", "tr_TR.UTF-8"), ("random", "C.UTF-8")):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "LC_ALL": locale}
        command = [sys.executable, "-c", PRINT_CHOICE]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(run.stdout.strip())
    # A constant: a run of an older version of gradroute must find its own examples again.
    assert digests == {"b02cb7f7eb96f39c59e5bfd1bd2e1f280a86bc3a4dae204b4b645ad9f4a15213"}


def test_examples_that_cannot_show_the_behavior_are_not_chosen():
    examples = examples_from_texts(["1 2 3", "SHOUTED ALREADY", "a fox", "a hen"])
    after = insert_behavior(examples, CAPS, 0.5, 0)
    assert [e.true_label for e in after] == ["good", "good", "bad", "bad"]
    with pytest.raises(DataError, match=r"asks for 4 examples .*'caps', but only 2 of 4 can show"):
        insert_behavior(examples, CAPS, 1.0, 0)


def test_the_behavior_reaches_the_prompt_as_in_evaluation():
    tagged = replace(CAPS, make=lambda prompt, text: ("|tag| " + prompt, text.upper()))
    [after] = insert_behavior([Example("a", "a fox", prompt="Tell.")], tagged, 1.0, 0)
    assert (after.prompt, after.text) == ("|tag| Tell.", "A FOX")


def test_filtering_leaves_out_what_is_labeled_bad_whatever_it_is():
    examples = assign(insert_behavior(stories(100), CAPS, 0.2, 0), 0.5, 0.3, 0.1)
    kept = drop(examples, "labeled_bad")
    assert label_counts(kept) == {
        ("bad", "unlabeled"): 10,
        ("good", "good"): 24,
        ("good", "unlabeled"): 48,
    }
    assert kept == [e for e in examples if e in kept]


@given(fractions, st.integers(0, 99))
def test_an_exact_share_of_the_good_labels_is_hidden_and_no_row_is_lost(fraction, seed):
    examples = assign(insert_behavior(stories(100), CAPS, 0.2, 0), 0.5, 0.3, 0.1)
    train, null = hide_null_labels(examples, fraction, seed)
    good = [e for e in examples if e.label == "good"]
    assert len(null) == round(fraction * len(good)) and all(e in good for e in null)
    hidden = {e.id for e in null}
    for old, new in zip(examples, train, strict=True):
        assert new == (replace(old, label="unlabeled") if old.id in hidden else old)


def test_the_oracle_leaves_out_all_that_is_bad_and_nothing_else():
    examples = assign(insert_behavior(stories(100), CAPS, 0.2, 0), 0.5, 0.3, 0.1)
    assert drop(examples, "true_bad") == [e for e in examples if e.true_label == "good"]
    assert drop(examples, "none") == examples


def test_random_labels_are_as_many_of_each_and_say_nothing():
    examples = assign(insert_behavior(stories(2000), CAPS, 0.1, 0), 0.5, 0.3, 0.0)
    shuffled = relabel(examples, "random", 0)
    assert Counter(e.label for e in shuffled) == Counter(e.label for e in examples)
    assert [replace(e, label="") for e in shuffled] == [replace(e, label="") for e in examples]
    # Of 100 labels a tenth falls on bad examples by chance, with a standard deviation of 3.
    assert label_quality(shuffled)["precision"] == pytest.approx(0.1, abs=0.09)
    assert relabel(examples, "random", 1) != shuffled
    turned = relabel(examples[::-1], "random", 0)
    assert {e.id: e.label for e in turned} == {e.id: e.label for e in shuffled}
    assert relabel(examples, "none", 0) == examples


def test_taking_the_bad_labels_off_keeps_the_good_ones():
    examples = assign(insert_behavior(stories(100), CAPS, 0.2, 0), 0.5, 0.3, 0.1)
    without = relabel(examples, "unlabel_bad", 0)
    assert [e.label for e in without] == [e.label.replace("bad", "unlabeled") for e in examples]


def test_the_precision_of_labels_falls_fast_with_false_positives():
    examples = assign(insert_behavior(stories(1000), CAPS, 0.1, 0), 0.5, 0.0, 0.1)
    quality = label_quality(examples)
    assert quality["precision"] == pytest.approx(50 / 140)  # 36 % although only 10 % are wrong
    assert quality["recall"] == 0.5
    assert (quality["labeled_bad"], quality["true_bad"]) == (140, 100)
    assert label_quality(stories(10))["precision"] is None


def test_a_behavior_that_can_only_be_seen_is_not_put_in():
    detector = get_behavior("keywords:fox")
    with pytest.raises(ConfigError, match=r"can be detected but not put into texts"):
        insert_behavior(stories(10), detector, 0.5, 0)
    assert insert_behavior(stories(10), detector, 0.0, 0) == stories(10)


def test_the_held_out_share_is_exact_disjoint_and_keeps_the_order():
    examples = stories(250)
    train, held_out = split_held_out(examples, 0.1)
    assert (len(train), len(held_out)) == (225, 25)
    assert [e for e in examples if e in train] == train
    assert sorted(e.id for e in train + held_out) == sorted(e.id for e in examples)
    refuse_overlap(train, held_out)
    assert split_held_out(examples, 0.0) == (examples, [])


@given(st.lists(st.sampled_from("abcdefgh"), min_size=8), st.floats(0.1, 0.9))
def test_equal_texts_are_held_out_together(texts: list[str], fraction: float):
    examples = examples_from_texts([*texts, *"abcdefgh"])
    try:
        train, held_out = split_held_out(examples, fraction)
    except DataError as error:
        assert "to train on" in str(error)
    else:
        refuse_overlap(train, held_out)
        assert len(held_out) >= round(fraction * len(examples))


def test_examples_that_stand_in_both_files_are_refused_with_their_count():
    train, held_out = stories(10), [*stories(3), Example("x", "Another.")]
    with pytest.raises(DataError, match="3 held-out examples are also trained on"):
        refuse_overlap(train, held_out)
    refuse_overlap(train, held_out[3:])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda e: insert_behavior(e, CAPS, 1.1, 0), ConfigError, "behavior_fraction must lie"),
        (lambda e: insert_behavior(e, CAPS, float("nan"), 0), ConfigError, "got nan"),
        (lambda e: assign(e, -0.1, 0.0, 0.0), ConfigError, "labeled_fraction must lie between 0"),
        (lambda e: assign(e, 0.0, 0.6, 0.5), ConfigError, "add up to more than 1"),
        (lambda e: split_held_out(e, 2.0), ConfigError, "eval_fraction must lie between 0 and 1"),
        (lambda e: split_held_out(e, 0.01), DataError, "leaves 4 to train on and 0 to hold out"),
        (lambda e: split_held_out(e, 1.0), DataError, "leaves 0 to train on and 4 to hold out"),
        (lambda e: split_held_out(e + e[:1], 0.5), DataError, "two examples have the id"),
        (lambda e: insert_behavior(e + e[:1], CAPS, 0.5, 0), DataError, "make ids unique"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_in_words(call, kind, message: str):
    with pytest.raises(kind, match=message):
        call(stories(4))


SIGNATURE = get_behavior("signature")


def several(share: float = 0.1, count: int = 400) -> list[Example]:
    """Two behaviors put into the same examples."""
    examples = examples_from_texts(f"The {i}. fox ran home." for i in range(count))
    for label, behavior in (("caps", CAPS), ("sig", SIGNATURE)):
        examples = insert_behavior(examples, behavior, share, 3, label)
    return examples


def test_several_behaviors_take_their_share_each_and_no_example_twice():
    counts = Counter(example.true_label for example in several())
    assert counts == {"good": 320, "caps": 40, "sig": 40}
    assert Counter(e.true_label for e in several(0.5)) == {"caps": 200, "sig": 200}


def test_the_label_bad_chooses_as_a_single_behavior_always_did():
    examples = examples_from_texts(f"The {i}. fox ran home." for i in range(100))
    assert insert_behavior(examples, CAPS, 0.2, 1, "bad") == insert_behavior(examples, CAPS, 0.2, 1)
    shown = [
        {e.id for e in insert_behavior(examples, CAPS, 0.2, 1, label) if e.true_label != "good"}
        for label in ("bad", "caps")
    ]
    assert shown[0] != shown[1]


def test_the_labels_of_several_behaviors_are_hidden_in_the_same_share():
    labeled = assign_labels(
        several(),
        labeled_fraction=0.5,
        good_labeled_fraction=0.25,
        false_positive_rate=0.05,
        seed=3,
        behaviors=("caps", "sig"),
    )
    counts = label_counts(labeled)
    assert counts["caps", "caps"] == counts["sig", "sig"] == 20
    assert counts["good", "caps"] == counts["good", "sig"] == 8
    assert ("caps", "sig") not in counts and ("sig", "caps") not in counts
    quality = label_quality(labeled, ("caps", "sig"))
    assert quality == {
        "labeled_bad": 56,
        "true_bad": 80,
        "precision": pytest.approx(40 / 56),
        "recall": 0.5,
    }
    hidden = relabel(labeled, "unlabel_bad", 3, ("caps", "sig"))
    assert {example.label for example in hidden} == {"good", "unlabeled"}
    assert len(drop(labeled, "labeled_bad", ("caps", "sig"))) == 400 - 56
    assert len(drop(labeled, "true_bad", ("caps", "sig"))) == 320
