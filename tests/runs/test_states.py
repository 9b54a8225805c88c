"""The folder of hidden states: its size, and that nobody loses a file while reading it."""

import os
import threading
import time
from pathlib import Path

import pytest

from gradroute.runs import states
from gradroute.runs.states import (
    ABOUT,
    FOLDER,
    FRESH,
    begin_sharing,
    list_states,
    open_for_reading,
    places_of,
    prune,
    reading,
    say_other_states,
    write_quickly,
)
from gradroute.system.files import UNFINISHED, write_json

BASE = {"identity": "sha256 1", "quantize": "nothing"}


def place_with(root: Path, sizes: dict[str, int], key: str = "key") -> Path:
    """A folder of states whose files were used in this order, an hour between two."""
    folder = root / FOLDER / key
    write_json(folder / ABOUT, {"base": BASE, "torch": "1"})
    for age, (name, size) in enumerate(reversed(sizes.items()), 1):
        path = folder / f"{name}.safetensors"
        path.write_bytes(b"0" * size)
        os.utime(path, (time.time(), time.time() - age * FRESH))
    return root / FOLDER


def names(place: Path) -> list[str]:
    return sorted(path.stem for path in place.rglob("*.safetensors"))


def test_the_files_that_were_not_used_for_longest_make_room(tmp_path):
    place = place_with(tmp_path, {"b": 10, "a": 10, "c": 10})
    assert prune([place], 30).files == 0
    done = prune([place], 19)
    assert (done.files, done.size, done.left, done.in_use) == (2, 20, 10, 0)
    assert names(place) == ["c"]


def test_reading_a_file_makes_it_the_one_that_was_used_last(tmp_path):
    place = place_with(tmp_path, {"a": 10, "b": 10})
    with reading(place / "key" / "a.safetensors") as file:
        assert file and file.read() == b"0" * 10
    prune([place], 10)
    assert names(place) == ["a"]


def test_a_file_that_is_read_stays_whatever_the_limit(tmp_path):
    place = place_with(tmp_path, {"a": 10, "b": 10})
    file = open_for_reading(place / "key" / "a.safetensors")
    assert file is not None
    done = prune([place], 0)
    assert (done.files, done.in_use, names(place)) == (1, 1, ["a"])
    file.close()
    assert prune([place], 0).files == 1
    assert not (place / "key").exists()


def test_of_several_folders_the_oldest_files_of_all_go_first(tmp_path):
    place_with(tmp_path, {"a": 10, "b": 10})
    place_with(tmp_path / "sweep", {"c": 10})
    places = places_of(tmp_path)
    assert len(places) == 2
    prune(places, 20)
    assert names(tmp_path) == ["b", "c"]


def test_who_makes_room_leaves_what_was_used_just_now(tmp_path):
    place = place_with(tmp_path, {"a": 10, "b": 10})
    os.utime(place / "key" / "b.safetensors")
    assert prune([place], 0, unused_for=FRESH).left == 10
    assert names(place) == ["b"]


def test_what_a_killed_writer_left_is_never_read_and_removed_an_hour_later(tmp_path):
    place = place_with(tmp_path, {"a": 10})
    left = place / "key" / f"{UNFINISHED}1-b.safetensors"
    left.write_bytes(b"half")
    assert list_states([place])[0].files == 1
    prune([place], 100)
    assert left.exists()  # somebody may be writing it
    os.utime(left, (time.time(), time.time() - 2 * FRESH))
    prune([place], 100)
    assert not left.exists() and names(place) == ["a"]


def test_a_reader_and_who_removes_at_the_same_time_never_meet(tmp_path):
    path = tmp_path / FOLDER / "key" / "a.safetensors"
    path.parent.mkdir(parents=True)
    ended = threading.Event()

    def remove():
        while not ended.is_set():
            prune([tmp_path / FOLDER], 0)

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        for _ in range(300):
            path.parent.mkdir(exist_ok=True)
            assert write_quickly(path, b"whole") is None
            with reading(path) as file:
                if file is not None:
                    assert path.exists()
                    assert file.read() == b"whole"
    finally:
        ended.set()
        thread.join()


def test_a_disk_without_room_is_a_reason_and_leaves_no_half_file(tmp_path, monkeypatch):
    def refuse(path, content):
        with path.open("wb") as file:
            file.write(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    why = write_quickly(tmp_path / "a.safetensors", b"content")
    assert why is not None and "No space left on device" in why
    assert list(tmp_path.iterdir()) == []


def test_where_a_file_system_has_no_locks_files_are_read_and_none_is_removed(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(95, "Operation not supported")

    place = place_with(tmp_path, {"a": 10})
    monkeypatch.setattr(states.fcntl, "flock", refuse)
    with reading(place / "key" / "a.safetensors") as file:
        assert file is not None
    assert prune([place], 0).in_use == 1


@pytest.mark.parametrize("damage", [b"{", b"[]", None])
def test_states_without_a_description_are_listed_too(tmp_path, damage):
    place = place_with(tmp_path, {"a": 10, "b": 5})
    if damage is None:
        (place / "key" / ABOUT).unlink()
    else:
        (place / "key" / ABOUT).write_bytes(damage)
    [one] = list_states([place])
    assert (one.about, one.files, one.size) == ({}, 2, 15)


def test_states_of_the_same_base_and_another_version_are_named_once(tmp_path):
    place = place_with(tmp_path, {"a": 1})
    said: list[str] = []
    now = {"base": BASE, "torch": "2"}
    say_other_states(place / "key", now, said.append)  # that is the folder of this key
    say_other_states(place / "new", {**now, "base": {}}, said.append)
    assert said == []
    say_other_states(place / "new", now, said.append)
    assert len(said) == 1 and "torch 1, now 2" in said[0]


def test_sharing_is_begun_by_a_folder_and_one_that_cannot_be_made_is_no_error(tmp_path):
    begin_sharing(tmp_path)
    begin_sharing(tmp_path)
    assert (tmp_path / FOLDER).is_dir()
    (tmp_path / "file").write_text("in the way")
    begin_sharing(tmp_path / "file")
