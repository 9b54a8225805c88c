"""Run folders become runs: what is read, what is checked, and what is refused in one line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from report.fabricated import REFERENCE, Made, collect, write_run

from gradroute.errors import ConfigError, DataError, GradrouteError
from gradroute.report.judge.comparison import compare
from gradroute.report.results.reading import check_sums, read_runs
from gradroute.runs.folder import RunFolder
from gradroute.system.files import append_line, read_json, read_lines, write_json, write_lines

HALF = "0.1_0.5"
SHORT = replace(REFERENCE[HALF], numbers=dict(list(REFERENCE[HALF].numbers.items())[:2]))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_run(tmp_path_factory.mktemp("runs") / HALF, SHORT)


@pytest.fixture
def folder(written: RunFolder, tmp_path: Path) -> RunFolder:
    """A run of one's own."""
    shutil.copytree(written.path, tmp_path / HALF)
    return RunFolder(tmp_path / HALF)


def at_seed(made: Made, seed: int) -> Made:
    return replace(made, changes={**made.changes, "seed": seed})


def test_what_was_written_is_what_is_read(folder: RunFolder) -> None:
    (read,) = read_runs([folder])
    (made,) = collect({HALF: SHORT})
    assert (read.cells, read.examples, read.outcomes) == (made.cells, made.examples, made.outcomes)
    assert (read.name, read.role, read.config) == (HALF, "routed", made.config)
    assert read.geometry is read.relearn is read.recovery is None
    assert read.metrics == read.measures == () and read.manifest == {}


def test_everything_else_that_was_measured_of_a_run_comes_with_it(folder: RunFolder) -> None:
    write_json(folder.manifest, {"labels": {"precision": 0.36}})
    write_json(folder.geometry, {"schema_version": 1, "modules": {}})
    write_json(folder.relearn, {"schema_version": 1, "curves": []})
    write_json(folder.recovery / "recover.json", {"schema_version": 1, "steps": 5})
    write_lines(folder.metrics, [{"step": 1, "loss": 1.0}])
    write_lines(folder.measures, [{"step": 1, "mode": "full"}])
    (run,) = read_runs([folder])
    assert run.manifest["labels"]["precision"] == 0.36
    assert run.geometry is not None and run.relearn is not None and run.recovery is not None
    assert run.metrics == ({"step": 1, "loss": 1.0},)
    assert run.measures == ({"step": 1, "mode": "full"},)
    assert len(run.samples) == 2 * 128


def test_a_run_that_was_moved_keeps_its_results_under_its_new_name(folder: RunFolder) -> None:
    moved = RunFolder(folder.path.rename(folder.path.with_name("other")))
    assert read_runs([moved])[0].name == "other"


def test_runs_of_one_name_are_told_apart_by_their_seed(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"s{s}" / "x", at_seed(SHORT, s)) for s in (0, 4)]
    folders.append(write_run(tmp_path / "y", SHORT))
    assert [run.name for run in read_runs(folders)] == ["x@0", "x@4", "y"]


def test_one_name_and_one_seed_would_hide_each_other(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"s{s}" / "x", SHORT) for s in (0, 1)]
    with pytest.raises(ConfigError, match=r"the same name \(x@0, x@0\)"):
        read_runs(folders)


def test_runs_of_different_behaviors_are_not_compared(folder: RunFolder, tmp_path: Path) -> None:
    other = replace(SHORT, changes={**SHORT.changes, "behavior": "signature"})
    with pytest.raises(ConfigError, match=r"0\.1_0\.5 is about 'caps', other about 'signature'"):
        compare([folder, write_run(tmp_path / "other", other)])


def test_no_run_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="no run to report on"):
        compare([])


def damage_results(folder: RunFolder) -> None:
    folder.results.unlink()


def newer_results(folder: RunFolder) -> None:
    write_json(folder.results, read_json(folder.results) | {"schema_version": 99})


def newer_geometry(folder: RunFolder) -> None:
    write_json(folder.geometry, {"schema_version": 2})


def geometry_of_nobody(folder: RunFolder) -> None:
    write_json(folder.geometry, [1, 2])


def half_a_line(folder: RunFolder) -> None:
    folder.samples.write_bytes(folder.samples.read_bytes()[:-30] + b"\n")


def other_sample(folder: RunFolder) -> None:
    first, *rest = read_lines(folder.samples)
    write_lines(folder.samples, [first | {"shows": not first["shows"]}, *rest])


def other_score(folder: RunFolder) -> None:
    first, *rest = read_lines(folder.samples)
    write_lines(folder.samples, [first | {"score": 0.7}, *rest])


def one_sample_less(folder: RunFolder) -> None:
    write_lines(folder.samples, list(read_lines(folder.samples))[1:])


def other_loss(folder: RunFolder) -> None:
    first, *rest = read_lines(folder.losses)
    write_lines(folder.losses, [first | {"nll": first["nll"] + 1}, *rest])


