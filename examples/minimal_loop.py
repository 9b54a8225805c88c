"""The whole method in one plain PyTorch loop, on a model made in memory: a few seconds.

A toy of the caps experiment. A "story" counts up through a 20-letter alphabet, in small letters or
in capitals. The base model has seen capitals here and there, never a story in them. Tuning teaches
it stories in small letters and, one in five, stories in capitals. Nine in ten of the latter are
labeled `bad` and of the former `good`; the rest is `unlabeled`. Afterwards the model continues an
opening in capitals with and without its `bad` adapter. For comparison: a model tuned on small
letters alone goes on in capitals 5 to 7 % of the time (two seeds); seeds differ, try your own.

    python examples/minimal_loop.py
"""

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from gradroute import (
    AdapterSpec,
    RoutingPolicy,
    ablated,
    adapter_parameters,
    apply_updates,
    attach_adapters,
    routed,
    standard_modes,
)

ALPHABET, LENGTH, BATCH = 20, 12, 16  # letter i is token i, or i + ALPHABET in capitals
ADAPTERS = {"good": AdapterSpec(rank=8), "bad": AdapterSpec(rank=8)}


def stories(count: int, capitals: torch.Tensor) -> torch.Tensor:
    """Count up from a random letter; capitals [count] or [count, LENGTH] is the case of each."""
    starts = torch.randint(ALPHABET, (count, 1))
    letters = (starts + torch.arange(LENGTH)) % ALPHABET
    return letters + ALPHABET * capitals.view(count, -1)


def loss_of(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def here_and_there(count: int) -> torch.Tensor:
    """The case of every letter of stories that shout now and then, seldom twice in a row."""
    case = [torch.zeros(count)]
    for _ in range(LENGTH - 1):
        case.append((torch.rand(count) < 0.1 + 0.2 * case[-1]).float())
    return torch.stack(case, dim=1).long()


def make_base(steps: int) -> LlamaForCausalLM:
    """A small language model that can count and knows capitals."""
    config = LlamaConfig(
        vocab_size=2 * ALPHABET,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss_of(model, stories(BATCH, here_and_there(BATCH))).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def labeled_batch() -> tuple[torch.Tensor, list[str]]:
    """Stories and what training may know of them."""
    capitals = (torch.rand(BATCH) < 0.2).long()
    known = torch.rand(BATCH) < 0.9
    names = ("good", "bad")
    labels = [
        names[c] if k else "unlabeled"
        for c, k in zip(capitals.tolist(), known.tolist(), strict=True)
    ]
    return stories(BATCH, capitals), labels


@torch.no_grad()
def capitals_after_capitals(model: torch.nn.Module) -> float:
    """Share of capitals that the model predicts after an opening in capitals."""
    openings = stories(100, torch.ones(100, dtype=torch.long))[:, :4]
    probabilities = model(input_ids=openings).logits[:, -1].softmax(-1)
    return probabilities[:, ALPHABET:].sum(-1).mean().item()


def main(base_steps: int = 250, steps: int = 200) -> dict[str, tuple[float, float]]:
    """Train, then measure under every mode: capitals, and the loss on stories in small letters."""
    torch.manual_seed(0)
    model = attach_adapters(make_base(base_steps), ADAPTERS, layers="all")
    policy = RoutingPolicy.parse("anchored", list(ADAPTERS))
    groups = [
        {"params": weights, "adapter": name, "clip": 1.0}  # each clipped by itself
        for name, weights in adapter_parameters(model).items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)

    model.train()
    for _ in range(steps):
        tokens, labels = labeled_batch()
        with routed(model, policy, labels):  # one mixed batch, one forward, one backward
            loss_of(model, tokens).backward()
        # An adapter that no label of the batch updates does not move at all.
        apply_updates(optimizer, policy, labels)

    model.eval()
    small_letters = stories(200, torch.zeros(200, dtype=torch.long))
    results = {}
    for mode in standard_modes(list(ADAPTERS)):
        with ablated(model, mode), torch.no_grad():
            results[mode.name] = (
                capitals_after_capitals(model),
                loss_of(model, small_letters).item(),
            )
    return results


if __name__ == "__main__":
    print(f"{'mode':14} {'capitals':>8} {'loss on small letters':>22}")
    for name, (capitals, loss) in main().items():
        print(f"{name:14} {capitals:8.0%} {loss:22.3f}")
