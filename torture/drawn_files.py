"""Example files drawn from a seed: valid ones of known content, and damaged ones.

Damage is done to rows before they are written, to bytes afterwards, or to both. Rows are written as
JSONL or as CSV.
"""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from typing import Any

from torture.slow_csv import IN_JSON
from torture.slow_reader import LABELS, TRUE_LABELS, Known, known_rows

TEXTS = (
    "A fox.", "ein Bär", "日本", "😀 smile", "2024-01-01", "2024-01-01T00:00:00Z", "1e5", "true",
    "null", "NaN", "0x1F", "x\u2028y\u2029z\u0085", "a\0b", "\x1b[31mred\x07",
    "tab\tline\nbreak\r\n",
    '"quoted" \\ back', '{"label": "bad"}', " spaces ", "\u200bzero", "\u202eright", "\ufeffmark",
    "e\u0301", "\x7f", "'", "<b>", "label", "bad", "text " * 60,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    True, False, 0, 1, 0.0, 1.0, -1, "true", "false", "0", "1", "yes", "Bad", "bad ", "", " ",
    "good", "bad", "unlabeled", None, [], ["bad"], {}, {"label": "bad"}, 1e308, 10**30,
    "\ud800", "toxic",
)  # fmt: skip
SPANS: tuple[Any, ...] = (
    [[0, 1, "bad"]], [[0, 1, "good"], [0, 2, "bad"]], [[1, 1, "bad"]], [[0, 10**6, "bad"]],
    [[0, 1]], [{"start": 0, "end": 1, "label": "toxic"}], [[True, 2, "bad"]], [[-1, 1, "bad"]],
    [{"role": "user", "content": "x"}], [{"role": "assistant", "content": "x"}],
    [{"role": "user", "content": "x", "label": "bad"}, {"role": "assistant", "content": "y"}],
    [{"role": "user", "content": None}, {"role": "human"}],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "\ud800"}],
)  # fmt: skip
_MORE = ("completion", "weight", "spans", "messages")
DEEP = "deeply nested"
"""Stands for a value in many brackets."""
_WORDS = rb"""" \ { } [ ] , : null NaN Infinity -Infinity true false 0 -0 1e999 0.1 "label": "text":
"true_label": "id": "bad" "good" \ud800 \udc00\ud800 \u0000 // # \x"""
PIECES = (
    *_WORDS.split(), b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xfe\xff", b"\xed\xa0\x80",
    b"\xc0\xaf", b"\x80", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\x1f\x8b", b"\x0b", b"\x0c",
    b"\xc2\x85", b"\x1a", b" ", b"[" * 5000, b'{"a":' * 5000, b"[" * 50 + b"]" * 50, b"9" * 5000,
    b"9" * 640, b"-" + b"9" * 640,
)  # fmt: skip


def valid_file(draw: random.Random, kind: str) -> tuple[bytes, list[Known]]:
    """A file that reads well, and what its rows say."""
    rows = _rows(draw)
    return _written(rows, draw, kind), known_rows(rows)


def damaged_file(draw: random.Random, kind: str) -> bytes:
    """A file that was damaged: in its rows, in its bytes, or in both."""
    if draw.random() < 0.02:
        return draw.choice([b"", b"\n \r\n\t\n", b"\xef\xbb\xbf", draw.randbytes(200)])
    rows = _rows(draw)
    for _ in range(draw.choice([0, 1, 1, 2])):
        draw.choice(ROW_DAMAGES)(rows, draw)
    content = _written(rows, draw, kind)
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
        content = draw.choice(BYTE_DAMAGES)(content, draw)
    return content


def _rows(draw: random.Random) -> list[dict[str, Any]]:
    """Rows that fit together: all labeled or none, ids unique, one label per text."""
    labeled, true_labeled = draw.random() < 0.6, draw.random() < 0.4
    ids = draw.choice(["texts", "numbers", "some", "none", "none"])
    chat = draw.choice([0.0, 0.0, 0.4])
    rows: list[dict[str, Any]] = []
    for number in range(draw.choice([1, 2, 3, 5, 8, 13])):
        row = _said(draw, number, chat)
        if labeled or draw.random() < 0.1:
            row["label"] = draw.choice(LABELS) if labeled else None
        if true_labeled or draw.random() < 0.1:
            row["true_label"] = draw.choice(TRUE_LABELS) if true_labeled else None
        rows.append(row)
        if draw.random() < 0.1:
            rows.append(dict(row))  # the same row again
    for number, row in enumerate(rows):
        if ids == "texts" or (ids == "some" and draw.random() < 0.5):
            row["id"] = f"{draw.choice(TEXTS)}-{number}"
        elif ids == "numbers":
            row["id"] = number - 3
        if draw.random() < 0.2:
            extra = draw.choice([1, -0.5, 1e999, None, "x", [1, [2]], {"label": True}])
            row[draw.choice(["source", "score", "message", "n" * 30])] = extra
        if draw.random() < 0.2:
            row["weight"] = draw.choice([1, 0.5, 3, 1e-9, None])
    return rows


