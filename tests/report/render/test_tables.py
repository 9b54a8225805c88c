from report.fabricated import REFERENCE, collect

from gradroute.report.judge.comparison import single_behavior_comparison
from gradroute.report.render.tables import claims_table


def test_the_table_of_claims_says_which_labels_each_control_was_trained_with() -> None:
    note = claims_table(single_behavior_comparison(collect(REFERENCE)).claims).note
    told = "none (none, unrouted_ablated, baseline); flags (filter)."
    assert note.endswith(f"Label information that controls use: {told}")
    assert "Label information" not in claims_table([]).note
