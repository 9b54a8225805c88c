"""What a model can do is tried before training: adapters that act, and rows in a batch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from peft import PeftModel
from tiny_families import tiny_family
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    BertConfig,
    DeepseekV2Config,
    ElectraConfig,
    FalconH1Config,
    Gemma4TextConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RwkvConfig,
    XLMRobertaConfig,
)

from gradroute.errors import ConfigError
from gradroute.evaluate.batch_check import why_alone
from gradroute.evaluate.generation import Prompt, generate_modes, generate_plain
from gradroute.evaluate.model_probe import idle_modules, probe
from gradroute.routing.adapters import AdapterSpec, adapter_parameters, attach_adapters
from gradroute.routing.policy import AblationMode

SPECS = {"good": AdapterSpec(rank=2), "bad": AdapterSpec(rank=2)}
WHOLE: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": 260}
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.3}
STATES: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 4,
}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}


def made(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def recurrent() -> PreTrainedModel:
    return made(RwkvConfig(**WHOLE, **SIZES, attention_hidden_size=16, context_length=64))


def gemma4() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention"]
    return made(
        Gemma4TextConfig(
            **WHOLE, **SIZES, **HEADS, intermediate_size=24, head_dim=4, **{"global_head_dim": 8},  # pyright: ignore
            layer_types=kinds, sliding_window=4, vocab_size_per_layer_input=260,
            hidden_size_per_layer_input=4, max_position_embeddings=64,
        )
    )  # fmt: skip


def bamba() -> PreTrainedModel:
    own: dict[str, Any] = {"intermediate_size": 24, "mamba_expand": 2, "mamba_chunk_size": 4}
    return made(BambaConfig(**WHOLE, **SIZES, **HEADS, **STATES, **own, attn_layer_indices=[1]))


def falcon_h1() -> PreTrainedModel:
    own: dict[str, Any] = {
        "intermediate_size": 24,
        "mamba_d_ssm": 32,
        "mamba_chunk_size": 4,
        "head_dim": 4,
    }
    return made(FalconH1Config(**WHOLE, **SIZES, **HEADS, **STATES, **own))


class Reads(nn.Module):
    """Reads the weight of a linear module rather than run it, as fused kernels do."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.inner.weight)


def with_a_read_weight() -> PreTrainedModel:
    model = tiny_family("llama", dtype=torch.float32)
    mlp = model.get_submodule("model.layers.1.mlp")
    mlp.down_proj = Reads(mlp.get_submodule("down_proj"))  # pyright: ignore
    return model


def test_every_adapter_of_a_plain_model_acts():
    model = attach_adapters(tiny_family("qwen3", dtype=torch.float32), SPECS, layers="all")
    found = probe(model)
    assert found.idle == () and found.alone == "" and found.notes == ()
    assert found.modules == 14


def test_an_adapter_whose_weight_is_read_is_named():
    model = attach_adapters(with_a_read_weight(), SPECS, layers="all")
    found = probe(model)
    assert found.idle == ("model.layers.1.mlp.down_proj.inner",)
    [note] = found.notes
    assert note.startswith("the adapters on 1 of 14 modules never act (model.layers.1.mlp.")


def test_an_adapter_that_never_acts_stays_at_zero_when_it_is_trained():
    model = attach_adapters(with_a_read_weight(), SPECS, layers="all")
    optimizer = torch.optim.SGD([p for own in adapter_parameters(model).values() for p in own], 1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=torch.tensor([[3, 4, 5, 6]])).logits[..., 3].sum().backward()
        optimizer.step()
    still = {
        name.removeprefix("base_model.model.").partition(".lora_B")[0]
        for name, weight in model.named_parameters()
        if ".lora_B." in name and not bool(weight.any())
    }
    assert still == set(idle_modules(model))


def test_a_named_target_that_never_acts_is_refused():
    model = attach_adapters(with_a_read_weight(), SPECS, layers="all")
    with pytest.raises(ConfigError, match="an adapter on inner never acts in 1 modules"):
        probe(model, targets=["q_proj", "inner"])


def test_a_model_is_as_it_was_after_the_probe():
    model = attach_adapters(tiny_family("qwen3-moe", dtype=torch.float32), SPECS, layers="all")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    probe(model)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.fixture(scope="module")
def rwkv() -> PeftModel:
    return routed(recurrent)


def routed(make: Callable[[], PreTrainedModel]) -> PeftModel:
    model = attach_adapters(make(), SPECS, layers="all")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for own in adapter_parameters(model).values():
            for weight in own:
                nn.init.normal_(weight, std=0.2)
    return model.eval()


