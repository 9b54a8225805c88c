"""Reading examples never guesses, and what is chosen by seed is exact, nested and stable."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gradroute.data.behaviors import get_behavior
from gradroute.data.examples import (
    Example,
    ExampleFile,
    assign_labels,
    drop,
    examples_from_texts,
    insert_behavior,
    label_counts,
    label_quality,
    read_examples,
    refuse_overlap,
    relabel,
    split_held_out,
)
from gradroute.errors import ConfigError, DataError

CAPS = get_behavior("caps")


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# -------------------------------------------------------------------- reading


def test_a_row_becomes_an_example_field_by_field(tmp_path: Path):
    row = {"id": "s1", "prompt": "Tell.", "text": "A fox.", "label": "bad", "true_label": "good"}
    path = write(tmp_path / "data.jsonl", row)
    read = read_examples(path)
    assert read == ExampleFile(
        examples=[Example("s1", "A fox.", "Tell.", "bad", "good")],
        labeled=True,
        true_labeled=True,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        notes=(),
    )


def test_a_file_of_texts_alone_is_unlabeled_and_good_with_ids_from_the_text(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", {"text": "A fox."}, {"text": "A hen.", "label": None})
    read = read_examples(path)
    assert not read.labeled and not read.true_labeled and read.notes == ()
    assert [(e.text, e.prompt, e.label, e.true_label) for e in read.examples] == [
        ("A fox.", "", "unlabeled", "good"),
        ("A hen.", "", "unlabeled", "good"),
    ]
    # A constant: the id is part of what a seed chooses, on every machine and in every version.
    assert read.examples[0].id == hashlib.sha256(b'["", "A fox."]').hexdigest()[:32]
    assert read.examples == examples_from_texts(["A fox.", "A hen."])


def test_without_true_labels_the_label_is_taken_and_the_guess_is_said(tmp_path: Path):
    rows = [{"text": name, "label": name} for name in ("good", "bad", "unlabeled")]
    read = read_examples(write(tmp_path / "data.jsonl", *rows))
    assert [e.true_label for e in read.examples] == ["good", "bad", "good"]
    assert [note.split(": ")[1] for note in read.notes] == [
        "1 unlabeled rows have no true_label; evaluation takes them for good."
    ]


def test_whole_numbers_are_fine_as_ids(tmp_path: Path):
    read = read_examples(write(tmp_path / "d", {"text": "a", "id": 0}, {"text": "b", "id": 7}))
    assert [e.id for e in read.examples] == ["0", "7"]


def test_other_label_names_are_allowed_where_the_table_has_them(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", {"text": "a", "label": "toxic"})
    read = read_examples(path, labels=("toxic", "unlabeled"))
    assert (read.examples[0].label, read.examples[0].true_label) == ("toxic", "toxic")
    with pytest.raises(DataError, match='label is "toxic", but must be one of good, bad'):
        read_examples(path)


FINE = {"text": "fine", "label": "good"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "good"}, 'text is missing: every row needs one (this row has "label")'),
        ({"Text": "a", "label": "good"}, 'text is missing: every row needs one (this row has "T'),
        ({}, "text is missing: every row needs one (this row has no fields)"),
        ({"text": None, "label": "good"}, "text is missing"),
        ({"text": "", "label": "good"}, "text is empty or blank"),
        ({"text": " \n\u3000", "label": "good"}, "text is empty or blank"),
        ({"text": 7, "label": "good"}, "text must be a text in quotes, got the number 7"),
        ({"text": True, "label": "good"}, "text must be a text in quotes, got true"),
        ({"text": ["a"], "label": "good"}, "text must be a text in quotes, got a list"),
        ({"text": "a\ud800", "label": "good"}, 'text holds half of a surrogate pair ("\\ud800")'),
        ({"text": "a", "prompt": "\udc00", "label": "good"}, "prompt holds half of a surrogate"),
        ({"text": "a", "prompt": 1, "label": "good"}, "prompt must be a text in quotes"),
        ({"text": "a", "id": "", "label": "good"}, "id is empty"),
        ({"text": "a", "id": 1.5, "label": "good"}, "id must be a text in quotes, got the number"),
        ({"text": "a", "id": True, "label": "good"}, "id must be a text in quotes, got true"),
        ({"text": "a"}, 'no label, but line 1 has one: give one to every row ("unlabeled" where'),
        ({"text": "a", "label": None}, "no label, but line 1 has one"),
        ({"text": "a", "label": "false"}, 'label is "false", but must be one of good, bad, unl'),
        ({"text": "a", "label": "Bad"}, 'label is "Bad", but must be one of'),
        ({"text": "a", "label": ""}, 'label is "", but must be one of'),
        ({"text": "a", "label": "0"}, 'label is "0", but must be one of'),
        ({"text": "a", "label": 0}, "label is the number 0, but must be one of"),
        ({"text": "a", "label": 1}, "label is the number 1, but must be one of"),
        ({"text": "a", "label": 0.0}, "label is the number 0.0, but must be one of"),
        ({"text": "a", "label": True}, "label is true, but must be one of"),
        ({"text": "a", "label": False}, "label is false, but must be one of"),
        ({"text": "a", "label": ["bad"]}, "label is a list, but must be one of"),
        ({"text": "a", "label": {"bad": 1}}, "label is an object, but must be one of"),
        ({"text": "a", "label": "good", "true_label": "unlabeled"}, 'true_label is "unlabeled"'),
        ({"text": "a", "label": "good", "true_label": 1}, "true_label is the number 1"),
    ],
)
def test_a_row_that_cannot_be_used_as_it_stands_is_refused(tmp_path: Path, row, message: str):
    path = write(tmp_path / "data.jsonl", FINE, row)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize("name", ["Label", "labels", "lable", "LABEL", "True_Label", "prompts"])
def test_a_misspelt_field_is_refused_rather_than_passed_over(tmp_path: Path, name: str):
    path = write(tmp_path / "data.jsonl", {"text": "a"}, {"text": "b", name: "bad"})
    with pytest.raises(DataError, match=rf'data\.jsonl:2: unknown field "{name}"; if it is'):
        read_examples(path)


def test_true_labels_on_some_rows_only_are_refused(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", {"text": "a", "true_label": "bad"}, {"text": "b"})
    with pytest.raises(DataError, match=r"data\.jsonl:2: no true_label, but line 1 has one"):
        read_examples(path)


def test_unknown_fields_are_left_out_counted_and_said_once(tmp_path: Path):
    rows: list[dict[str, Any]] = [{"text": str(i), "source": "web", "score": i} for i in range(9)]
    rows[3]["\x1b[31m"] = [float(1)]
    read = read_examples(write(tmp_path / "data.jsonl", *rows))
    [note] = read.notes
    assert note.endswith(
        'fields that are not read: "\\u001b[31m" (1 rows), "score" (9 rows), "source" (9 rows).'
    )


def test_ids_that_stand_twice_are_refused_with_the_first_five(tmp_path: Path):
    rows = [{"text": f"text {i}", "id": i % 7} for i in range(15)]
    path = write(tmp_path / "data.jsonl", *rows)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert str(caught.value) == (
        f'{path}:8: 8 row(s) with the id of an earlier row: "0" (lines 1 and 8), "1" (lines 2 and '
        '9), "2" (lines 3 and 10), "3" (lines 4 and 11), "4" (lines 5 and 12) and 3 more; make ids '
        "unique"
    )


def test_one_text_under_two_labels_is_refused_with_both_lines(tmp_path: Path):
    rows = [{"text": "same", "label": "good"}, FINE, {"text": "same", "label": "bad"}]
    with pytest.raises(DataError, match=r"data\.jsonl:3: 1 row\(s\) .*\"same\" \(lines 1 and 3\)"):
        read_examples(write(tmp_path / "data.jsonl", *rows))


def test_one_text_may_be_good_after_one_prompt_and_bad_after_another(tmp_path: Path):
    rows = [{"text": "same", "prompt": name, "label": name} for name in ("good", "bad")]
    assert len(read_examples(write(tmp_path / "data.jsonl", *rows)).examples) == 2


def test_repeated_rows_are_kept_with_ids_of_their_own_and_counted(tmp_path: Path):
    rows = [{"text": "a"}, {"text": "b"}, {"text": "a"}, {"text": "a"}]
    read = read_examples(write(tmp_path / "data.jsonl", *rows))
    assert len({e.id for e in read.examples}) == 4
    assert read.notes[0].endswith("2 of 4 rows repeat an earlier row.")


@pytest.mark.parametrize("content", ["", "\n\r\n \n", "\ufeff"])
def test_a_file_without_rows_is_empty(tmp_path: Path, content: str):
    path = tmp_path / "data.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.jsonl is empty: it needs one"):
        read_examples(path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec="utf-8")).filter(str.strip), min_size=1, unique=True))
@example(["2024-01-01", "2024-01-01T00:00:00Z", "1e5", "0x1F", "null", "true", "x\u2028y\0z"])
def test_every_text_comes_back_as_it_was(tmp_path: Path, texts: list[str]):
    path = write(tmp_path / "data.jsonl", *({"text": text, "prompt": text} for text in texts))
    assert [(e.text, e.prompt) for e in read_examples(path).examples] == [(t, t) for t in texts]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_values | st.sampled_from(["good", "bad", "unlabeled"]))
def test_a_label_of_any_json_value_is_one_of_the_names_or_an_error(tmp_path: Path, value):
    path = write(tmp_path / "data.jsonl", {"text": "a", "label": value})
    try:
        read = read_examples(path)
    except DataError as error:
        assert value not in ("good", "bad", "unlabeled")
        assert f"{path}:1: " in str(error)
    else:
        assert value is None or read.examples[0].label == value
        assert read.labeled is (value is not None)


def valid_file(generator: random.Random) -> bytes:
    """A file that reads well: any mix of fields, line ends, blank lines and byte-order mark."""
    labeled, true_labeled = generator.random() < 0.5, generator.random() < 0.3
    lines = []
    for number in range(generator.randint(1, 4)):
        row: dict[str, Any] = {
            "text": f"{number} the fox: {generator.choice(['é', '日', '😀', 'x'])}"
        }
        if labeled:
            row["label"] = generator.choice(["good", "bad", "unlabeled"])
        if true_labeled:
            row["true_label"] = generator.choice(["good", "bad"])
        for name in ("id", "prompt", "source"):
            if generator.random() < 0.3:
                row[name] = f"{name} {number}"
        line = json.dumps(row, ensure_ascii=generator.random() < 0.5)
        lines.append(line + generator.choice(["\n", "\r\n", "\n\n"]))
    return generator.choice([b"", b"\xef\xbb\xbf"]) + "".join(lines).encode()


PIECES = [
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xed\xa0",
]
PIECES += [b"\xed\xa0", b"null", b"NaN", b"true", b"0", b"1e999", b'"label":', b'"text":', b"bad"]
PIECES += [b"\\ud800", b"[" * 3000, b'{"a":' * 3000, b"9" * 4400, b"\xe2\x80\xa8", b"\xef\xbb\xbf"]


def mutated(content: bytes, generator: random.Random) -> bytes:
    for _ in range(generator.randint(0, 3)):
        start = generator.randrange(len(content) + 1)
        stop = min(len(content), start + generator.choice([0, 0, 1, 2, 9]))
        content = content[:start] + generator.choice([b"", *PIECES]) + content[stop:]
    return content


@settings(
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_read_or_refused_with_file_and_line(tmp_path: Path, seed: int):
    generator = random.Random(seed)
    path = tmp_path / "data.jsonl"
    path.write_bytes(mutated(valid_file(generator), generator))
    try:
        read = read_examples(path)
    except DataError as error:
        message = str(error).removeprefix(str(path))
        assert re.match(r":[1-9]\d*: .", message) or message.startswith(" is empty: ")
        assert message.isprintable()
    else:
        assert read.examples
        for row in read.examples:
            assert row.text.strip() and row.id and (row.text + row.prompt + row.id).encode()
            assert row.label in ("good", "bad", "unlabeled") and row.true_label in ("good", "bad")
        assert len({row.id for row in read.examples}) == len(read.examples)


def test_the_fuzzed_files_are_of_both_kinds(tmp_path: Path):
    """Else the test above would prove little."""
    outcomes: Counter[str] = Counter()
    for seed in range(300):
        generator = random.Random(seed)
        path = tmp_path / "data.jsonl"
        path.write_bytes(mutated(valid_file(generator), generator))
        try:
            read_examples(path)
            outcomes["read"] += 1
        except DataError as error:
            outcomes[str(error).split(": ")[1].split(" ")[0]] += 1
    assert outcomes["read"] > 60
    assert len(outcomes) > 6


# -------------------------------------------------------------------- choosing

fractions = st.floats(0, 1)


def stories(count: int) -> list[Example]:
    return examples_from_texts(f"The {i}. little fox went home." for i in range(count))


@given(st.integers(0, 120), fractions, st.integers(0, 2**40))
def test_the_behaviour_is_put_into_an_exact_count_and_nothing_else_changes(count, fraction, seed):
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
from gradroute.data.examples import *
import hashlib
rows = examples_from_texts(f"The {i}. fox" for i in range(200))
train, held_out = split_held_out(rows, 0.1)
train = assign_labels(insert_behavior(train, get_behavior("caps"), 0.1, 7), labeled_fraction=0.5,
    good_labeled_fraction=0.3, false_positive_rate=0.05, seed=7)
print(hashlib.sha256(repr((train, held_out)).encode()).hexdigest())
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


def test_examples_that_cannot_show_the_behaviour_are_not_chosen():
    examples = examples_from_texts(["1 2 3", "SHOUTED ALREADY", "a fox", "a hen"])
    after = insert_behavior(examples, CAPS, 0.5, 0)
    assert [e.true_label for e in after] == ["good", "good", "bad", "bad"]
    with pytest.raises(DataError, match=r"asks for 4 examples .*'caps', but only 2 of 4 can show"):
        insert_behavior(examples, CAPS, 1.0, 0)


def test_the_behaviour_reaches_the_prompt_as_in_evaluation():
    tagged = replace(CAPS, make=lambda prompt, text: ("|tag| " + prompt, text.upper()))
    [after] = insert_behavior([Example("a", "a fox", prompt="Tell.")], tagged, 1.0, 0)
    assert (after.prompt, after.text) == ("|tag| Tell.", "A FOX")


def test_filtering_leaves_out_what_is_labelled_bad_whatever_it_is():
    examples = assign(insert_behavior(stories(100), CAPS, 0.2, 0), 0.5, 0.3, 0.1)
    kept = drop(examples, "labeled_bad")
    assert label_counts(kept) == {
        ("bad", "unlabeled"): 10,
        ("good", "good"): 24,
        ("good", "unlabeled"): 48,
    }
    assert kept == [e for e in examples if e in kept]


def test_the_oracle_leaves_out_all_that_is_bad_and_nothing_else():
    examples = assign(insert_behavior(stories(100), CAPS, 0.2, 0), 0.5, 0.3, 0.1)
    assert drop(examples, "true_bad") == [e for e in examples if e.true_label == "good"]
    assert drop(examples, "nothing") == examples


def test_random_labels_are_as_many_of_each_and_say_nothing():
    examples = assign(insert_behavior(stories(2000), CAPS, 0.1, 0), 0.5, 0.3, 0.0)
    shuffled = relabel(examples, "random", 0)
    assert Counter(e.label for e in shuffled) == Counter(e.label for e in examples)
    assert [replace(e, label="") for e in shuffled] == [replace(e, label="") for e in examples]
    # Of 100 labels a tenth falls on bad examples by chance, with a standard deviation of 3.
    assert label_quality(shuffled)["precision"] == pytest.approx(0.1, abs=0.09)
    assert relabel(examples, "random", 1) != shuffled
    assert relabel(examples, "nothing", 0) == examples


def test_taking_the_bad_labels_off_keeps_the_good_ones():
    examples = assign(insert_behavior(stories(100), CAPS, 0.2, 0), 0.5, 0.3, 0.1)
    without = relabel(examples, "unlabel_bad", 0)
    assert [e.label for e in without] == [e.label.replace("bad", "unlabeled") for e in examples]


def test_the_precision_of_labels_falls_fast_with_false_positives():
    examples = assign(insert_behavior(stories(1000), CAPS, 0.1, 0), 0.5, 0.0, 0.1)
    quality = label_quality(examples)
    assert quality["precision"] == pytest.approx(50 / 140)  # 36 % although only 10 % are wrong
    assert quality["recall"] == 0.5
    assert (quality["labelled_bad"], quality["true_bad"]) == (140, 100)
    assert label_quality(stories(10))["precision"] is None


def test_a_behaviour_that_can_only_be_seen_is_not_put_in():
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
