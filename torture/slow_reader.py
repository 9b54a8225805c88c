"""A slow and obvious reader of example files, to hold the real one to.

It takes the bytes of a whole file, knows nothing of the real reader's code, and returns what each
row says and which lines are wrong. Where the two differ, one of them is wrong.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NoReturn

LABELS = ("good", "bad", "unlabeled")
TRUE_LABELS = ("good", "bad")
NAMES = ("label", "true_label", "prompt")
BLANK = b" \t\n\r\x0b\x0c"
MOST_DIGITS = 640

Known = tuple[str, str, str, str, str]
"""id, text, prompt, label, true label."""


class Wrong(Exception):
    """A row, or the file, cannot be used."""


@dataclass
class Verdict:
    """What a file says.

    Attributes:
        rows: what is to be read; None where the file is to be refused.
        line: the line that the refusal must name.
        skipped: the lines that are left out.
        perhaps: whether refusing it for a misspelt field is as right as reading it.
    """

    rows: list[Known] | None = None
    line: int = 0
    skipped: list[int] = field(default_factory=list)
    perhaps: bool = False


def read(content: bytes, *, skip: bool, limit: int) -> Verdict:
    """What `read_examples` must make of these bytes."""
    if content[:2] in (b"\x1f\x8b", b"\xff\xfe", b"\xfe\xff"):
        return Verdict(line=1)
    lines = _lines(content)
    rows: list[tuple[int, dict[str, Any]]] = []
    bad: list[tuple[int, dict[str, Any] | None, bytes]] = []
    for number, line in enumerate(lines, 1):
        values = None
        try:
            if len(line) > limit:
                raise Wrong
            if not line.strip(BLANK):
                continue
            values = parsed(line)
            check(values)
            rows.append((number, values))
        except Wrong:
            bad.append((number, values, line))
    if bad and not skip:
        return Verdict(line=bad[0][0])
    if not rows:
        return Verdict(line=bad[0][0] if bad else 1)
    skipped = [number for number, _, _ in bad]
    if line := _between_rows(rows, bad):
        return Verdict(line=line, skipped=skipped, perhaps=_misspelt(rows, bad))
    return Verdict(
        rows=known_rows([values for _, values in rows]),
        skipped=skipped,
        perhaps=_misspelt(rows, bad),
    )


def _lines(content: bytes) -> list[bytes]:
    if content[:3] == b"\xef\xbb\xbf":
        content = content[3:]
    pieces = content.split(b"\n")
    return [piece + b"\n" for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])


class Pairs(list[tuple[str, Any]]):
    """An object of JSON as it stands, keys that stand twice included."""


def parsed(line: bytes) -> dict[str, Any]:
    """One line of JSON; Wrong unless it is one strict object."""
    try:
        value = json.loads(
            line.decode("utf-8"),
            object_pairs_hook=Pairs,
            parse_constant=_no_constant,
            parse_int=_whole_number,
        )
    except (ValueError, RecursionError):
        raise Wrong from None
    if not isinstance(value, Pairs):
        raise Wrong
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Pairs):
            keys = [key for key, _ in one]
            if len(set(keys)) != len(keys):
                raise Wrong
            waiting += [inner for _, inner in one]
        elif isinstance(one, list):
            waiting += one
    return dict(value)


def _no_constant(name: str) -> NoReturn:
    raise Wrong(name)


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise Wrong
    return int(digits)


def check(values: dict[str, Any]) -> None:
    """Wrong unless the row can be used as it stands."""
    text, prompt, name = (values.get(key) for key in ("text", "prompt", "id"))
    for value in (text, prompt, name):
        if type(value) is str and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise Wrong
    if type(text) is not str or text.strip() == "":
        raise Wrong
    if prompt is not None and type(prompt) is not str:
        raise Wrong
    if name is not None and (type(name) not in (str, int) or name == ""):
        raise Wrong
    label, true_label = values.get("label"), values.get("true_label")
    if label is not None and (type(label) is not str or label not in LABELS):
        raise Wrong
    if true_label is not None and (type(true_label) is not str or true_label not in TRUE_LABELS):
        raise Wrong


def _between_rows(
    rows: list[tuple[int, dict[str, Any]]], bad: list[tuple[int, dict[str, Any] | None, bytes]]
) -> int:
    """The line where the rows do not fit together; 0 where they do."""
    for name in ("label", "true_label"):
        without = [number for number, values in rows if values.get(name) is None]
        has = [number for number, values in rows if values.get(name) is not None]
        has += [number for number, values, raw in bad if _seems_to_have(name, values, raw)]
        if without and has:
            return without[0]
    lines: dict[str, int] = {}
    for (number, _), known in zip(rows, known_rows([values for _, values in rows]), strict=True):
        if lines.setdefault(known[0], number) != number:
            return number
    said: dict[tuple[str, str], tuple[Any, Any]] = {}
    for number, values in rows:
        key = (values.get("prompt") or "", values["text"])
        labels = (values.get("label"), values.get("true_label"))
        if said.setdefault(key, labels) != labels:
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
    known = ("id", "text", *NAMES)
    fields = {name for _, values in rows for name in values if name not in known}
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


def known_rows(rows: list[dict[str, Any]]) -> list[Known]:
    """What rows that can be used say, with the ids that those without one get."""
    seen: Counter[str] = Counter()
    known: list[Known] = []
    for values in rows:
        text, prompt, name = values["text"], values.get("prompt") or "", values.get("id")
        if name is None:
            name = hashlib.sha256(json.dumps([prompt, text]).encode()).hexdigest()[:32]
            seen[name] += 1
            name += f"-{seen[name]}" if seen[name] > 1 else ""
        label = values.get("label") or "unlabeled"
        true_label = values.get("true_label") or ("good" if label == "unlabeled" else label)
        known.append((str(name), text, prompt, label, true_label))
    return known
