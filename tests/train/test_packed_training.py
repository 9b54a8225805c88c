"""The loop on packed rows and on labels by token: resumed, short of memory, and audited."""

from dataclasses import replace

import pytest
import torch
from routing.tiny import gradients_of
from train.test_trainer import training

from gradroute.data import batches
from gradroute.data.batches import Batch, collate, pack
from gradroute.errors import ConfigError, DataError
from gradroute.system.files import read_lines
from gradroute.train.audit import CODES, Audit
from gradroute.train.trainer import train

PACKED = (
    "train.packing=true",
    "data.max_length=16",
    "train.max_steps=4",
    "train.save_every=2",
    "train.log_gradients_every=4",
)


def with_token_labels(row, at: int):
    """Every third example has bad tokens in its middle, every third a gap."""
    length = len(row.input_ids)
    if at % 3 == 0:
        labels = [row.label_id] * length
        labels[1:3] = [0, 0]
        row = replace(row, label_ids=tuple(labels) if row.label_id != 0 else ())
    return replace(row, gaps=((1, 2),), weight=0.5) if at % 3 == 1 else row


def packed(root, *overrides, audit=False):
    run, said = training(root, *PACKED, *overrides)
    rows = [with_token_labels(row, at) for at, row in enumerate(run.rows)]
    labels = {row.id: run.policy.labels[row.label_id] for row in rows}
    trace = Audit(run.folder.audit, rows, labels, run.policy) if audit else None
    return replace(run, rows=rows, audit=trace), said


def weights(run):
    return {name: p.detach().clone() for name, p in run.model.named_parameters() if "lora" in name}


def test_a_resumed_packed_run_ends_bit_identical_and_every_position_is_audited(tmp_path):
    whole, said = packed(tmp_path / "whole", audit=True)
    train(whole)
    assert said[-1] == "x: audit: 24 rows in 4 steps, every route as the table says."
    cut, _ = packed(tmp_path / "cut", audit=True)
    train(cut)
    (cut.folder.checkpoints / "step-000004").rename(tmp_path / "lost")
    again, said = packed(tmp_path / "cut", audit=True)
    train(again)
    assert "x: goes on after step 2." in said
    for name, weight in weights(whole).items():
        assert torch.equal(weights(again)[name], weight), name
    for one, other in zip(
        (again.folder.metrics, again.folder.audit),
        (whole.folder.metrics, whole.folder.audit),
        strict=True,
    ):
        assert one.read_bytes() == other.read_bytes()
    labels, table = whole.policy.labels, whole.policy.table
    for line in read_lines(whole.folder.audit):
        for place, label_id, good, bad, *runs in line["rows"]:
            row = whole.rows[place]
            own = table[labels[label_id]]
            assert [CODES[good], CODES[bad]] == [own["good"].name, own["bad"].name]
            counts = {i: row.label_ids.count(i) for i in sorted(set(row.label_ids))}
            assert bool(runs) == bool(counts)
            for i, n, *codes in runs[0] if runs else []:
                assert counts[i] == n
                wanted = [table[labels[i]][name].name for name in ("good", "bad")]
                assert [CODES[code] for code in codes] == wanted
    lines = list(read_lines(whole.folder.metrics))
    assert sum(sum(line["tokens"].values()) for line in lines) == sum(
        whole.rows[place].target_count for step in range(4) for place in whole.order.batch(step, 6)
    )
    assert all(sum(line["examples"].values()) == 6 for line in lines)


def test_a_packed_run_learns_what_a_padded_one_does(tmp_path):
    plain = ("adapters.bad.dropout=0", "train.max_steps=2", "train.log_gradients_every=0")
    one, _ = packed(tmp_path / "packed", *plain)
    other, _ = packed(tmp_path / "padded", *plain, "train.packing=false")
    train(one)
    train(other)
    pairs = zip(one.model.named_parameters(), other.model.named_parameters(), strict=True)
    for (name, mine), (_, theirs) in pairs:
        assert torch.allclose(mine, theirs, rtol=0, atol=2e-4), name


def test_short_of_memory_a_packed_step_goes_on_with_fewer_examples(tmp_path):
    run, said = packed(tmp_path, "train.max_steps=2", "train.log_gradients_every=0", audit=True)
    calls = []

    def refuse_once(module, args, kwargs):
        calls.append(kwargs["input_ids"].shape)
        if len(calls) == 3:  # the first two are those of the check before training
            raise torch.OutOfMemoryError("no memory for a moment")

    run.model.register_forward_pre_hook(refuse_once, with_kwargs=True)
    train(run)
    assert any("with 3 examples at a time; it goes on with 2" in line for line in said)
    assert [len(line["rows"]) for line in read_lines(run.folder.audit)] == [6, 6]


def other_label_for_a_token(batch: Batch) -> Batch:
    assert batch.token_label_ids is not None
    ids = batch.token_label_ids.clone()
    row, start, _ = batch.places[0]
    ids[row, start] = (ids[row, start] + 1) % 3
    return replace(batch, token_label_ids=ids)


def labels_of_examples_only(batch: Batch) -> Batch:
    return replace(batch, token_label_ids=None)


def positions_that_run_on(batch: Batch) -> Batch:
    assert batch.position_ids is not None
    return replace(batch, position_ids=torch.arange(batch.input_ids.shape[1]) + 0 * batch.input_ids)


def one_target_too_many(batch: Batch) -> Batch:
    targets = batch.targets.clone()
    targets[batch.attention_mask == 0] = 5
    return replace(batch, targets=targets)


@pytest.mark.parametrize(
    ("packing", "fault", "words"),
    [
        (True, other_label_for_a_token, "have other labels than their own"),
        (False, other_label_for_a_token, "have other labels than their own"),
        (False, labels_of_examples_only, "have other labels than their own"),
        (True, positions_that_run_on, "holds other tokens than its own"),
        (False, one_target_too_many, "its examples have"),
    ],
)
def test_a_batch_with_other_labels_positions_or_targets_is_caught(
    packing, fault, words, tmp_path, monkeypatch
):
    make = {True: "pack", False: "collate"}[packing]
    right = {"pack": pack, "collate": collate}[make]

    def broken(*args):
        batch = right(*args)
        return batch if batch.token_label_ids is None else fault(batch)

    monkeypatch.setattr(batches, make, broken)
    run, _ = packed(tmp_path, f"train.packing={str(packing).lower()}", audit=True)
    with pytest.raises(DataError, match=rf"x, step 1: audit: .*{words}"):
        train(run)


def test_a_model_that_cannot_be_packed_is_refused_before_anything_is_written(tmp_path):
    run, _ = packed(tmp_path)
    base = run.model.get_base_model()

    def refuse(module, args, kwargs):
        if kwargs.get("position_ids") is not None:
            raise ValueError("no positions here")

    base.register_forward_pre_hook(refuse, with_kwargs=True)
    with pytest.raises(ConfigError, match=r"cannot run packed examples \(no positions here\)"):
        train(run)
    assert not gradients_of(run.model) and not run.folder.metrics.exists()
