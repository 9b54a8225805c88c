"""Rows that a chat template writes: conversations, and a prompt with its completion as one."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from gradroute.data.chat import Rendered, Renderer
from gradroute.data.chat_templates import Template, render_messages
from gradroute.data.columns import Names
from gradroute.data.examples import Span, hash_id
from gradroute.data.fields import Unusable
from gradroute.data.jsonl import show
from gradroute.data.messages import (
    FOR_TEMPLATES,
    READ,
    REASONING,
    Message,
    read_messages,
    wants_loss,
)
from gradroute.data.row import Place, Row


def read_tools(values: Mapping[str, Any]) -> list[Any] | None:
    """What the assistant of a conversation may call, as a list or as JSON text of one.

    Raises:
        Unusable: It is anything else.
    """
    value = values.get("tools")
    if isinstance(value, str) and value.strip():
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not value:
        return None
    if not isinstance(value, list):
        raise Unusable("tools", f"must be a list of tools, got {show(value)}")
    return value


def conversation(
    place: Place, fields: Mapping[str, Any], names: Names, chat: Renderer
) -> list[Row]:
    """The rows that a conversation becomes: one, or one for each answer; none to learn, none.

    Raises:
        Unusable: It is not of the form of one, or cannot be rendered.
    """
    messages, tools = read_messages(fields, names), read_tools(fields)
    said = [
        [message.role, message.content, *([dict(message.more)] if message.more else [])]
        for message in messages
    ]
    hashed = hash_id(said if tools is None else [*said, {"tools": tools}])
    return [_row(place, row, hashed) for row in chat.rows(messages, tools)]


def wrap_prompt(
    place: Place, chat: Renderer, prompt: str, completion: str, spans: Sequence[Span]
) -> Row | None:
    """A prompt and its completion as a question and its answer; None where they stay as they are.

    They stay where there is no template, or where they are written in one already: they hold a
    token that the template writes around a question.

    Raises:
        Unusable: The template cannot write them.
    """
    template = chat.template
    if template is None or _marks_in(template, prompt + completion):
        return None
    messages = (Message("user", prompt), Message("assistant", completion))
    [rendered] = chat.rows(messages, None)
    row = _row(place, rendered, "")
    return row._replace(spans=_move_spans(spans, completion, row.text))


def _row(place: Place, row: Rendered, hashed: str) -> Row:
    labeled = zip(row.answers, row.labels, strict=True)
    factors = tuple((*answer, own) for answer, own in zip(row.answers, row.weights, strict=True))
    alike = len(set(row.weights)) == 1
    facts = ["changed"] * row.changed + ["unthought"] * row.unthought
    facts += [name for name, so in (("served", row.served), ("open", not row.closed)) if so]
    return Row(
        place=place,
        id=None,
        text=row.text,
        prompt=row.prompt,
        label=None,
        true_label=None,
        hashed=f"{hashed}#{row.number}" if row.number else hashed,
        weight=row.weights[0] if alike else 1.0,
        spans=tuple(Span(*answer, label) for answer, label in labeled if label is not None),
        context=row.context,
        ends=True,
        asks=row.asks,
        lead=row.lead,
        factors=() if alike else factors,
        group=hashed if row.number else "",
        facts=tuple(facts),
    )


def _marks_in(template: Template, text: str) -> bool:
    """Whether a text holds a token that the template writes around a user's message."""
    found = [mark for mark in template.marks if mark in text]
    if not found:
        return False
    around = render_messages(
        template, [Message("user", "x")], None, ask=False, advice="change the row"
    )
    return any(mark in around for mark in found)


def _move_spans(spans: Sequence[Span], completion: str, text: str) -> tuple[Span, ...]:
    """Spans of a completion as spans of the text that a template writes of it."""
    if not spans:
        return ()
    words = completion if completion in text else completion.strip()
    at = text.rfind(words)
    if at < 0:
        raise Unusable(
            "spans",
            "cover words that the chat template changes: remove them, or set data.template=none",
        )
    cut = completion.index(words)
    bounds = [
        (max(span.start - cut, 0), min(span.end - cut, len(words)), span.label) for span in spans
    ]
    return tuple(Span(a + at, b + at, label) for a, b, label in bounds if a < b)


