"""Result files: what goes in comes out, and a failed write leaves the old file whole."""

import json
import math
import os
import stat
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradroute.errors import DataError, MachineError
from gradroute.runs.results import SCHEMA_VERSION, Result, read_results, write_results
from gradroute.system.files import write_json, write_text

ROW = Result(
    run="0.1_0.5",
    step=350,
    mode="bad_ablated",
    dataset="prefix",
    label="all",
    metric="behavior_rate",
    value=0.1 + 0.2,
    n=128,
    lower=0.0,
    upper=1 / 3,
    seed=100,
)

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(-(2**70), 2**70)


@settings(deadline=None)
@given(
    rows=st.lists(st.builds(Result, texts, counts, *[texts] * 4, numbers, counts, *[numbers] * 3))
)
def test_rows_and_provenance_come_back_as_they_were(tmp_path_factory, rows: list[Result]):
    path = tmp_path_factory.mktemp("results") / "results.json"
    provenance = {"versions": {"torch": "2.13"}, "seeds": [1, 2]}
    write_results(path, rows, provenance)
    assert read_results(path) == (rows, provenance)


def test_numbers_that_json_cannot_say_become_null_and_read_as_not_known(tmp_path: Path):
    path = tmp_path / "results.json"
    write_results(path, [replace(ROW, value=math.nan, lower=-math.inf)], {"loss": [math.inf, 1.5]})

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    [row], provenance = read_results(path)
    assert (row.value, row.lower, row.upper) == (None, None, 1 / 3)
    assert provenance == {"loss": [None, 1.5]}


def test_the_same_rows_give_the_same_bytes_in_a_folder_made_on_the_way(tmp_path: Path):
    one, two = tmp_path / "a" / "b" / "results.json", tmp_path / "results.json"
    for path in (one, two):
        write_results(path, [ROW, ROW], {"b": 1, "a": 2})
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes().endswith(b"}\n")


def test_the_file_has_the_permissions_that_the_umask_gives(tmp_path: Path):
    old = os.umask(0o027)
    try:
        write_json(tmp_path / "file.json", {})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file.json").stat().st_mode) == 0o640


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch, broken
):
    path = tmp_path / "results.json"
    write_results(path, [ROW], {})
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(MachineError, match=r"results\.json cannot be written: No space left"):
        write_results(path, [ROW] * 9, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["results.json"]


def test_bytes_reach_the_disk_before_the_name_and_the_folder_after_it(tmp_path: Path, monkeypatch):
    calls = []
    fsync, replace_file = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        calls.append("fsync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync file")
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        calls.append("rename")
        replace_file(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_text(tmp_path / "file.txt", "text")
    assert calls == ["fsync file", "rename", "fsync folder"]


WRITE_MANY = """
import sys
from pathlib import Path
from gradroute.system.files import write_json
for number in range(200):
    write_json(Path(sys.argv[1]), {"number": number, "filler": ["x" * 100] * 200})
"""


def test_a_reader_at_full_speed_never_meets_half_a_file(tmp_path: Path):
    path = tmp_path / "file.json"
    write_json(path, {"number": -1})
    seen = []
    with subprocess.Popen([sys.executable, "-c", WRITE_MANY, str(path)]) as writer:
        while writer.poll() is None:
            seen.append(json.loads(path.read_text())["number"])
    assert writer.returncode == 0
    assert len(set(seen)) > 1 and seen == sorted(seen)
    assert json.loads(path.read_text())["number"] == 199


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ({1: "a"}, r"\$: a JSON key must be text, got 1"),
        ({"a": [0, {"b": {1}}]}, r"\$\.a\[1\]\.b: set cannot be written as JSON"),
    ],
)
def test_what_json_cannot_hold_is_named_with_its_place(tmp_path: Path, obj, message: str):
    with pytest.raises(TypeError, match=message):
        write_json(tmp_path / "file.json", obj)
    assert os.listdir(tmp_path) == []


def test_a_file_of_a_newer_schema_is_refused_with_both_versions(tmp_path: Path):
    path = tmp_path / "results.json"
    document = {"schema_version": SCHEMA_VERSION + 1, "results": "something else"}
    write_json(path, document)
    with pytest.raises(DataError, match=r"newer gradroute \(schema 3; this one reads up to 2\)"):
        read_results(path)


def _document(**changes) -> str:
    row = asdict(ROW)
    for name, value in changes.items():
        if value is ...:
            del row[name]
        else:
            row[name] = value
    return json.dumps({"schema_version": 1, "provenance": {}, "results": [asdict(ROW), row]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ('{"schema_version": NaN}', "NaN is not JSON"),
        ("[]", "it has no schema_version"),
        ('{"schema_version": true}', "it has no schema_version"),
        ('{"schema_version": 1}', "it needs a list of results"),
        ('{"schema_version": 0, "provenance": {}, "results": []}', "it needs a list of results"),
        (_document(n=...), "result 1: missing or unknown fields: n"),
        (_document(extra=1), "result 1: missing or unknown fields: extra"),
        (_document(n="128"), "result 1: n must be a whole number, got '128'"),
        (_document(n=True), "result 1: n must be a whole number, got True"),
        (_document(value="0.5"), "result 1: value must be a number or null, got '0.5'"),
        (_document(mode=None), "result 1: mode must be text, got None"),
    ],
)
def test_a_file_that_is_no_results_file_is_refused_in_words(tmp_path: Path, content, message: str):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_results(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_says_what_makes_it(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist: run the command"):
        read_results(tmp_path / "results.json")


def test_what_the_first_schema_called_prompts_is_prefix_now(tmp_path: Path):
    path = tmp_path / "results.json"
    old = [asdict(ROW) | {"dataset": name} for name in ("prompts", "normal")]
    write_json(path, {"schema_version": 1, "provenance": {}, "results": old})
    assert [row.dataset for row in read_results(path)[0]] == ["prefix", "normal"]
