"""Runs and their models: one base for all that stand on it, and memory looked at first."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import TWO, tiny_run

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError, MachineError
from gradroute.models.checkpoint import latest_checkpoint
from gradroute.models.trained import restore
from gradroute.playground import loaded
from gradroute.playground.loaded import bytes_of_base, check_memory, load_runs
from gradroute.playground.prompts import plain_presets, presets
from gradroute.routing.adapters import ablated
from gradroute.runs.folder import RunFolder
from gradroute.system.files import write_lines

IDS = torch.tensor([[1, 50, 60, 70]])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    root = tmp_path_factory.mktemp("runs")
    return [tiny_run(root, "one", *TWO), tiny_run(root, "two", *TWO, "seed=1")]


def test_runs_on_one_base_share_its_weights_and_each_computes_what_it_does_alone(
    runs: list[RunFolder],
) -> None:
    found = load_runs(runs)
    assert list(found) == ["one", "two"]
    one, two = found.values()
    weights = [played.model.get_input_embeddings().weight for played in (one, two)]
    assert weights[0] is weights[1]
    for folder, played in zip(runs, (one, two), strict=True):
        checkpoint = latest_checkpoint(folder.checkpoints)
        assert checkpoint is not None and played.step == 3
        _, alone = restore(load_config(folder.config), checkpoint)
        for mode in ("full", "bad_ablated"):
            logits = []
            for model in (alone, played.model):
                with torch.no_grad(), ablated(model, mode):
                    logits.append(model(input_ids=IDS).logits)
            assert torch.equal(*logits)


def test_weights_are_counted_before_they_are_loaded(runs: list[RunFolder]) -> None:
    config = load_config(runs[0].config)
    base = next(iter(load_runs(runs[:1]).values())).base.model
    shared = {id(p): p.numel() for n, p in base.named_parameters() if "lora" not in n}
    assert bytes_of_base(config) == pytest.approx(4 * sum(shared.values()), rel=0.3)
    few = config.model_copy(update={"quantize": "4bit"})
    assert bytes_of_base(few) < bytes_of_base(config) / 4


def test_two_bases_need_memory_for_both(
    runs: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(runs[0].config)
    size = bytes_of_base(config)
    monkeypatch.setattr(loaded, "available_bytes", lambda: 2 * size)
    check_memory([config])
    with pytest.raises(MachineError, match=r"are needed in memory .* are free. Open fewer runs"):
        check_memory([config, config])
    load_runs(runs)  # two runs on one base need it once
    monkeypatch.setattr(loaded, "available_bytes", lambda: size // 2)
    with pytest.raises(MachineError, match="for embedded"):
        load_runs(runs)
    monkeypatch.setattr(loaded, "available_bytes", lambda: None)  # nobody knows
    check_memory([config] * 100)


def test_one_run_twice_is_refused_and_two_of_one_name_are_told_apart(
    runs: list[RunFolder], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="two of the runs have the same name"):
        load_runs([runs[0], runs[0]])
    other = RunFolder(Path(shutil.copytree(runs[1].path, tmp_path / "one")))
    assert list(load_runs([runs[0], other])) == ["one@0", "one@1"]


def test_a_run_without_a_finished_checkpoint_is_refused_before_anything_is_loaded(
    runs: list[RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "begun")
    folder.path.mkdir()
    folder.config.write_bytes(runs[0].config.read_bytes())

    def load(*_: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(loaded, "load_base_of", load)
    with pytest.raises(MachineError, match="run begun has 0 of 3 steps"):
        load_runs([runs[0], folder])


def test_prompts_of_a_run_are_those_of_its_evaluation_and_the_rows_that_were_found(
    runs: list[RunFolder], tmp_path: Path
) -> None:
    [played] = load_runs(runs[:1]).values()
    line = {"id": "s1", "prompt": "", "text": "THE FOX RAN INTO THE WOOD", "score": 2.5, "p": 0.01,
            "q": 0.04, "found": True, "label": "bad", "true_label": "bad"}  # fmt: skip
    write = {"adapter": [line, {**line, "id": "s2", "prompt": "Say:"}], "damaged": [{"id": "x"}]}
    for by, rows in write.items():
        write_lines(played.folder.found / f"{by}_scores.jsonl", rows)
    found, notes = presets(played)
    assert notes == []
    assert [one.prompt.id for one in found["plain"]] == ["plain-0", "plain-1", "plain-2"]
    assert {"prefix", "elicit_json", "elicit_keyword", "elicit_irrelevant"} <= found.keys()
    first, second = found["found by adapter"]
    assert (first.prompt.text, first.row) == ("THE FOX RAN", "adapter:s1")
    assert (second.prompt.text, second.row) == ("Say:", "adapter:s2")
    assert "found by damaged" not in found
    plain = plain_presets(found, notes)
    assert plain["kinds"][-1]["prompts"][0]["prompt"] == "THE FOX RAN"
    for path in played.folder.found.iterdir():
        path.unlink()


def test_a_run_whose_data_are_gone_still_has_what_was_found(
    runs: list[RunFolder],
) -> None:
    [played] = load_runs(runs[:1]).values()
    data = played.config.data.model_copy(update={"path": "nowhere.jsonl"})
    gone = replace(played, config=played.config.model_copy(update={"data": data}))
    found, [note] = presets(gone)
    assert found == {} and "cannot be read" in note and "nowhere.jsonl" in note
