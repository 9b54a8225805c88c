"""What is trained of chats and prompts is, token for token, what transformers makes of them."""

from pathlib import Path

import chat_templates
import pytest
import template_tokenizers
from data.talks import MORE, SYSTEM, TALK, A, B, Q, applied, learned, read, tokens

from gradroute.data.examples import Example
from gradroute.data.token_offsets import asking_tokens, prompt_tokens
from gradroute.errors import DataError

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
