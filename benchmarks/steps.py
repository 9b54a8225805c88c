"""One training step, done in the ways that there are to do it.

Every way takes the same examples, has LoRA of the same total rank on the same layers, the mean loss
over the tokens of the step, a clip of the gradient norm at 1, and AdamW. What differs is how an
example's label decides which adapter learns from it.
"""

from collections.abc import Callable, Sequence
from unittest.mock import patch

import shapes
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from gradroute.config.sections import AdapterConfig
from gradroute.data.batches import Batch
from gradroute.routing import siblings
from gradroute.routing.policy import RoutingPolicy
from gradroute.train.optimizer import build_optimizer
from gradroute.train.step import train_step

RATE = 1e-4
Step = Callable[[], float]
"""Does a step; returns its loss."""


def policy(table: str, adapters: Sequence[str] = ("good", "bad")) -> RoutingPolicy:
    """A named table; of more than two adapters, one adapter for each behavior besides `good`.

    `freeze` has no name in gradroute: `absorb` where a labeled example runs with all adapters
    there are, and not without those of the other behaviors.
    """
    labels = tuple(adapters[1:])
    if table != "freeze":
        return RoutingPolicy.parse(table, tuple(adapters), labels)
    everything = dict.fromkeys(adapters, "update")
    rows = {own: dict.fromkeys(adapters, "freeze") | {own: "update"} for own in labels}
    return RoutingPolicy.parse(
        {**rows, "unlabeled": everything, "good": everything}, tuple(adapters)
    )


def label_ids(table: str) -> list[int]:
    """The labels of the examples of a step, in turn."""
    return policy(table).label_ids(shapes.LABELS)


def floor(base: LlamaForCausalLM, batch: Batch) -> Step:
    """No adapter at all: forward and backward of the frozen base, gradient to the embeddings."""
    model = shapes.sharing(base).train()

    def step() -> float:
        embedded = model.get_input_embeddings()(batch.input_ids).requires_grad_()
        loss = model(
            inputs_embeds=embedded, attention_mask=batch.attention_mask, labels=batch.input_ids
        ).loss
        loss.backward()
        return loss.item()

    return step


def plain(base: LlamaForCausalLM, batch: Batch, layers: list[int] | None = None) -> Step:
    """PEFT, one adapter of the whole rank: what fine-tuning costs that routes nothing."""
    return _peft(shapes.peft_model(base, {"one": 2 * shapes.RANK}, layers), batch)


def two_adapters(base: LlamaForCausalLM, batch: Batch) -> Step:
    """PEFT, two active adapters, no routing."""
    return _peft(shapes.peft_model(base, {"good": shapes.RANK, "bad": shapes.RANK}), batch)


def _peft(model: PeftModel, batch: Batch) -> Step:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = adamw(weights)

    def step() -> float:
        loss = _loss(model, batch)
        loss.backward()
        _act(optimizer, weights)
        return loss.item()

    return step


def one_by_one(base: LlamaForCausalLM, batch: Batch) -> Step:
    """An optimizer step for every example by itself, of the optimizer that its label chooses."""
    model, own = _two(base)
    optimizers = {name: adamw(weights) for name, weights in own.items()}
    bad = set(policy("absorb").label_ids(["bad"]))
    singles = [batch.rows(torch.tensor([at])) for at in range(len(batch.ids))]

    def step() -> float:
        total = 0.0
        for single in singles:
            name = "bad" if int(single.label_ids) in bad else "good"
            total += step_of_one(model, single, optimizers[name], own[name]) / len(singles)
        return total

    return step


def step_of_one(
    model: PeftModel,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    weights: Sequence[nn.Parameter],
) -> float:
    """A step on one example for one adapter; what the other adapter got is thrown away."""
    loss = _loss(model, batch)
    loss.backward()
    _act(optimizer, weights)
    model.zero_grad(set_to_none=True)
    return loss.item()


