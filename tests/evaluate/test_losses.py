import pytest
import torch
from peft import PeftModel
from tiny_writers import MODES, ROWS, VOCABULARY, losses, writer
from torch import nn

from gradroute.data.batches import TokenizedExample
from gradroute.errors import ConfigError, NumericError
from gradroute.routing import weight_cache
from gradroute.routing.adapters import ablated
from gradroute.routing.policy import AblationMode


def reference(model: PeftModel, mode: AblationMode, row: TokenizedExample) -> float:
    """One example alone, no padding, one target at a time."""
    with torch.no_grad(), ablated(model, mode):
        tokens = torch.tensor([row.input_ids])
        logits = model(input_ids=tokens, use_cache=False).logits[0].double()
    total = 0.0
    for position in range(row.target_start, len(row.input_ids) - 1):
        target = row.input_ids[position + 1]
        total += float(logits[position].logsumexp(0) - logits[position, target])
    return total


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [
        ("llama", torch.float64, 2e-6),  # logits are taken to float32
        ("llama", torch.float32, 2e-5),
        ("gpt_neo", torch.float32, 2e-5),
        ("gemma3", torch.float32, 2e-5),
    ],
)
def test_losses_equal_one_example_at_a_time(
    kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    model = writer(kind, dtype)
    found = losses(model)
    for mode in MODES:
        wanted = [reference(model, mode, row) for row in ROWS]
        assert found[mode.name].sums == pytest.approx(wanted, rel=tolerance)


def test_counts_are_the_targets_alone() -> None:
    for _, counts in losses(writer()).values():
        assert counts == [8, 1, 11, 1, 11, 1, 16]


@pytest.mark.parametrize("rows_per_batch", [1, 6, 13])
def test_losses_do_not_depend_on_the_batch(rows_per_batch: int) -> None:
    model = writer(dtype=torch.float64)
    found, wanted = losses(model, rows_per_batch=rows_per_batch), losses(model)
    for mode in MODES:
        assert found[mode.name].sums == pytest.approx(wanted[mode.name].sums, rel=1e-6)


def test_where_all_logits_are_needed_a_large_vocabulary_makes_batches_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = writer(dtype=torch.float64)
    wanted = losses(model)
    sizes = []
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: sizes.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    limit = 2 * len(MODES) * 17 * len(VOCABULARY)  # two examples of the longest
    monkeypatch.setattr("gradroute.evaluate.losses.LOGITS_AT_ONCE", limit)
    monkeypatch.setattr("gradroute.evaluate.losses.plain_head", lambda model: None)
    found = losses(model)
    hook.remove()
    assert max(sizes) * len(VOCABULARY) <= limit
    assert len(sizes) == 4
    for mode in MODES:
        assert found[mode.name].sums == pytest.approx(wanted[mode.name].sums, rel=1e-6)


def test_losses_do_not_depend_on_the_padding_token() -> None:
    model = writer()
    assert losses(model, pad_id=0) == losses(model, pad_id=2)


def test_losses_come_in_the_order_of_the_rows() -> None:
    model = writer(dtype=torch.float64)
    forwards, backwards = losses(model), losses(model, ROWS[::-1])
    for mode in MODES:
        assert backwards[mode.name].sums[::-1] == pytest.approx(forwards[mode.name].sums)


def test_modes_differ_and_one_alone_gives_what_it_gives_among_others() -> None:
    model = writer(dtype=torch.float64)
    together = losses(model)
    assert len({tuple(together[mode.name].sums) for mode in MODES}) == len(MODES)
    for mode in MODES:
        alone = losses(model, modes=(mode,))[mode.name]
        assert alone.sums == pytest.approx(together[mode.name].sums, rel=1e-6)


def test_losses_leave_no_gradient_and_the_training_mode_as_it_was() -> None:
    model = writer()
    model.train()
    dropout = nn.Dropout()
    model.add_module("extra", dropout.eval())
    losses(model)
    assert model.training and not dropout.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_adapters_are_stacked_once_for_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    stack = weight_cache._stack
    monkeypatch.setattr(weight_cache, "_stack", lambda *given: made.append(1) or stack(*given))
    model = writer()
    losses(model, rows_per_batch=len(ROWS) * len(MODES))
    in_one_batch = len(made)
    losses(model, rows_per_batch=len(MODES))
    assert in_one_batch
    assert len(made) == 2 * in_one_batch


def test_no_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="no ablation mode"):
        losses(writer(), modes=())


def test_a_loss_that_is_not_finite_names_the_example_and_the_mode() -> None:
    model = writer()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".bad." in name:
                weight.fill_(1e30)
    with pytest.raises(NumericError, match="held-out loss of '0' under full is"):
        losses(model)
