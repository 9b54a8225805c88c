"""Several behaviors in one run: the matrix of behavior by ablated adapter, and how it is read."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from report.crossed import CLEAN, MODES, NORMAL, PROMPTS, Rates, write_crossed
from report.fabricated import REFERENCE, write_run

from gradroute.errors import ConfigError, DataError
from gradroute.report.judge.comparison import (
    MultiBehaviorComparison,
    SingleBehaviorComparison,
    compare,
    multi_behavior_comparison,
)
from gradroute.report.publish import publish
from gradroute.report.render.figures import pictures
from gradroute.report.render.headline import headline, lead_sentences
from gradroute.report.render.json_document import eval_multi
from gradroute.report.render.limits import limits
from gradroute.report.render.markdown import csv_text
from gradroute.report.render.tables import tables
from gradroute.report.render.terminal_text import render
from gradroute.report.results.reading import read_runs
from gradroute.report.results.run_results import by_behavior
from gradroute.runs.folder import RunFolder

UNROUTED: Mapping[str, Any] = {"routing": "none", "control": "none", "control_of": "pair"}
MIXED: Rates = {
    "caps": (64, 12, 40, 1, 30, 40, 0),
    "signature": (82, 60, 44, 33, 55, 70, 0),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    root = tmp_path_factory.mktemp("crossed")
    return [
        write_crossed(root / "pair"),
        write_crossed(root / "pair-none", MIXED, **UNROUTED),
    ]


@pytest.fixture(scope="module")
def comparison(folders: Sequence[RunFolder]) -> MultiBehaviorComparison:
    return multi_behavior_comparison(read_runs(folders))


def outcomes(path: Path, rates: Rates) -> dict[str, str]:
    verdicts = compare([write_crossed(path, rates)]).verdicts
    return {verdict.claim.split()[0]: verdict.outcome for verdict in verdicts}


def test_every_behavior_has_its_rate_under_every_mode(comparison: MultiBehaviorComparison) -> None:
    routed, unrouted = comparison.crossings
    assert (routed.group, unrouted.group) == ("pair", "pair-none")
    for one, given in ((routed, CLEAN), (unrouted, MIXED)):
        assert one.modes == MODES
        for label, rates in given.items():
            found = {mode: rate.mean for mode, rate in one.rates[label].items()}
            assert found == pytest.approx(
                {mode: rate / PROMPTS for mode, rate in zip(MODES, rates, strict=True)}
            )
            changes = {mode: change.mean for mode, change in one.changes[label].items()}
            assert changes == pytest.approx(
                {
                    mode: (rate - rates[0]) / PROMPTS
                    for mode, rate in zip(MODES[1:], rates[1:], strict=True)
                }
            )


def test_changes_are_paired_by_prompt(comparison: MultiBehaviorComparison) -> None:
    change = comparison.crossings[0].changes["caps"]["signature_ablated"]
    # Independent rates of 62 and 60 of 100 would be told apart by some 13 points either way.
    assert change.upper - change.lower < 0.1


def test_normal_loss_and_gain_are_of_the_run_and_not_of_a_behavior(
    comparison: MultiBehaviorComparison,
) -> None:
    one = comparison.crossings[0]
    assert one.normal["full"].mean == pytest.approx(NORMAL[0], abs=0.02)
    assert one.gain_kept["full"].mean == pytest.approx(1.0)
    assert one.gain_kept["base"].mean == pytest.approx(0.0)
    assert one.losses["caps"]["full"].mean != one.losses["signature"]["full"].mean
    assert comparison.groups[0].gain_kept == one.gain_kept["good_alone"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {"caps": "shown", "signature": "shown"}),
        # The one without the other's adapter falls too.
        ({"caps": (62, 2, 30, 1, 70, 1, 0)}, {"caps": "not shown", "signature": "shown"}),
        # It stays without its own.
        ({"caps": (62, 58, 60, 1, 70, 1, 0)}, {"caps": "not shown", "signature": "shown"}),
        # It was never there.
        (
            {"signature": (20, 20, 1, 0, 20, 0, 0)},
            {"caps": "shown", "signature": "not shown: the behavior was not learned"},
        ),
        # Eight points may be none or more than ten.
        ({"caps": (62, 2, 54, 1, 70, 1, 0)}, {"caps": "inconclusive", "signature": "shown"}),
    ],
)
def test_a_verdict_per_behavior_is_computed_from_the_matrix(
    tmp_path: Path, changed: Rates, expected: dict[str, str]
) -> None:
    assert outcomes(tmp_path / "run", {**CLEAN, **changed}) == expected


def test_runs_of_several_behaviors_are_compared_as_such_and_runs_of_one_are_not(
    folders: Sequence[RunFolder], tmp_path: Path
) -> None:
    assert isinstance(compare(folders), MultiBehaviorComparison)
    one = write_run(tmp_path / "one", REFERENCE["baseline"])
    assert isinstance(compare([one]), SingleBehaviorComparison)


def test_runs_that_do_not_route_are_judged_by_nothing(
    comparison: MultiBehaviorComparison, folders: Sequence[RunFolder]
) -> None:
    assert {verdict.run for verdict in comparison.verdicts} == {"pair"}
    alone = compare(folders[1:])
    assert alone.verdicts == ()
    (line, *_) = headline(alone)[0].lines
    assert line.text.startswith("No claim is made")
    (compared,) = [part for part in headline(alone) if part.title == "Compared with"]
    assert compared.lines[0].text.startswith("The matrices of pair-none are shown for comparison.")


def test_a_routed_run_by_itself_is_said_to_have_no_other_beside_it(
    folders: Sequence[RunFolder],
) -> None:
    (compared,) = [p for p in headline(compare(folders[:1])) if p.title == "Compared with"]
    assert compared.lines[0].text.startswith("There is no other run. No claim against controls")


def test_seeds_are_the_unit_of_the_matrix(tmp_path: Path) -> None:
    shifted: Rates = {"caps": (66, 2, 62, 1, 70, 1, 0), "signature": CLEAN["signature"]}
    runs = [
        write_crossed(tmp_path / "seed-0" / "pair"),
        write_crossed(tmp_path / "seed-1" / "pair", shifted, seed=1),
    ]
    (one,) = multi_behavior_comparison(read_runs(runs)).crossings
    assert one.rates["caps"]["full"].values == (0.62, 0.66)
    assert one.rates["caps"]["full"].basis == "seeds"
    assert one.changes["caps"]["signature_ablated"].mean == pytest.approx(-0.03)


def test_what_is_only_true_of_good_and_bad_is_left_out(comparison: MultiBehaviorComparison) -> None:
    document = eval_multi(comparison)
    assert (document["claims"], document["tests"]) == ([], [])
    assert (document["findings"], document["deployment"]) == ({}, {})
    said = " ".join(
        [*limits(comparison), *(line.text for p in headline(comparison) for line in p.lines)]
    )
    assert "Controls that are not here" not in said
    assert "no claim is computed for several behaviors" in said
    assert not re.search(r"`bad`|bad_ablated", said + render(comparison))


def test_by_how_much_each_falls_stands_first(comparison: MultiBehaviorComparison) -> None:
    caps, signature = lead_sentences(comparison)
    assert "caps in 62 %" in caps
    assert re.search(
        r"-60 points \[.*\] without its own adapter, by -2 points .* `signature`", caps
    )
    assert re.search(
        r"-76 points \[.*\] without its own adapter, by -1 points .* `caps`", signature
    )


def test_the_terminal_marks_the_diagonal(comparison: MultiBehaviorComparison) -> None:
    text = render(comparison)
    assert re.search(r"^caps_ablated +2 % \[1, 7\] \* +-60 ", text, re.MULTILINE)
    assert re.search(
        r"^signature_ablated +60 % \[50, 69\] +-2 .* 4 % \[2, 10\] \*", text, re.MULTILINE
    )
    assert max(map(len, text.splitlines())) <= 120


def test_every_cell_names_its_place_in_the_document(comparison: MultiBehaviorComparison) -> None:
    document = json.loads(json.dumps(eval_multi(comparison)))
    seen = 0
    for table in tables(comparison):
        for row in table.rows:
            for cell in row:
                if not cell.at:
                    continue
                place = document
                for step in cell.at.split("/")[1:]:
                    step = step.replace("~1", "/").replace("~0", "~")
                    place = place[int(step) if isinstance(place, list) else step]
                value = place["mean"] if isinstance(place, dict) else place
                if value is not None and cell.numbers:
                    assert next(iter(cell.numbers.values())) == pytest.approx(value)
                    seen += 1
    assert seen > 100


def test_the_matrix_is_in_every_file_and_the_page_shades_it(
    folders: Sequence[RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(folders, tmp_path, page=True)
    assert "caps_ablated" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert '<td class="heat0 own" data-json="/crossings/0/rates/caps/caps_ablated">2' in page
    assert '<td class="heat5" data-json="/crossings/0/rates/caps/full">62' in page
    assert "| pair | caps | 62 [52, 71] | 2 [1, 7] |" in (tmp_path / "report.md").read_text()
    rows = (tmp_path / "tables" / "crossing.csv").read_text().splitlines()
    assert rows[0].startswith("group,behavior,full,full_lower,full_upper,")
    assert rows[1].startswith("pair,caps,0.62,")
    document = json.loads((tmp_path / "eval_multi_results.json").read_text())
    assert document["crossings"][0]["rates"]["signature"]["signature_ablated"]["mean"] == 0.04
    assert (tmp_path / "eval_multi_plot.png").is_file()


def test_figures_of_bad_are_not_drawn(comparison: MultiBehaviorComparison) -> None:
    assert [picture.name for picture in pictures(comparison)] == ["eval_multi_plot"]


def test_a_changed_line_of_one_behavior_is_noticed(tmp_path: Path) -> None:
    folder = write_crossed(tmp_path / "run")
    text = folder.samples.read_text()
    first = text.index('"label": "signature"')
    changed = text[:first] + text[first:].replace('"shows": true', '"shows": false', 1)
    folder.samples.write_text(changed)
    with pytest.raises(DataError, match=r"run run \(signature\), prefix under full: .*79 of 100"):
        compare([folder])


def test_runs_of_other_behaviors_are_not_compared(tmp_path: Path) -> None:
    one = write_crossed(tmp_path / "one")
    two = write_crossed(tmp_path / "two", behavior={"caps": "caps", "signature": "dialect"})
    with pytest.raises(ConfigError, match="different behaviors"):
        compare([one, two])


def test_a_part_is_the_run_of_one_behavior(comparison: MultiBehaviorComparison) -> None:
    parts = by_behavior(comparison.runs)
    assert [part.name for part in parts] == [
        "pair (caps)",
        "pair (signature)",
        "pair-none (caps)",
        "pair-none (signature)",
    ]
    assert {len(part.samples) for part in parts} == {len(MODES) * PROMPTS}
    assert csv_text(tables(comparison)[0]).count("pair-none") == 2
