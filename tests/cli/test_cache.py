"""`cache`: what it says of the hidden states beside the runs, and what it removes."""

import argparse
import json
import os
import time

import pytest

from gradroute.cli.cache import list_text, size_in_bytes
from gradroute.cli.main import main
from gradroute.runs.states import ABOUT, FOLDER, list_states, open_for_reading
from gradroute.system.files import write_json

ABOUT_BASE = {"base": {"identity": "sha256 12ab"}, "model": "Tiny", "kind": "batches", "layers": 2}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / FOLDER / "key"
    write_json(folder / ABOUT, ABOUT_BASE)
    for age, name in enumerate(("new", "old")):
        path = folder / f"{name}.safetensors"
        path.write_bytes(b"0" * 200_000)
        os.utime(path, (0, time.time() - age * 86400 - 7300))
    monkeypatch.chdir(tmp_path)
    return folder.parent


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("2GB", 2 * 10**9), ("1.5 GiB", 1.5 * 2**30), ("500m", 5 * 10**8), ("0", 0)],
)
def test_a_size_may_have_a_unit_of_thousands_or_of_powers_of_two(text, size):
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "2 bits", "1e9", "nan"])
def test_what_is_no_size_is_refused_with_examples(text):
    with pytest.raises(argparse.ArgumentTypeError, match="such as 500MB"):
        size_in_bytes(text)


def test_the_list_says_of_which_base_the_states_are_how_large_and_how_old(runs, capsys):
    assert main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    assert "0.4 MB in 2 files of whole batches, used last 2 hours ago" in out
    assert "Tiny, sha256 12ab: 2 layers" in out
    assert main(["cache", "list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["bytes"], told["states"][0]["files"]) == (400_000, 2)
    assert told["states"][0]["about"] == ABOUT_BASE


def test_states_that_nobody_can_name_are_listed_as_such(runs):
    (runs / "key" / ABOUT).unlink()
    assert "about.json is missing" in list_text(list_states([runs]), time.time())


def test_where_there_are_no_states_that_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out == "no hidden states beside the runs in runs.\n"
    assert main(["cache", "prune", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 0


def test_the_oldest_are_removed_first_and_what_is_in_use_stays(runs, capsys):
    assert main(["cache", "prune"]) == 0
    assert "removed 0 bytes in 0 files; 0.4 MB are left." in capsys.readouterr().out
    assert main(["cache", "prune", "--max-size", "300kB"]) == 0
    assert "removed 0.2 MB in 1 files" in capsys.readouterr().out
    [left] = (runs / "key").glob("*.safetensors")
    assert left.stem == "new"
    file = open_for_reading(left)
    assert file is not None
    with file:
        assert main(["cache", "prune", "--all"]) == 0
        assert "; 1 files are in use and stay." in capsys.readouterr().out
    assert main(["cache", "prune", "--all"]) == 0
    assert not (runs / "key").exists()
