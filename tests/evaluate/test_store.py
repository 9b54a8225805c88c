"""What counts as measured: the same checkpoint, the same settings, the same file of prompts."""

import contextlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from gradroute.errors import DataError, MachineError
from gradroute.evaluate.store import StoredResults, add_to_store, read_store
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import Result, read_results
from gradroute.system.files import read_lines, write_json

SETTINGS = {
    "modes": None,
    "prompts": 4,
    "prefix_words": 3,
    "bos_samples": 9,
    "max_new_tokens": 8,
    "temperature": 1.0,
    "top_p": 0.95,
    "seed": 42,
    "held_out": 6,
    "batch_rows": 320,
}
FILES = {"file:mine.txt": "hash"}
KINDS = ("prefix", "plain", "bos", "file:mine.txt")


def known(
    folder: RunFolder,
    step: int = 7,
    files: dict[str, str] = FILES,
    checkpoint: str = "weights",
    judged_on: dict[str, str] | None = None,
    learned: dict[str, float] | None = None,
    **changes,
) -> StoredResults:
    return read_store(
        folder,
        step=step,
        checkpoint=checkpoint,
        settings=SETTINGS | changes,
        files=files,
        judged_on=judged_on or {},
        learned=learned or {},
    )


def rate(kind: str, mode: str = "full") -> Result:
    return Result("r", 7, mode, kind, "all", "behavior_rate", 0.5, 4)


def sample(kind: str, mode: str = "full") -> dict[str, str]:
    return {"mode": mode, "prompts": kind, "completion": f"{kind} {mode}"}


def loss(mode: str = "full") -> dict[str, str]:
    return {"mode": mode, "dataset": "normal", "id": "a"}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """Measured: every kind of prompts and the losses under full, and the geometry."""
    run = RunFolder(tmp_path)
    found = known(run)
    for kind in KINDS:
        add_to_store(found, [rate(kind)], samples=[sample(kind)])
    lost = Result("r", 7, "full", "normal", "all", "held_out_loss", 1.0, 6)
    add_to_store(found, [lost], losses=[loss()])
    cosine = Result("r", 7, "full", "modules", "all", "random_cosine", 0.1, 5)
    add_to_store(found, [cosine])
    return run


def cells(found: StoredResults) -> tuple[set[str], bool, bool]:
    return {kind for _, kind, _ in found.rates}, bool(found.losses), found.geometry


def test_nothing_is_known_of_a_run_that_was_not_measured(tmp_path) -> None:
    assert cells(known(RunFolder(tmp_path))) == (set(), False, False)


def test_what_was_kept_is_known_again(folder) -> None:
    found = known(folder)
    assert cells(found) == (set(KINDS), True, True)
    assert found.stale == 0


@pytest.mark.parametrize(
    ("changes", "kinds", "losses"),
    [
        ({"modes": ["full"], "batch_rows": 7}, set(KINDS), True),
        ({"held_out": 7}, set(KINDS), False),
        ({"prompts": 5}, {"bos", "file:mine.txt"}, True),
        ({"prefix_words": 5}, {"bos", "file:mine.txt"}, True),
        ({"bos_samples": 5}, set(KINDS) - {"bos"}, True),
        ({"temperature": 0.5}, set(), True),
        ({"seed": 1}, set(), True),
    ],
)
def test_a_setting_makes_stale_what_depends_on_it_and_nothing_else(
    folder, changes, kinds, losses
) -> None:
    found = known(folder, **changes)
    assert cells(found) == (kinds, losses, True)
    assert found.stale == len(KINDS) - len(kinds) + (not losses)


@pytest.mark.parametrize("other", [{"step": 8}, {"checkpoint": "other weights"}])
def test_another_checkpoint_makes_everything_stale(folder, other) -> None:
    found = known(folder, **other)
    assert cells(found) == (set(), False, False)
    assert found.stale == 6
    row = replace(rate("plain"), step=other.get("step", 7))
    add_to_store(found, [row], samples=[sample("plain")])
    assert found.origin["checkpoint"] == other.get("checkpoint", "weights")
    assert known(folder, **other).rates == {("all", "plain", "full")}


def test_a_file_of_prompts_that_changed_is_measured_again_and_one_not_asked_for_stays(
    folder,
) -> None:
    assert "file:mine.txt" not in cells(known(folder, files={"file:mine.txt": "other"}))[0]
    assert cells(known(folder, files={}))[0] == set(KINDS)
    found = known(folder, files={"file:other.txt": "x"})
    assert cells(found)[0] == set(KINDS)
    assert found.origin["prompts"] == {"file:mine.txt": "hash", "file:other.txt": "x"}


