"""Recovery of finished runs: a tune of what is kept, measured before and after it."""

import json
import shutil

import pytest
from tiny_runs import ONE, TWO, tiny_run

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError, DataError
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.models.checkpoint import adapter_tensors, latest_checkpoint
from gradroute.probes.recovery import recover_run, run_names
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import read_results
from gradroute.system.files import read_json

SHORT = {"steps": 2, "learning_rate": 0.01, "examples": 6}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    tiny_run(root, "routed", *TWO)
    tiny_run(root, "filter", *ONE)
    tiny_run(root, "unanchored", *TWO, "routing=absorb", "data.good_labeled_fraction=0")
    return root


@pytest.fixture
def run_of(trained, tmp_path):
    return lambda name: RunFolder(shutil.copytree(trained / name, tmp_path / name))


def test_recovery_trains_what_is_kept_and_never_bad(run_of, capsys):
    folder = run_of("routed")
    recover_run(folder, **SHORT)
    out = capsys.readouterr().out
    before, after = (latest_checkpoint(f.checkpoints) for f in (folder, RunFolder(folder.recovery)))
    assert before is not None and after is not None and (before.step, after.step) == (3, 5)
    for adapter, changes in (("good", True), ("bad", False)):
        one, two = adapter_tensors(before, adapter), adapter_tensors(after, adapter)
        assert one.keys() == two.keys()
        assert any(not one[name].equal(two[name]) for name in one) == changes
    record = json.loads((folder.recovery / "recover.json").read_text(), parse_constant=pytest.fail)
    assert (record["steps"], record["learning_rate"], record["examples"]) == (2, 0.01, 6)
    assert record["mode"] == "bad_ablated" and record["schema_version"] == 1
    for when, measured in (("before", folder), ("after", RunFolder(folder.recovery))):
        rows, _ = read_results(measured.results)
        assert set(record[when]) == {"bad_ablated", "full", "good_x2"}
        for mode, cell in record[when].items():
            own = {(row.metric, row.dataset): row for row in rows if row.mode == mode}
            rate = own["behavior_rate", "prefix"]
            assert cell["rate"] == {
                "mean": rate.value,
                "lower": rate.lower,
                "upper": rate.upper,
                "n": 3,
            }
            for dataset in ("normal", "behavior"):
                assert cell[f"{dataset}_loss"] == own["held_out_loss", dataset].value
        assert f"{record[when]['bad_ablated']['normal_loss']:.3f}" in out
    losses = [record[when]["bad_ablated"]["normal_loss"] for when in ("before", "after")]
    assert losses[0] != losses[1]


def test_a_recovery_that_is_there_is_kept_and_one_of_other_settings_replaced(run_of, capsys):
    folder = run_of("routed")
    recover_run(folder, **SHORT)
    first = latest_checkpoint(RunFolder(folder.recovery).checkpoints)
    assert first is not None
    written = (first.path / "manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    recover_run(folder, **SHORT)
    err = capsys.readouterr().err
    assert "tuning" not in err and "measuring" not in err
    assert (first.path / "manifest.json").stat().st_mtime_ns == written
    recover_run(folder, **SHORT | {"steps": 1})
    assert "an earlier recovery" in capsys.readouterr().err
    assert read_json(folder.recovery / "recover.json")["steps"] == 1
    assert not first.path.exists()


def test_a_recovery_that_was_interrupted_before_it_was_measured_is_not_trained_again(
    run_of, capsys, monkeypatch
):
    folder = run_of("routed")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gradroute.probes.recovery.evaluate_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recover_run(folder, **SHORT)
    assert "tuning" in capsys.readouterr().err
    recover_run(folder, **SHORT)
    assert "tuning" not in capsys.readouterr().err
    assert (folder.recovery / "recover.json").is_file()


def test_a_recovered_run_is_a_run_that_can_be_evaluated_further(run_of):
    folder = run_of("routed")
    recover_run(folder, **SHORT)
    recovered = RunFolder(folder.recovery)
    evaluate_run(recovered)
    modes = {row.mode for row in read_results(recovered.results)[0]}
    assert modes >= {"full", "bad_ablated", "good_ablated", "good_x2", "base"}


def test_where_nothing_is_labeled_good_true_labels_are_used_and_that_is_said(run_of, capsys):
    folder = run_of("unanchored")
    recover_run(folder, **SHORT)
    assert "no training example is labeled good" in capsys.readouterr().err
    notes = read_json(folder.recovery / "recover.json")["notes"]
    assert any("labeled good" in note for note in notes)


def test_the_examples_that_there_are_are_counted(run_of, capsys):
    folder = run_of("routed")
    recover_run(folder, **SHORT | {"examples": 5000})
    used = read_json(folder.recovery / "recover.json")["examples"]
    assert 0 < used < 60
    assert (
        f"only {used} of the 5000 requested examples are known to be good"
        in capsys.readouterr().err
    )


def test_a_run_of_one_adapter_has_nothing_to_leave_out(run_of):
    with pytest.raises(ConfigError, match="filter has the adapters good; to recover"):
        recover_run(run_of("filter"), **SHORT)


def test_a_run_on_other_data_than_it_was_trained_on_is_refused(run_of):
    folder = run_of("routed")
    manifest = read_json(folder.manifest)
    folder.manifest.write_text(json.dumps(manifest | {"data": "something else"}))
    with pytest.raises(ConfigError, match="with a different base model or data set"):
        recover_run(folder, **SHORT)
    assert not folder.recovery.exists()


def test_without_a_good_example_there_is_nothing_to_recover_with(run_of, tmp_path):
    folder = run_of("routed")
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"story number {i}", "label": "bad"} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = folder.config.read_text().replace("path: null", f"path: {path}", 1)
    folder.config.write_text(text)
    folder.manifest.write_text("{}")
    from gradroute.prepare import prepare
    from gradroute.probes import recovery

    prepared = prepare(load_config(folder.config))
    with pytest.raises(DataError, match="no training example is known to be good"):
        recovery._known_good(folder, prepared, 4, 0)


def test_runs_of_one_name_are_told_apart_by_seed_or_else_by_path(tmp_path):
    def named(*runs):
        seeds = {RunFolder(tmp_path / place): seed for place, seed in runs}
        return list(run_names(seeds).values())

    assert named(("a/x", 0), ("a/y", 0)) == ["x", "y"]
    assert named(("a/x", 0), ("b/x", 1)) == ["x@0", "x@1"]
    assert named(("a/x", 0), ("b/x", 0)) == [str(tmp_path / "a/x"), str(tmp_path / "b/x")]