def _said(draw: random.Random, number: int, chat: float) -> dict[str, Any]:
    """A text, a completion or a conversation, perhaps with labels for parts of it."""
    text = f"{draw.choice(TEXTS)}{number}{draw.choice(TEXTS)}"
    if draw.random() < chat:
        return {"messages": _messages(draw, text)}
    row: dict[str, Any] = {"text": text}
    if draw.random() < 0.4:
        row["prompt"] = draw.choice([*TEXTS, "", None])
    if row.get("prompt") and draw.random() < 0.3:
        row["completion"] = row.pop("text")
    if draw.random() < 0.15:
        ends = sorted(draw.choices(range(len(text) + 1), k=draw.choice([2, 4])))
        spans = [
            {"start": start, "end": end, "label": draw.choice(LABELS)}
            for start, end in zip(ends[::2], ends[1::2], strict=True)
            if start < end
        ]
        row["spans"] = draw.choice([spans, [list(span.values()) for span in spans]])
    return row


def _messages(draw: random.Random, text: str) -> list[dict[str, Any]]:
    said = [{"role": "user", "content": draw.choice(["Hi", " Yes? ", "日本"])}]
    said += [{"role": "assistant", "content": text.strip() or "x"}]
    if draw.random() < 0.4:
        said = [{"role": "system", "content": "Be kind."}, *said]
    if draw.random() < 0.4:
        said += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "No."}]
    for message in said:
        if message["role"] == "assistant" and draw.random() < 0.3:
            message["label"] = draw.choice(LABELS)
    return said + [{"role": "user", "content": "Why?"}] * (draw.random() < 0.1)


def _written(rows: list[dict[str, Any]], draw: random.Random, kind: str) -> bytes:
    """The bytes of rows, in one of the many ways to write them."""
    if kind == "csv":
        return _as_csv(rows, draw)
    ascii_only, spaces = (
        draw.random() < 0.5,
        draw.choice([(", ", ": "), (",", ":"), (" ,", " :\t")]),
    )
    content = draw.choice([b"", b"", b"\xef\xbb\xbf"])
    for row in rows:
        items = list(row.items())
        draw.shuffle(items)
        line = json.dumps(dict(items), ensure_ascii=ascii_only, separators=spaces)
        line = line.replace("Infinity", "1e999")
        depth = draw.choice([50, 5000])
        line = line.replace(
            f'"{DEEP}"', "[" * depth + '{"a":' * depth + "1" + "}" * depth + "]" * depth
        )
        content += line.encode("utf-8", "surrogatepass")
        content += draw.choice([b"\n", b"\n", b"\n", b"\r\n", b" \n", b"\n\n", b"\n \t\r\n"])
    return content.rstrip(b"\r\n") if draw.random() < 0.2 else content


def _as_csv(rows: list[dict[str, Any]], draw: random.Random) -> bytes:
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["text"]
    draw.shuffle(columns)
    stream = io.StringIO()
    end = draw.choice(["\n", "\r\n"])
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator=end)
    writer.writerow(columns)
    for row in rows:
        values = [row.get(name) for name in columns]
        writer.writerow(
            json.dumps(value) if name in IN_JSON and value is not None else value
            for name, value in zip(columns, values, strict=True)
        )
        stream.write(draw.choice(["", "", "", end, f" {end}"]))
    content = draw.choice([b"", b"\xef\xbb\xbf"]) + stream.getvalue().encode(
        "utf-8", "surrogatepass"
    )
    return content.rstrip(b"\r\n") if draw.random() < 0.2 else content


# ------------------------------------------------------------------ damages

Rows = list[dict[str, Any]]


def _wrong_value(rows: Rows, draw: random.Random) -> None:
    field = draw.choice(["label", "label", "true_label", "text", "prompt", "id", *_MORE])
    draw.choice(rows)[field] = draw.choice(VALUES + SPANS)


def _truth_labels(rows: Rows, draw: random.Random) -> None:
    values = draw.choice([(True, False), (0, 1), ("true", "false"), (0.0, 1.0), ("bad", True)])
    for row in rows:
        row["label"] = draw.choice(values)