def test_lines_that_belong_to_no_row_go_with_the_next_that_are_kept(folder) -> None:
    found = known(folder, prompts=5, held_out=7)
    add_to_store(found, [rate("plain", "base")], samples=[sample("plain", "base")])
    assert [line["completion"] for line in read_lines(folder.samples)] == [
        "bos full",
        "file:mine.txt full",
        "plain base",
    ]
    assert list(read_lines(folder.losses)) == []
    again = known(folder, prompts=5, held_out=7)
    assert again.rates == {
        ("all", kind, mode)
        for kind, mode in (("bos", "full"), ("file:mine.txt", "full"), ("plain", "base"))
    }
    assert again.stale == 0


def test_lines_without_rows_of_an_interrupted_cell_are_replaced(folder) -> None:
    with folder.samples.open("a") as file:
        file.write(json.dumps(sample("plain", "base") | {"completion": "half"}) + "\n")
    found = known(folder)
    assert ("all", "plain", "base") not in found.rates
    add_to_store(found, [rate("plain", "base")], samples=[sample("plain", "base")])
    written = [row["completion"] for row in read_lines(folder.samples) if row["mode"] == "base"]
    assert written == ["plain base"]


@pytest.mark.parametrize("writes", range(4))
def test_whatever_was_written_of_a_cell_when_it_was_stopped_the_end_is_the_same(
    folder, tmp_path_factory, monkeypatch, writes
) -> None:
    other = RunFolder(tmp_path_factory.mktemp("other"))
    shutil.copytree(folder.path, other.path, dirs_exist_ok=True)
    done: list[Path] = []
    replaced = os.replace

    def stopped(source, target):
        if len(done) == writes:
            raise KeyboardInterrupt  # the files are as a kill at this moment leaves them
        done.append(target)
        replaced(source, target)

    def more(run) -> None:
        found = known(run)
        for kind in ("prefix", "plain"):
            if ("all", kind, "bad_ablated") not in found.rates:
                new = [rate(kind, "bad_ablated")]
                add_to_store(found, new, samples=[sample(kind, "bad_ablated")], losses=[])

    more(other)
    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr("gradroute.system.files.os.replace", stopped)
        more(folder)
    assert len(done) == writes
    more(folder)
    for name in ("results.json", "samples.jsonl", "losses.jsonl"):
        assert (folder.results.parent / name).read_bytes() == (
            other.results.parent / name
        ).read_bytes()


def test_rows_whose_lines_are_gone_do_not_count(folder) -> None:
    lines = [line for line in read_lines(folder.samples) if line["prompts"] != "plain"]
    folder.samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.losses.unlink()
    found = known(folder)
    assert found.rates == {("all", kind, "full") for kind in KINDS if kind != "plain"}
    assert not found.losses and found.geometry and found.stale == 2


def test_a_run_that_was_removed_meanwhile_is_not_made_again(folder) -> None:
    found = known(folder)
    shutil.rmtree(folder.path)
    with pytest.raises(MachineError, match="was removed or moved"):
        add_to_store(found, [rate("plain", "bad_ablated")])
    assert not folder.path.exists()


def test_where_the_first_measurement_was_made_is_kept(folder) -> None:
    before = known(folder).origin["versions"]
    document = json.loads(folder.results.read_text())
    document["provenance"]["versions"]["torch"] = "earlier"
    write_json(folder.results, document)
    found = known(folder)
    add_to_store(found, [rate("plain", "base")])
    assert known(folder).origin["versions"] == before | {"torch": "earlier"}


def test_results_of_a_newer_gradroute_are_refused_and_left_as_they_are(folder) -> None:
    document = json.loads(folder.results.read_text())
    write_json(folder.results, document | {"schema_version": 99})
    before = folder.results.read_bytes()
    with pytest.raises(DataError, match="newer gradroute"):
        known(folder)
    assert folder.results.read_bytes() == before


def test_a_bar_of_its_own_is_written_and_a_file_without_it_is_brought_up_to_date(tmp_path):
    folder = RunFolder(tmp_path / "r")
    folder.path.mkdir()
    add_to_store(known(folder), [rate("prefix")], samples=[sample("prefix")])
    assert "learned" not in read_results(folder.results)[1]
    store = known(folder, learned={"all": 0.25})
    assert store.rows and not store.declared
    add_to_store(store, ())
    assert read_results(folder.results)[1]["learned"] == {"all": 0.25}
    assert known(folder, learned={"all": 0.25}).declared
