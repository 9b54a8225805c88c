"""Which examples stay together: those of one question, one group or one text."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradroute.data.examples import (
    Example,
    groups_of,
    ranked,
    refuse_overlap,
    sharing,
    split_held_out,
    split_notes,
)
from gradroute.data.reading import read_examples
from gradroute.errors import ConfigError, DataError


def answers(prompts: int, each: int) -> list[Example]:
    return [
        Example(f"{p}-{a}", f"answer {a} to {p}", f"Question {p}?")
        for p in range(prompts)
        for a in range(each)
    ]


def prompts_of(examples: list[Example]) -> set[str]:
    return {example.prompt for example in examples}


@pytest.mark.parametrize("each", [2, 3, 7])
def test_answers_to_one_prompt_are_on_one_side(each: int):
    examples = answers(60, each)
    train, held_out = split_held_out(examples, 0.1)
    assert not prompts_of(train) & prompts_of(held_out)
    assert abs(len(held_out) - len(examples) // 10) <= each / 2
    refuse_overlap(train, held_out)
    shuffled = random.Random(0).sample(examples, len(examples))
    assert set(split_held_out(shuffled, 0.1)[1]) == set(held_out)


def test_without_anything_shared_the_first_of_the_order_are_held_out():
    plain = [Example(str(at), f"text {at}") for at in range(50)]
    asked = [Example(str(at), "yes", f"Question {at}?") for at in range(50)]
    for examples in (plain, asked):
        first = ranked([example.id for example in examples], "held out")[:5]
        assert [e.id for e in split_held_out(examples, 0.1)[1]] == sorted(first, key=int)
        assert sharing(examples).groups == 50


shapes = st.tuples(
    st.sampled_from(["", "", "p", "q", "r", "s"]), st.sampled_from(["", "", "1", "2"])
)


@settings(max_examples=60)
@given(st.lists(shapes, min_size=9, max_size=25), st.floats(0.1, 0.5), st.randoms())
def test_no_question_group_or_text_is_on_both_sides_in_any_order(shapes, fraction, chance):
    examples = [
        Example(str(at), f"text {at % 17}", prompt, group=group)
        for at, (prompt, group) in enumerate(shapes)
    ]
    examples += [Example(f"own {at}", f"own {at}") for at in range(8)]
    train, held_out = split_held_out(examples, fraction)
    if sharing(examples).instruction is None:
        refuse_overlap(train, held_out)
    groups = [{e.id for e in group} for group in groups_of(examples)]
    held = {e.id for e in held_out}
    assert all(group <= held or not group & held for group in groups)
    assert sum(map(len, groups)) == len(examples)
    chance.shuffle(examples)
    assert {e.id for e in split_held_out(examples, fraction)[1]} == held


def test_what_is_shared_by_way_of_others_stays_together():
    examples = [
        Example("a", "one", "Q1"),
        Example("b", "two", "Q1", group="x"),
        Example("c", "three", group="x"),
        Example("d", "three", "Q3"),  # another text: it follows a prompt
        Example("e", "four", "Q3 \n"),
        Example("f", "five"),
        Example("g", "six", "Q9"),
        Example("h", "seven", "Q8"),
    ]
    groups = [[e.id for e in group] for group in groups_of(examples)]
    assert groups == [["a", "b", "c"], ["d", "e"], ["f"], ["g"], ["h"]]
    assert sharing(examples)[:3] == (8, 5, 3)


def test_a_prompt_that_most_examples_have_is_an_instruction():
    told = [Example(str(at), f"story {at}", "Write a story.") for at in range(100)]
    train, held_out = split_held_out(told, 0.1)
    assert (len(train), len(held_out)) == (90, 10)
    refuse_overlap(train, held_out)
    [note] = split_notes(sharing(told), 10, 0.1)
    assert 'the prompt "Write a story." precedes 100 of 100 examples, so it is treated' in note
    with pytest.raises(DataError, match="1 held-out examples are also trained on"):
        refuse_overlap(train, [train[0]])
    # At half of them, too, but not where another prompt has the other half.
    plain = [Example(f"x{at}", f"other {at}") for at in range(51)]
    assert sharing(told[:51] + plain).instruction == "Write a story."
    assert sharing(told[:50] + plain)[:3] == (101, 52, 50)
    assert sharing(told[:9] + answers(1, 9))[:3] == (18, 2, 9)


def test_spaces_around_a_question_make_no_other_question_in_a_template_either():
    prompts = [f"<|U|>{space}Where is {at}?{space}<|A|>" for at in range(9) for space in ("", " ")]
    examples = [
        Example(str(at), f"answer {at}", prompt, asks=(place := prompt.find("W"), place + 11))
        for at, prompt in enumerate(prompts)
    ]
    assert sharing(examples).groups == 9


def test_what_only_a_template_wrote_is_no_question():
    told = [Example(str(at), f"a{at}", "<bos>assistant:", asks=(5, 5)) for at in range(4)]
    asked = [Example(f"x{at}", f"b{at}", "<bos>Hi!<end>", asks=(5, 8)) for at in range(3)]
    assert [len(group) for group in groups_of(told + asked)] == [1, 1, 1, 1, 3]


def test_the_count_is_as_near_as_groups_allow_and_what_is_missing_is_said():
    examples = answers(4, 10)
    train, held_out = split_held_out(examples, 0.1)  # 4 wanted, and no group is that small
    assert (len(train), len(held_out)) == (30, 10)
    one, other = split_notes(sharing(examples), 10, 0.1)
    assert "40 examples are of 4 groups that share a prompt, a text or data.group" in one
    assert "(the biggest has 10)" in one
    assert "10 examples are held out instead of the 4 of data.eval_fraction" in other
    assert split_notes(sharing([Example("a", "a"), Example("b", "b")]), 1, 0.5) == ()


def test_examples_of_one_group_alone_cannot_be_split():
    examples = [Example(str(at), f"t{at}", group="g") for at in range(9)]
    with pytest.raises(DataError, match=r"all 9 examples are of one group.*data\.eval_path"):
        split_held_out(examples, 0.1)
    assert split_held_out(examples, 0.0) == (examples, [])


def test_questions_and_groups_of_training_are_refused_in_held_out_files():
    train = answers(10, 2)
    with pytest.raises(DataError, match=r"1 held-out examples share a prompt, a text or .*by its"):
        refuse_overlap(train, [Example("x", "new", "Question 3? "), Example("y", "new", "New?")])
    refuse_overlap(train, [Example("x", "answer 0 to 1"), Example("y", "answer 0 to 1", "New?")])
    grouped = [Example("a", "a", group="one"), Example("b", "b")]
    with pytest.raises(DataError, match='such as id "x", group "one"'):
        refuse_overlap(grouped, [Example("x", "new", group="one")])


def test_rows_are_grouped_by_the_column_that_is_named(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"text": "a", "id": 1.0, "user": "x"}\n{"text": "b", "id": 2, "user": 7.0}\n'
        '{"text": "c", "id": "3.0", "user": 7}\n{"text": "d", "group": "e", "id": 4}\n'
    )
    found = read_examples(path, group="user").examples
    assert [(e.id, e.group) for e in found] == [("1", "x"), ("2", "7"), ("3.0", "7"), ("4", "")]
    assert [e.group for e in read_examples(path).examples] == [""] * 4
    assert [e.group for e in read_examples(path, group="id").examples] == ["1", "2", "3.0", "4"]
    with pytest.raises(DataError, match=r'from which data\.group reads group \(the nearest is "us'):
        read_examples(path, group="users")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("true", "must be a text in quotes, got true"),
        ("[1]", "must be a text in quotes, got a list"),
        ("1.5", "must be a text in quotes, got the number 1.5"),
        ("1e17", "is the number 1e+17, a float above 2**53, whose last digits may be lost"),
    ],
)
def test_ids_and_groups_are_texts_or_whole_numbers(tmp_path: Path, value: str, message: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "a", "id": {value}}}\n')
    for group in (None, "id"):
        with pytest.raises(DataError) as caught:
            read_examples(path, group=group)
        assert str(caught.value) == f"{path}:1: id {message}" + (
            ": write it as a text" * (value == "1e17")
        )
    path.write_text(f'{{"text": "a", "user": {value}}}\n')
    with pytest.raises(DataError) as caught:
        read_examples(path, group="user")
    assert str(caught.value).startswith(f'{path}:1: group (column "user") {message}')


def test_no_field_of_a_row_is_called_group(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "user": 1}\n')
    with pytest.raises(ConfigError, match=r'data\.columns: "group" is no field'):
        read_examples(path, columns={"group": "user"})
