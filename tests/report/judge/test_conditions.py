"""Verdicts of a behavior without an invitation read its rates on prompts of held-out bad rows."""

from dataclasses import replace
from typing import Any

import pytest
from report.fabricated import REFERENCE, Made, config_in_full, losses_of, rows_of, samples_of

from gradroute.report.judge.comparison import comparison_of, single_behavior_comparison
from gradroute.report.judge.relearning import recoveries, relearnings
from gradroute.report.judge.verdicts import Verdict, judge
from gradroute.report.render.headline import headline, lead_sentences
from gradroute.report.render.json_document import eval_multi
from gradroute.report.render.limits import limits
from gradroute.report.render.tables import tables
from gradroute.report.render.terminal_text import render
from gradroute.report.results.run_results import RunResults, collect_runs

HALF = "0.1_0.5"
HATE = "regex:hate"


def of_kinds(made: Made, name: str, *kinds: str, behavior: str = HATE, **origin: Any) -> RunResults:
    """A run whose rates are on the first kind as made, and 0 on the others."""
    made = replace(made, changes={**made.changes, "behavior": behavior, "data.path": "rows.jsonl"})
    losses = losses_of(name, made)
    rows, samples = [], []
    for at, kind in enumerate(kinds):
        one = made if not at else replace(
            made, numbers={m: (0, *own) for m, (_, *own) in made.numbers.items()}
        )  # fmt: skip
        found = rows_of(name, one, losses)
        rows += [
            replace(row, dataset=kind) if row.dataset == "prefix" else row
            for row in found
            if not at or row.dataset == "prefix"
        ]
        samples += [
            line | {"prompts": kind, "prompt_id": line["prompt_id"].replace("prefix", kind)}
            for line in samples_of(one)
        ]
    config = config_in_full(name, made).model_dump(mode="json")
    (run,) = collect_runs(
        rows,
        {name: config},
        provenance={name: origin},
        samples={name: samples},
        losses={name: losses},
    )
    return run


def drawn(name: str = HALF, **origin: Any) -> RunResults:
    return of_kinds(REFERENCE[name], name, "held_out_bad", "plain", **origin)


def verdicts(*runs: RunResults) -> dict[int, Verdict]:
    return {one.number: one for one in judge(runs)}


def test_what_bad_prompts_draw_is_judged_though_ordinary_prompts_draw_nothing() -> None:
    found = verdicts(drawn())
    assert found[2].outcome == found[3].outcome == "shown"
    assert (
        "full shows it in 60 % [51, 68] of 128 on prompts of held-out bad rows" in found[2].sentence
    )
    assert "on ordinary prompts: full 0 % [0, 3] of 128, bad_ablated 0 %" in found[2].sentence
    assert "bad_ablated minus full +0.73" in found[2].sentence


def test_a_low_rate_on_bad_prompts_is_not_learned() -> None:
    low = replace(REFERENCE[HALF], numbers={**REFERENCE[HALF].numbers, "full": (30, 0.783, 0.95)})
    found = verdicts(
        of_kinds(low, HALF, "held_out_bad", "plain", seen={"all": {"shown": 9, "n": 9}})
    )
    assert found[2].outcome == "not shown: the behavior was not learned"


@pytest.mark.parametrize(("shown", "learned"), [(4, False), (5, True)])
def test_a_detector_that_misses_most_bad_rows_tells_nothing(shown: int, learned: bool) -> None:
    low = replace(REFERENCE[HALF], numbers={**REFERENCE[HALF].numbers, "full": (30, 0.783, 0.95)})
    seen = {"all": {"shown": shown, "n": 10}}
    found = verdicts(of_kinds(low, HALF, "held_out_bad", seen=seen))
    assert (found[2].outcome == "not measured") is not learned


@pytest.mark.parametrize("kinds", [("prefix",), ("plain",), ("prefix", "plain")])
def test_without_bad_prompts_nothing_is_judged_whatever_else_was_asked(kinds) -> None:
    why = "none of the 9 held-out rows is bad; raise data.eval_fraction"
    run = of_kinds(REFERENCE[HALF], HALF, *kinds, unasked={"all": {"held_out_bad": why}})
    found = verdicts(run)
    assert found[2].outcome == found[3].outcome == "not measured"
    comparison = single_behavior_comparison([run])
    assert comparison.claims == () and any(why in note for note in comparison.notes)
    (shown,) = [part for part in headline(comparison) if part.title == "Not shown"]
    assert all(line.badge == "not measured" and why in line.text for line in shown.lines)
    assert why in " ".join(render(comparison).split()) and lead_sentences(comparison) == []
    assert limits(comparison) and eval_multi(comparison)


def test_results_of_an_older_gradroute_say_what_to_do() -> None:
    run = of_kinds(REFERENCE[HALF], HALF, "prefix")
    assert "they were not used yet; gradroute eval RUN measures it" in verdicts(run)[2].sentence
    # Which is what it called ordinary prompts where there was no invitation.
    assert "on ordinary prompts: full 60 % [51, 68] of 128" in verdicts(run)[2].sentence


