"""`gradroute validate`: what would stop a run is said before it, and nothing is touched."""

import hashlib
import json
from pathlib import Path

import pytest
from tiny_runs import TINY, TWO

from gradroute.cli.main import main
from gradroute.config.run_config import find_config, load_config
from gradroute.errors import ConfigError, DataError, NumericError
from gradroute.preflight import validation
from gradroute.preflight.simpler_methods import simpler_methods
from gradroute.preflight.validation import Validation, check_routes, validate
from gradroute.preflight.validation_text import text_of
from gradroute.prepare import prepare
from gradroute.routing.policy import RoutingPolicy
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder

SMALL = (*TINY, *TWO, "run_name=tiny", "data.behavior_fraction=0.2", "data.train_examples=80")


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else f"{path.stat().st_mode}"
        for path in sorted(folder.rglob("*"))
    }


def ask(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main(["validate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Validation:
    config = load_config(find_config("caps"), SMALL)
    return validate(config, tmp_path_factory.mktemp("seen") / "runs")


def test_counts_are_those_of_the_examples_that_would_be_trained_on(seen: Validation):
    prepared = prepare(load_config(find_config("caps"), SMALL))
    data = seen.facts["data"]
    assert data["train"] == len(prepared.train) == 80
    assert data["true_labels_known"] and (data["precision"], data["recall"]) == (1.0, 0.5)
    assert sum(count for *_, count in data["true_by_label"]) == 80
    tokens = seen.facts["tokens"]
    assert set(tokens["targets"]) == {"good", "bad", "unlabeled"}
    assert tokens["epochs"] == pytest.approx(3 * 4 / 80)
    assert any("longer than max_length" in note for note in tokens["notes"])


def test_exactly_the_adapters_of_the_table_get_a_gradient(tmp_path: Path):
    given = [*SMALL, "routing=exclusive", "train.max_steps=1"]
    found = validate(load_config(find_config("caps"), given), tmp_path / "runs")
    assert found.problems == ()
    rows = RoutingPolicy.parse("exclusive", ("good", "bad")).table
    assert set(found.facts["gradients"]) == {"good", "bad", "unlabeled"}
    for label, measured in found.facts["gradients"].items():
        for adapter, norm in measured["norms"].items():
            assert (norm > 0) == (rows[label][adapter].update > 0), (label, adapter)


@pytest.mark.parametrize(
    ("norms", "told"),
    [
        ({"good": 0.1, "bad": 0.2}, "'good' learns from examples labeled bad"),
        ({"good": 0.0, "bad": 0.0}, "'bad' does not learn from examples labeled bad"),
    ],
)
def test_a_gradient_that_the_table_does_not_name_is_refused(norms: dict[str, float], told: str):
    policy = RoutingPolicy.parse("anchored", ("good", "bad"))
    with pytest.raises(ConfigError, match=told):
        check_routes({"bad": {"loss": 1.0, "norms": norms}}, policy)


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 0.2), (1.0, float("inf"))])
def test_numbers_that_are_not_finite_are_refused(loss: float, norm: float):
    policy = RoutingPolicy.parse("anchored", ("good", "bad"))
    with pytest.raises(NumericError, match="labeled bad"):
        check_routes({"bad": {"loss": loss, "norms": {"good": 0.0, "bad": norm}}}, policy)


def test_estimates_are_of_the_right_size(seen: Validation):
    estimate = seen.facts["estimate"]
    assert 0 < estimate["step_seconds"] < 60 and estimate["steps"] == 3
    assert estimate["hours"] * 3600 == pytest.approx(3 * 1.04 * estimate["step_seconds"])
    assert 50e6 < estimate["memory"] < 20e9
    assert estimate["micro_batch"] == 4 and not estimate["smaller"]


def test_a_finished_run_takes_no_more_room_than_was_estimated(
    seen: Validation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = load_config(find_config("caps"), SMALL)
    folder = train_run(config, tmp_path / "runs", if_exists="fail", bar=False)
    taken = sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file())
    small = 200_000  # config, manifest, sessions: not in the estimate, and of one size
    assert taken < seen.facts["estimate"]["disk"] + small
    again = validate(config, tmp_path / "runs")
    assert again.problems == () and again.facts["place"]["steps_done"] == 3
    other = load_config(find_config("caps"), [*SMALL, "train.learning_rate=0.001"])
    (problem,) = validate(other, tmp_path / "runs").problems
    assert "was started with other settings" in str(problem)
    assert "train.learning_rate" in str(problem)
    here = validation.run_identity
    monkeypatch.setattr(
        validation, "run_identity", lambda *given: {**here(*given), "data": "another"}
    )
    (problem,) = validate(config, tmp_path / "runs").problems
    assert "identity.data" in str(problem)


