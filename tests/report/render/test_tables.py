from report.fabricated import REFERENCE, collect

from gradroute.config.controls import CONTROLS
from gradroute.report.judge.comparison import single_behavior_comparison
from gradroute.report.render.markdown import csv_text
from gradroute.report.render.tables import claims_table
from gradroute.report.results.label_information import KINDS


def test_the_table_of_claims_has_the_labels_of_both_sides_and_which_are_more() -> None:
    made = {name: REFERENCE[name] for name in ("baseline", "0.1_0.5", "filter_0.5")}
    table = claims_table(single_behavior_comparison(collect(made)).claims)
    at = table.heads.index("labels of the control")
    cells = {row[1].interval or row[1].text: row for row in table.rows}
    own, control = cells["filter"][0], cells["filter"][at]
    assert (own.interval, control.text, control.interval) == ("flags", "flags", "the same")
    baseline = cells["baseline"][at]
    assert (baseline.text, baseline.interval) == ("none", "less")
    head, *lines = csv_text(table).splitlines()
    for name in ("labels_routed", "labels_control", "labels_control_used"):
        assert name in head
    assert ",flags,flags,the same," in lines[0]


def test_the_note_explains_every_kind_of_labels_that_a_control_uses() -> None:
    note = claims_table([]).note
    for control in CONTROLS:
        for kind in control.uses.split(", "):
            assert kind == "none" or f"{kind}: {KINDS[kind].meaning}" in note
