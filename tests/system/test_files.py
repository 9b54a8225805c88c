"""Lines and folders of a run: whole or not there, whoever was killed and however full the disk."""

import json
import os
import subprocess
import sys

import pytest

from gradroute.errors import DataError, MachineError
from gradroute.system.files import (
    append_line,
    clear_unfinished,
    read_lines,
    replace_folder,
    sha256_of,
    write_bytes,
    write_json,
)


@pytest.mark.parametrize("rest", ["{", '{"step": 2', '{"step": 2}', "x" * 10_000, "\0" * 4096])
@pytest.mark.parametrize("before", ["", '{"step": 1}\n', '{"a": "' + "y" * 9000 + '"}\n'])
def test_a_cut_last_line_does_not_count_and_nothing_is_glued_to_it(tmp_path, before, rest):
    path = tmp_path / "x.jsonl"
    path.write_text(before + rest)
    kept = [json.loads(line) for line in before.splitlines()]
    assert list(read_lines(path)) == kept
    append_line(path, {"step": 3})
    assert list(read_lines(path)) == [*kept, {"step": 3}]
    assert path.read_text() == before + '{"step": 3}\n'


@pytest.mark.parametrize(
    "line", ["7", "[1]", "null", '"text"', "{", "[" * 100_000, b"\xff\xff", '{"a": NaN}', ""]
)
def test_a_damaged_line_is_named_with_its_number_and_a_way_out(tmp_path, line):
    path = tmp_path / "x.jsonl"
    content = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'{"step": 1}\n' + content + b'\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:2 is damaged .* delete this line") as told:
        list(read_lines(path))
    assert "\n" not in str(told.value)


def test_lines_are_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("data\n")
    (tmp_path / "x.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(MachineError, match=r"x\.jsonl cannot be written: it is a link"):
        append_line(tmp_path / "x.jsonl", {"step": 1})
    write_bytes(tmp_path / "x.jsonl", b"new")  # puts a file in the place of the link
    assert (tmp_path / "precious").read_text() == "data\n"
    assert not (tmp_path / "x.jsonl").is_symlink()


def test_what_was_removed_is_said_by_name(tmp_path):
    with pytest.raises(MachineError, match=r"written: [^ ]*/x is not there any more\."):
        append_line(tmp_path / "x" / "metrics.jsonl", {"step": 1})
    assert os.listdir(tmp_path) == []


def test_a_line_that_does_not_fit_on_the_disk_is_not_there_at_all(tmp_path):
    script = f"""
import resource
from pathlib import Path
from gradroute.errors import MachineError
from gradroute.system.files import append_line, write_json
path = Path({str(tmp_path / "x.jsonl")!r})
append_line(path, {{"step": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))
for write in (lambda: append_line(path, {{"text": "y" * 100}}),
              lambda: write_json(path.with_name("z.json"), ["y" * 100])):
    try:
        write()
    except MachineError as error:
        print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600
    )
    said = told.stdout.splitlines()
    assert len(said) == 2 and all("File too large (1" in line for line in said), told.stdout
    assert all("bytes needed" in line and "free)" in line for line in said)
    assert (tmp_path / "x.jsonl").read_text() == '{"step": 1}\n'
    assert os.listdir(tmp_path) == ["x.jsonl"]


def test_a_folder_takes_the_place_of_another_as_a_whole(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["old", "old/new"]


def test_what_writers_left_is_removed_and_nothing_else(tmp_path):
    for name in (".tmp-a", ".tmp-b/c", "kept", ".tmp-was-kept/x"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    clear_unfinished(tmp_path)
    clear_unfinished(tmp_path / "not there")
    assert os.listdir(tmp_path) == ["kept"] and (tmp_path / "kept").read_text() == "kept"
    write_json(tmp_path / "deep" / "er" / "x.json", 1)
    assert (tmp_path / "deep" / "er" / "x.json").read_text() == "1\n"


def test_the_sha256_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")