def test_nothing_is_touched(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("run_name: mine\ntrain: {max_steps: 2}\n")
    before = snapshot(tmp_path)
    code, out, _ = ask(capsys, "mine.yaml", *SMALL)
    assert code == 0 and "nothing was written" in out
    assert snapshot(tmp_path) == before


def test_everything_that_is_wrong_is_listed_at_once(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file, where the folder of the runs should be")
    given = ("data.path=missing.jsonl", "model=./nowhere")
    code, out, err = ask(capsys, "caps", *given)
    assert code == 4  # of the first
    assert err.startswith("error: 3 problems:")
    for part in ("is not a folder", "missing.jsonl", "there is no folder './nowhere'"):
        assert part in err
    assert "Traceback" not in err and "caps, seed 0" in out


def test_targets_that_match_nothing_are_said_although_the_data_are_wrong_too(tmp_path: Path):
    given = ["data.path=missing.jsonl", "targets=[no_such_proj]"]
    found = validate(load_config(find_config("caps"), given), tmp_path)
    kinds = [type(problem) for problem in found.problems]
    assert kinds == [DataError, ConfigError]


def test_labels_without_true_labels_have_no_precision_and_groups_are_counted(tmp_path: Path):
    rows = [
        {"text": f"a story of {n} hens", "label": "bad" if n % 3 else "good", "hen": n // 4}
        for n in range(40)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [*SMALL, f"data.path={path}", "data.group=hen"]
    found = validate(load_config(find_config("caps"), given), tmp_path)
    assert found.problems == ()
    assert not found.facts["data"]["true_labels_known"]
    assert found.facts["data"]["precision"] is None
    assert "the quality of the labels is unknown" in text_of(found)
    assert "/ (nothing is written yet, " in text_of(found)
    groups = "groups that share a prompt, a text or data.group: 10 of 40 rows; the biggest has 4"
    assert groups in text_of(found)


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gradroute.preflight.validation.free_bytes", lambda folder: 1000)
    (problem,) = validate(load_config(find_config("caps"), SMALL), tmp_path).problems
    assert problem.exit_code == 4 and "0.00 GB free" in str(problem)


def test_json_is_one_object_with_the_problems_in_it(capsys, tmp_path: Path):
    code, out, _ = ask(capsys, "caps", "--json", "--runs", tmp_path, "data.path=missing.jsonl")
    told = json.loads(out)
    assert code == 3 and [problem["exit_code"] for problem in told["problems"]] == [3]
    assert told["base"]["parameters"] == 2_164_416
    code, out, _ = ask(capsys, "caps", "--json", "train.max_stepz=2")
    assert code == 2 and "train.max_steps" in json.loads(out)["problems"][0]["message"]


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    found = validate(load_config(find_config("caps"), ["data.path=missing.jsonl"]), tmp_path)
    assert "is not writable" in str(found.problems[0])
    assert not RunFolder(tmp_path / "caps").path.exists()


def simpler(*changes: str) -> list[str]:
    config = load_config(find_config("caps"), [*TINY, *TWO, "run_name=tiny", *changes])
    return simpler_methods(prepare(config), config.controls or [])["notes"]


def test_validate_names_the_simpler_methods_that_the_labels_allow(seen: Validation):
    found = seen.facts["simpler"]
    assert (found["known_good"], found["flagged"]) == (
        seen.facts["data"]["labels"]["good"], seen.facts["data"]["labels"]["bad"],
    )  # fmt: skip
    text = text_of(seen)
    assert all(note in text for note in found["notes"]) and len(found["notes"]) == 2
    assert seen.problems == ()


@pytest.mark.parametrize(
    ("rows", "share", "told"),
    [
        (6000, 0.3, "1,620 of 6,000 rows (27 %) are labeled good. With 1,620 such rows"),
        (100, 0.3, "27 of 100 rows (27 %) are labeled good. With up to 170 such rows"),
        (6000, 0.19, "1,026 of 6,000 rows (17 %) are labeled good. Training on these alone did"),
    ],
)
def test_known_good_rows_alone_are_advised_as_far_as_it_was_measured(
    rows: int, share: float, told: str
):
    given = (f"data.train_examples={rows}", "data.behavior_fraction=0.1")
    note = simpler(*given, f"data.good_labeled_fraction={share}")[0]
    assert note.startswith(f"known_good: {told}")
    assert note.endswith("(controls=[known_good]).")
    assert ("try it first" in note) == ("With 1,620" in told)
    assert ("In between it was not measured" in note) == ("Training on" in told)
    held_out = simpler(*given, f"data.good_labeled_fraction={share}", "data.null_fraction=0.2")
    assert held_out[0] == note  # those held out for `find` are rows of that control too


def test_a_classifier_of_words_is_advised_where_there_are_flags_and_what_it_needs():
    given = ("data.behavior_fraction=0.2", "data.train_examples=80")
    flags = (*given, "data.labeled_fraction=0.5")
    (note,) = simpler(*flags, "data.good_labeled_fraction=0")
    assert note.startswith("words_filter: 8 rows are labeled bad.")
    assert "it needs rows labeled good too" in note
    both = (*flags, "data.good_labeled_fraction=0.3")
    assert "needs data.null_fraction above 0" in simpler(*both)[1]
    assert "needs" not in simpler(*both, "data.null_fraction=0.5")[1]
    asked = simpler(*both, "data.null_fraction=0.5", "controls=[words_filter]")[1]
    assert asked.endswith("(it is among the controls).")
    assert simpler(*both, "routing=none") == []
