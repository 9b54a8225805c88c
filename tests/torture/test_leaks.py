"""Adapters that a step leaves out, under random routings; the long form is `python -m torture`."""

from torture.leaks import OPTIMIZERS, OWN, trials


def test_no_adapter_moves_in_a_step_whose_labels_do_not_update_it(tmp_path):
    found = trials(32, seed=1, folder=tmp_path)
    assert found["failures"] == []
    assert found["leaks"] == found["loud_leaks"] == found["base_changed"] == 0
    assert found["largest_drift"] == 0.0
    assert found["left_out"] > 120 and found["loud"] > 30
    assert found["updated"] > 40 and found["unmoved"] == 0
    assert all(f"optimizer: {kind}" in found["drawn"] for kind in (OWN, *OPTIMIZERS))


def test_the_usual_ways_leak_in_the_same_trials(tmp_path):
    found = trials(6, seed=2, folder=tmp_path)
    assert found["zeroed_leaks"] == found["zeroed"] == 6
    assert found["clipped_together_leaks"] == found["clipped_together"] > 0