def _missing_field(rows: Rows, draw: random.Random) -> None:
    draw.choice(rows).pop(draw.choice(["text", "label", "true_label", "id"]), None)


def _one_label(rows: Rows, draw: random.Random) -> None:
    draw.choice(rows)["label"] = draw.choice(LABELS)


def _same_id(rows: Rows, draw: random.Random) -> None:
    name = draw.choice(["same", 7, "7"])
    for row in draw.choices(rows, k=2):
        row["id"] = name


def _contradiction(rows: Rows, draw: random.Random) -> None:
    other = dict(draw.choice(rows))
    other.pop("id", None)
    field = draw.choice(["label", "true_label"])
    other[field] = draw.choice(TRUE_LABELS)
    rows.insert(draw.randrange(len(rows) + 1), other)


def _odd_letter(rows: Rows, draw: random.Random) -> None:
    row, field = draw.choice(rows), draw.choice(["text", "text", "prompt", "id"])
    row[field] = str(row.get(field)) + draw.choice(["\ud800", "\udfff", "\0", "\ufffe"])


def _deep(rows: Rows, draw: random.Random) -> None:
    draw.choice(rows)[draw.choice(["source", "text", "label"])] = DEEP


def _misspelt(rows: Rows, draw: random.Random) -> None:
    name = draw.choice(["Label", "labels", "lable", "true_lable", "prompts", "Text", "ID", "LABEL"])
    for row in rows if draw.random() < 0.5 else [draw.choice(rows)]:
        row[name] = row.pop(draw.choice(["label", "true_label", "prompt"]), "bad")


def _other_row(rows: Rows, draw: random.Random) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"text": {"a": 1}},
        {"prompt": "alone", "label": "bad"},
        {"label": "bad"},
        {"text": "x", "label": "bad", "true_label": "bad", "id": "id"},
    ]
    rows.insert(draw.randrange(len(rows) + 1), draw.choice(kinds))


def _flip(content: bytes, draw: random.Random) -> bytes:
    if not content:
        return content
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]


def _cut(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    return content[:at] if draw.random() < 0.8 else content[at:]


def _put_in(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    gone = draw.choice([0, 0, 1, 2, 9])
    return content[:at] + draw.choice(PIECES) + content[at + gone :]


def _join(content: bytes, draw: random.Random) -> bytes:
    ends = [at for at, byte in enumerate(content) if byte == 10]
    if not ends:
        return content
    at = draw.choice(ends)
    return content[:at] + draw.choice([b"", b" ", b",", b"\r"]) + content[at + 1 :]


def _repeat(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    return content if not lines else content + draw.choice(lines)


def _double_key(content: bytes, draw: random.Random) -> bytes:
    ends = [at for at, byte in enumerate(content) if byte == 125]
    if not ends:
        return content
    at = draw.choice(ends)
    key = draw.choice([b'"label"', b'"text"', b'"id"', b'"source"'])
    value = draw.choice([b'"bad"', b'"good"', b"null", b"0", b"NaN", b"{}"])
    return content[:at] + b", " + key + b": " + value + content[at:]


def _other_words(content: bytes, draw: random.Random) -> bytes:
    old, new = draw.choice([
        (b'"bad"', b'"Bad"'), (b'"good"', b"true"), (b'"bad"', b"1"), (b'"', b"'"), (b"{", b"["),
        (b"}", b"},"), (b"\n", b"\r"), (b"\n", b"\n\xef\xbb\xbf"), (b'"text"', b'"te\\u0078t"'),
        (b'"label"', b'"\\u006cabel"'), (b"null", b"None"), (b"\n", b"\xe2\x80\xa8"),
    ])  # fmt: skip
    return content.replace(old, new) if draw.random() < 0.5 else content.replace(old, new, 1)


def _encode(content: bytes, draw: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    kind = draw.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "utf-7", "cp037"])
    return text.encode(kind, "replace")


def _pack(content: bytes, draw: random.Random) -> bytes:
    return gzip.compress(content, mtime=0)


ROW_DAMAGES: tuple[Callable[[Rows, random.Random], None], ...] = (
    _wrong_value, _wrong_value, _truth_labels, _missing_field, _one_label, _same_id, _contradiction,
    _misspelt, _other_row, _odd_letter, _deep,
)  # fmt: skip
BYTE_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _flip, _cut, _cut, _put_in, _put_in, _put_in, _join, _repeat, _double_key, _other_words,
    _other_words, _encode, _pack,
)  # fmt: skip
