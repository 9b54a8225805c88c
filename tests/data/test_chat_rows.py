"""Marks of messages and their other forms are read, or refused with what to write."""

from pathlib import Path

import chat_templates
import pytest
import template_tokenizers
from data.talks import MORE, TALK, A, B, Q, applied, learned, read, tokens

from gradroute.data.batches import IGNORED
from gradroute.errors import DataError

# -------------------------------------------------------------------- marks of messages


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"train": False}, {"trainable": 0}, {"loss": False}, {"loss_mask": 0}]
)
def test_an_answer_that_is_marked_so_is_read_and_not_learned(tmp_path: Path, mark: dict):
    model = template_tokenizers.tokenizer("bytes", chat_templates.CHATML)
    file = read(tmp_path, model, {"messages": [Q, {**A, **mark}, MORE, {**B, "weight": 1}]})
    [row] = tokens(model, *file.examples)
    assert list(row.input_ids) == applied(model, TALK)
    assert learned(model, row) == ["Yes fine<|im_end|>"]
    assert file.examples[0].prompt.endswith("How are you<|im_end|>\n<|im_start|>assistant\n")
    other = read(tmp_path, model, {"messages": [Q, A, MORE, {**B, **mark}]})
    [row] = tokens(model, *other.examples)
    assert list(row.input_ids) == applied(model, TALK)
    assert learned(model, row) == ["The fox ran é<|im_end|>"]


def test_a_conversation_without_an_answer_to_learn_is_left_out_and_counted(tmp_path: Path):
    model = template_tokenizers.tokenizer("bytes", chat_templates.CHATML)
    unlearned = {"messages": [Q, {**A, "weight": 0}]}
    file = read(tmp_path, model, unlearned, {"messages": [{**Q, "train": True}, A]})
    assert len(file.examples) == 1
    assert any("1 conversations are left out" in note for note in file.notes)
    assert any("1 messages of other roles" in note for note in file.notes)
    with pytest.raises(DataError, match="none of the 1 conversations has an answer to learn"):
        read(tmp_path, model, unlearned)


def test_weights_of_answers_are_factors_on_the_loss_of_their_tokens(tmp_path: Path):
    model = template_tokenizers.tokenizer("bytes", chat_templates.CHATML)
    talk = [Q, {**A, "weight": 0.5}, MORE, {**B, "weight": 3}]
    file = read(
        tmp_path, model, {"messages": talk, "weight": 2}, {"messages": [Q, {**B, "weight": 3}]}
    )
    several, single = tokens(model, *file.examples)
    assert (several.weight, single.weight, single.factors) == (2.0, 3.0, ())
    by_target = [
        factor
        for factor, target in zip(several.factors, several.targets, strict=True)
        if target != IGNORED
    ]
    first = len("The fox ran ") + 2 + 1  # two bytes of é, and the end of the turn
    assert by_target == [0.5] * first + [3.0] * (len(by_target) - first)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ({"weight": -1}, "message 2 (role assistant) has weight the number -1: 0 only reads it"),
        ({"weight": True}, "message 2 (role assistant) has weight true: 0 only"),
        ({"weight": "0"}, 'message 2 (role assistant) has weight "0": 0 only'),
        ({"train": "no"}, 'message 2 (role assistant) has train "no": true or 1 learns it'),
        ({"loss_mask": 2}, "message 2 (role assistant) has loss_mask the number 2: true or 1"),
        ({"loss": []}, "message 2 (role assistant) has loss a list: true or 1"),
    ],
)
def test_any_other_mark_is_refused_with_line_and_message(tmp_path: Path, mark: dict, message: str):
    model = template_tokenizers.tokenizer("bytes", chat_templates.CHATML)
    with pytest.raises(DataError) as caught:
        read(tmp_path, model, {"messages": TALK}, {"messages": [Q, {**A, **mark}]})
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:2: {message}")


# -------------------------------------------------------------------- other forms of messages


