"""Short form of `torture.disks`; `python -m torture disks` is the long one."""

import pytest

from torture.disks import trials


@pytest.mark.slow
def test_a_disk_that_takes_nothing_more_is_one_line_of_error_and_harms_nothing(tmp_path):
    found = trials(1, 1, tmp_path)
    assert found["failures"] == []
    assert found["trials"] == found["one_line_errors"] >= 2
    assert found["resumed_equal"] == found["trials"] - found["deleted"]
    assert found["damaged"] == 0
    assert found["deleted"] <= 1  # it may have finished before
