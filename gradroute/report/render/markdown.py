"""The comparison as Markdown and as CSV files: the same tables as the page."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from gradroute.report.judge.comparison import Comparison, SingleBehaviorComparison
from gradroute.report.render.figures import Picture
from gradroute.report.render.headline import headline, lead_sentences
from gradroute.report.render.limits import limits
from gradroute.report.render.table_cells import Number, Table

# What Markdown, or the HTML in it, would take for more than a letter. An underscore inside a word
# is one, and so is a bracket that no address follows.
_SPECIAL = re.compile(r"([\\*<|#&~$]|(?<!\w)_|_(?!\w)|\](?=[(\[:]))")


def markdown(comparison: Comparison, tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """The report as one Markdown file that names its figures beside it."""
    blocks = [f"# {escaped(comparison.behavior)}", *map(escaped, lead_sentences(comparison))]
    for part in headline(comparison):
        lines = [
            f"- **{escaped(line.badge)}**: {escaped(line.text)}"
            if line.badge
            else f"- {escaped(line.text)}"
            for line in part.lines
        ]
        blocks += [f"## {part.title}", "\n".join(lines)]
    for picture in pictures:
        address = quote(picture.name)
        blocks += [f"![{escaped(picture.title)}](figures/{address}.png)", escaped(picture.caption)]
    for table in tables:
        blocks += [f"## {escaped(table.title)}", _markdown_table(table)]
        blocks += [escaped(table.note)] if table.note else []
    findings = comparison.findings if isinstance(comparison, SingleBehaviorComparison) else {}
    found = [(run, one) for run, own in findings.items() for one in own]
    if found:
        blocks.append("## Causes of lost gain")
        blocks += [
            f"**{escaped(run)}, {escaped(one.cause)}.** {escaped(f'{one.text} {one.dial}'.strip())}"
            for run, one in found
        ]
    blocks += ["## Limits"]
    every = [*limits(comparison), *comparison.notes]
    blocks.append("\n".join(f"- {escaped(limit)}" for limit in every))
    return "\n\n".join(blocks) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line; between backticks as code."""
    line = "".join(c if c.isprintable() else " " for c in text)
    if "``" in line or line.count("`") % 2:  # not ours: ours stand alone and in pairs
        line = line.replace("`", "'")
    parts = line.split("`")
    return "`".join(
        part if place % 2 else _SPECIAL.sub(r"\\\1", part) for place, part in enumerate(parts)
    )


def csv_text(table: Table) -> str:
    """A table as CSV (RFC 4180): a column per number, unrounded; empty where there is none."""
    rows = [_flat(table, row) for row in range(len(table.rows))]
    heads = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, heads, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flat(table: Table, row: int) -> Mapping[str, Number]:
    flat: dict[str, Number] = {}
    for head, cell in zip(table.heads, table.rows[row], strict=True):
        flat |= cell.numbers or {head: cell.text}
    return flat


def _markdown_table(table: Table) -> str:
    lines = [_pipes(table.heads), _pipes(["---"] * len(table.heads), plain=True)]
    for row in table.rows:
        lines.append(_pipes([f"{cell.text} {cell.interval}".strip() for cell in row]))
    return "\n".join(lines)


def _pipes(cells: Sequence[str], plain: bool = False) -> str:
    return f"| {' | '.join(cell if plain else escaped(cell) for cell in cells)} |"
