"""Short form of `torture.starters`; `python -m torture starters` is the long one."""

import pytest

from torture.starters import trials


@pytest.mark.slow
def test_of_eight_processes_that_start_at_once_one_writes_and_readers_see_whole_states(tmp_path):
    found = trials(1, 1, tmp_path)
    assert found["failures"] == []
    assert found["one_winner"] == found["trials"] == 1
    assert found["told"] + found["late"] == 7
    assert found["reads"] > 0
    assert found["half_states"] == 0
