"""The layers below the adapters can be run once: the layers above compute the same from it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import PeftModel
from routing.tiny import adapter_weights_of, gradients_of, randomise
from tiny_families import FAMILIES, VOCABULARY, tiny_family
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from gradroute.errors import ConfigError
from gradroute.routing.adapters import AdapterSpec, ablated, attach_adapters, routed
from gradroute.routing.frozen_check import lower_layers, run_upper_layers
from gradroute.routing.policy import RoutingPolicy

ROWS = ((3, 5, 7, 2, 9, 4, 11), (8, 1, 6), (2, 2, 13, 20, 5))
LABELS = ("bad", "unlabeled", "good")


def base(kind: str, dtype: torch.dtype) -> PreTrainedModel:
    if kind == "gpt2 with dropout":
        config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4)
        config.bos_token_id = config.eos_token_id = 0
        return GPT2LMHeadModel(config)
    if kind == "gemma3n":  # four states a token, which the layers hand on
        config = Gemma3nTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=4,
            num_kv_shared_layers=0,
            vocab_size_per_layer_input=VOCABULARY,
            hidden_size_per_layer_input=4,
            laurel_rank=2,
            activation_sparsity_pattern=[0.0] * 2,
            layer_types=["sliding_attention", "full_attention"],
        )
        return Gemma3nForCausalLM(config)
    return tiny_family(kind, dtype=dtype)


def model_of(
    kind: str,
    dtype: torch.dtype = torch.float64,
    layers: str | Sequence[int] = "last-half",
) -> PeftModel:
    inner = base(kind, dtype).requires_grad_(False)
    adapters = {"good": AdapterSpec(rank=2), "bad": AdapterSpec(rank=3)}
    model = attach_adapters(inner.eval(), adapters, layers=layers)
    randomise(model)
    return model


def inside(model: PeftModel) -> Any:
    """The base model, whose parts are named by its family."""
    return model.get_base_model()


def inputs_of(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


def states_by_row(model: PeftModel) -> Tensor:
    """The states of each row by itself, 0 at padding."""
    lower = lower_layers(model, ROWS)
    states = torch.zeros(len(ROWS), max(map(len, ROWS)), lower.width, dtype=lower.dtype)
    with torch.no_grad():
        for at, row in enumerate(ROWS):
            states[at, : len(row)] = lower.states(model, inputs_of([row]))[0]
    return states


def routed_step(model: PeftModel, states: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one step under the anchored table."""
    model.zero_grad(set_to_none=True)
    model.train()
    inputs = inputs_of(ROWS)
    policy = RoutingPolicy.parse("anchored", ["good", "bad"])
    with routed(model, policy, LABELS), run_upper_layers(model, states):
        logits = model(**inputs).logits
        wanted = inputs["attention_mask"][:, 1:] == 1
        loss = F.cross_entropy(logits[:, :-1][wanted], inputs["input_ids"][:, 1:][wanted])
        loss.backward()
    model.eval()
    return loss.detach(), gradients_of(model)


@pytest.mark.parametrize(
    ("kind", "dtype", "close"),
    [
        *((kind, torch.float64, 1e-12) for kind in FAMILIES),
        *((kind, torch.float32, 1e-6) for kind in ("llama", "gemma3", "gpt2")),
    ],
)
def test_a_step_from_the_states_of_each_row_is_the_step_of_the_whole_model(
    kind: str, dtype: torch.dtype, close: float
) -> None:
    model = model_of(kind, dtype)
    loss, gradients = routed_step(model, None)
    again, found = routed_step(model, states_by_row(model))
    assert abs(again - loss) <= close * abs(loss)
    assert found.keys() == gradients.keys()
    size = nn.utils.get_total_norm(list(gradients.values()))
    apart = nn.utils.get_total_norm([found[name] - own for name, own in gradients.items()])
    assert size > 1e-2
    assert apart <= close * size


def test_the_lower_layers_do_not_run_where_their_states_are_given() -> None:
    model = model_of("llama")
    states = states_by_row(model)
    blocks = inside(model).model.layers
    blocks[0].self_attn.forward = _must_not_run
    routed_step(model, states)
    with pytest.raises(AssertionError, match="it ran"):
        routed_step(model, None)


def _must_not_run(*args: object, **kwargs: object) -> None:
    raise AssertionError("it ran")


