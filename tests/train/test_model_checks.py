"""A model that would mix packed examples is found out before training."""

import pytest
import torch
from routing.tiny import randomise, tiny_routed
from train.token_rows import example
from transformers import AutoModelForCausalLM, FalconConfig

from gradroute.errors import ConfigError
from gradroute.routing.adapters import AdapterSpec, attach_adapters
from gradroute.train.model_checks import check_packing

ROWS = [example(name, length) for name, length in (("a", 7), ("b", 9), ("c", 4))]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]], ids=["several", "one"])
def test_a_model_that_keeps_examples_apart_passes_and_stays_as_it_was(kind, rows):
    model = tiny_routed(kind=kind, dropout=0.5)
    state = torch.get_rng_state()
    check_packing(model, rows, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and all(p.grad is None for p in model.parameters())


def test_a_family_whose_masks_ignore_positions_is_refused_by_name():
    config = FalconConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, alibi=False
    )
    base = AutoModelForCausalLM.from_config(config)
    model = attach_adapters(base, dict.fromkeys(("good", "bad"), AdapterSpec(rank=2)))
    randomise(model)
    with pytest.raises(
        ConfigError, match="FalconForCausalLM an example attends to the one before it"
    ):
        check_packing(model, ROWS, 0)


def calling(model, change):
    """Let the base model be called with other arguments."""
    base = model.get_base_model()
    base.register_forward_pre_hook(
        lambda module, args, kwargs: (args, change(dict(kwargs))), with_kwargs=True
    )
    return model


def test_a_glance_at_the_example_before_is_seen_however_small():
    def faint(kwargs):
        if kwargs.get("position_ids") is None:
            return kwargs
        width = kwargs["input_ids"].shape[1]
        positions = kwargs["position_ids"][0]
        own = (positions == 0).cumsum(0)
        allowed = (own[:, None] == own[None, :]) & torch.ones(width, width).tril().bool()
        mask = torch.where(allowed, 0.0, -20.0).double()
        mask.masked_fill_(torch.ones(width, width).triu(1).bool(), float("-inf"))
        return kwargs | {"attention_mask": mask[None, None]}

    with pytest.raises(ConfigError, match="attends to the one before it in its row"):
        check_packing(calling(tiny_routed(), faint), ROWS, 0)


def test_positions_that_do_not_begin_anew_are_seen():
    def onwards(kwargs):
        positions = kwargs.get("position_ids")
        return kwargs if positions is None else kwargs | {"position_ids": positions + 3}

    with pytest.raises(ConfigError, match="gives other numbers than alone"):
        check_packing(calling(tiny_routed(kind="gpt2"), onwards), ROWS, 0)


def test_a_model_that_cannot_take_positions_is_refused_with_its_own_words():
    def refuses(kwargs):
        if kwargs.get("position_ids") is not None:
            raise TypeError("forward() got an unexpected keyword argument 'position_ids'")
        return kwargs

    with pytest.raises(ConfigError, match=r"cannot run packed examples \(forward\(\) got an"):
        check_packing(calling(tiny_routed(), refuses), ROWS, 0)


def test_a_want_of_memory_is_no_fault_of_packing():
    def full(kwargs):
        raise torch.OutOfMemoryError("no memory for a moment")

    with pytest.raises(torch.OutOfMemoryError):
        check_packing(calling(tiny_routed(), full), ROWS, 0)
