"""Tiny models and batches for the tests of routing; built in memory, in float64."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from oracles import Weights
from peft import PeftModel
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from gradroute.routing.adapters import AdapterSpec, attach_adapters
from gradroute.routing.layers import lora_layers

VOCABULARY = 24
PREFIX = "base_model.model."
LLAMA_LINEAR = [
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
]


def tiny_base(
    kind: str = "llama",
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    vocabulary: int = VOCABULARY,
) -> PreTrainedModel:
    """A randomly initialized causal model of two layers, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "llama":
            model: PreTrainedModel = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=vocabulary,
                    hidden_size=16,
                    intermediate_size=20,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    max_position_embeddings=64,
                    initializer_range=0.3,
                    attention_bias=True,
                )
            )
        else:
            model = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=vocabulary,
                    n_embd=16,
                    n_layer=2,
                    n_head=4,
                    n_positions=64,
                    initializer_range=0.3,
                    resid_pdrop=0.0,
                    embd_pdrop=0.0,
                    attn_pdrop=0.0,
                )
            )
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model.eval()


def randomise(model: nn.Module, seed: int = 1, std: float = 0.3) -> None:
    """Draw every adapter weight at random: with B at 0 most gradients would be 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                weight = part.weight
                assert isinstance(weight, Tensor)
                weight.copy_(torch.randn(weight.shape, generator=generator) * std)


def tiny_routed(
    ranks: Mapping[str, int] | None = None,
    kind: str = "llama",
    dtype: torch.dtype = torch.float64,
    layers: str | Sequence[int] = "all",
    dropout: float = 0.0,
) -> PeftModel:
    """A tiny model with random adapters, in training mode."""
    ranks = ranks or {"good": 3, "bad": 3}
    specs = {
        name: AdapterSpec(rank=rank, alpha=2.0 + index, dropout=dropout)
        for index, (name, rank) in enumerate(ranks.items())
    }
    model = attach_adapters(tiny_base(kind, dtype=dtype), specs, layers=layers)
    randomise(model)
    model.train()
    return model


@dataclass
class TinyBatch:
    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


def tiny_batch(rows: int = 6, length: int = 6, seed: int = 2) -> TinyBatch:
    """Random rows, some right-padded, targets one token ahead."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(0, rows, 3):
        mask[row, length - 1 - row % 2 :] = 0
    targets = torch.full_like(ids, -100)
    targets[:, :-1] = torch.where(mask[:, 1:] == 1, ids[:, 1:], -100)
    return TinyBatch(ids, mask, targets)


def mean_loss(model: nn.Module, batch: TinyBatch) -> Tensor:
    logits = model(**batch.inputs, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)


def logits(model: nn.Module) -> Tensor:
    """Logits of the tiny batch, without gradient."""
    with torch.no_grad():
        return model(**tiny_batch().inputs, use_cache=False).logits


def adapter_weights_of(model: nn.Module) -> Weights:
    """adapter -> module -> (A, B), read from PEFT's own attributes."""
    weights: Weights = {}
    for path, layer in lora_layers(model).items():
        for name in layer.lora_A:
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            assert isinstance(a, Tensor) and isinstance(b, Tensor)
            weights.setdefault(name, {})[path.removeprefix(PREFIX)] = (a, b)
    return weights


def scalings_of(model: nn.Module) -> dict[str, float]:
    return dict(next(iter(lora_layers(model).values())).scaling)


def to_floor(model: nn.Module) -> None:
    """Make every layer leave the fast path, as a hook on an adapter's module does."""
    for layer in lora_layers(model).values():
        for part in layer.lora_A.values():
            part.register_forward_pre_hook(lambda module, args: None)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def largest_error(model: nn.Module, reference: Weights) -> float:
    """Largest absolute difference between the model's gradients and the reference's."""
    errors = [0.0]
    for name, modules in adapter_weights_of(model).items():
        for path, weights in modules.items():
            for weight, wanted in zip(weights, reference[name][path], strict=True):
                assert weight.grad is not None, f"{name} {path} has no gradient"
                errors.append(float((weight.grad - wanted).abs().max()))
    return max(errors)
