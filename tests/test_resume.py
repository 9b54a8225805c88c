"""The same command goes on; what has changed since is refused with a table, or recorded."""

import json
import os
import re
import shutil
import threading

import pytest
from resumed_runs import cut, files, go, sessions
from runs.test_lock import let_go, said, start

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError, DataError, GradrouteError, MachineError
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_json, read_lines, write_json


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run that was never interrupted."""
    return go(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def begun(whole, tmp_path):
    """The same run with one step still to do."""
    shutil.copytree(whole.path, tmp_path / "runs" / "x")
    return cut(RunFolder(tmp_path / "runs" / "x"))


def test_a_run_says_what_it_stands_on_once_and_every_session_is_recorded(whole, begun):
    from gradroute import __version__

    (first,) = sessions(begun)
    assert {k: first[k] for k in ("step", "changed", "overridden")} == {
        "step": 0,
        "changed": {},
        "overridden": [],
    }
    manifest = read_json(begun.manifest)
    assert manifest["gradroute"] == __version__
    assert first["provenance"] == manifest["provenance"]
    assert first["provenance"]["hardware"]["threads"] >= 1
    before = begun.manifest.read_bytes(), begun.sessions.read_bytes()
    go(begun.path.parent)
    assert begun.manifest.read_bytes() == before[0]
    assert begun.sessions.read_bytes().startswith(before[1])
    assert [row["step"] for row in sessions(begun)] == [0, 2]
    # All but times is as if nothing had happened.
    timed = ("timings.jsonl", "sessions.jsonl")
    one, other = files(whole.path), files(begun.path)
    assert {k: v for k, v in one.items() if k not in timed} == {
        k: v for k, v in other.items() if k not in timed
    }


def test_changed_settings_are_refused_with_one_row_each_and_nothing_is_touched(begun):
    before = files(begun.path)
    with pytest.raises(ConfigError) as told:
        go(begun.path.parent, "seed=5", "adapters.bad.alpha=3", "evaluate.prompts=2")
    text = str(told.value)
    assert re.search(r"^  key +then +now$", text, re.M)
    assert re.search(r"^  seed +0 +5$", text, re.M)
    assert re.search(r"^  adapters\.bad\.alpha +\S+ +3\.0$", text, re.M)
    assert "evaluate" not in text
    assert text.endswith("--override seed --override adapters.bad.alpha")
    assert files(begun.path) == before


@pytest.mark.parametrize("allow", [["train.learning_rate"], ["train"], ["seed", "train"]])
def test_an_override_is_recorded_and_the_run_goes_on_with_it(begun, allow, capsys):
    go(begun.path.parent, "train.learning_rate=0.5", allow=allow)
    last = sessions(begun)[-1]
    assert last["overridden"] == ["train.learning_rate"] and last["step"] == 2
    then, now = last["changed"]["train.learning_rate"]
    assert now == 0.5 and then != now
    assert load_config(begun.config).train.learning_rate == 0.5
    assert "as requested: train.learning_rate" in capsys.readouterr().err
    # It is a run with this setting now.
    go(begun.path.parent, "train.learning_rate=0.5")


def test_an_override_that_does_not_fit_the_weights_changes_nothing(begun):
    before = files(begun.path)
    with pytest.raises(ConfigError, match="'good' does not fit the model"):
        go(begun.path.parent, "adapters.good.rank=2", allow=["adapters"])
    assert files(begun.path) == before


def test_what_is_not_named_is_refused_beside_what_is(begun):
    with pytest.raises(ConfigError, match=r"--override seed$"):
        go(begun.path.parent, "seed=5", "train.learning_rate=0.5", allow=["train"])


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("train.save_evry", "train.save_every"),
        ("learning_rate", "learning_rate"),
        ("identity.datas", "identity.data"),
        ("adapters.bda", "adapters.bad"),
        ("train.learning_rate=1", "train.learning_rate"),
        ("", "gradroute schema"),
        ("zzz", "gradroute schema"),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_an_override_of_what_is_not_there_is_refused_with_the_nearest(begun, key, near, there):
    before = files(begun.path.parent)
    with pytest.raises(ConfigError, match=f"--override {re.escape(key)}: .*{re.escape(near)}"):
        go(begun.path.parent if there else begun.path.parent / "new", allow=[key])
    assert files(begun.path.parent) == before


def test_an_override_of_what_has_not_changed_is_no_matter(begun, tmp_path):
    go(begun.path.parent, allow=["seed", "data", "identity", "identity.base"])
    assert sessions(begun)[-1]["overridden"] == []
    go(tmp_path / "new", "train.max_steps=1", allow=["seed", "data"])


@pytest.mark.parametrize("finished", [True, False])
def test_what_is_measured_and_trained_beside_it_may_change_and_is_recorded(begun, finished):
    if finished:
        go(begun.path.parent)
    rows = len(sessions(begun))
    go(begun.path.parent, "evaluate.prompts=2", "controls=[none]", "train.reuse_gib=1")
    last = sessions(begun)[-1]
    assert last["changed"] == {
        "evaluate.prompts": [3, 2],
        "controls": ["null", ["none"]],
        "train.reuse_gib": [8.0, 1.0],
    }
    assert last["overridden"] == [] and last["step"] == (3 if finished else 2)
    assert load_config(begun.config).evaluate.prompts == 2
    go(begun.path.parent, "evaluate.prompts=2", "controls=[none]", "train.reuse_gib=1")
    assert len(sessions(begun)) == rows + 1


def test_the_order_of_adapters_is_a_setting(begun):
    text = begun.config.read_text()
    with pytest.raises(ConfigError, match=r"adapters +good, bad +bad, good"):
        go(begun.path.parent, "adapters={bad: {rank: 2}, good: {rank: 3}}")
    assert begun.config.read_text() == text


def test_a_finished_run_trains_on_for_more_steps_if_that_is_asked_for(whole, tmp_path, capsys):
    shutil.copytree(whole.path, tmp_path / "x")
    with pytest.raises(ConfigError, match=r"train\.max_steps +3 +5"):
        go(tmp_path, "train.max_steps=5")
    folder = go(tmp_path, "train.max_steps=5", allow=["train.max_steps"])
    assert [row["step"] for row in read_lines(folder.metrics)] == [1, 2, 3, 4, 5]
    assert "goes on after step 3" in capsys.readouterr().err


def test_a_finished_run_keeps_the_settings_that_it_was_trained_with(whole, tmp_path, capsys):
    shutil.copytree(whole.path, tmp_path / "x")
    before = files(tmp_path / "x")
    asked = ("train.max_steps=2", "adapters.good.rank=2", "seed=5")
    folder = go(tmp_path, *asked, allow=["train", "adapters", "seed"])
    err = capsys.readouterr().err
    assert "3 steps; nothing to train" in err
    assert (
        "already trained; these overrides have no effect: seed, adapters.good.rank, train.max_steps"
        in err
    )
    assert files(folder.path) == before


def test_a_changed_data_file_is_refused_or_recorded(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"story number {i} of a fox"} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = cut(go(tmp_path, f"data.path={path}"))
    path.write_text(path.read_text().replace("number 3 ", "number 4 "))
    before = files(folder.path)
    with pytest.raises(ConfigError, match=r"identity\.data +rows\.jsonl, sha256 [0-9a-f]+"):
        go(tmp_path, f"data.path={path}")
    assert files(folder.path) == before
    go(tmp_path, f"data.path={path}", allow=["identity.data"])
    then, now = sessions(folder)[-1]["changed"]["identity.data"]
    assert then != now == read_json(folder.manifest)["data"]
    go(tmp_path, f"data.path={path}")


def test_another_version_of_gradroute_is_refused_or_recorded(begun):
    from gradroute import __version__

    write_json(begun.manifest, read_json(begun.manifest) | {"gradroute": "0.0.1"})
    with pytest.raises(ConfigError, match=r"identity\.gradroute +0\.0\.1 "):
        go(begun.path.parent)
    go(begun.path.parent, allow=["identity.gradroute"])
    assert sessions(begun)[-1]["changed"] == {"identity.gradroute": ["0.0.1", __version__]}
    assert read_json(begun.manifest)["gradroute"] == __version__


def test_another_base_model_is_refused(begun):
    write_json(begun.manifest, read_json(begun.manifest) | {"base": "sha256 0"})
    with pytest.raises(ConfigError, match=r"identity\.base +sha256 0 "):
        go(begun.path.parent)


@pytest.mark.parametrize("kept", [True, False])
def test_other_threads_and_versions_are_said_once_and_recorded(begun, kept, capsys):
    first = sessions(begun)[0]
    first["provenance"]["hardware"]["threads"] = 99
    first["provenance"]["hardware"]["memory_gib"] = 0.1
    first["provenance"]["versions"]["torch"] = "2.0.0"
    first["provenance"]["commit"] = "0" * 40
    begun.sessions.write_text(json.dumps(first) + '\n{"step": 1, "event": "x"}\n{"cut')
    if not kept:
        begun.sessions.unlink()
        write_json(begun.manifest, read_json(begun.manifest) | {"provenance": first["provenance"]})
    go(begun.path.parent)
    err = capsys.readouterr().err
    assert len(re.findall(r"hardware\.threads 99 -> \d+.*not be bit-identical", err)) == 1
    last = sessions(begun)[-1]
    assert set(last["changed"]) == {"hardware.threads", "versions.torch"}
    assert last["changed"]["versions.torch"][0] == "2.0.0"
    go(cut(begun).path.parent)
    assert "not be bit-identical" not in capsys.readouterr().err


def test_a_damaged_log_is_one_sentence_with_a_way_out(begun, whole, capsys):
    lines = begun.metrics.read_text().splitlines(keepends=True)
    begun.metrics.write_text(lines[0] + "{]\n" + lines[2])
    before = files(begun.path)
    with pytest.raises(DataError, match=r"metrics\.jsonl:2 is damaged .* delete this line"):
        go(begun.path.parent)
    assert files(begun.path) == before
    begun.metrics.write_text('{"loss": 1}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:1 is damaged"):
        go(begun.path.parent)
    begun.metrics.write_text(lines[0])
    go(begun.path.parent)
    assert "lacks 1 of the 2 steps done" in capsys.readouterr().err
    assert [row["step"] for row in read_lines(begun.metrics)] == [1, 3]


@pytest.mark.parametrize("gone", ["checkpoints", "what is in it"])
def test_a_run_that_lost_its_checkpoints_does_not_start_over(begun, gone):
    shutil.rmtree(begun.checkpoints)
    if gone != "checkpoints":
        begun.checkpoints.mkdir()
    before = files(begun.path)
    with pytest.raises(MachineError, match=r"has saved step-000003, and no checkpoint is left"):
        go(begun.path.parent)
    assert files(begun.path) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(begun, whole):
    shutil.rmtree(begun.checkpoints)
    begun.timings.write_text('{"step": 1, "step_seconds": 0.1}\n')
    go(begun.path.parent)
    assert begun.metrics.read_bytes() == whole.metrics.read_bytes()


@pytest.mark.parametrize("content", [None, "", "seed: [", "seed: 5\n", "\0"])
def test_a_lost_config_is_taken_from_the_checkpoint(begun, whole, content, capsys):
    begun.config.unlink()
    if content is not None:
        begun.config.write_text(content)
    if content == "seed: 5\n":  # that is a configuration, of another run
        with pytest.raises(ConfigError, match="started with other settings"):
            go(begun.path.parent)
        return
    with pytest.raises(ConfigError, match=r"seed +0 +5"):
        go(begun.path.parent, "seed=5")
    assert "is used instead" in capsys.readouterr().err
    go(begun.path.parent)
    assert begun.config.read_bytes() == whole.config.read_bytes()


def test_what_a_killed_process_left_is_gone_when_training_begins(begun):
    (begun.path / "eval").mkdir()
    for name in (".tmp-a", "checkpoints/.tmp-step-000003-9/x", "eval/.tmp-b"):
        path = begun.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    go(begun.path.parent)
    assert not list(begun.path.rglob(".tmp-*"))


def test_a_run_in_use_is_left_alone(begun):
    before = files(begun.path)
    holder = start(begun.path)
    assert said(holder) == "in"
    for if_exists in ("resume", "new", "fail"):
        with pytest.raises(MachineError, match=f"in use: process {holder.pid}"):
            go(begun.path.parent, if_exists=if_exists)
    let_go(holder)
    assert files(begun.path) == before


def test_a_run_folder_that_leads_out_of_the_root_is_not_written(begun, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x").symlink_to(begun.path)
    before = files(begun.path)
    with pytest.raises(ConfigError, match="leads out of"):
        go(tmp_path / "root")
    assert files(begun.path) == before


def test_a_run_folder_that_is_removed_while_it_trains_is_named_and_not_made_again(tmp_path):
    folder = RunFolder(tmp_path / "x")
    found: list[GradrouteError] = []

    def run():
        try:
            go(tmp_path, "train.max_steps=500", "train.save_every=0")
        except GradrouteError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive() and not folder.metrics.is_file():
        thread.join(0.01)
    while thread.is_alive() and folder.path.exists():
        shutil.rmtree(folder.path, ignore_errors=True)
    thread.join(300)
    assert not thread.is_alive()
    (error,) = found
    assert isinstance(error, MachineError) and f"{folder.path} is not there any more" in str(error)
    assert os.listdir(tmp_path) == []


def test_an_audit_can_be_asked_for(tmp_path):
    folder = go(tmp_path, audit=True)
    assert [row["step"] for row in read_lines(folder.audit)] == [1, 2, 3]