def count_chat(
    counts: Counter[str],
    unread: Counter[str],
    fields: Mapping[str, Any],
    rows: Sequence[Row],
    chat: Callable[[], Renderer],
) -> None:
    """Count what a chat template made of a row of a file, and what of it is passed over.

    Args:
        counts: What `chat_notes` says.
        unread: Keys that are not read.
        fields: The row in the file.
        rows: What it was read as.
        chat: Loads what rendered it.
    """
    counts["rows"] += 1
    counts.update(fact for row in rows for fact in row.facts)
    messages, tools = fields.get("messages"), fields.get("tools")
    if messages is None:
        unread["tools"] += bool(tools)
        if fields.get("completion") is not None and chat().template is not None:
            wraps, asked = rows[0].asks is not None, bool((fields.get("prompt") or "").strip())
            counts["wrapped"] += wraps
            counts["marked"] += asked and not wraps
            counts["unasked"] += not asked
        return
    template = chat().template
    assert template is not None
    for message in messages:
        for key, value in message.items():
            if value is not None and (
                key not in READ
                or (key in FOR_TEMPLATES and value and not _reads_key(template, key))
            ):
                unread[f"messages.{key}"] += 1
        counts["quoted"] += _count_quoted(message, rows)
        counts["asked"] += wants_loss(message)
    unread["tools"] += bool(tools) and re.search(r"\btools\b", template.source) is None
    counts["unanswered"] += messages[-1]["role"] != "assistant"
    counts["unlearned"] += not rows
    if len(rows) > 1:
        counts["split"] += 1
        counts["split rows"] += len(rows)


def _reads_key(template: Template, key: str) -> bool:
    """Whether a template asks for a key, or for another that transformers fills from it."""
    return any(map(template.reads, REASONING if key in REASONING else (key,)))


def _count_quoted(message: Mapping[str, Any], rows: Sequence[Row]) -> int:
    """How many calls of a message have arguments that are JSON text and are written in quotes."""
    found = 0
    for call in message.get("tool_calls") or [] if message["role"] == "assistant" else []:
        function = call.get("function")
        given = (function if isinstance(function, dict) else call).get("arguments")
        if isinstance(given, str) and given:
            twice = json.dumps(given, ensure_ascii=False)
            found += any(twice in row.prompt + row.text for row in rows)
    return found


def chat_notes(path: object, counts: Mapping[str, int]) -> Iterator[str]:
    """A sentence about each thing that was done to conversations or passed over in them."""
    sentences = {
        "wrapped": "{} rows with prompt and completion are written in the model's chat template, "
        "as a user's message and its answer (data.template=none leaves them as they are).",
        "marked": "{} rows with prompt and completion contain tokens of the chat template already "
        "and are left unchanged.",
        "unasked": "{} rows with a completion have an empty prompt and are left as plain texts.",
        "quoted": "{} tool calls have arguments as JSON text, which the chat template writes in "
        "quotes: write them as objects.",
        "split": "{} conversations became {rows} rows, one for each answer that is learned: "
        "the chat template renders earlier turns differently once a later one is added.",
        "served": "{} answers begin with the thought that the template's own prompt opens, and are "
        "trained after that prompt, as they are served, rather than as the template renders them.",
        "unthought": "{} answers are trained without the words, such as <think>, that the "
        "template's own prompt adds before an answer, and the evaluation asks with them: begin "
        "answers with these words to train them as they are served.",
        "unlearned": "{} conversations are left out: all their answers are marked not to be "
        "learned.",
        "asked": "{} messages of other roles than the assistant are marked to be learned; only "
        "answers are.",
        "changed": "{} messages are left out or changed by the chat template.",
        "open": "{} rows end with an answer whose end the chat template does not mark: the model "
        "does not learn to stop there.",
        "unanswered": "{} conversations end with an unanswered message; the messages after the "
        "last answer are left out.",
    }
    for name, sentence in sentences.items():
        if counts.get(name):
            yield f"{path}: {sentence.format(counts[name], rows=counts.get('split rows'))}"
