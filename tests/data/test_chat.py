"""Conversations become texts as the template writes them, and only the answers are trained."""

import json
from pathlib import Path

import chat_templates
import pytest
from byte_tokenizer import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from gradroute.data import chat_templates as chat_templates_module
from gradroute.data.chat import Rendered, renderer
from gradroute.data.fields import Unusable
from gradroute.data.messages import Message
from gradroute.data.reading import read_examples
from gradroute.errors import DataError

LONG = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo", "label": "good"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "NO", "label": "bad"},
]
SHORT = LONG[1:3]


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    made = byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.chat_template = template
    return made


def render(template: str | None, *messages: dict[str, str]) -> Rendered:
    given = [Message(one["role"], one["content"], one.get("label")) for one in messages]
    [found] = renderer(tokenizer(template), "the model").rows(given, None)
    return found


def answers(found: Rendered) -> list[str]:
    return [found.text[start:end] for start, end in found.answers]


def test_the_answers_with_their_end_of_turn_tokens_are_targets_and_all_else_is_context():
    found = render(chat_templates.CHATML, *LONG)
    assert found.prompt == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert answers(found) == ["Yo<|im_end|>", "NO<|im_end|>"]
    assert [found.text[start:end] for start, end in found.context] == [
        "\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
        "\n",
    ]
    assert (found.labels, found.closed) == (("good", "bad"), True)
    start, end = found.asks
    assert found.prompt[start:end] == "Hi"


def test_a_template_may_trim_and_name_roles_as_it_likes():
    found = render(chat_templates.TURNS, SHORT[0], {"role": "assistant", "content": " Yo\n"})
    assert (found.prompt, found.text) == ("<s><turn>user\nHi<end>\n<turn>model\n", "Yo<end>\n")


def test_where_the_template_closes_nothing_the_mark_of_who_speaks_next_ends_an_answer():
    found = render(chat_templates.OPEN, *LONG)
    assert (answers(found), found.closed) == (["Yo\n\nuser:", "NO\n\n"], False)


@pytest.mark.parametrize(("template", "messages"), [("DEAF", LONG), ("CHANGING", SHORT)])
def test_a_message_that_the_template_leaves_out_or_changes_is_counted(template, messages):
    found = render(getattr(chat_templates, template), *messages)
    assert found.changed == 1
    assert answers(found)[0].lower() == "yo<|im_end|>"


def test_what_a_template_puts_before_an_answer_belongs_to_it():
    assert answers(render(chat_templates.FORGETFUL, *SHORT)) == [
        "<think>\n\n</think>\n\nYo<|im_end|>"
    ]


def test_what_follows_the_last_answer_is_left_out():
    messages = [*LONG, {"role": "user", "content": "Why?"}]
    assert render(chat_templates.CHATML, *messages) == render(chat_templates.CHATML, *LONG)


def test_a_date_of_today_is_that_of_a_fixed_day():
    """Else a run that goes on tomorrow would go on with other texts."""
    assert render(chat_templates.DATED, *SHORT).prompt.startswith("2026-01-01\n<|im_start|>user")


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, SHORT, "messages need a chat template, which the tokenizer of the model lacks"),
        ("TURNS", LONG, r"message 1 \(role system\) cannot be .* \(System role not supported\)"),
        ("ESCAPING", SHORT, r"message 1 \(role user\) .*'__class__' of 'dict' object is unsafe"),
        ("BROKEN", SHORT, r"message 1 \(role user\) cannot be rendered"),
        ("ENDLESS", SHORT, r"message 1 \(role user\) .*longer than 0\.1 seconds"),
        ("CHATML", LONG[2:], r"message 1 \(role assistant\) answers nothing"),
    ],
)
def test_what_cannot_be_rendered_or_masked_is_refused_with_message_and_role(
    monkeypatch: pytest.MonkeyPatch, template: str | None, messages: list, message: str
):
    monkeypatch.setattr(chat_templates_module, "MAX_SECONDS", 0.1)
    with pytest.raises(Unusable, match=message):
        render(template and getattr(chat_templates, template), *messages)


