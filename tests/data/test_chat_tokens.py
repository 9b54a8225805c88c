"""What is trained of chats and prompts is, token for token, what transformers makes of them."""

import json
from pathlib import Path
from typing import Any

import chat_templates
import pytest
import template_tokenizers
from transformers import PreTrainedTokenizerBase

from gradroute.data.batches import IGNORED, TokenizedExample, tokenize
from gradroute.data.examples import Example
from gradroute.data.reading import ExampleFile, read_examples
from gradroute.data.token_offsets import asking_tokens, prompt_tokens
from gradroute.errors import DataError

Q, A, MORE, B = (
    {"role": role, "content": content}
    for role, content in (
        ("user", "Hello there"),
        ("assistant", "The fox ran é"),
        ("user", "How are you"),
        ("assistant", "Yes fine"),
    )
)
TALK = [Q, A, MORE, B]
SYSTEM = {"role": "system", "content": "Be good"}


def read(folder: Path, model: PreTrainedTokenizerBase, *rows: Any, **given: Any) -> ExampleFile:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_examples(path, tokenizer=model, **given)


def tokens(model: PreTrainedTokenizerBase, *examples: Example) -> list[TokenizedExample]:
    return tokenize(examples, model, [0] * len(examples), 500)[0]


def learned(model: PreTrainedTokenizerBase, row: TokenizedExample) -> list[str]:
    """Runs of learned tokens, as text."""
    runs, run = [], []
    for target in [*row.targets, IGNORED]:
        if target != IGNORED:
            run.append(target)
        elif run:
            runs.append(run)
            run = []
    return [str(model.decode(run, clean_up_tokenization_spaces=False)) for run in runs]


def applied(model: PreTrainedTokenizerBase, messages: list, **more: Any) -> list[int]:
    found: Any = model.apply_chat_template(messages, tokenize=True, return_dict=False, **more)
    return list(found)


# Template -> what is learned of the two answers in one row.
ONE_ROW = {
    "CHATML": ["The fox ran é<|im_end|>", "Yes fine<|im_end|>"],
    "NEXT": ["The fox ran é<|user|>", "Yes fine"],
    "SHOUTING": ["THE FOX RAN É<|im_end|>", "YES FINE<|im_end|>"],
    "INSTRUCT": [" The fox ran é</s>", " Yes fine</s>"],
    "WORDS": [" The fox ran é</s>", " Yes fine</s>"],
    "OPENING": ["The fox ran é</s>", "Yes fine</s>"],
    "TOOLS": ["The fox ran é<|im_end|>", "Yes fine<|im_end|>"],
}


@pytest.mark.parametrize("kind", template_tokenizers.KINDS)
@pytest.mark.parametrize("name", ONE_ROW)
def test_a_conversation_is_the_templates_tokens_and_no_others(tmp_path: Path, name: str, kind: str):
    model = template_tokenizers.tokenizer(kind, getattr(chat_templates, name))
    file = read(tmp_path, model, {"messages": TALK})
    [row] = tokens(model, *file.examples)
    assert list(row.input_ids) == applied(model, TALK)
    found = learned(model, row)
    if kind in ("first", "always", "prepend"):  # a token with its space may begin before an answer
        found = [text.strip() for text in found]
        assert found == [text.strip() for text in ONE_ROW[name]]
    else:
        assert found == ONE_ROW[name]
    asked = file.examples[0].prompt
    assert prompt_tokens(model, asked, templated=True) == applied(
        model, [Q], add_generation_prompt=True
    )


def test_a_day_that_the_template_writes_is_a_fixed_one_and_all_else_is_the_templates(
    tmp_path: Path,
):
    model = template_tokenizers.tokenizer("bytes", chat_templates.HEADERS)
    [row] = tokens(model, *read(tmp_path, model, {"messages": TALK}).examples)
    assert learned(model, row) == ["The fox ran é<|eot|>", "Yes fine<|eot|>"]
    assert "Today: 01 Jan 2026" in str(model.decode(list(row.input_ids)))
    [row] = tokens(model, *read(tmp_path, model, {"messages": [SYSTEM, *TALK]}).examples)
    assert list(row.input_ids) == applied(model, [SYSTEM, *TALK])


SPLIT = {
    "THINKING": [
        "<think>\n\n</think>\n\nThe fox ran é<|im_end|>",
        "<think>\n\n</think>\n\nYes fine",
    ],
    "NEXT_THINKING": ["<think></think>\nThe fox ran é<|user|>", "<think></think>\nYes fine"],
    "CHANNELS": [
        "<|channel|>final<|message|>The fox ran é<|return|>",
        "<|channel|>final<|message|>Yes fine<|return|>",
    ],
    "ONCE": ["The fox ran é\n</s>", "Yes fine\n</s>"],
}


