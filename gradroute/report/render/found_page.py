"""The rows that `find` scored as one self-contained page to review them on.

The best-scored rows, the share of each token in the score, and a decision for each row, which the
page writes as a file for `data.found`, Label Studio or Argilla. It sends nothing.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from gradroute.report.render.probe_text import found_facts
from gradroute.report.render.self_contained import self_contained_page

MOST_ROWS = 2_000
"""Rows on the page."""
MOST_CHARACTERS = 20_000_000
"""Of all texts on the page: whole texts are there, so that a decision can be told by them."""
SLACK = 8
"""Characters of a text that a token may have left out."""

Record = Mapping[str, Any]


def found_page(
    summary: Record, lines: Sequence[Record], earlier: Sequence[Record], within: str = ""
) -> str:
    """The whole page.

    Args:
        summary: `found/<by>.json`.
        lines: `found/<by>_scores.jsonl`: a row each, worst first.
        earlier: Rows that got a label in earlier rounds; they stay in what is downloaded.
        within: The folder in the run's found/ that the files are in; empty for none.

    Returns:
        HTML; the same files give the same text.
    """
    rows, scored = _rows(lines)
    found = sum(row["found"] for row in rows)
    context = {
        "title": f"{summary['run']}: rows that look like {summary['behavior']}",
        "facts": found_facts(summary),
        "notes": summary.get("notes", ()),
        "label": summary["behavior"],
        "shares": any(share for row in rows for _, share in row["pieces"]),
        "there": _there(len(rows), scored, len(lines), summary["found"] - found),
        "earlier": len(earlier),
    }
    data = {
        "name": f"{summary['run']}-{summary['by']}",
        "label": summary["behavior"],
        "rows": rows,
        "earlier": earlier,
        "open": f"gradroute playground {shlex.quote(summary['run'])} --row ",
        "start": f"{within}/{summary['by']}:" if within else f"{summary['by']}:",
    }
    styles, scripts = ("report.css", "found.css"), ("common.js", "found.js")
    return self_contained_page("found.html", context, styles=styles, scripts=scripts, data=data)


def _there(shown: int, scored: int, rows: int, left_out: int) -> str:
    """Which of the rows are on the page."""
    if shown == rows:
        text = f"All {rows:,} rows are on this page, the highest score first."
    else:
        text = (
            f"{shown:,} texts, of the {scored:,} best-scored of {rows:,} rows, are on this page, "
            "the highest score first. Rows with the same prompt and text are one."
        )
    if left_out > 0:
        text += (
            f" {left_out:,} rows that were found have a lower score or stand twice; they are in "
            "the files beside this page, and not in what it downloads."
        )
    return text


def _rows(lines: Sequence[Record]) -> tuple[list[dict[str, Any]], int]:
    """What the page shows of the best-scored rows, and how many rows these are."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    characters = scored = 0
    for line in lines[:MOST_ROWS]:
        key = line["prompt"], line["text"]
        characters += sum(map(len, key)) if key not in rows else 0
        if characters > MOST_CHARACTERS and rows:
            break
        scored += 1
        if key in rows:
            rows[key]["copies"] += 1
            continue
        pieces, outside = token_pieces(line["text"], line.get("tokens", ()))
        kept = ("id", "prompt", "score", "p", "q", "found")
        rows[key] = {name: line[name] for name in kept}
        rows[key] |= {"pieces": pieces, "outside": outside, "copies": 1}
    return list(rows.values()), scored


def token_pieces(
    text: str, tokens: Sequence[Sequence[Any]]
) -> tuple[list[tuple[str, float]], float]:
    """A text in pieces, each with its share in the score.

    A tokenizer may write a token otherwise than it stands in the text, such as without its space,
    or with half of a character. What cannot be placed is counted.

    Args:
        text: The text.
        tokens: Text and share of each target token, in order.

    Returns:
        The pieces, which make the text, and the sum of the shares that have no place in it.
    """
    pieces: list[tuple[str, float]] = []
    outside, at, slack = 0.0, 0, SLACK

    def add(end: int, share: float) -> None:
        if at < end:
            before = pieces.pop() if pieces and not share and not pieces[-1][1] else ("", 0.0)
            pieces.append((before[0] + text[at:end], share))

    for token, share in tokens:
        wanted = token.strip() or token
        start = text.find(wanted, at, at + len(token) + slack) if wanted else -1
        if start < 0:
            outside += share
            slack += SLACK // 2
            continue
        slack = SLACK
        add(start, 0.0)
        at = start
        add(start + len(wanted), float(share))
        at = start + len(wanted)
    add(len(text), 0.0)
    return pieces, round(outside, 3)
