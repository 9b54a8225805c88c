"""Task results for the terminal: a table per task and metric, a line per mode."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradroute.harness.numbers import Aggregate, Number, difference
from gradroute.harness.store import NAMES, StoredTasks
from gradroute.harness.tasks import Loaded
from gradroute.report.render.table_cells import aligned
from gradroute.system.terminal import safe_text

REFERENCES = ("base", "full")
"""Modes that the others are compared with: the untouched base, and all that was trained."""

Row = Mapping[str, Any]


def tasks_text(run: str, store: StoredTasks, tasks: Sequence[Loaded], modes: Sequence[str]) -> str:
    """The tables of a run's tasks.

    Args:
        run: Its name.
        store: What is known of it.
        tasks: What was asked for.
        modes: The modes in order.
    """
    blocks = [f"{run}: differences are paired over the documents; [95 % intervals]"]
    seen: set[str] = set()
    for one in tasks:
        for task in [name for name in one.facts if name not in seen]:
            seen.add(task)
            rows = store.of(task, modes, one.facts[task])
            for metric, chosen in dict.fromkeys((row["metric"], row["filter"]) for row in rows):
                some = [row for row in rows if (row["metric"], row["filter"]) == (metric, chosen)]
                blocks.append(_table(some, store.lines, one.aggregation(task, metric)))
            blocks += _identical_answers(task, rows, store.lines)
    return safe_text("\n\n".join(blocks))


def _table(rows: Sequence[Row], lines: Sequence[Row], aggregate: Aggregate | None) -> str:
    first = rows[0]
    modes = [row["mode"] for row in rows]
    against = [mode for mode in REFERENCES if mode in modes and len(modes) > 1]
    table = [["mode", "value", *(f"minus {mode}" for mode in against)]]
    by_mode = {row["mode"]: row for row in rows}
    for row in rows:
        gaps = [_gap(row, by_mode[mode], lines, aggregate) for mode in against]
        value = Number(row["value"], row["stderr"], row["lower"], row["upper"])
        table.append([row["mode"], _number_text(value), *gaps])
    better = {True: ", more is better", False: ", less is better"}.get(
        first["higher_is_better"], ""
    )
    shots = "" if first["num_fewshot"] is None else f", {first['num_fewshot']} worked examples"
    chosen = "" if first["filter"] == "none" else f" ({first['filter']})"
    head = f"{first['task']}: {first['metric']}{chosen}, {first['n']} documents{shots}{better}"
    return f"{head}\n{aligned(table)}"


def _gap(row: Row, other: Row, lines: Sequence[Row], aggregate: Aggregate | None) -> str:
    if row["mode"] == other["mode"]:
        return ""
    values, others = (_values(one, lines) for one in (row, other))
    if values and values.keys() == others.keys():
        ordered = [others[place] for place in values]
        return _number_text(difference([*values.values()], ordered, aggregate), sign=True)
    return _number_text(Number(row["value"] - other["value"]), sign=True)


def _values(row: Row, lines: Sequence[Row]) -> dict[tuple[Any, ...], Any]:
    """(document, its prompt) -> its value."""
    return {
        (line["document"], line["prompt_hash"]): line["values"][row["metric"]]
        for line in _lines_of(row, lines)
        if line["filter"] == row["filter"] and row["metric"] in line["values"]
    }


def _lines_of(row: Row, lines: Sequence[Row]) -> Iterator[Row]:
    return (line for line in lines if all(line[name] == row[name] for name in NAMES))


def _identical_answers(task: str, rows: Sequence[Row], lines: Sequence[Row]) -> list[str]:
    """What to say where two modes gave the very same answers, which differing modes do not."""
    answers = {
        row["mode"]: [(line["document"], line["answers"]) for line in _lines_of(row, lines)]
        for row in rows
    }
    told = []
    for mode, given in answers.items():
        if mode != "full" and given and given == answers.get("full"):
            told.append(f"{task}: {mode} and full gave identical answers to every document.")
    return told


def _number_text(number: Number, sign: bool = False) -> str:
    if number.value is None:
        return "not a number"
    plus = "+" if sign else ""
    digits = 3 if abs(number.value) < 100 else 1
    text = f"{number.value:{plus}.{digits}f}"
    if number.lower is None or number.upper is None:
        return text
    return f"{text} [{number.lower:{plus}.{digits}f}, {number.upper:{plus}.{digits}f}]"