@pytest.mark.parametrize("kind", ["bytes", "always"])
@pytest.mark.parametrize("name", SPLIT)
def test_a_template_that_writes_earlier_turns_otherwise_gives_a_row_for_each_answer(
    tmp_path: Path, name: str, kind: str
):
    model = template_tokenizers.tokenizer(kind, getattr(chat_templates, name))
    talk = {"id": "talk", "messages": TALK, "label": "good"}
    file = read(tmp_path, model, talk, {"messages": TALK[:2], "label": "bad"})
    one, two, alone = file.examples
    assert (one.id, two.id, one.group, two.group) == ("talk#1", "talk#2", "talk", "talk")
    assert "#" not in alone.id and alone.group == ""
    rows = tokens(model, one, two)
    for row, length, expected in zip(rows, (2, 4), SPLIT[name], strict=True):
        served = applied(model, TALK[:length])
        # Only the mark of who speaks next may follow, where that is what ends the answer.
        assert list(row.input_ids[: len(served)]) == served
        assert len(row.input_ids) - len(served) == ("<|user|>" in expected)
        found = "".join(learned(model, row)).replace(" ", "")  # a mark may read as a space
        assert found in (expected.replace(" ", ""), f"{expected}<|im_end|>".replace(" ", ""))
    assert any("1 conversations became 2 rows" in note for note in file.notes)


def test_the_answers_system_words_may_stand_in_the_last_question(tmp_path: Path):
    model = template_tokenizers.tokenizer("first", chat_templates.INSTRUCT)
    file = read(tmp_path, model, {"messages": [SYSTEM, *TALK]})
    rows = tokens(model, *file.examples)
    assert [list(row.input_ids) for row in rows] == [
        applied(model, [SYSTEM, *TALK[:2]]),
        applied(model, [SYSTEM, *TALK]),
    ]


def test_an_answer_with_the_thought_that_its_prompt_opens_is_trained_as_it_is_served(
    tmp_path: Path,
):
    model = template_tokenizers.tokenizer("bytes", chat_templates.OPENING)
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes fine"}
    file = read(tmp_path, model, {"messages": [Q, A]}, {"messages": [Q, A, MORE, thought]})
    bare, first, second = tokens(model, *file.examples)
    assert list(bare.input_ids) == applied(model, [Q, A])
    assert learned(model, bare) == ["The fox ran é</s>"]
    assert list(first.input_ids) == list(bare.input_ids)
    asked = applied(model, [Q, A, MORE], add_generation_prompt=True)
    assert list(second.input_ids[: len(asked)]) == asked
    assert learned(model, second) == ["hm\n</think>\n\nYes fine</s>"]
    assert any("1 answers begin with the thought" in note for note in file.notes)
    assert any("2 answers are trained without the words" in note for note in file.notes)
    assert all(one.prompt.endswith("<|A|><think>\n") for one in file.examples)


def test_an_answer_without_a_mark_behind_it_is_said(tmp_path: Path):
    model = template_tokenizers.tokenizer("bytes", chat_templates.NEXT)
    file = read(tmp_path, model, {"messages": TALK})
    assert any("1 rows end with an answer whose end" in note for note in file.notes)


def test_calls_thoughts_names_and_tools_reach_the_template(tmp_path: Path):
    model = template_tokenizers.tokenizer("bytes", chat_templates.TOOLS)
    call = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    tool = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    talk = [
        {**Q, "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": call},
        {"role": "tool", "content": "7", "tool_call_id": "a", "date": "today"},
        {**B, "reasoning_content": "hm", "date": "today"},
    ]
    file = read(tmp_path, model, {"messages": talk, "tools": tool})
    [row] = tokens(model, *file.examples)
    assert list(row.input_ids) == applied(model, talk, tools=tool)
    assert learned(model, row)[0].startswith("<call>{") and "Ann" in file.examples[0].prompt
    [note] = [note for note in file.notes if "fields that are not read" in note]
    assert '"messages.date" (2 rows)' in note and '"messages.reasoning_content" (1 rows)' in note
    with_thought = {"messages": [Q, {**B, "reasoning_content": "hm"}]}
    model = template_tokenizers.tokenizer("bytes", chat_templates.THINKING)
    [row] = tokens(model, *read(tmp_path, model, with_thought).examples)
    assert learned(model, row) == ["<think>\nhm\n</think>\n\nYes fine<|im_end|>"]


def test_an_answer_that_the_template_leaves_out_is_refused(tmp_path: Path):
    model = template_tokenizers.tokenizer("bytes", chat_templates.CHATML)
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    with pytest.raises(DataError, match=r":1: message 2 \(role assistant\) is left out by the ch"):
        read(tmp_path, model, {"messages": [Q, call]})