def test_a_content_of_one_part_that_is_a_text_is_that_text(tmp_path: Path):
    model = template_tokenizers.tokenizer("bytes", chat_templates.CHATML)
    parts = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in TALK]
    [row] = tokens(model, *read(tmp_path, model, {"messages": parts}).examples)
    assert list(row.input_ids) == applied(model, TALK)


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}],
            "message 1 has no role: .* from and value, as ShareGPT has them, are to be written",
        ),
        ([{**Q, "role": "human"}, A], r'message 1 has the role "human", .* \(write user\)'),
        ([Q, {**A, "role": "Assistant"}], r'message 2 has the role "Assistant", .*write assistant'),
        ([Q, A, {"role": "function", "content": "5"}, B], r"message 3 has .* \(write tool\)"),
        (
            [Q, {"role": "assistant", "function_call": {"name": "f"}}],
            "message 2 .* has no content: write function_call as tool_calls",
        ),
        ([Q, {**A, "tool_calls": ["f"]}], "message 2 .* has tool_calls a list: a list of objects"),
        ([Q, {**A, "tool_calls": "f"}], 'message 2 .* has tool_calls "f": a list of objects'),
        (
            [{**Q, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, A],
            'message 1 .* has a part of the type "image_url" in its content',
        ),
        ([{**Q, "content": [{"type": "text", "text": "a"}] * 2}, A], "message 1 .* several parts"),
        ([{**Q, "content": [{"type": "text", "text": 5}]}, A], "message 1 .* content must be a"),
        ([A, Q, B], 'message 1 .* answers nothing: mark it with "weight": 0'),
    ],
)
def test_messages_of_other_forms_are_refused_with_what_to_write(
    tmp_path: Path, messages: list, message: str
):
    model = template_tokenizers.tokenizer("bytes", chat_templates.TOOLS)
    with pytest.raises(DataError, match=message):
        read(tmp_path, model, {"messages": messages})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": TALK}, r"say data\.columns={messages: conversations}"),
        ({"prompt": [Q], "completion": [A]}, "completion is a list, .* write a conversation in"),
        ({"prompt": [Q], "chosen": [A], "rejected": [B]}, "of a pair of answers make two rows"),
    ],
)
def test_rows_of_other_forms_are_refused_with_what_to_write(
    tmp_path: Path, row: dict, message: str
):
    with pytest.raises(DataError, match=message):
        read(tmp_path, template_tokenizers.tokenizer("bytes", chat_templates.CHATML), row)


def test_what_is_null_or_handed_on_under_another_name_is_not_counted_as_not_read(tmp_path: Path):
    model = template_tokenizers.tokenizer("bytes", chat_templates.THINKING)
    for key in ("reasoning_content", "thinking", "reasoning"):
        answer = {**A, key: "Hm so", "refusal": None, "tool_calls": None}
        file = read(tmp_path, model, {"messages": [Q, answer]})
        assert "Hm so" in file.examples[0].text
        assert file.notes == ()
    file = read(tmp_path, model, {"messages": [Q, {**A, "refusal": "No"}]})
    assert any('"messages.refusal" (1 rows)' in note for note in file.notes)


def test_a_greeting_and_an_empty_answer_may_stand_there_to_be_read_only(tmp_path: Path):
    model = template_tokenizers.tokenizer("bytes", chat_templates.CHATML)
    talk = [{**A, "weight": 0}, Q, {"role": "assistant", "content": "", "train": False}, MORE, B]
    [row] = tokens(model, *read(tmp_path, model, {"messages": talk}).examples)
    assert list(row.input_ids) == applied(model, talk)
    assert learned(model, row) == ["Yes fine<|im_end|>"]


def test_arguments_that_the_template_writes_in_quotes_are_counted(tmp_path: Path):
    model = template_tokenizers.tokenizer("bytes", chat_templates.TOOLS)
    for arguments, said in (('{"x": 1}', True), ({"x": 1}, False)):
        call = {**CALL, "function": {"name": "f", "arguments": arguments}}
        talk = [Q, {"role": "assistant", "content": None, "tool_calls": [call]}]
        notes = read(tmp_path, model, {"messages": talk}).notes
        assert any("1 tool calls have arguments as JSON text" in note for note in notes) == said


def test_completions_without_a_prompt_stay_plain_and_are_counted(tmp_path: Path):
    model = template_tokenizers.tokenizer("bytes", chat_templates.CHATML)
    file = read(tmp_path, model, {"prompt": "", "completion": "Hi"}, {"prompt": "", "text": "Ho"})
    assert [(e.prompt, e.text) for e in file.examples] == [("", "Hi"), ("", "Ho")]
    assert any("1 rows with a completion have an empty prompt" in note for note in file.notes)