def test_a_conversation_may_not_grow_without_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat_templates_module, "MAX_RENDERED", 50)
    with pytest.raises(Unusable, match="messages become 52 characters"):
        render(chat_templates.CHATML, *SHORT)


# -------------------------------------------------------------------- in files


def read(folder: Path, *rows: object, template: str = chat_templates.CHATML, **given) -> list:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_examples(path, tokenizer=tokenizer(template), **given).examples


def test_a_conversation_is_an_example_with_a_label_for_each_answer(tmp_path: Path):
    [one] = read(tmp_path, {"messages": LONG, "weight": 2, "true_label": "good"})
    assert [(one.text[start:end], label) for start, end, label in one.spans] == [
        ("Yo<|im_end|>", "good"),
        ("NO<|im_end|>", "bad"),
    ]
    assert (one.label, one.true_label, one.weight, one.ends) == ("unlabeled", "good", 2.0, True)
    [other] = read(tmp_path, {"messages": LONG})
    assert other.true_label == "bad"


def test_the_id_of_a_conversation_does_not_depend_on_the_template(tmp_path: Path):
    rows = [{"messages": [*SHORT[:1], {"role": "assistant", "content": text}]} for text in "ab"]
    ids = [
        [one.id for one in read(tmp_path, *rows, template=template)]
        for template in (chat_templates.CHATML, chat_templates.OPEN)
    ]
    assert ids[0] == ids[1] and len(set(ids[0])) == 2


def test_a_conversation_under_two_labels_is_a_contradiction(tmp_path: Path):
    relabeled = [SHORT[0], {**SHORT[1], "label": "bad"}]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*with the text of an earlier row but an"):
        read(tmp_path, {"messages": SHORT}, {"messages": relabeled})


USER, ANSWER = SHORT


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ({}, 'messages must be a list of {"role": ..., "content": ...}, got an object'),
        (["Hi"], 'message 1 must be an object with role and content, got "Hi"'),
        ([{"from": "human", "value": "Hi"}], "message 1 has no role: one of system, developer, us"),
        ([{**USER, "role": "human"}], 'message 1 has the role "human", but must be of system'),
        ([{"role": "user"}], "message 1 (role user) has no content"),
        ([{**USER, "content": 7}], "message 1 (role user): content must be a text in quotes, got"),
        ([{**USER, "content": "\ud800"}], "message 1 (role user): content holds half of a surr"),
        ([USER, {**ANSWER, "content": " "}], "message 2 (role assistant) is empty or blank"),
        ([USER], "messages has no message of the role assistant to train on, only user"),
        ([{**USER, "label": "bad"}, ANSWER], "message 1 (role user) has a label, but only answers"),
        ([USER, {**ANSWER, "label": 1}], "label of message 2 is the number 1, but must be one of"),
        ([USER, {**ANSWER, "weight": -1}], "message 2 (role assistant) has weight the number -1"),
    ],
)
def test_a_conversation_that_cannot_be_used_is_refused_or_skipped(
    tmp_path: Path, messages: object, message: str
):
    rows = [{"messages": SHORT}, {"messages": messages}]
    with pytest.raises(DataError) as caught:
        read(tmp_path, *rows)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:2: {message}")
    assert len(read(tmp_path, *rows, skip_bad_rows=True)) == 1


@pytest.mark.parametrize("extra", [{"prompt": "p"}, {"spans": [[0, 1, "bad"]]}, {"text": "t"}])
def test_what_only_plain_rows_have_is_refused_in_a_conversation(tmp_path: Path, extra: dict):
    with pytest.raises(DataError, match=r"rows\.jsonl:1: \w+ and messages are in one row"):
        read(tmp_path, {"messages": SHORT, **extra})
