"""What `find` writes: a summary, every row with its score, the rows found, and a page of them.

found_place     the folder: found/ in the run's, in it a folder for each of several behaviors, and
                in that a folder for each other file
judged          scores -> the summary and a line per row, worst first
write_found     <by>.json, <by>_scores.jsonl, <by>.html, and what `data.found` reads: <by>.jsonl
                (found), <by>_likely.jsonl (labels of the next round), <by>_suspects.jsonl (dropped)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from gradroute.config.run_config import load_config
from gradroute.data.examples import Example
from gradroute.report.render.found_page import MOST_ROWS, found_page
from gradroute.runs.folder import RunFolder
from gradroute.system.false_discovery import (
    bad_rows,
    least_by_rank,
    q_values,
    tail_p_values,
    upper_p_values,
)
from gradroute.system.files import read_json, read_lines, write_json, write_lines, write_text
from gradroute.system.statistics import wilson

SCHEMA_VERSION = 3
"""Of the summary; since 2 `q` comes from an upper bound of `p`, since 3 what an adapter explains
beside the others alone has a share in its score."""
LIKELY = 0.02
"""p-value up to which `refine` labels a row in the next round; routing bears some wrong labels."""
SUSPECT = {"adapter": 0.05, "words": 0.3, "hidden": 0.3, "head": 0.3}
"""Finder -> p-value up to which a filter drops a row, and about this share of the good ones: every
bad row that stays is learned, and what a weak finder drops costs little. Chosen on seeds 100 and
101 of `wrong_pronouns`; that of `head` is that of `hidden`."""


@dataclass(frozen=True)
class Scored:
    """Scores of the rows in question and of the null rows, higher for worse.

    Attributes:
        rows: Unlabeled examples.
        scores: One per row.
        null: One per example that is known to be good and was not trained on.
        tokens: Text and share in the score of each target token, per row; empty where the score
            is not made of tokens.
    """

    rows: Sequence[Example]
    scores: Float[ndarray, " m"]
    null: Float[ndarray, " n"]
    tokens: Sequence[Sequence[tuple[str, float]]] = ()


def found_place(folder: RunFolder, summary: Mapping[str, Any]) -> Path:
    """The folder of what was found in a run's own rows or, in that one, in those of a file.

    Of a run with several behaviors each has a folder in `found/`, unless the files of an older
    gradroute, which knew none, are of this one.
    """
    label, place, file = summary["behavior"], folder.found, summary.get("file")
    if len(load_config(folder.config).behaviors) > 1:
        older, own = place / f"{summary['by']}.json", place / label
        if own.is_dir() or not older.is_file() or read_json(older).get("behavior") != label:
            place = own
    if file is None:
        return place
    return place / f"{Path(file['name']).stem[:100]}-{file['identity'][-64:][:8]}"


def known_summary(
    place: Path, question: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """An earlier answer to the same question; a page that is missing beside it is made again."""
    by = question["by"]
    path, page = place / f"{by}.json", place / f"{by}.html"
    if not path.is_file():
        return None
    known = read_json(path)
    if any(known.get(key) != value for key, value in question.items()):
        return None
    if not page.is_file():
        lines = list(read_lines(place / f"{by}_scores.jsonl"))
        write_text(page, found_page(known, lines, earlier, _within(place)))
    return known


def write_found(
    place: Path,
    summary: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    earlier: Sequence[Mapping[str, Any]],
) -> None:
    """Write the scores, the labels of this and earlier rounds, the page, and last the summary.

    Args:
        place: The folder.
        summary: What was asked, and what came of it.
        lines: A row each, worst first.
        earlier: Rows that got their label in earlier rounds.
    """
    by = summary["by"]
    (place / f"{by}.json").unlink(missing_ok=True)  # it speaks of files that change now
    now = [_as_found(line) for line in lines if line["found"]]
    again = {_key(line) for line in now}
    write_lines(place / f"{by}_scores.jsonl", lines)
    write_lines(place / f"{by}.jsonl", [*(e for e in earlier if _key(e) not in again), *now])
    for name, most in (("likely", LIKELY), ("suspects", summary["suspect"])):
        rows = [_as_found(line) for line in lines if line["p"] <= most]
        again = {_key(row) for row in rows}
        before = [row for row in earlier if _key(row) not in again]
        write_lines(place / f"{by}_{name}.jsonl", [*before, *rows])
    write_text(place / f"{by}.html", found_page(summary, lines, earlier, _within(place)))
    write_json(place / f"{by}.json", summary)


def join_suspects(folder: RunFolder, by: str, places: Sequence[Path]) -> None:
    """Write the suspect rows of several behaviors as one file that `data.found` reads.

    Args:
        folder: The run.
        by: The finder.
        places: The folder of each behavior, see `found_place`.
    """
    rows = _joined([place / f"{by}_suspects.jsonl" for place in places])
    write_lines(folder.found / f"{by}_suspects.jsonl", rows)


def join_rows(files: Sequence[Path]) -> Path:
    """Write the rows of two finders beside each other, as one file that `data.found` reads.

    Args:
        files: Of one folder, such as `adapter_suspects.jsonl` and `words.jsonl`.

    Returns:
        The file, such as `adapter_suspects_words.jsonl`.
    """
    path = files[0].with_name("_".join(file.stem for file in files) + files[0].suffix)
    write_lines(path, _joined(files))
    return path


def _joined(files: Sequence[Path]) -> list[Mapping[str, Any]]:
    """The rows of several files; one that is in more has the label of its smallest p."""
    rows: dict[tuple[str, str], Mapping[str, Any]] = {}
    for file in files:
        for row in read_lines(file):
            other = rows.setdefault(_key(row), row)
            if row.get("p", 1.0) < other.get("p", 1.0):
                rows[_key(row)] = row
    return [*rows.values()]


def _within(place: Path) -> str:
    """The folder in the run's found/ that a place is; empty for found/ itself."""
    tops = [one for one in (place, *place.parents) if RunFolder(one.parent).config.is_file()]
    return "" if not tops or place == tops[0] else place.relative_to(tops[0]).as_posix()