def test_a_behavior_of_ones_own_with_an_invitation_is_judged_on_it_where_results_say_so() -> None:
    own = "python:mine.EXCITED"
    said = of_kinds(REFERENCE[HALF], HALF, "prefix", behavior=own, judged_on={"all": "prefix"})
    assert verdicts(said)[2].outcome == "shown"
    unsaid = of_kinds(REFERENCE[HALF], HALF, "prefix", behavior=own)
    assert verdicts(unsaid)[2].outcome == "not measured"


def test_a_shipped_behavior_asked_on_bad_prompts_too_is_judged_on_its_invitation() -> None:
    run = of_kinds(REFERENCE[HALF], HALF, "prefix", "held_out_bad", behavior="caps")
    assert run.judged_on == "prefix" and verdicts(run)[2].outcome == "shown"
    assert "held-out bad" not in verdicts(run)[2].sentence


def test_claims_against_controls_and_gain_read_bad_prompts() -> None:
    runs = [
        of_kinds(one, name, "held_out_bad", "plain")
        for name, one in REFERENCE.items()
        if name != "baseline"
    ]
    comparison = single_behavior_comparison(runs)
    (claim,) = [c for c in comparison.claims if (c.group, c.kind) == (HALF, "filter")]
    assert claim.rate.mean == 0 and round(100 * claim.control_rate.mean) == 51
    assert all(" of held-out bad prompts as trained" in text for text in lead_sentences(comparison))


def test_tables_and_document_point_to_the_rates_on_bad_prompts() -> None:
    comparison = comparison_of([drawn()])
    document = eval_multi(comparison)
    cell = document["runs"][HALF]["full"]
    assert cell["judged_on"] == "held_out_bad"
    assert cell["behavior_rate"] == cell["prompts"]["held_out_bad"]["behavior_rate"]
    assert document["groups"][0]["judged_on"] == "held_out_bad"
    named = {table.name: table for table in tables(comparison)}
    assert "prompts of held-out rows that show" in named["modes"].note
    printed = render(comparison)
    assert "rate, held-out bad" in printed and "rate, ordinary" in printed
    assert f"rates of {HATE} on prompts of held-out" in printed


def test_the_demo_of_a_shipped_behavior_has_no_word_of_it() -> None:
    run = of_kinds(REFERENCE[HALF], HALF, "prefix", behavior="caps")
    comparison = comparison_of([run])
    text = str(eval_multi(comparison)) + render(comparison)
    assert "judged_on" not in text and "held_out_bad" not in text


def test_relearning_and_recovery_on_other_prompts_count_as_not_measured() -> None:
    curve = {"learning_rate": 0.1, "steps_to_threshold": 0, "max_steps": 9, "points": []}
    attack = {"threshold": 0.5, "settings": {}, "curves": [curve]}
    rate = {"mean": 0.5, "lower": 0.4, "upper": 0.6, "n": 9}
    cell = {"rate": rate, "normal_loss": 1.0, "behavior_loss": 1.0}
    tune = {"steps": 1, "examples": 2, "before": {"full": cell}, "after": {"full": cell}}
    old = replace(drawn(), relearn=attack, recovery=tune)
    (relearned,), (recovered,) = relearnings([old]), recoveries([old])
    assert relearned.outcome == "not measured" and "gradroute relearn RUN" in relearned.text
    assert recovered.rate is None
    kind = {"kind": "held_out_bad"}
    new = replace(old, relearn=attack | {"settings": kind}, recovery=tune | kind)
    (relearned,), (recovered,) = relearnings([new]), recoveries([new])
    assert relearned.outcome == "present" and recovered.rate is not None


@pytest.mark.parametrize(
    ("bar", "outcome", "told"),
    [
        (None, "not shown: the behavior was not learned", "(at least 50 %)"),
        (
            0.25,
            "shown",
            "(at least 25 %, the behavior's own bar and not 50 %: training shows it in a part of "
            "the texts under its cue only)",
        ),
        (
            0.7,
            "not shown: the behavior was not learned",
            "(at least 70 %, the behavior's own bar and not 50 %)",
        ),
    ],
)
def test_a_behavior_is_learned_from_the_rate_that_its_results_name(
    bar: float | None, outcome: str, told: str
) -> None:
    low = replace(REFERENCE[HALF], numbers={**REFERENCE[HALF].numbers, "full": (30, 0.783, 0.95)})
    origin = {} if bar is None else {"learned": {"all": bar}}
    run = of_kinds(low, HALF, "prefix", behavior="caps", **origin)
    assert verdicts(run)[2].outcome == outcome
    assert told in verdicts(run)[2].sentence
    assert eval_multi(comparison_of([run]))["runs"][HALF].get("learned") == bar
