"""Whole runs on two ranks: one of each file, stopped together, killed and resumed."""

import re
import shutil
import signal
import time

import pytest
from safetensors.torch import load_file

from gradroute.models.checkpoint import latest_checkpoint
from gradroute.system.files import read_lines
from torture.forks import Child, serving
from torture.rank_kills import ranks, trials
from torture.ranks import launch
from torture.runs import NAME, STEPS, finals, lay, steps_done


@pytest.fixture(scope="module")
def server():
    with serving() as one:
        yield one


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return lay(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, server, ground):
    """A run on two ranks, undisturbed: its folder, and what each rank has said."""
    root = tmp_path_factory.mktemp("quiet")
    children = ranks(server, ground, root, "ddp")
    assert [child.wait(120) for child in children] == [0, 0], [child.said for child in children]
    return root, [child.said for child in children]


def ended(children: list[Child]) -> list[int]:
    return [child.wait(120) for child in children]


def test_one_rank_writes_and_speaks(quiet):
    root, said = quiet
    assert f"{NAME}: step {STEPS}/{STEPS}" in said[0]
    assert said[1] == ""
    lines = read_lines(root / "runs" / NAME / "metrics.jsonl")
    assert [row["step"] for row in lines] == list(range(1, STEPS + 1))
    [session] = read_lines(root / "runs" / NAME / "sessions.jsonl")
    assert session["provenance"]["hardware"]["ranks"] == 2


def test_a_signal_on_one_rank_stops_both_after_the_same_step(tmp_path, server, ground, quiet):
    children = ranks(server, ground, tmp_path, "ddp")
    while steps_done(tmp_path / "runs" / NAME) < 4:
        assert children[0].alive, children[0].said
        time.sleep(0.001)
    children[1].send(signal.SIGTERM)
    assert ended(children) == [75, 75], [child.said for child in children]
    stopped = latest_checkpoint(tmp_path / "runs" / NAME / "checkpoints")
    assert stopped is not None and 4 <= stopped.step < STEPS
    assert stopped.step == steps_done(tmp_path / "runs" / NAME)
    again = ranks(server, ground, tmp_path, "ddp")
    assert ended(again) == [0, 0], [child.said for child in again]
    root, _ = quiet
    assert finals(tmp_path / "runs" / NAME) == finals(root / "runs" / NAME)


def test_a_run_goes_on_on_fewer_and_on_more_ranks_and_that_is_recorded(
    tmp_path, server, ground, quiet
):
    """2 -> 1 -> 2: as close to an undisturbed run as rounding leaves it; dropout is off."""
    changes = {"adapters.good.dropout": 0.0, "adapters.bad.dropout": 0.0}
    config = ground.config(changes, "without dropout").resolve()
    for name, sizes in (("whole", [2]), ("changed", [2, 1, 2])):
        for at, size in enumerate(sizes, 1):
            last = at == len(sizes)
            line = ["train", str(config)]
            children = launch(
                server, "torture.ranks:command", {"line": line}, tmp_path / name, size
            )
            until = at * STEPS // len(sizes)
            while not last and steps_done(tmp_path / name / "runs" / NAME) < until:
                assert children[0].alive, children[0].said
                time.sleep(0.001)
            if not last:
                children[0].send(signal.SIGTERM)
            assert set(ended(children)) == {0 if last else 75}, children[0].said
    whole, changed = (
        load_file(
            tmp_path
            / name
            / f"runs/{NAME}/checkpoints/step-{STEPS:06d}"
            / "good"
            / "adapter_model.safetensors"
        )
        for name in ("whole", "changed")
    )
    apart = max(float((whole[key] - changed[key]).abs().max()) for key in whole)
    assert apart <= 1e-4 * max(float(w.abs().max()) for w in whole.values())
    sessions = read_lines(tmp_path / "changed" / "runs" / NAME / "sessions.jsonl")
    assert [row["changed"].get("hardware.ranks") for row in sessions] == [None, [2, 1], [1, 2]]


def test_ranks_with_different_settings_are_told_apart_before_anything_is_written(
    tmp_path, server, ground
):
    lines = []
    for seed in (0, 1):
        config = ground.config({"seed": seed}, f"seed {seed}").resolve()
        lines.append(["train", str(config)])
    children = launch(
        server,
        "torture.ranks:own_command",
        {"lines": lines},
        tmp_path,
        2,
    )
    assert ended(children) == [2, 2]
    assert "do not have the same configuration: rank 1 has" in children[0].said
    assert children[1].said == ""
    assert not (tmp_path / "runs" / NAME / "manifest.json").exists()


@pytest.mark.parametrize(
    ("size", "changes", "told"),
    [
        (3, {}, "8 examples .* which 3 processes cannot share equally. Launch 1, 2, 4, 8 of them"),
        (2, {"train.parallel": "none"}, "trains on one process, and 2 were launched"),
    ],
)
def test_what_ranks_cannot_train_is_refused_before_the_first_step(
    tmp_path, server, ground, size, changes, told
):
    config = ground.config(changes, f"refused-{size}").resolve()
    line = ["train", str(config)]
    children = launch(server, "torture.ranks:command", {"line": line}, tmp_path, size)
    assert ended(children) == [2] * size
    assert re.search(told, children[0].said)
    assert not (tmp_path / "runs" / NAME).exists()


def test_killed_ranks_go_on_and_end_equal_to_ranks_that_were_not_killed(tmp_path):
    found = trials(4, 1, tmp_path)
    assert found["failures"] == []
    assert found["trials"] == 4 and found["resumed"] >= 1
    assert found["lost"] == found["differing_finals"] == found["damaged"] == found["not_ended"] == 0


@pytest.fixture(scope="module")
def measured(quiet, tmp_path_factory, server):
    """The undisturbed run, measured by one process and by two, whole and sharded: its folders."""
    root, _ = quiet
    found = []
    for size, parallel in ((1, "auto"), (2, "ddp"), (2, "fsdp2")):
        folder = tmp_path_factory.mktemp(f"measured-{size}-{parallel}")
        shutil.copytree(root, folder, dirs_exist_ok=True)
        config = folder / "runs" / NAME / "config.yaml"
        config.write_text(config.read_text().replace("parallel: ddp", f"parallel: {parallel}"))
        line = ["eval", NAME, "--prompts", "plain", "--prompts", "prefix"]
        children = launch(server, "torture.ranks:command", {"line": line}, folder, size)
        assert ended(children) == [0] * size, [child.said for child in children]
        found.append(folder / "runs" / NAME)
    return found


def test_ranks_share_an_evaluation_and_find_what_one_process_finds(measured):
    one, *others = ([*read_lines(folder / "eval" / "samples.jsonl")] for folder in measured)
    assert len(one) == 5 * 2 * 3 and others == [one, one]
    alone, *shared = ([*read_lines(folder / "eval" / "losses.jsonl")] for folder in measured)
    for first, second in zip(alone * 2, [row for rows in shared for row in rows], strict=True):
        assert second == {key: first[key] for key in first} | {
            key: pytest.approx(value, rel=1e-5)
            for key, value in first.items()
            if isinstance(value, float)
        }
