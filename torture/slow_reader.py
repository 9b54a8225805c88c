"""A slow and obvious reader of example files, to hold the real one to.

It takes the bytes of a whole file, knows nothing of the real reader's code, and returns what each
row says and which lines are wrong. Where the two differ, one of them is wrong. Conversations are
written as `TEMPLATE` writes them, which is given to the real reader's tokenizer.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torture.slow_csv import Broken, lines_of
from torture.slow_json import BLANK, Pairs, Wrong, json_lines, row_of

LABELS = ("good", "bad", "unlabeled")
TRUE_LABELS = ("good", "bad")
NAMES = ("label", "true_label", "prompt", "weight", "spans")
FIELDS = ("id", "text", "completion", "messages", *NAMES)
ROLES = ("system", "developer", "user", "assistant", "tool")
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
Labels = Mapping[str, str] | None
"""Value in the file -> label; None where labels stand as they are."""


@dataclass(frozen=True)
class Known:
    """What a row says."""

    id: str
    text: str
    prompt: str
    label: str
    true_label: str
    weight: float = 1.0
    spans: tuple[tuple[int, int, str], ...] = ()
    context: tuple[tuple[int, int], ...] = ()


@dataclass
class Verdict:
    """What a file says.

    Attributes:
        rows: what is to be read; None where the file is to be refused.
        line: the line that the refusal must name.
        skipped: the lines that are left out.
        perhaps: whether refusing it for a misspelled field is as right as reading it.
    """

    rows: list[Known] | None = None
    line: int = 0
    skipped: list[int] = field(default_factory=list)
    perhaps: bool = False


def read(
    content: bytes, *, skip: bool, limit: int, csv: bool = False, labels: Labels = None
) -> Verdict:
    """What `read_examples` must make of these bytes, as JSONL or as CSV."""
    if content[:2] in (b"\x1f\x8b", b"\xff\xfe", b"\xfe\xff") or content[:4] == b"PAR1":
        return Verdict(line=1)
    content = content[3:] if content[:3] == b"\xef\xbb\xbf" else content
    rows: list[tuple[int, dict[str, Any]]] = []
    bad: list[tuple[int, dict[str, Any] | None, bytes]] = []
    broken = 0
    try:
        given, broken = lines_of(content, limit) if csv else (json_lines(content, limit), 0)
        for number, found in given:
            values = found if isinstance(found, dict) else None
            raw = found if isinstance(found, bytes) else b""
            try:
                if values is None:
                    values = row_of(raw, limit)
                elif None in values:  # of a row of CSV with another length
                    values = {name: values[name] for name in values if name is not None}
                    raise Wrong
                values = _as_spans(values)
                check(values, labels)
                rows.append((number, values))
            except Wrong:
                bad.append((number, values, raw))
    except Broken as error:
        broken = error.line
    if bad and not skip:
        return Verdict(line=bad[0][0])
    if broken or not rows:
        return Verdict(line=broken or (bad[0][0] if bad else 1))
    skipped = [number for number, _, _ in bad]
    if line := _between_rows(rows, bad, labels):
        return Verdict(line=line, skipped=skipped, perhaps=_misspelt(rows, bad))
    return Verdict(
        rows=known_rows([values for _, values in rows], labels),
        skipped=skipped,
        perhaps=_misspelt(rows, bad),
    )


def check(values: dict[str, Any], labels: Labels) -> None:
    """Wrong unless the row can be used as it stands."""
    kinds = [key for key in ("text", "completion", "messages") if values.get(key) is not None]
    if len(kinds) != 1:
        raise Wrong
    [kind], prompt, name = kinds, values.get("prompt"), values.get("id")
    if name is not None and (type(name) not in (str, int) or name == "" or _torn(name)):
        raise Wrong
    weight = values.get("weight")
    if weight is not None and not (type(weight) in (int, float) and 0 < weight < math.inf):
        raise Wrong
    if type(weight) is int and weight > 10**308:
        raise Wrong
    label_of(values.get("label"), labels)
    true_label = values.get("true_label")
    if true_label is not None and label_of(true_label, labels) not in TRUE_LABELS:
        raise Wrong
    if kind == "messages":
        if prompt not in (None, "") or values.get("spans") not in (None, [], ""):
            raise Wrong
        _check_messages(values["messages"], labels)
        return
    text = values[kind]
    if type(text) is not str or text.strip() == "" or _torn(text):
        raise Wrong
    if prompt is not None and (type(prompt) is not str or _torn(prompt)):
        raise Wrong
    if kind == "completion" and prompt is None:
        raise Wrong
    _label_of_each_character(values.get("spans"), text, labels)


def _torn(value: Any) -> bool:
    return type(value) is str and any("\ud800" <= letter <= "\udfff" for letter in value)


def label_of(value: Any, labels: Labels) -> str | None:
    """The label that a value stands for; None where it is missing."""
    if labels is None:
        if value is None or (type(value) is str and value in LABELS):
            return value
        raise Wrong
    if value is None:
        return labels.get("null")
    key = value if type(value) is str else None
    if type(value) in (bool, int, float):
        key = json.dumps(value)
    if key is None or key not in labels:
        raise Wrong
    return labels[key]


def _label_of_each_character(spans: Any, text: str, labels: Labels) -> list[str | None]:
    said: list[str | None] = [None] * len(text)
    if spans is None:
        return said
    if type(spans) is not list:
        raise Wrong
    for span in spans:
        if isinstance(span, dict | Pairs):
            span = dict(span)
            if not {"start", "end", "label"} <= set(span):
                raise Wrong
            echo = span.get("text")
            span = [span["start"], span["end"], span["label"]]
            if echo is not None and (type(echo) is not str or echo != _part(text, *span[:2])):
                raise Wrong
        if type(span) is not list or len(span) != 3 or span[2] is None:
            raise Wrong
        start, end, label = span
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
            raise Wrong
        named = label_of(label, labels)
        for at in range(start, end):
            if said[at] not in (None, named):
                raise Wrong
            said[at] = named
    return said


def _part(text: str, start: Any, end: Any) -> str | None:
    """The characters from start to end; None where these are no places of the text."""
    whole = type(start) is int and type(end) is int and 0 <= start < end <= len(text)
    return text[start:end] if whole else None


def _as_spans(values: dict[str, Any]) -> dict[str, Any]:
    """A label that is a list of [start, end, label], as doccano writes it, stands for spans."""
    label = values.get("label")
    lists = (
        type(label) is list
        and label
        and all(
            type(one) is list
            and len(one) == 3
            and isinstance(one[0], int)
            and isinstance(one[2], str | list)
            for one in label
        )
    )
    return {**values, "label": None, "spans": label} if lists else values


def _check_messages(messages: Any, labels: Labels) -> None:
    if type(messages) is not list or not messages:
        raise Wrong
    for message in messages:
        if not isinstance(message, dict | Pairs):
            raise Wrong
        message = dict(message)
        role, content = message.get("role"), message.get("content")
        if type(role) is not str or role not in ROLES or type(content) is not str or _torn(content):
            raise Wrong
        if role == "assistant" and not content.strip():
            raise Wrong
        if label_or_none(message, labels) is not None and role != "assistant":
            raise Wrong
    if "assistant" not in [dict(message)["role"] for message in messages[1:]]:
        raise Wrong
    if dict(messages[0])["role"] == "assistant":
        raise Wrong


def label_or_none(message: dict[str, Any], labels: Labels) -> str | None:
    """The label of a message; one that is missing is never taken for another."""
    return None if message.get("label") is None else label_of(message["label"], labels)


def _between_rows(
    rows: list[tuple[int, dict[str, Any]]],
    bad: list[tuple[int, dict[str, Any] | None, bytes]],
    labels: Labels,
) -> int:
    """The line where the rows do not fit together; 0 where they do."""
    for name in ("label", "true_label"):
        if name == "label" and labels and "null" in labels:
            continue
        without = [number for number, values in rows if values.get(name) is None]
        has = [number for number, values in rows if values.get(name) is not None]
        has += [number for number, values, raw in bad if _seems_to_have(name, values, raw)]
        if without and has:
            return without[0]
    lines: dict[str, int] = {}
    known = known_rows([values for _, values in rows], labels)
    for (number, _), one in zip(rows, known, strict=True):
        if lines.setdefault(one.id, number) != number:
            return number
    said: dict[tuple[str, str], object] = {}
    for (number, values), one in zip(rows, known, strict=True):
        true_label = values.get("true_label")
        given = (one.label, true_label and label_of(true_label, labels), one.spans)
        if said.setdefault((one.prompt, one.text), given) != given:
            return number
    return 0


def _seems_to_have(name: str, values: dict[str, Any] | None, raw: bytes) -> bool:
    """Whether a row that is left out has a label, or, if it cannot be read, looks like it."""
    if values is not None:
        return values.get(name) is not None
    for piece in raw.split(b'"' + name.encode() + b'"')[1:]:
        colon, rest = piece.lstrip(BLANK)[:1], piece.lstrip(BLANK)[1:].lstrip(BLANK)
        if colon == b":" and rest[:1] not in (b"", b"n"):  # n as in null
            return True
    return False


def _misspelt(
    rows: list[tuple[int, dict[str, Any]]], bad: list[tuple[int, dict[str, Any] | None, bytes]]
) -> bool:
    """Whether a field is so like one of ours that it may be meant."""
    rows = rows + [(number, values) for number, values, _ in bad if values is not None]
    fields = {name for _, values in rows for name in values if name not in FIELDS}
    return any(
        _distance(name.lower(), meant) <= len(meant) // 3 or sorted(name.lower()) == sorted(meant)
        for name in fields
        for meant in NAMES
    )


def _distance(a: str, b: str) -> int:
    """How many letters must be put in, left out or exchanged to get from a to b."""
    if abs(len(a) - len(b)) > 3:
        return 4
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            cost = min(row[j] + 1, row[j - 1] + 1, before + (left != right))
            before, row[j] = row[j], cost
    return row[-1]


def known_rows(rows: list[dict[str, Any]], labels: Labels = None) -> list[Known]:
    """What rows that can be used say, with the ids that those without one get."""
    seen: Counter[str] = Counter()
    return [_known(values, labels, seen) for values in rows]


def _known(values: dict[str, Any], labels: Labels, seen: Counter[str]) -> Known:
    context: list[tuple[int, int]] = []
    if values.get("messages") is not None:
        messages = [dict(message) for message in values["messages"]]
        content = json.dumps([[one["role"], one["content"]] for one in messages])
        prompt, text, said = _conversation(messages, labels, context)
    else:
        text = values.get("text")
        text, prompt = values["completion"] if text is None else text, values.get("prompt") or ""
        content = json.dumps([prompt, text])
        said = _label_of_each_character(values.get("spans"), text, labels)
        if values.get("text") is None and prompt.strip():  # the template writes it
            asked = {"role": "user", "content": prompt}
            answer = {"role": "assistant", "content": text}
            prompt, text, ends = _conversation([asked, answer], labels, context)
            said += ends[len(said) :]
    name = values.get("id")
    if name is None:
        name = hashlib.sha256(content.encode()).hexdigest()[:32]
        seen[name] += 1
        name += f"-{seen[name]}" if seen[name] > 1 else ""
    label = label_of(values.get("label"), labels) or "unlabeled"
    true_label = values.get("true_label")
    shown = label
    if label != "bad" and "bad" in said:
        shown = "bad"
    elif label == "unlabeled":
        shown = "good"
    return Known(
        id=str(name),
        text=text,
        prompt=prompt,
        label=label,
        true_label=shown if true_label is None else str(label_of(true_label, labels)),
        weight=float(values.get("weight") or 1),
        spans=tuple(_runs(said)),
        context=tuple(context),
    )


def _conversation(
    messages: list[dict[str, Any]], labels: Labels, context: list[tuple[int, int]]
) -> tuple[str, str, list[str | None]]:
    """Prompt, text, and the label of each character of the text; fills the context."""
    prompt, text = "", ""
    said: list[str | None] = []
    end = last = 0
    for message in messages:
        opening, closing = f"[{message['role']}] ", "</s>\n"
        if message["role"] != "assistant":
            piece = f"{opening}{message['content']}{closing}"
            if end:
                text += piece
            else:
                prompt += piece
            continue
        if not end:
            prompt += opening
        else:
            text += opening
            context.append((end, len(text)))
        said += [None] * (len(text) - len(said))
        answer = message["content"] + "</s>"
        said += [label_or_none(message, labels)] * len(answer)
        text += answer
        end = len(text)
        text += "\n"
        last = len(text)
    context.append((end, last))
    return prompt, text[:last], [*said, *[None] * (last - len(said))][:last]


def _runs(said: list[str | None]) -> list[tuple[int, int, str]]:
    """The pieces of equal label, as long as they can be."""
    runs: list[tuple[int, int, str]] = []
    for at, label in enumerate(said):
        if label is None:
            continue
        if runs and runs[-1][1] == at and runs[-1][2] == label:
            runs[-1] = (runs[-1][0], at + 1, label)
        else:
            runs.append((at, at + 1, label))
    return runs