def completed(model: PeftModel, texts: list[str], modes: list[str]) -> dict[str, list[str]]:
    asked = [AblationMode.parse(name, list(SPECS)) for name in modes]
    found = generate_modes(
        model, byte_tokenizer(), [Prompt(text, text) for text in texts], asked,
        max_new_tokens=6, temperature=0.0, top_p=1.0, seed=0, rows_per_batch=64,
    )  # fmt: skip
    return {name: [one.text for one in own] for name, own in found.items()}


@pytest.mark.parametrize("make", [recurrent, bamba, falcon_h1, gemma4])
@pytest.mark.filterwarnings("ignore:the model .* generates one row at a time")
def test_completions_do_not_depend_on_the_batch_whatever_the_model(
    make: Callable[[], PreTrainedModel],
):
    model = routed(make)
    texts, modes = ["abcdefgh", "x", "hello", "what is it"], ["full", "base"]
    together = completed(model, texts, modes)
    for mode in modes:
        for text, found in zip(texts, together[mode], strict=True):
            assert completed(model, [text], [mode])[mode] == [found]


def test_a_recurrent_model_writes_one_row_at_a_time_and_says_so_once(rwkv: PeftModel):
    own = copy.deepcopy(rwkv.get_base_model())
    with pytest.warns(UserWarning, match="RwkvForCausalLM generates one row at a time") as told:
        assert "differ" in why_alone(own)  # pyright: ignore
        assert "differ" in why_alone(own)  # pyright: ignore
    assert len(told) == 1


def test_a_plain_export_of_a_recurrent_model_writes_one_row_at_a_time_too():
    model = recurrent()
    prompts = [Prompt(text, text) for text in ("abcdefgh", "x")]
    given: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0.0, "top_p": 1.0, "seed": 0}
    with pytest.warns(UserWarning, match="one row at a time"):
        both = generate_plain(model, byte_tokenizer(), prompts, **given, rows_per_batch=64)
    each = [
        generate_plain(model, byte_tokenizer(), [prompt], **given, rows_per_batch=1)[0]
        for prompt in prompts
    ]
    assert both == each


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3", "mixtral", "falcon"])
def test_models_of_attention_share_a_batch(family: str):
    for dtype in (torch.float32, torch.bfloat16):
        assert why_alone(tiny_family(family, dtype=dtype)) == ""


def test_a_model_that_cannot_write_is_refused_in_a_sentence():
    model = attach_adapters(tiny_family("llama", dtype=torch.float32), SPECS, layers="all")

    def broken(*args: object, **kwargs: object) -> object:
        raise ValueError("no cache of this kind\nand more")

    model.get_base_model().prepare_inputs_for_generation = broken  # pyright: ignore
    with pytest.raises(
        ConfigError, match=r"LlamaForCausalLM cannot generate text here \(no cache of"
    ):
        probe(model)


SMALL_ENCODER: dict[str, Any] = {
    "vocab_size": 260, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 24, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("config", [BertConfig, RobertaConfig, ElectraConfig, XLMRobertaConfig])
def test_an_encoder_that_reads_later_tokens_is_refused_and_a_decoder_of_its_kind_is_not(config):
    probe(routed(lambda: made(config(**SMALL_ENCODER, is_decoder=True))))
    before = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match=r"is not causal.*Take a model.*is_decoder"):
        probe(routed(lambda: made(config(**SMALL_ENCODER))))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_model_that_runs_without_padding_alone_is_refused_before_training():
    """Heads that do not fit show only under an attention mask."""
    model = made(
        DeepseekV2Config(
            **WHOLE, **SIZES, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
            q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
            n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, n_group=1,
            topk_group=1, first_k_dense_replace=1, head_dim=4,
        )  # pyright: ignore
    )  # fmt: skip
    with pytest.raises(ConfigError, match="cannot be run"):
        probe(routed(lambda: model))


def test_a_model_that_cannot_be_run_at_all_is_not_blamed_on_its_adapters():
    model = made(BertConfig(**SMALL_ENCODER, is_decoder=True))
    for name, weight in model.named_parameters():
        if name.endswith("output.dense.weight"):
            weight.data = torch.ones(16, 5)
    with pytest.raises(ConfigError, match=r"cannot be run, with or without.*config\.json"):
        probe(attach_adapters(model, SPECS, targets=["query"], layers="all"))
