from collections.abc import Mapping
from dataclasses import replace

import pytest
from report.fabricated import REFERENCE, Made, collect, collect_seeds, with_numbers, with_scales

from gradroute.report.judge.comparison import (
    SingleBehaviorComparison,
    single_behavior_comparison,
)
from gradroute.report.render.terminal_text import render, render_verdicts

HALF = "0.1_0.5"


def compared(made: Mapping[str, Made] = REFERENCE) -> SingleBehaviorComparison:
    return single_behavior_comparison(collect(made))


@pytest.fixture(scope="module")
def seeds() -> SingleBehaviorComparison:
    return single_behavior_comparison(collect_seeds())


def test_the_text_fits_the_terminal_and_holds_every_cell_and_verdict() -> None:
    found = compared()
    text = render(found)
    assert max(map(len, text.splitlines())) <= 100
    table, *blocks = text.split("\n\n")
    assert table.count("%") >= sum(len(run.cells) for run in found.runs)
    verdicts = [block.split(":")[0] for block in blocks[: len(found.verdicts)]]
    assert verdicts == [f"({one.number}) {one.run}" for one in found.verdicts]


def test_the_table_says_over_how_many_examples() -> None:
    assert "rates over 128 completions, losses in nats per token over 256" in render(compared())


def test_columns_of_the_table_are_aligned() -> None:
    lines = render(compared()).splitlines()
    column = lines[0].index("normal loss")
    assert all(line[column].isdigit() and line[column - 1] == " " for line in lines[1:23])


def test_points_of_a_scale_curve_are_counted_instead_of_listed() -> None:
    curve = {scale: (60 * scale, 0.78, 1.0) for scale in (0.25, 0.5, 0.75)}
    made = {HALF: with_scales(REFERENCE[HALF], ("bad",), curve)}
    text = render(compared(made))
    assert "Not in this table: points of scale curves (3)" in text
    assert "bad=0.5" not in text.split("\n\n")[0]
    assert "Deploy `bad` at" in text and "detector must see" in text


def test_too_few_scales_are_said_to_be_too_few() -> None:
    assert "Too few scales were measured" in render(compared())


def test_over_seeds_every_seed_is_shown_and_verdicts_become_lines(
    seeds: SingleBehaviorComparison,
) -> None:
    text = render(seeds)
    assert max(map(len, text.splitlines())) <= 100
    (line,) = [x for x in text.splitlines() if x.startswith(HALF) and x.endswith(" 3")]
    assert line.split()[-4:] == ["58", "60", "62", "3"]
    assert "(1) SHOWN: With every bad example labeled" in text
    assert "  yes  full" not in text


def test_every_claim_is_a_line_below_its_routed_group(seeds: SingleBehaviorComparison) -> None:
    text = render(seeds)
    block = next(x for x in text.split("\n\n") if x.startswith("  control"))
    lines = [line for line in block.splitlines()[1:] if line.startswith("  ")]
    assert sorted(line.split()[0] for line in lines) == sorted(c.kind for c in seeds.claims)
    # Controls that used the same labels stand together, below a line with these.
    assert block.count(" labels: none (less)\n") == len({c.group for c in seeds.claims})


def test_a_mark_says_whether_a_check_is_met() -> None:
    numbers = with_numbers(REFERENCE[HALF], bad_ablated=(8, 0.85, 2.0))
    text = render_verdicts(compared({**REFERENCE, HALF: numbers}).verdicts)
    assert "NOT SHOWN: THE MODEL IS DAMAGED" in text
    for line in ("  yes  full", "  open bad_ablated", "  NO   gain kept", "  -    filter_0.5"):
        assert f"\n    {line}" in text


def test_the_precision_of_the_labels_is_printed(seeds: SingleBehaviorComparison) -> None:
    labels = {"labeled_bad": 835, "true_bad": 600, "precision": 300 / 835, "recall": 0.5}
    runs = [replace(run, manifest={"labels": labels}) for run in seeds.runs]
    text = render(single_behavior_comparison(runs))
    assert "0.1_0.5: of the labels `bad` 36, 36, 36 % are right (precision, by seed)" in text


def test_runs_of_which_nothing_is_claimed_are_printed_all_the_same() -> None:
    text = render(compared({"filter_0.5": REFERENCE["filter_0.5"]}))
    assert "No verdicts: they need a routed run" in text