# -------------------------------------------------------------------- plain rows


@pytest.mark.parametrize("kind", template_tokenizers.KINDS)
@pytest.mark.parametrize(
    ("prompt", "text", "cut"),
    [
        ("Hello there\n", "The fox ran", 0),
        ("Hello ", "there é", 0),  # one token holds the space and the word
        ("Hello there", " the fox", 2),  # or the end of one word and the start of another
        ("é", "日 x", 0),
        ("", "Hello there", 1),  # without a beginning token nothing predicts the first
    ],
)
def test_a_plain_row_is_the_tokenizers_own_tokens_and_one_end_token(kind, prompt, text, cut):
    model = template_tokenizers.tokenizer(kind)
    [row] = tokens(model, Example("a", text, prompt))
    whole = [token for token in model(prompt + text).input_ids if token != model.eos_token_id]
    assert list(row.input_ids) == [*whole, model.eos_token_id]
    found = "".join(learned(model, row)).replace("</s>", "").strip()
    assert text.strip() in [text.strip()[:lost] + found for lost in range(cut + 1)]
    asked = prompt_tokens(model, prompt, templated=False)
    assert asked == [token for token in model(prompt).input_ids if token != model.eos_token_id]


@pytest.mark.parametrize("kind", template_tokenizers.KINDS)
@pytest.mark.parametrize("prompt", ["Hello ", "Hello  ", "Hello\n", "Hello", " ", "", "é "])
@pytest.mark.parametrize("text", ["The fox ran", "there é", " there", "日 x", "5"])
def test_a_plain_prompt_is_asked_with_the_tokens_that_stand_before_what_is_learned(
    kind, prompt, text
):
    """A space at its end, which shares a token with the first word, is for the model to write."""
    model = template_tokenizers.tokenizer(kind)
    [row] = tokens(model, Example("a", text, prompt))
    asked = asking_tokens(model, prompt, text)
    assert asked == list(row.input_ids)[: len(asked)] or asked == prompt_tokens(
        model, prompt, templated=False
    )
    if prompt.strip() and prompt != prompt.rstrip():
        assert asked == list(row.input_ids)[: len(asked)]


@pytest.mark.parametrize("eos", ["</s>", "<s>"])
def test_a_beginning_token_that_is_only_named_is_not_put(tmp_path: Path, eos: str):
    model = template_tokenizers.tokenizer("trimmed", chat_templates.CHATML)  # it adds no token
    model.eos_token = eos
    plain, chat = read(tmp_path, model, {"text": "The fox"}, {"messages": TALK}).examples
    rows = tokens(model, plain, chat)
    assert list(rows[0].input_ids) == [*model("The fox").input_ids, model.eos_token_id]
    assert list(rows[1].input_ids) == applied(model, TALK)


def test_a_prompt_with_its_completion_is_written_in_the_template_unless_it_is_so_already(
    tmp_path: Path,
):
    model = template_tokenizers.tokenizer("bytes", chat_templates.CHATML)
    row = {"prompt": "Hello there", "completion": " Yes fine", "label": "good"}
    spans = {**row, "completion": "Yes NOT fine", "spans": [[4, 7, "bad"]]}
    done = {**row, "prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"}
    text = {"prompt": "Hello", "text": " there", "label": "good"}
    file = read(tmp_path, model, row, spans, done, text)
    one, two, three, four = file.examples
    found = tokens(model, *file.examples)
    talk = [Q, {"role": "assistant", "content": " Yes fine"}]
    assert list(found[0].input_ids) == applied(model, talk)
    [(start, end, label)] = two.spans
    assert (two.text[start:end], label) == ("NOT", "bad")
    assert three.prompt == done["prompt"] and three.asks is None
    assert (four.prompt, four.text) == ("Hello", " there")
    assert any("2 rows with prompt and completion are written in" in note for note in file.notes)
    assert any("1 rows with prompt and completion contain tokens" in note for note in file.notes)
    plain = read(tmp_path, model, row, template="none")
    assert (plain.examples[0].text, plain.notes) == (" Yes fine", ())
    assert plain.examples[0].id == one.id
    with pytest.raises(DataError, match=r":1: messages need .*data\.template is none"):
        read(tmp_path, model, {"messages": TALK}, template="none")


def test_a_completion_with_a_thought_is_written_in_the_template_too(tmp_path: Path):
    model = template_tokenizers.tokenizer("bytes", chat_templates.THINKING)
    model.add_tokens(["<think>", "</think>"])
    row = {"prompt": "Hello there", "completion": "<think>\n\n</think>\n\nYes fine"}
    file = read(tmp_path, model, row)
    [found] = tokens(model, *file.examples)
    assert list(found.input_ids) == applied(model, [Q, {**B, "content": row["completion"]}])


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
