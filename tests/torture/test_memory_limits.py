"""Memory that really runs out, once; the long form is `python -m torture memory_limits`."""

from torture.memory_limits import CLOSE, MEASURED, trials


def test_a_run_without_enough_memory_ends_with_the_same_rows_and_losses(tmp_path):
    found = trials(1, seed=1, folder=tmp_path)
    assert found["failures"] == []
    assert found["finished"] == found["same_rows"] == found["continued"] == found["measured"] == 1
    assert found["largest_difference_of_a_loss"] <= CLOSE
    assert found["largest_difference_measured"] <= MEASURED