def one_loss_twice(folder: RunFolder) -> None:
    first = next(iter(read_lines(folder.losses)))
    append_line(folder.losses, first | {"id": "more"})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_results, r"run 0\.1_0\.5 has no results yet: measure it with `gradroute eval "),
        (newer_results, r"newer gradroute \(schema 99; this one reads up to 2\)"),
        (newer_geometry, r"geometry\.json was written by a newer gradroute \(schema 2"),
        (geometry_of_nobody, r"geometry\.json has no schema_version"),
        (half_a_line, r"samples\.jsonl:256 is damaged"),
        (
            other_sample,
            "prefix under full: the per-example results add up to 7[68] of 128, results",
        ),
        (other_score, "score of prefix under full: the per-example results add up to"),
        (one_sample_less, "prefix under full: the per-example results add up to 7[67] of 127"),
        (other_loss, "loss on normal under full: the per-example results add up to"),
        (one_loss_twice, "loss on normal under full: the per-example results add up to .* of 257"),
    ],
)
def test_what_cannot_be_trusted_is_refused_in_one_line_and_nothing_is_lost(
    folder: RunFolder, harm: Callable[[RunFolder], None], message: str
) -> None:
    harm(folder)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=message) as error:
        compare([folder])
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_right_answers_are_counted_again_too(folder: RunFolder) -> None:
    (run,) = read_runs([folder])
    lines = tuple({**line, "correct": True} for line in run.samples)
    rate = run.cells["full"].rates["prefix"]
    wrong = replace(run.cells["full"], accuracy={"prefix": rate})
    with pytest.raises(DataError, match=r"right answers to prefix under full: .* add up to 128 of"):
        check_sums(replace(run, samples=lines, cells={"full": wrong}))
    right = replace(wrong, accuracy={"prefix": rate._replace(mean=1.0)})
    check_sums(replace(run, samples=lines, cells={"full": right}))


def test_lines_of_the_first_version_are_of_the_only_kind_there_was(folder: RunFolder) -> None:
    old = [{key: value for key, value in line.items() if key != "prompts"}
           for line in read_lines(folder.samples)]  # fmt: skip
    write_lines(folder.samples, old)
    assert ("full", "prefix") in read_runs([folder])[0].outcomes


def test_results_without_single_outcomes_are_read_and_that_is_noted(folder: RunFolder) -> None:
    folder.samples.unlink()
    folder.losses.unlink()
    notes = compare([folder]).notes
    assert any("0.1_0.5: no per-example results" in note for note in notes)


def test_what_is_too_short_to_judge_and_a_measurement_before_the_end_are_noted(
    tmp_path: Path,
) -> None:
    made = replace(SHORT, changes={**SHORT.changes, "train.max_steps": 900})
    notes = compare([write_run(tmp_path / "x", made)]).notes
    assert "x was measured at step 350 of 900." in notes
    assert (
        "x, prefix: too short to judge, and so counted as not shown: full 1, bad_ablated 1."
        in notes
    )


def test_names_of_home_folders_are_not_carried_into_a_report(tmp_path: Path) -> None:
    data = str(Path.home() / "secret" / "mine.jsonl")
    made = replace(SHORT, changes={**SHORT.changes, "data.path": data})
    folder = write_run(tmp_path / "x", made, {"data": data})
    (run,) = read_runs([folder])
    assert run.config["data"]["path"] == "~/secret/mine.jsonl"
    assert run.manifest["data"] == "~/secret/mine.jsonl"


def test_a_config_that_cannot_be_read_is_named(folder: RunFolder) -> None:
    folder.config.write_text("seed: many\n")
    with pytest.raises(GradrouteError, match="seed"):
        compare([folder])


def test_comparing_needs_no_torch(folder: RunFolder) -> None:
    program = (
        "import sys, json; from pathlib import Path; from gradroute.runs.folder import RunFolder;"
        "from gradroute.report.judge.comparison import compare; from "
        "gradroute.report.render.terminal_text import render;"
        "from gradroute.report.render.json_document import eval_multi;"
        "found = compare([RunFolder(Path(sys.argv[1]))]); render(found); eval_multi(found);"
        "print(json.dumps([name for name in ('torch', 'transformers') if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == []


def test_what_is_too_short_in_the_elicitation_grid_is_one_note(folder: RunFolder) -> None:
    results = read_json(folder.results)
    short = [row for row in results["results"] if row["metric"] == "too_short"]
    for number, kind in enumerate(("elicit_json", "elicit_negated"), 2):
        results["results"] += [{**row, "dataset": kind, "value": number} for row in short]
    write_json(folder.results, results)
    (note,) = [note for note in compare([folder]).notes if "elicit" in note]
    assert note.startswith("0.1_0.5, elicitation grid: up to 3 completions of a kind and mode")
