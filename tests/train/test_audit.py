"""The audit sees a row that is trained under another label, other tokens or another route."""

import shutil
from dataclasses import replace

import pytest
import torch
from routing.tiny import mean_loss, tiny_batch, tiny_routed
from train.test_trainer import EVERY_FIVE, final_manifest, measured, training

from gradroute.data import batches
from gradroute.data.batches import Batch, collate
from gradroute.errors import DataError
from gradroute.routing import scopes
from gradroute.routing.adapters import routed
from gradroute.routing.policy import Route, RoutingPolicy
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines
from gradroute.train.audit import CODES, Audit
from gradroute.train.trainer import train


def audited(root, *overrides, measure=None):
    run, said = training(root, *overrides, measure=measure)
    labels = {row.id: run.policy.labels[row.label_id] for row in run.rows}
    audit = Audit(run.folder.audit, run.rows, labels, run.policy)
    return replace(run, audit=audit), said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An audited run that was never cut, and what it said."""
    run, said = audited(tmp_path_factory.mktemp("whole"))
    train(run)
    return run, said


def without_last_steps(run, root):
    """A copy of a run folder that has lost its last checkpoint."""
    folder = RunFolder(shutil.copytree(run.folder.path, root / "x"))
    (folder.checkpoints / "step-000012").rename(root / "lost")
    return folder


def test_every_row_of_every_step_is_written_with_the_routes_of_its_label(whole):
    run, said = whole
    lines = list(read_lines(run.folder.audit))
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line in lines:
        assert [row[0] for row in line["rows"]] == run.order.batch(line["step"] - 1, 6)
        for place, label_id, *codes in line["rows"]:
            assert label_id == run.rows[place].label_id
            row = run.policy.table[run.policy.labels[label_id]]
            assert [CODES[code] for code in codes] == [row[name].name for name in ("good", "bad")]
    assert said[-1] == "x: audit: 72 rows in 12 steps, every route as the table says."


def test_an_audit_changes_no_bit_of_training(tmp_path):
    seen, _ = audited(tmp_path / "seen", EVERY_FIVE, measure=measured)
    alone, _ = training(tmp_path / "alone", EVERY_FIVE, measure=measured)
    train(seen)
    train(alone)
    assert final_manifest(seen) == final_manifest(alone)
    assert seen.folder.metrics.read_bytes() == alone.folder.metrics.read_bytes()
    assert seen.folder.measures.read_bytes() == alone.folder.measures.read_bytes()
    assert not alone.folder.audit.exists()


def test_a_resumed_audit_is_that_of_a_run_that_was_never_cut(tmp_path, whole):
    without_last_steps(whole[0], tmp_path)
    again, said = audited(tmp_path)
    train(again)
    assert again.folder.audit.read_bytes() == whole[0].folder.audit.read_bytes()
    assert said[-1] == "x: audit: 72 rows in 12 steps, every route as the table says."


def test_an_audit_that_begins_in_the_middle_says_of_how_many_steps_it_speaks(tmp_path, whole):
    without_last_steps(whole[0], tmp_path).audit.unlink()
    again, said = audited(tmp_path)
    train(again)
    assert said[-1] == "x: audit: 24 rows in 4 of 12 steps, every route as the table says."


def test_a_step_that_is_done_again_for_want_of_memory_is_written_once(tmp_path):
    run, said = audited(tmp_path, "train.max_steps=2", "train.log_gradients_every=0")

    calls = []

    def refuse_late(module, args, kwargs):
        calls.append(1)
        if len(calls) == 2:  # after the first micro-batch was seen
            raise torch.OutOfMemoryError("no memory for a moment")

    run.model.register_forward_pre_hook(refuse_late, with_kwargs=True)
    train(run)
    assert [len(line["rows"]) for line in read_lines(run.folder.audit)] == [6, 6]
    assert "12 rows in 2 steps" in said[-1]


def permute_labels(batch: Batch) -> Batch:
    return replace(batch, label_ids=batch.label_ids.roll(1))


def edit_one_label(batch: Batch) -> Batch:
    ids = batch.label_ids.clone()
    ids[0] = (ids[0] + 1) % 3
    return replace(batch, label_ids=ids)


def swap_rows_of_tokens(batch: Batch) -> Batch:
    order = torch.tensor([1, 0, *range(2, len(batch.ids))])
    return replace(
        batch,
        input_ids=batch.input_ids[order],
        attention_mask=batch.attention_mask[order],
        targets=batch.targets[order],
    )


def swap_targets(batch: Batch) -> Batch:
    return replace(batch, targets=batch.targets.roll(1, 0))


def change_one_token(batch: Batch) -> Batch:
    tokens = batch.input_ids.clone()
    tokens[-1, 0] += 1
    return replace(batch, input_ids=tokens)


def swap_ids_and_labels(batch: Batch) -> Batch:
    """Consistent with each other, and not with the tokens."""
    order = [1, 0, *range(2, len(batch.ids))]
    ids = [batch.ids[at] for at in order]
    return replace(batch, ids=ids, label_ids=batch.label_ids[torch.tensor(order)])


def rename_one(batch: Batch) -> Batch:
    return replace(batch, ids=["stranger", *batch.ids[1:]])


def forget_one_twice(batch: Batch) -> Batch:
    """The same example twice, and another not at all: whole, consistent rows."""
    order = torch.tensor([0, 0, *range(2, len(batch.ids))])
    return batch.rows(order)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (permute_labels, r"the example 'r\d+' is labeled \w+ and was trained as \w+"),
        (edit_one_label, r"the example 'r\d+' is labeled \w+ and was trained as \w+"),
        (swap_rows_of_tokens, r"the row of example 'r\d+' holds other tokens"),
        (swap_targets, r"the row of example 'r\d+' holds other tokens"),
        (change_one_token, r"the row of example 'r\d+' holds other tokens"),
        (swap_ids_and_labels, r"the row of example 'r\d+' holds other tokens"),
        (rename_one, "'stranger' is not an example of this run"),
        (forget_one_twice, "not the examples of this step"),
    ],
)
def test_a_misaligned_batch_is_caught_in_its_step(fault, words, tmp_path, monkeypatch):
    steps = []

    def broken(rows, pad_id):
        batch = collate(rows, pad_id)
        steps.append(1)
        return fault(batch) if len(steps) in (2 * 6 + 1, 2 * 6 + 2) else batch

    monkeypatch.setattr(batches, "collate", broken)
    run, _ = audited(tmp_path)
    with pytest.raises(DataError, match=rf"x, step 7: audit: .*{words}") as caught:
        train(run)
    assert caught.match("last good checkpoint is from step 4")
    assert [line["step"] for line in read_lines(run.folder.audit)] == list(range(1, 7))


def test_without_an_audit_such_a_batch_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "collate", lambda rows, pad: permute_labels(collate(rows, pad)))
    run, _ = training(tmp_path, "train.max_steps=7")
    train(run)


@pytest.mark.parametrize("path", ["fast", "floor"])
def test_a_route_that_differs_from_the_table_is_caught_whatever_the_labels_say(
    path, tmp_path, monkeypatch
):
    """A fault inside of routing: the terms of two labels are mixed up where they are made."""
    right = scopes.RoutedScope._positions

    def wrong(scope, shape):
        return right(scope, shape).roll(1)

    run, _ = audited(tmp_path)
    if path == "floor":
        for module in run.model.modules():
            if isinstance(module, torch.nn.ModuleDict) and "good" in module:
                for part in module.values():
                    part.register_forward_pre_hook(lambda module, args: None)
    monkeypatch.setattr(scopes.RoutedScope, "_positions", wrong)
    with pytest.raises(DataError, match=r"step 1: audit: .*(several routes|the table says)"):
        train(run)


@pytest.mark.parametrize(
    ("seen", "due"),
    [
        ("freeze", "update"),
        ("detach", "freeze"),
        ("ablate", "detach"),
        ({"update": 0.5}, {"update": 0.25}),
        ({"update": 0.5}, "update"),
    ],
)
def test_each_kind_of_route_is_told_from_the_next(seen, due, tmp_path, monkeypatch):
    run, _ = audited(tmp_path)
    tables = [
        {
            "bad": {"good": route, "bad": "update"},
            "unlabeled": {"good": "update", "bad": "update"},
            "good": {"good": "update", "bad": "ablate"},
        }
        for route in (seen, due)
    ]
    ran, table = (RoutingPolicy.parse(one, ("good", "bad")) for one in tables)
    labels = {row.id: table.labels[row.label_id] for row in run.rows}
    audit = Audit(run.folder.audit, run.rows, labels, table)
    run = replace(run, policy=ran, audit=audit)
    expected = Route.parse(due).name
    with pytest.raises(DataError, match=rf"labeled bad, ran adapter 'good' .*says {expected}"):
        train(run)


def test_a_scope_reads_back_what_the_layers_ran():
    table = {
        "a": {"good": "detach", "bad": {"update": 0.25}},
        "b": {"good": "freeze", "bad": "ablate"},
        "c": {"good": "ablate", "bad": "update"},
    }
    policy = RoutingPolicy.parse(table, ("good", "bad"))
    model = tiny_routed()
    labels = ["a", "b", "c", "c", "a", "b"]
    with routed(model, policy, labels) as scope:
        assert list(scope.ran()) == []
        mean_loss(model, tiny_batch())
    wanted = {
        "good": {"a": [1, 0, 0], "b": [1, 0, 1], "c": [0, 0, 0]},
        "bad": {"a": [1, 0.25, 1], "b": [0, 0, 0], "c": [1, 1, 1]},
    }
    found = list(scope.ran())
    assert {adapter for adapter, _ in found} == {"good", "bad"}
    for adapter, gates in found:
        by_row = gates.view(6, -1, 3)
        for label, row in zip(labels, by_row, strict=True):
            assert row.tolist() == [wanted[adapter][label]] * by_row.shape[1]


def test_examples_that_cannot_be_told_apart_are_refused(tmp_path):
    run, _ = training(tmp_path)
    labels = {row.id: "bad" for row in run.rows}
    with pytest.raises(DataError, match="the same id"):
        Audit(tmp_path / "audit.jsonl", [*run.rows, run.rows[0]], labels, run.policy)
    with pytest.raises(DataError, match="'r3' has no label"):
        del labels["r3"]
        Audit(tmp_path / "audit.jsonl", run.rows, labels, run.policy)
