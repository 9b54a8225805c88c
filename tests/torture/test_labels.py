"""Labels under other hash seeds, locales and orders; long form: `python -m torture labels`."""

from torture.labels import ENVIRONMENTS, HASH_SEEDS, LOCALES, trials


def test_the_labels_of_a_run_are_the_same_bytes_everywhere(tmp_path):
    found = trials(1, 0, tmp_path, environments=ENVIRONMENTS[-1:], jobs=())
    assert found["failures"] == [] and found["different"] == 0
    assert (found["prepared"], found["shuffled"], found["cut"]) == (5, 9, 3)


def test_the_long_form_has_every_hash_seed_with_every_locale():
    assert len(ENVIRONMENTS) == len(HASH_SEEDS) * len(LOCALES) == 9
    assert {e["PYTHONHASHSEED"] for e in ENVIRONMENTS} == {"0", "1", "random"}
    assert {e.get("LC_ALL") for e in ENVIRONMENTS} == {None, "C", "tr_TR.UTF-8"}
