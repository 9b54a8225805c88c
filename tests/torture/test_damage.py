"""Short form of `torture.damage`; `python -m torture damage` is the long one."""

import pytest

from torture.damage import trials


@pytest.mark.slow
def test_every_fault_in_a_checkpoint_is_noticed_and_never_a_silent_new_start(tmp_path):
    found = trials(50, 1, tmp_path)
    assert found["failures"] == []
    assert found["detected"] == found["trials"] == 50
    assert found["fell_back"] + found["refused"] == 50
    assert found["refused"] > 0
    assert found["commands"] == 2
