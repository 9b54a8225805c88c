"""Training on steps of like lengths: resumed, short of memory, audited, and the same gradient."""

from dataclasses import replace

import torch
from routing.tiny import gradients_of, tiny_routed
from train.test_packed_training import weights
from train.test_trainer import training
from train.token_rows import POLICY, ROWS

from gradroute.data.batches import DataOrder, collate, micro_batches
from gradroute.system.files import read_lines
from gradroute.train.audit import Audit
from gradroute.train.step import accumulate_gradients
from gradroute.train.trainer import train

WINDOW = (
    "train.max_steps=4",
    "train.save_every=2",
    "train.length_window=2",
    "train.log_gradients_every=0",
)


def like_lengths(root, *overrides):
    run, said = training(root, *WINDOW, *overrides)
    lengths = tuple(len(row.input_ids) for row in run.rows)
    places = tuple(range(len(lengths)))
    order = DataOrder(0, len(lengths), places, window=2, lengths=lengths)
    labels = {row.id: run.policy.labels[row.label_id] for row in run.rows}
    trace = Audit(run.folder.audit, run.rows, labels, run.policy)
    return replace(run, order=order, audit=trace), said


def test_a_resumed_run_ends_bit_identical_and_every_row_is_audited(tmp_path):
    whole, said = like_lengths(tmp_path / "whole")
    train(whole)
    assert said[-1] == "x: audit: 24 rows in 4 steps, every route as the table says."
    cut, _ = like_lengths(tmp_path / "cut")
    train(cut)
    (cut.folder.checkpoints / "step-000004").rename(tmp_path / "lost")
    again, said = like_lengths(tmp_path / "cut")
    train(again)
    assert "x: goes on after step 2." in said
    assert all(torch.equal(weights(again)[name], one) for name, one in weights(whole).items())
    assert again.folder.audit.read_bytes() == whole.folder.audit.read_bytes()


def test_short_of_memory_the_steps_have_the_same_examples(tmp_path):
    seen = []
    for refuse in (False, True):
        run, _ = like_lengths(tmp_path / str(refuse), "train.max_steps=2")
        calls = []

        def hook(module, args, kwargs, calls=calls, refuse=refuse):
            calls.append(1)
            if refuse and len(calls) == 3:
                raise torch.OutOfMemoryError("no memory for a moment")

        run.model.register_forward_pre_hook(hook, with_kwargs=True)
        train(run)
        lines = read_lines(run.folder.audit)
        seen.append([sorted(place for place, *_ in line["rows"]) for line in lines])
    assert seen[0] == seen[1]


def test_micro_batches_of_sorted_rows_give_the_gradient_of_the_step_as_it_was_drawn():
    model = tiny_routed()
    found = []
    for rows in (ROWS, sorted(ROWS, key=lambda row: len(row.input_ids))):
        for size in (len(rows), 2):
            model.zero_grad(set_to_none=True)
            batches = micro_batches(rows, size, 0, packed_into=None)
            accumulate_gradients(model, batches, POLICY, "token")
            found.append(gradients_of(model))
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(gradient, other[name], rtol=0, atol=1e-12)
    assert collate(ROWS, 0).input_ids.numel() > sum(len(row.input_ids) for row in ROWS)
