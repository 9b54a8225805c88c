"""Hidden states on the disk: computed once, read by whoever comes later, the same bits for all."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from routing.tiny import randomise, tiny_base
from tiny_runs import TINY, TWO
from torch import Tensor

import gradroute.models.hidden_state_cache
from gradroute.config.run_config import find_config, load_config
from gradroute.data.batches import DataOrder, TokenizedExample, collate, pack
from gradroute.errors import ConfigError, MachineError
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.evaluate.losses import held_out_losses
from gradroute.models.hidden_state_cache import HiddenStateCache
from gradroute.models.lm_head import plain_head
from gradroute.routing.adapters import AdapterSpec, attach_adapters
from gradroute.routing.frozen_check import lower_layers
from gradroute.routing.policy import AblationMode
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder
from gradroute.runs.states import FOLDER
from gradroute.system.files import read_lines

ROWS = ((3, 5, 7, 2, 9, 4, 11), (8, 1, 6), (2, 2, 13, 20, 5), (8, 1, 6, 4))
OWN = (*TINY, *TWO, "layers=last-half", "train.reuse_frozen=true")


def model_of(layers: Sequence[int] = (1, 2), dtype: torch.dtype = torch.float32):
    base = tiny_base(dtype=dtype).requires_grad_(False)
    adapters = {"good": AdapterSpec(rank=2), "bad": AdapterSpec(rank=3)}
    model = attach_adapters(base, adapters, layers=layers)
    randomise(model)
    return model


def kept(root: Path, base: str = "some base", said: list[str] | None = None) -> HiddenStateCache:
    told = [] if said is None else said
    return HiddenStateCache(root, model_of(), {"identity": base}, ROWS, told.append)


def go(root: Path, name: str, *overrides: str) -> RunFolder:
    config = load_config(find_config("caps"), [*OWN, *overrides, f"run_name={name}"])
    return train_run(config, root, if_exists="resume", bar=False)


def trained(folder: RunFolder) -> dict[str, bytes]:
    """What a run's training computed: weights, moments and the lines of its steps."""
    files = [*sorted(folder.checkpoints.rglob("*.safetensors")), folder.metrics]
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in files}


