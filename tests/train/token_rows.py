"""Small examples with labels by token, gaps and weights, and a model and reference for them."""

import torch
from oracles import routed_reference
from routing.tiny import VOCABULARY, adapter_weights_of, scalings_of, tiny_base

from gradroute.data.batches import Batch, TokenizedExample, collate
from gradroute.routing.policy import RoutingPolicy

POLICY = RoutingPolicy.parse("anchored", ("good", "bad"))
LABELS = POLICY.labels


def example(
    name: str,
    length: int,
    label: str = "unlabeled",
    *,
    start: int = 0,
    weight: float = 1.0,
    gaps: tuple[tuple[int, int], ...] = (),
    spans: tuple[tuple[int, int, str], ...] = (),
) -> TokenizedExample:
    """Random tokens that the name decides; `spans` are positions [start, end) with a label."""
    draw = torch.Generator().manual_seed(sum(name.encode()))
    by_position = [label] * length
    for first, end, own in spans:
        by_position[first:end] = [own] * (end - first)
    return TokenizedExample(
        id=name,
        input_ids=tuple(torch.randint(1, VOCABULARY, (length,), generator=draw).tolist()),
        target_start=start,
        label_id=LABELS.index(label),
        true_label="good",
        weight=weight,
        gaps=gaps,
        label_ids=tuple(LABELS.index(one) for one in by_position) if spans else (),
    )


ROWS = [
    example("plain", 5, "good"),
    example("spans", 9, spans=((0, 2, "bad"), (4, 6, "good"))),
    example("prompt", 8, "bad", start=3, spans=((3, 5, "good"),)),
    example("turns", 11, "unlabeled", start=1, gaps=((3, 5),), spans=((5, 9, "bad"),)),
    example("whole", 4, "bad"),
    example("short", 2),
]


def reference(model, rows, policy=POLICY, kind="llama"):
    """Loss and gradients of rows (each of weight 1) by the slow, obvious way."""
    batch: Batch = collate(rows, 0)
    width = batch.input_ids.shape[1]
    labels = [
        [policy.labels[i] for i in (row.label_ids or [row.label_id] * len(row.input_ids))]
        for row in rows
    ]
    filled = [
        own + [policy.labels[row.label_id]] * (width - len(own))
        for row, own in zip(rows, labels, strict=True)
    ]
    return routed_reference(
        tiny_base(kind),
        adapter_weights_of(model),
        scalings_of(model),
        policy.to_plain(),
        batch.input_ids,
        batch.attention_mask,
        batch.targets,
        filled,
    )
