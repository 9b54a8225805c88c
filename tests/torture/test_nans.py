"""One number that is not finite of each kind; the long form is `python -m torture nans`."""

from torture.nans import trials
from torture.planted import KINDS


def test_every_run_stops_in_the_step_of_its_first_bad_number_and_spoils_no_file(tmp_path):
    found = trials(len(KINDS), seed=1, folder=tmp_path)
    assert found["failures"] == []
    assert found["stopped"] == found["trials"] == len(KINDS)
    assert found["files_not_finite"] == 0 and found["files_read"] > 80
    assert found["equal"] == found["continued"] == 7
