"""A strict reader of examples: JSONL, CSV or Parquet, in one file or in the parts of a data set.

Reading never guesses: a label is a name and never a truth value, a number is not turned into a
text, a date stays the text that it is, and whatever is wrong is named with file and line.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from gradroute.data.chat import Renderer, renderer
from gradroute.data.columns import read_names
from gradroute.data.conflicts import one_row_per_text
from gradroute.data.examples import LABELS, Example, numbered_id
from gradroute.data.fields import Unusable
from gradroute.data.jsonl import MAX_ROW_BYTES, FilePath, refuse, show
from gradroute.data.row import BadRow, Place, Row
from gradroute.data.rows import Rules, read_rows

if TYPE_CHECKING:
    import transformers

Load = Callable[[], "tuple[transformers.PreTrainedTokenizerBase, str]"]
"""Loads a tokenizer, and says what messages call its model."""


@dataclass(frozen=True)
class ExampleFile:
    """What a file held.

    Attributes:
        examples: Its examples in the order of the rows.
        labeled: Whether the rows have labels, of their own or of parts of them; without, every
            example is `unlabeled`.
        true_labeled: Whether the rows have true labels; without, the true label is the label, and
            `good` for an unlabeled example, or the label of a part of it that is not good.
        sha256: Hash of the bytes that were read.
        notes: Sentences about what was passed over or assumed, to be said once.
        skipped: The rows that were left out because they cannot be used.
    """

    examples: list[Example]
    labeled: bool
    true_labeled: bool
    sha256: str
    notes: tuple[str, ...]
    skipped: tuple[BadRow, ...] = ()


class ReadSettings(NamedTuple):
    """How files of examples are read; `read_examples` explains each setting."""

    labels: Sequence[str]
    columns: Mapping[str, str] | None
    label_map: Mapping[str, str] | None
    template: str
    skip_bad_rows: bool
    group: str | None
    span_unit: str
    on_conflict: str
    max_row_bytes: int = MAX_ROW_BYTES


def read_examples(
    path: FilePath,
    *,
    labels: Sequence[str] = LABELS,
    columns: Mapping[str, str] | None = None,
    label_map: Mapping[str, str] | None = None,
    tokenizer: "transformers.PreTrainedTokenizerBase | None" = None,
    template: str = "auto",
    max_row_bytes: int = MAX_ROW_BYTES,
    skip_bad_rows: bool = False,
    group: str | None = None,
    span_unit: str = "code_points",
    on_conflict: str = "refuse",
) -> ExampleFile:
    """Read a file of examples: JSONL, or CSV or Parquet where its name ends in .csv or .parquet.

    A row is `{"text": "...", "prompt": "...", "id": "...", "label": "bad", "true_label": "bad"}`;
    only `text` is needed, and null is as good as missing. `completion` may stand for `text` where
    there is a prompt, or `messages` for both. `weight` and `spans` are read too. Either every row
    has a label or none, and the same for true labels. Without an id, the id is made from the
    sha256 of prompt and text, or of the messages.

    Args:
        path: The file.
        labels: The label names that are allowed.
        columns: Field -> the column that it stands in, where that has another name.
        label_map: Value in the file -> label; None where labels stand as they are.
        tokenizer: Its chat template writes conversations (`messages`), and a prompt with its
            completion as one.
        template: "none" leaves prompt and completion as they are, and refuses conversations.
        max_row_bytes: A longer row is refused.
        skip_bad_rows: Leave out rows that are wrong in themselves, and list them. All others have
            the ids and labels that they have in a file without those rows.
        group: Column by whose value examples are kept together in a split.
        span_unit: What the places of spans count: `code_points`, `utf16` or `bytes`.
        on_conflict: What rows with one text and different labels mean: `refuse` stops;
            `majority` makes one example of all rows of a text, with the labels that most of them
            give and unlabeled where several are given most often; `unlabeled` makes one example
            that is unlabeled where they differ.

    Raises:
        ConfigError: `columns`, `label_map`, `span_unit` or `on_conflict` names what there is not.
        DataError: If the file cannot be read, a row cannot be used, or rows contradict each other.
            The message names the file, and the line where it could be opened.
        MachineError: The library for the file's format is not installed.
    """
    settings = ReadSettings(
        labels=labels,
        columns=columns,
        label_map=label_map,
        template=template,
        max_row_bytes=max_row_bytes,
        skip_bad_rows=skip_bad_rows,
        group=group,
        span_unit=span_unit,
        on_conflict=on_conflict,
    )
    load = None if tokenizer is None else lambda: (tokenizer, "the given model")
    return read_parts([path], settings, tokenizer=load, limit=None)


def read_parts(
    files: Iterable[FilePath], settings: ReadSettings, *, tokenizer: Load | None, limit: int | None
) -> ExampleFile:
    """Read the files of a data set, opened one after another, like `read_examples` one file.

    Args:
        files: At least one; the next is asked for when all rows of one are read.
        settings: How they are read.
        tokenizer: Called at the first conversation, or prompt with a completion.
        limit: Read so many rows that can be used; None reads all.

    Raises:
        GradrouteError: As for `read_examples`.
    """
    names = read_names(
        settings.labels,
        settings.columns,
        settings.label_map,
        settings.group,
        settings.span_unit,
    )
    chat = _lazy_renderer(tokenizer, settings.template)
    rules = Rules(names, chat, settings.max_row_bytes, limit, settings.skip_bad_rows)
    found = read_rows(files, rules)
    rows, notes = found.rows, found.notes
    file = rows[0].place.file
    labeled = any(row.label is not None or row.spans for row in rows)
    true_labeled = rows[0].true_label is not None
    if settings.on_conflict == "refuse":
        repeats = _refuse_contradictions(rows)
        if repeats:
            notes.append(f"{file}: {repeats} of {len(rows)} rows repeat an earlier row.")
    else:
        rows, said = one_row_per_text(rows, settings.on_conflict, names.labels)
        notes += [f"{file}: {sentence}" for sentence in said]
    seen: Counter[str] = Counter()
    named = [(row.id or numbered_id(row.hashed, seen), row) for row in rows]
    _refuse_same_ids(named)
    unlabeled = sum(row.label == "unlabeled" for row in rows)
    if unlabeled and not true_labeled:
        notes.append(
            f"{file}: {unlabeled} unlabeled rows have no true_label; evaluation treats them as "
            f"good."
        )
    return ExampleFile(
        examples=[_example(name, row) for name, row in named],
        labeled=labeled,
        true_labeled=true_labeled,
        sha256=found.sha256,
        notes=tuple(notes),
        skipped=tuple(found.skipped),
    )


def _lazy_renderer(tokenizer: Load | None, template: str) -> Callable[[], Renderer]:
    """What renders conversations; the tokenizer is loaded when the first one is met."""

    def refused(*_: object) -> NoReturn:
        why = "none was given" if tokenizer is None else "data.template is none"
        raise Unusable(
            "messages",
            f"need the chat template of a tokenizer, and {why}: write one row per answer, with "
            "prompt and completion" + (", or set data.template=auto" if tokenizer else ""),
        )

    @cache
    def loaded() -> Renderer:
        if tokenizer is None or template == "none":
            return Renderer(refused, None)
        return renderer(*tokenizer())

    return loaded


def _example(name: str, row: Row) -> Example:
    label = row.label or "unlabeled"
    shows = [span.label for span in row.spans if span.label not in ("good", "unlabeled")]
    implied = shows[0] if shows and label in ("good", "unlabeled") else label
    return Example(
        id=name,
        text=row.text,
        prompt=row.prompt,
        label=label,
        true_label=row.true_label or ("good" if implied == "unlabeled" else implied),
        weight=row.weight,
        spans=row.spans,
        context=row.context,
        ends=row.ends,
        asks=row.asks,
        lead=row.lead,
        factors=row.factors,
        group=row.group,
    )


def _refuse_same_ids(named: Sequence[tuple[str, Row]]) -> None:
    first: dict[str, Row] = {}
    clashes, same = [], 0
    for name, row in named:
        before = first.setdefault(name, row)
        if before is not row:
            clashes.append((row.place, f"{show(name)} ({_both(before.place, row.place)})"))
            same += (before.prompt, before.text) == (row.prompt, row.text)
    advice = "make ids unique"
    if same:
        advice += f" ({same} have the same text too: data.on_conflict=majority makes one row)"
    _refuse_all(clashes, "with the id of an earlier row", advice)


def _refuse_contradictions(rows: Sequence[Row]) -> int:
    """Refuse one text under two labels; return how many rows repeat an earlier one."""
    first: dict[tuple[str, str], Row] = {}
    clashes, repeats = [], 0
    for row in rows:
        before = first.setdefault((row.prompt, row.text), row)
        repeats += before is not row
        labels = (row.label, row.true_label, row.spans)
        # Conversations that begin alike may differ in what comes later.
        alone = not (row.is_one_of_several or before.is_one_of_several)
        if alone and (before.label, before.true_label, before.spans) != labels:
            place = _both(before.place, row.place)
            clashes.append((row.place, f"{show(row.text)} ({place})"))
    advice = "keep one, or choose with data.on_conflict (majority, unlabeled)"
    _refuse_all(clashes, "with the text of an earlier row but another label", advice)
    return repeats


def _both(one: Place, other: Place) -> str:
    if one == other:
        return f"both of line {one.line}"
    if one.file == other.file:
        return f"lines {one.line} and {other.line}"
    return f"line {one.line} of {one.file} and line {other.line}"


def _refuse_all(clashes: Sequence[tuple[Place, str]], what: str, advice: str) -> None:
    if clashes:
        more = f" and {len(clashes) - 5} more" if len(clashes) > 5 else ""
        listed = ", ".join(text for _, text in clashes[:5])
        file, line = clashes[0][0]
        refuse(file, line, f"{len(clashes)} row(s) {what}: {listed}{more}; {advice}")
