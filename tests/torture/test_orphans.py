"""Short form of `torture.orphans`; `python -m torture orphans` is the long one."""

import pytest

from torture.orphans import trials


@pytest.mark.slow
def test_no_process_stays_when_the_one_that_started_several_runs_is_killed(tmp_path):
    found = trials(1, 1, tmp_path)
    assert found["failures"] == []
    assert found["killed"] == 1
    assert found["processes"] >= 2
    assert found["stayed"] == 0
