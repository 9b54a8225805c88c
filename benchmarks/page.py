"""`docs/benchmarks.md` and its figures, from the result files alone.

    python benchmarks/page.py

The newest result of each benchmark is shown. A test holds the page to what the files say.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
RESULTS = HERE / "results" / "speed"
ORDER = (
    "training_step",
    "trainers",
    "ranks",
    "frozen_half",
    "memory",
    "evaluation",
    "scoring",
    "finding_cost",
    "gated_cost",
    "scaling",
    "scaling_long",
    "pipeline",
    "startup",
    "grid",
    "demo_cost",
    "playground",
    "experiment",
    "gpu",
)
DRAWN = ("training_step", "memory", "evaluation")  # those with a figure
INTRODUCTION = """# Benchmarks

What gradroute costs against what one would do without it: every row of a table ran in the same
process, in turn with the others and in an order of its own in each round. Made by `make bench`
(`make bench-long`, `make bench-gpu`) and `benchmarks/page.py` from the files in
`benchmarks/results/speed/`; not written by hand.

A ratio is one of a round's times; the tables give its median over the rounds, its quartiles and
the 95 % bootstrap interval of the median. A bound is **met** when the whole interval is under it,
**not met** when none of it is, and **not shown** between. Times are process CPU time on one thread
where nothing else is said: what other processes take of a core is not in it.
"""


def newest(folder: Path) -> list[dict[str, Any]]:
    """The newest result of each benchmark, in the page's order."""
    found: dict[str, tuple[tuple[str, int, str], dict[str, Any]]] = {}
    for path in folder.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        key = (record["date"], len(path.stem), path.stem)  # the second one of a day ends in -2
        name = record["name"]
        if name not in found or key > found[name][0]:
            found[name] = key, record
    return [found[name][1] for name in ORDER if name in found]


def page(records: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    parts = [INTRODUCTION, _bounds(records)]
    for record in records:
        parts.append(f"## {record['question']}\n\n{_where(record)}\n")
        if record["name"] in DRAWN:
            parts.append(f"![{record['question']}](images/bench_{record['name']}.svg)\n")
        parts += [_table(table) for table in record["tables"]]
    return "\n".join(parts)


def _where(record: dict[str, Any]) -> str:
    """Where and when a result was measured."""
    facts = record["provenance"]
    hardware, versions = facts["hardware"], facts["versions"]
    names = ("torch", "transformers", "peft")
    told = ", ".join(f"{name} {versions[name]}" for name in names if versions.get(name))
    load = record["load_average"]
    return (
        f"{record['date']}, {hardware.get('processor') or hardware['system']}, "
        f"{record['threads']} of {hardware['cores']} cores, {told}, commit "
        f"{(facts['commit'] or 'unknown')[:12]}, load average {load['before']} before and "
        f"{load['after']} after."
    )


def _bounds(records: Sequence[dict[str, Any]]) -> str:
    """Every promise and what became of it."""
    lines = [
        "## Bounds\n",
        "| what | ratio of | to | at most | median | 95 % interval | |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        for table in record["tables"]:
            for one in table["bounds"]:
                own = one["ratio"]
                lines.append(
                    f"| {_what(record)}, {table['title']} | {one['variant']} | {one['against']} | "
                    f"{one['at_most']:.2f} | {own['median']:.2f} | {own['low']:.2f} to "
                    f"{own['high']:.2f} | {_verdict(one['verdict'])} |"
                )
    return "\n".join(lines) + "\n"


def _what(record: dict[str, Any]) -> str:
    return str(record["name"]).replace("_", " ")


def _verdict(verdict: str) -> str:
    return f"**{verdict}**" if verdict != "met" else verdict


def _table(table: dict[str, Any]) -> str:
    """One table, and what stands beside it."""
    counts = table.get("modules", {})
    head = f"| | median ({table['unit']}) | ratio | quartiles | 95 % interval |"
    line = "|---|---|---|---|---|"
    if counts:
        head, line = head + " modules |", line + "---|"
    lines = [f"**{table['title']}** ({table['rounds']} rounds)\n", head, line]
    for name, row in table["variants"].items():
        own = row["ratio"]
        told = f"| {name} | {_number(row['median'])} | "
        if name == table["reference"]:
            told += "1 | | |"
        else:
            told += (
                f"{_ratio(own['median'])} | {_ratio(own['q1'])} to {_ratio(own['q3'])} | "
                f"{_ratio(own['low'])} to {_ratio(own['high'])} |"
            )
        lines.append(told + (f" {counts[name]} |" if counts else ""))
    notes = [
        text
        for key, text in (
            ("same_tokens", "The tokens of all ways are the same: {}."),
            ("same_losses", "The losses of all ways are the same but for rounding: {}."),
            ("note", "{}"),
        )
        if key in table
        for text in [text.format(_yes(table[key]))]
    ]
    notes += [
        f"{side}: {one['run']}: {one['claim']}: **{one['outcome']}**."
        for side, judged in table.get("verdicts", {}).items()
        for one in judged
    ]
    return "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in notes)


def _yes(value: object) -> str:
    return (
        {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 20 else f"{value:.0f}"


def draw(record: dict[str, Any], path: Path) -> None:
    """The ratios of a result: a panel a table, medians as bars with their quartiles."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    tables = record["tables"]
    tallest = max(len(table["variants"]) for table in tables)
    with rc_context({"svg.hashsalt": record["name"], "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(8.0, (0.24 * tallest + 0.75) * len(tables)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
        for ax, table in zip(axes, tables, strict=True):
            names = list(table["variants"])
            rows = [table["variants"][name]["ratio"] for name in names]
            middle = [row["median"] for row in rows]
            spread = [
                [row["median"] - row["q1"] for row in rows],
                [row["q3"] - row["median"] for row in rows],
            ]
            colors = ["#c0504d" if name.startswith("gradroute") else "#8c9bab" for name in names]
            ax.barh(names, middle, xerr=spread, color=colors, ecolor="#333333", height=0.7)
            ax.axvline(1.0, color="#333333", linewidth=0.8)
            ax.invert_yaxis()
            ax.set_title(f"{table['title']}\nratio to {table['reference']}", loc="left")
            for at, value in enumerate(middle):
                ax.text(0.01, at, f"{value:.2f}", va="center", color="white")
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    asked = parser.parse_args(argv)
    records = newest(asked.results)
    (asked.docs / "images").mkdir(parents=True, exist_ok=True)
    for record in records:
        if record["name"] in DRAWN:
            draw(record, asked.docs / "images" / f"bench_{record['name']}.svg")
    path = asked.docs / "benchmarks.md"
    path.write_text(page(records), encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