def pure_batches(base: LlamaForCausalLM, batch: Batch) -> Step:
    """The examples sorted into one micro-batch of `bad` and one of the others."""
    model, own = _two(base)
    weights = [*own["good"], *own["bad"]]
    optimizer = adamw(weights)
    bad = _bad(batch)
    parts = [(batch.rows(bad), False), (batch.rows(~bad), True)]

    def step() -> float:
        total = 0.0
        for part, good_learns in parts:
            for weight in own["good"]:
                weight.requires_grad_(good_learns)
            loss = _loss(model, part) * (len(part.ids) / len(batch.ids))
            loss.backward()
            total += loss.item()
        _act(optimizer, weights)
        return total

    return step


def two_backwards(base: LlamaForCausalLM, batch: Batch) -> Step:
    """One forward pass of all examples, then a backward pass for `bad` and one for the others."""
    model, own = _two(base)
    weights = [*own["good"], *own["bad"]]
    optimizer = adamw(weights)
    bad = _bad(batch)

    def step() -> float:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        targets = batch.targets.flatten()
        losses = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
        by_example = losses.view(batch.targets.shape).sum(1) / (batch.targets >= 0).sum()
        first, second = by_example[bad].sum(), by_example[~bad].sum()
        first.backward(inputs=own["bad"], retain_graph=True)
        second.backward(inputs=weights)
        _act(optimizer, weights)
        return (first + second).item()

    return step


def ours(base: LlamaForCausalLM, batch: Batch, table: str, layers: str = "all") -> Step:
    """Gradroute's own step under a named table."""
    return routed(shapes.routed_model(base, layers=layers), [batch], table)


def layer_by_layer(base: LlamaForCausalLM, batch: Batch, table: str) -> Step:
    """Gradroute's own step, but layers that read one input are not computed together."""
    with patch.object(siblings, "READERS_OF_ONE_INPUT", ()):
        return ours(base, batch, table)


def routed(model: PeftModel, batches: Sequence[Batch], table: str) -> Step:
    """Gradroute's own step of a model that has its adapters, on the same batches every time."""
    act = routed_step(model, table)
    return lambda: act(batches)


def routed_step(model: PeftModel, table: str) -> Callable[[Sequence[Batch]], float]:
    """Gradroute's own step, of whatever micro-batches it is given."""
    names = tuple(model.peft_config)
    rules = policy(table, names)
    optimizer = build_optimizer(model, {name: AdapterConfig() for name in names}, RATE)

    def act(batches: Sequence[Batch]) -> float:
        return train_step(model, optimizer, batches, rules, loss_mean="token", rate=1.0).loss

    return act


def with_all_logits(step: Step) -> Step:
    """Gradroute's step with the logits of every position at once, as a model returns them."""

    def plain() -> float:
        with patch("gradroute.train.step.plain_head", return_value=None):
            return step()

    return plain


def adamw(weights: Sequence[nn.Parameter]) -> torch.optim.AdamW:
    """The optimizer of the other ways: with the settings of gradroute's."""
    decay = AdapterConfig().weight_decay
    return torch.optim.AdamW(weights, lr=RATE, weight_decay=decay, fused=True)


def _two(base: LlamaForCausalLM) -> tuple[PeftModel, dict[str, list[nn.Parameter]]]:
    """PEFT's two adapters, and the weights of each."""
    model = shapes.peft_model(base, {"good": shapes.RANK, "bad": shapes.RANK})
    return model, weights_by_adapter(model)


def weights_by_adapter(model: PeftModel) -> dict[str, list[nn.Parameter]]:
    """The weights of each of PEFT's adapters."""
    named = list(model.named_parameters())
    return {n: [w for path, w in named if f".{n}." in path] for n in model.peft_config}


def _loss(model: PeftModel, batch: Batch) -> Tensor:
    """The mean loss over the tokens of a batch without padding, as transformers computes it."""
    return model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.input_ids
    ).loss


def _act(optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter]) -> None:
    nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _bad(batch: Batch) -> Tensor:
    [bad] = policy("absorb").label_ids(["bad"])
    return batch.label_ids == bad