def segments(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run that had no states to begin with."""
    return go(tmp_path_factory.mktemp("cold"), "x")


def test_states_depend_on_the_tokens_alone_whatever_is_computed_before_or_beside(
    tmp_path: Path,
) -> None:
    one, other = kept(tmp_path / "one"), kept(tmp_path / "other")
    one.fill(ROWS)
    for row in reversed(ROWS):
        other.fill([row])
    again = kept(tmp_path / "one")
    again.fill(ROWS)
    for first, second, third in zip(one.of(ROWS), other.of(ROWS), again.of(ROWS), strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
    assert [own.shape for own in one.of(ROWS)] == [(len(row), 16) for row in ROWS]


def test_what_another_object_has_kept_is_read_and_not_computed(tmp_path: Path) -> None:
    kept(tmp_path).fill(ROWS[:3])
    said: list[str] = []
    later = kept(tmp_path, said=said)
    later.fill(ROWS)
    assert [line for line in said if "1 of 4 examples" in line] == said
    assert len(segments(tmp_path)) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda place: kept(place, "another base"),
        lambda place: HiddenStateCache(
            place, model_of(dtype=torch.float64), {"identity": "some base"}, ROWS, print
        ),
    ],
    ids=["base", "dtype"],
)
def test_states_of_something_else_are_never_read(
    tmp_path: Path, change: Callable[[Path], HiddenStateCache]
) -> None:
    first = kept(tmp_path)
    first.fill(ROWS)
    other = change(tmp_path)
    other.fill(ROWS)
    assert first.folder != other.folder
    about = [json.loads((one.folder / "about.json").read_text()) for one in (first, other)]
    assert about[0] != about[1]


def test_a_number_of_threads_has_states_of_its_own(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    first = kept(tmp_path)
    try:
        torch.set_num_threads(threads + 1)
        assert kept(tmp_path).folder != first.folder
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("damage", ["changed", "cut", "garbage"])
def test_a_damaged_file_is_said_and_computed_again(tmp_path: Path, damage: str) -> None:
    first = kept(tmp_path)
    first.fill(ROWS)
    before = [own.clone() for own in first.of(ROWS)]
    [path] = segments(tmp_path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    damaged = {"changed": bytes(content), "cut": bytes(content[:-40]), "garbage": b"no"}[damage]
    path.unlink()
    path.write_bytes(damaged)
    said: list[str] = []
    later = kept(tmp_path, said=said)
    later.fill(ROWS)
    assert sum("is damaged" in line for line in said) == 1
    assert all(map(torch.equal, later.of(ROWS), before))
    assert kept(tmp_path).folder == first.folder
    assert [own.name for own in segments(tmp_path)] == [path.name]


def test_a_disk_that_gives_back_something_else_is_an_error_and_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        gradroute.models.hidden_state_cache, "write_bytes", lambda path, _: path.write_bytes(b"no")
    )
    with pytest.raises(MachineError, match="reads back with other contents"):
        kept(tmp_path).fill(ROWS)


def test_of_a_fill_that_is_killed_whole_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradroute.models.hidden_state_cache, "_FILE", 1)
    write = gradroute.models.hidden_state_cache.write_bytes
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patched:
        patched.setattr(gradroute.models.hidden_state_cache, "write_bytes", _killed_after(2, write))
        kept(tmp_path).fill(ROWS)
    assert len(segments(tmp_path)) == 2
    said: list[str] = []
    later = kept(tmp_path, said=said)
    later.fill(ROWS)
    assert "for 2 of 4 examples" in said[0]
    whole = kept(tmp_path / "whole")
    whole.fill(ROWS)
    assert all(map(torch.equal, later.of(ROWS), whole.of(ROWS)))


def _killed_after(count: int, write: Callable[[Path, bytes], None]) -> Callable:
    left = [count]

    def killed(path: Path, content: bytes) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(path, content)

    return killed


def test_what_others_write_meanwhile_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradroute.models.hidden_state_cache, "_FILE", 1)
    write = gradroute.models.hidden_state_cache.write_bytes
    other = kept(tmp_path)

    def beside(path: Path, content: bytes) -> None:
        monkeypatch.setattr(gradroute.models.hidden_state_cache, "write_bytes", write)
        other.fill(ROWS)
        write(path, content)

    monkeypatch.setattr(gradroute.models.hidden_state_cache, "write_bytes", beside)
    kept(tmp_path).fill(ROWS)
    assert len(segments(tmp_path)) == len(ROWS)


def test_the_size_that_is_said_beforehand_is_what_the_files_take(tmp_path: Path) -> None:
    one = kept(tmp_path)
    twice = (*ROWS, ROWS[0])
    one.fill(twice)
    headers = 1000
    assert one.needed(twice) <= sum(path.stat().st_size for path in segments(tmp_path))
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= one.needed(twice) + headers


def test_the_rows_that_a_number_of_steps_visits_are_those_of_its_batches() -> None:
    order = DataOrder(3, 9, (0, 2, 3, 4, 6, 7, 8))
    for steps in (1, 2, 3, 50):
        batches = [order.batch(step, 3) for step in range(steps)]
        assert order.visited(steps, 3) == sorted({row for batch in batches for row in batch})


def test_a_disk_without_room_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradroute.models.hidden_state_cache, "free_bytes", lambda folder: 100)
    with pytest.raises(MachineError, match=r"needs \d+ bytes .* 100 bytes are free"):
        kept(tmp_path).fill(ROWS)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_is_one_sentence_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = kept(tmp_path / "states")
    (tmp_path / "states").write_text("in the way")
    with pytest.raises(MachineError, match=re.escape(str(one.folder))):
        one.fill(ROWS)


def test_no_text_and_no_token_lies_in_the_files(tmp_path: Path) -> None:
    row = tuple(range(1, 20))
    one = kept(tmp_path)
    one.fill([row])
    [path] = segments(tmp_path)
    content = path.read_bytes()
    for size in (2, 4, 8):
        assert b"".join(own.to_bytes(size, "little") for own in row[:4]) not in content


def test_a_packed_batch_holds_the_states_of_each_example_where_it_stands(tmp_path: Path) -> None:
    rows = [TokenizedExample(str(at), row, 0, 0, "good") for at, row in enumerate(ROWS)]
    states = [torch.full((len(row), 3), float(at + 1)) for at, row in enumerate(ROWS)]
    batch = pack(rows, 0, 10).with_states(states)
    assert batch.states is not None and len(batch.input_ids) < len(ROWS)
    for (row, start, end), own in zip(batch.places, states, strict=True):
        assert torch.equal(batch.states[row, start:end], own)
    some = batch.rows(torch.tensor([2, 0]))
    beside = collate([rows[2], rows[0]], 0).with_states([states[2], states[0]])
    assert some.states is not None and beside.states is not None
    assert torch.equal(some.states, beside.states)


def test_losses_of_modes_from_states_are_those_of_each_mode_by_itself(tmp_path: Path) -> None:
    model = model_of(dtype=torch.float64)
    rows = [TokenizedExample(str(at), row, 0, 0, "good") for at, row in enumerate(ROWS)]
    modes = [AblationMode.parse(name, ("good", "bad")) for name in ("full", "bad_ablated", "base")]
    lower = lower_layers(model, ROWS)

    def losses(some: Sequence[AblationMode], states: list[Tensor] | None) -> Tensor:
        found = held_out_losses(model, rows, some, pad_id=0, rows_per_batch=6, states=states)
        return torch.tensor([found[mode.name].sums for mode in some], dtype=torch.float64)

    alone = torch.cat([losses([mode], None) for mode in modes])
    assert len(set(alone.sum(1).tolist())) == 3
    with torch.no_grad():
        states = [
            lower.states(model, {"input_ids": torch.tensor([row]), "use_cache": False})[0]
            for row in ROWS
        ]
    # Cross entropy is taken in float32.
    torch.testing.assert_close(losses(modes, None), alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses(modes, states), alone, rtol=1e-6, atol=0)


def test_of_several_modes_the_lower_layers_run_once_and_from_states_not_at_all() -> None:
    model = model_of()
    rows = [TokenizedExample(str(at), row, 0, 0, "good") for at, row in enumerate(ROWS)]
    modes = [AblationMode.parse(name, ("good", "bad")) for name in ("full", "bad_ablated")]
    lower = lower_layers(model, ROWS)
    plain_head(model)  # the model has been tried by then
    ran: list[int] = []
    attention = lower.layers[0].get_submodule("self_attn")
    attention.register_forward_pre_hook(
        lambda module, args, kwargs: ran.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    held_out_losses(model, rows, modes, pad_id=0, rows_per_batch=100)
    assert ran == [len(ROWS)]
    states = [torch.zeros(len(row), 16) for row in ROWS]
    held_out_losses(model, rows, modes, pad_id=0, rows_per_batch=100, states=states)
    assert ran == [len(ROWS)]


def test_a_run_that_finds_states_trains_the_same_bits_as_the_one_that_had_none(
    cold: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cold.path.parent / FOLDER, tmp_path / FOLDER)
    monkeypatch.setattr(HiddenStateCache, "_compute", None)  # nothing is left to compute
    assert trained(go(tmp_path, "x")) == trained(cold)


def test_a_run_that_is_stopped_in_a_fill_and_in_training_ends_in_the_same_bits(
    cold: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradroute.models.hidden_state_cache, "_FILE", 1)
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patched:
        patched.setattr(
            gradroute.models.hidden_state_cache,
            "write_bytes",
            _killed_after(5, gradroute.models.hidden_state_cache.write_bytes),
        )
        go(tmp_path, "x", "train.save_every=1")
    folder = go(tmp_path, "x", "train.save_every=1")
    shutil.rmtree(max(folder.checkpoints.iterdir()))
    last = trained(go(tmp_path, "x", "train.save_every=1"))
    for name, content in trained(cold).items():
        assert last[name] == content, name


def test_a_run_with_states_is_the_run_without_but_for_rounding(
    cold: RunFolder, tmp_path: Path
) -> None:
    plain = go(tmp_path, "x", "train.reuse_frozen=false")
    assert not (tmp_path / FOLDER).exists()
    for with_states, without in zip(
        read_lines(cold.metrics), read_lines(plain.metrics), strict=True
    ):
        assert with_states["loss"] == pytest.approx(without["loss"], rel=1e-6)


def test_a_control_reads_what_its_run_has_kept(
    cold: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cold.path.parent / FOLDER, tmp_path / FOLDER)
    go(tmp_path, "control", "routing=none")
    assert "are computed once" not in capsys.readouterr().err


def test_an_evaluation_keeps_the_states_of_held_out_examples_for_the_next(
    cold: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cold.path.parent, tmp_path / "runs")
    shutil.copytree(cold.path, tmp_path / "runs" / "y")
    evaluate_run(RunFolder(tmp_path / "runs" / "x"))
    assert "computed once for 12 of 12 examples" in capsys.readouterr().err
    evaluate_run(RunFolder(tmp_path / "runs" / "y"))
    assert "are computed once" not in capsys.readouterr().err
    results = [
        [row for row in json.loads((tmp_path / "runs" / name / "eval/results.json").read_text())]
        for name in ("x", "y")
    ]
    assert results[0] and len(results[0]) == len(results[1])


def test_packed_training_reads_the_same_states(cold: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(cold.path.parent / FOLDER, tmp_path / FOLDER)
    before = segments(tmp_path)
    packed = go(tmp_path, "packed", "train.packing=true", "data.max_length=32")
    assert segments(tmp_path / FOLDER) == before
    lines = zip(read_lines(packed.metrics), read_lines(cold.metrics), strict=True)
    for one, other in lines:
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (("train.reuse_gib=0.0001",), r"take 0\.00 GiB, and train\.reuse_gib is 0\.0001"),
        (("layers=all",), "no frozen layers below it"),
    ],
)
def test_what_cannot_be_reused_is_said_once_and_trained_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: Sequence[str], why: str
) -> None:
    go(tmp_path, "x", *overrides)
    said = capsys.readouterr().err
    assert len(re.findall("train.reuse_frozen has no effect", said)) == 1
    assert re.search(why, said)
    assert not (tmp_path / FOLDER).exists()


def test_going_on_with_or_without_states_is_another_setting(
    cold: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(cold.path, tmp_path / "x")
    with pytest.raises(ConfigError, match=r"train\.reuse_frozen"):
        go(tmp_path, "x", "train.reuse_frozen=false", "train.max_steps=4")
