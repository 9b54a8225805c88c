"""Short form of `torture.settings`; `python -m torture settings` is the long one."""

import pytest

from torture.settings import trials


@pytest.mark.slow
def test_every_setting_and_file_that_changes_before_a_resume_is_refused_or_recorded(tmp_path):
    found = trials(2, 1, tmp_path)
    assert found["failures"] == []
    assert found["silent"] == 0
    assert found["refused"] + found["recorded"] == found["keys"] + found["facts"]
    assert found["keys"] > 50
    assert found["went_on"] + found["unfit"] == 2
