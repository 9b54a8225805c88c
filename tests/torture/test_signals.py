"""Short form of `torture.signals`; `python -m torture signals` is the long one."""

import pytest

from torture.signals import trials


@pytest.mark.slow
def test_runs_that_are_asked_to_stop_go_on_and_end_equal_to_a_run_that_was_not(tmp_path):
    found = trials(2, 1, tmp_path)
    assert found["failures"] == []
    assert found["SIGTERM"] == 2
    assert found["SIGUSR1"] == found["SIGINT"] == found["SIGINT twice"] == 1
    assert found["asked"] >= 1
    assert found["damaged"] == found["differing_finals"] == 0