def judged(
    scored: Scored, fdr: float, label: str, suspect: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The part of the summary that the scores say, and a line per row, worst first.

    Args:
        scored: Rows, null rows and their scores.
        fdr: Share of false rows among the found, on average, at most.
        label: The label of what is found.
        suspect: p-value up to which a row is suspect.
    """
    p = tail_p_values(scored.scores, scored.null)
    q = q_values(upper_p_values(scored.scores, scored.null))
    found = q <= fdr
    order = np.argsort(-scored.scores, kind="stable")
    lines = [_line(scored, at, float(p[at]), float(q[at]), bool(found[at]), label) for at in order]
    for place, at in enumerate(order):
        if scored.tokens and (found[at] or place < MOST_ROWS):
            lines[place]["tokens"] = [list(pair) for pair in scored.tokens[at]]
    estimate = bad_rows(scored.scores, scored.null)
    bad = [row.true_label == label for row in scored.rows]
    left = max(0.0, estimate.value - float(found.sum()) * (1.0 - fdr))
    return {
        "unlabeled": len(scored.rows),
        "null": len(scored.null),
        "found": int(found.sum()),
        "likely_rows": int((p <= LIKELY).sum()),
        "suspects": int((p <= suspect).sum()),
        "bad": {"estimate": estimate.value, "low": estimate.lower, "high": estimate.upper},
        "remaining": left,
        "least_by_rank": least_by_rank(len(scored.rows), len(scored.null), fdr),
        "truth": _truth(bad, found),
        "truth_of_likely": _truth(bad, p <= LIKELY),
        "truth_of_suspects": _truth(bad, p <= suspect),
    }, lines


def _line(scored: Scored, at: int, p: float, q: float, found: bool, label: str) -> dict[str, Any]:
    row = scored.rows[at]
    return {
        "id": row.id,
        "prompt": row.prompt,
        "text": row.text,
        "score": float(scored.scores[at]),
        "p": p,
        "q": q,
        "found": found,
        "label": label,
        "true_label": row.true_label,
        **_chat(row),
    }


def _chat(row: Example) -> dict[str, Any]:
    """What tokenizing a row of a chat needs beside its texts, see `Example`."""
    if row.asks is None:
        return {}
    return {"chat": {key: getattr(row, key) for key in ("asks", "lead", "context", "ends")}}


def _as_found(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line in the form that `data.found` reads."""
    kept = ("id", "prompt", "text", "label", "score", "p", "q")
    return {key: line[key] for key in kept}


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row.get("prompt") or "", row["text"]


def _truth(bad: Sequence[bool], found: Bool[ndarray, " m"]) -> dict[str, Any]:
    """How good the finds are, with the true labels as the measure."""
    hits, count, total = int(np.sum(found & np.array(bad))), int(found.sum()), sum(bad)
    return {
        "bad": total,
        "hits": hits,
        "precision": {"value": hits / count, **wilson(hits, count)._asdict()} if count else None,
        "recall": {"value": hits / total, **wilson(hits, total)._asdict()} if total else None,
    }
