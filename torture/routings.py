"""Random routings of a model of two layers: what the trials on numbers draw from."""

import hashlib
import random
from collections.abc import Collection, Mapping, Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlamaForCausalLM

from gradroute.data.batches import TokenizedExample
from gradroute.routing.adapters import AdapterShape, adapter_parameters, attach_adapters
from gradroute.routing.policy import ROUTES
from torture.bases import tiny_llama

VOCABULARY = 64
SPECIAL = 3  # padding, beginning, end

PlainRoute = str | dict[str, float]
Table = dict[str, dict[str, PlainRoute]]
"""label -> adapter -> route, as a configuration writes it."""


def telling_llama(
    vocabulary: int = VOCABULARY, dtype: torch.dtype = torch.float32
) -> LlamaForCausalLM:
    """A tiny Llama whose weights are so large that what is done to them shows."""
    return tiny_llama(vocabulary, 128, spread=0.2, dtype=dtype)


def tiny_routed(
    adapters: Mapping[str, AdapterShape],
    *,
    seed: int,
    targets: str | Sequence[str] = "all-linear",
    layers: str = "all",
    vocabulary: int = VOCABULARY,
) -> PeftModel:
    """A tiny routed model in training mode; B is drawn too, since with B at 0 A learns nothing."""
    model = attach_adapters(
        telling_llama(vocabulary), adapters, targets=targets, layers=layers, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for own in adapter_parameters(model).values():
            for weight in own:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model.train()


def draw_table(draw: random.Random, labels: Sequence[str], adapters: Sequence[str]) -> Table:
    """Any table over the four routes, with weights of updates (0 among them)."""

    def route() -> PlainRoute:
        name = draw.choice(ROUTES)
        if name == "update" and draw.random() < 0.4:
            return {"update": draw.choice([0.0, 0.05, 0.5, 3.0])}
        return name

    return {label: {name: route() for name in adapters} for label in labels}


def weight_of(route: PlainRoute) -> float:
    """By how much an example on this route updates the adapter."""
    if isinstance(route, str):
        return float(route == "update")
    return route["update"]


def meaning(row: Mapping[str, PlainRoute]) -> tuple[tuple[str, float], ...]:
    """A row of a table so that rows that do the same are equal."""
    return tuple(
        (route, 1.0)
        if isinstance(route, str)
        else ("update" if weight else "freeze", weight or 1.0)
        for route in row.values()
        for weight in [weight_of(route)]
    )


def due_updates(table: Table, labels: Collection[str]) -> set[str]:
    """The adapters that examples with these labels update, read from the plain table."""
    return {
        name for label in labels for name, route in table[label].items() if weight_of(route) > 0
    }


def draw_row(draw: random.Random, label_id: int, name: str) -> TokenizedExample:
    """A short row of random tokens, with or without a prompt."""
    length = draw.randint(3, 9)
    return TokenizedExample(
        id=name,
        input_ids=tuple(draw.randrange(SPECIAL, VOCABULARY) for _ in range(length)),
        target_start=draw.choice([0, 0, length // 2]),
        label_id=label_id,
        true_label="good",
    )


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bit for bit: 0 and -0 differ, NaN is like itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.is_floating_point():
        whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
        one, other = one.contiguous().view(whole), other.contiguous().view(whole)
    return torch.equal(one, other)


def base_digest(model: PeftModel) -> str:
    """The sha256 of everything in a model that is in no adapter, buffers included."""
    adapted = {id(p) for own in adapter_parameters(model).values() for p in own}
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) not in adapted:
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
