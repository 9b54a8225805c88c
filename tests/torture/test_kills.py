"""Short form of `torture.kills`; `python -m torture kills` is the long one."""

import pytest

from torture.kills import trials


@pytest.mark.slow
def test_killed_runs_go_on_and_end_equal_to_a_run_that_was_not_killed(tmp_path):
    found = trials(6, 1, tmp_path)
    assert found["failures"] == []
    assert found["trials"] == 6
    assert found["in_save"] >= 1
    assert found["lost"] == found["manual_steps"] == found["differing_finals"] == 0
    assert found["went_backwards"] == found["damaged"] == found["left_behind"] == 0
    assert found["most_steps_redone"] <= 5