def test_the_states_are_entered_whichever_part_of_the_model_is_called() -> None:
    model = model_of("llama")
    states = states_by_row(model)
    inner = inside(model)
    with torch.no_grad(), ablated(model, "full"), run_upper_layers(model, states):
        whole = model(**inputs_of(ROWS)).logits
        body = inner.get_decoder()(**inputs_of(ROWS)).last_hidden_state
        assert torch.equal(inner.lm_head(body), whole)


def test_the_model_is_as_it_was_once_the_scope_has_ended_with_an_error_too() -> None:
    model = model_of("gpt2")
    states = states_by_row(model)
    with torch.no_grad(), ablated(model, "full"):
        before = model(**inputs_of(ROWS)).logits
        with pytest.raises(KeyError), run_upper_layers(model, torch.zeros_like(states)):
            assert not torch.equal(model(**inputs_of(ROWS)).logits, before)
            raise KeyError
        assert torch.equal(model(**inputs_of(ROWS)).logits, before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_forward_that_another_library_put_on_a_layer_comes_back() -> None:
    model = model_of("llama")
    states = states_by_row(model)
    layer = inside(model).model.layers[0]
    own = layer.forward
    layer.forward = own
    with run_upper_layers(model, states):
        assert layer.forward is not own
    assert layer.forward is own


def test_a_batch_of_another_shape_is_refused_while_states_are_given() -> None:
    model = model_of("llama")
    states = states_by_row(model)
    with (
        torch.no_grad(),
        ablated(model, "full"),
        run_upper_layers(model, states),
        pytest.raises(ConfigError, match=r"of shape \[3, 7, 16\].*\[1, 3, 16\]"),
    ):
        model(**inputs_of([ROWS[1]]))


def test_an_ablated_adapter_leaves_no_bit_behind_where_states_are_given() -> None:
    """NaN in `bad` shows whether it is computed; the weights of `good` alone decide the rest."""
    model = model_of("llama", torch.float32)
    states = states_by_row(model)
    with torch.no_grad(), ablated(model, "bad_ablated"), run_upper_layers(model, states):
        before = model(**inputs_of(ROWS)).logits
        for a, b in adapter_weights_of(model)["bad"].values():
            a.fill_(float("nan"))
            b.fill_(float("nan"))
        assert torch.equal(model(**inputs_of(ROWS)).logits, before)


def test_trying_a_model_leaves_weights_modes_and_random_state_as_they_were() -> None:
    model = model_of("llama")
    model.train()
    inside(model).model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = [weight.clone() for weight in model.parameters()]
    random = torch.random.get_rng_state()
    lower_layers(model, ROWS)
    assert [module.training for module in model.modules()] == modes
    assert all(map(torch.equal, model.parameters(), weights))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(
    ("kind", "layers", "why"),
    [
        ("llama", "all", "no frozen layers below it"),
        ("gpt2 with dropout", "last-half", r"noise in training \(dropout\)"),
        ("gemma3n", "last-half", r"a layer returns \[4, 1?2?, ?"),
    ],
)
def test_a_model_that_cannot_be_run_from_its_middle_is_refused_with_the_reason(
    kind: str, layers: str, why: str
) -> None:
    model = model_of(kind, torch.float32, layers)
    for _ in range(2):  # the answer is kept
        with pytest.raises(ConfigError, match=why):
            lower_layers(model, ROWS)
    with (
        pytest.raises(ConfigError, match="nobody has looked at"),
        run_upper_layers(model, torch.ones(1, 1, 1)),
    ):
        pass


def test_a_model_whose_upper_layers_read_what_the_lower_ones_leave_besides_is_refused() -> None:
    """As where the upper layers share keys and values of the lower ones, beside the states."""
    model = model_of("llama")
    layers = inside(model).model.layers
    aside: list[Tensor] = []
    layers[0].self_attn.register_forward_hook(lambda module, args, output: aside.append(output[0]))
    layers[1].register_forward_hook(
        lambda module, args, output: output + aside[-1].mean() if aside else output
    )
    with pytest.raises(ConfigError, match="read more than the states"):
        lower_layers(model, ROWS)


def test_weights_that_learn_below_the_adapters_are_a_reason_to_refuse() -> None:
    model = model_of("llama")
    norm = inside(model).model.layers[0].input_layernorm
    norm.requires_grad_(True)
    with pytest.raises(ConfigError, match="trainable weights below"):
        lower_layers(model, ROWS)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_recomputes_from_the_same_states() -> None:
    model = model_of("llama")
    states = states_by_row(model)
    loss, gradients = routed_step(model, states)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again, found = routed_step(model, states)
    assert torch.equal(again, loss)
    assert all(torch.equal(found[name], own) for name, own in gradients.items())
