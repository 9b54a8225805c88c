"""Every row keeps its route, however rows are ordered, sorted, padded, cut up and accumulated.

Each trial goes the whole way from a file of examples through training, and looks at three ends:
what the model read, row by row; the trace of integers that an audited run writes; and the gradient
that the optimizer was given. The rows are recognized by their tokens, their labels are read from
the file a second time, and the gradient is computed a second time, one row after the other in
float64. Exchanging the labels of one pair of rows in that second computation shows how far a single
wrong route would be from rounding.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gradroute.config.run_config import dump_config
from gradroute.errors import GradrouteError
from gradroute.experiments.parallel import run_in_parallel
from gradroute.models.base import Base
from gradroute.models.trained import attach
from gradroute.prepare import data_order, prepare, tokenize_examples
from gradroute.routing.adapters import adapter_parameters
from gradroute.routing.layers import adapter_weights, lora_layers
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines
from gradroute.train.audit import CODES, Audit
from gradroute.train.optimizer import build_optimizer
from gradroute.train.trainer import Training, train
from torture.drawn_layouts import Layout, draw_layout, the_tokenizer, tokens_of
from torture.reference import Row, reference
from torture.routings import Table, due_updates, meaning, telling_llama
from torture.runs import finals, lay

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest relative error of an adapter's gradient against the reference."""
FAR = 100
"""A wrong route must be at least this many bounds away."""
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."
VOCABULARY = 2048
PREFIX = "base_model.model."


@dataclass
class Seen:
    """What one step was: the rows of each micro-batch, and what the optimizer was given.

    Attributes:
        rows: the tokens of every row, without padding, micro-batch by micro-batch.
        trace: per row its id, its label id and the code of each adapter's route, as audited.
        gradients: adapter -> its gradient as one vector; None where it had none.
        factors: module -> adapter -> A and B during the step.
    """

    rows: list[list[tuple[int, ...]]] = field(default_factory=list)
    trace: list[tuple[str, int, list[int]]] = field(default_factory=list)
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    factors: dict[str, dict[str, tuple[Tensor, Tensor]]] = field(default_factory=dict)


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Random layouts.

    Args:
        count: layouts; two steps of each are looked at.
        seed: of everything that is drawn.
        folder: where files and runs are written.

    Returns:
        "trials", "rows" looked at, of them "misaligned"; "largest_relative_error" of a gradient in
        float32 (and "…_float64"), the "smallest_swapped_error" and the median one among "swaps" of
        one pair of labels; how often runs in one and in three processes were "compared"; what was
        drawn; "failures".
    """
    counts: Counter[str] = Counter(rows=0, misaligned=0)
    drawn: Counter[str] = Counter()
    errors: dict[torch.dtype, list[float]] = {dtype: [] for dtype in BOUNDS}
    swapped: list[float] = []
    failures: list[str] = []
    for number in range(count):
        draw = random.Random(f"layouts {seed} {number}")
        layout = draw_layout(draw, folder / f"layout-{number}")
        drawn.update(layout.kinds)
        for text in _look(layout, draw, folder, counts, errors[layout.dtype], swapped):
            failures.append(f"trial {number} ({', '.join(layout.kinds)}): {text}.")
    for number in range(count // 500):
        failures += _in_processes(random.Random(f"jobs {seed} {number}"), folder / f"jobs-{number}")
    return {
        "trials": count,
        "rows": counts["rows"],
        "misaligned": counts["misaligned"],
        "gradients": sum(map(len, errors.values())),
        "largest_relative_error": max(errors[torch.float32], default=None),
        "median_relative_error": median(errors[torch.float32] or [0.0]),
        "largest_relative_error_float64": max(errors[torch.float64], default=None),
        "swaps": len(swapped),
        "smallest_swapped_error": min(swapped, default=None),
        "median_swapped_error": median(swapped or [0.0]),
        "compared_in_processes": count // 500,
        "drawn": dict(sorted(drawn.items())),
        "failures": failures,
    }


def _look(
    layout: Layout,
    draw: random.Random,
    folder: Path,
    counts: Counter[str],
    errors: list[float],
    swapped: list[float],
) -> Iterator[str]:
    """Train, and compare every step with the file; yields what is wrong."""
    by_tokens = tokens_of(layout)
    label_of = {example["id"]: example["label"] for example in layout.examples}
    wanted = layout.config.train.batch_size * layout.config.train.gradient_accumulation
    try:
        steps = train_and_watch(layout, folder)
    except GradrouteError as error:  # the audit's, say
        counts["misaligned"] += 1
        yield f"training was refused: {error}"
        return
    for number, seen in enumerate(steps, start=1):
        found = [by_tokens.get(tokens) for batch in seen.rows for tokens in batch]
        rows = [row for row in found if row is not None]
        labels = [label_of[row.name] for row in rows]
        counts["rows"] += len(found)
        if len(rows) != wanted:
            counts["misaligned"] += max(1, abs(wanted - len(rows)))
            yield f"step {number} read {len(rows)} rows of the file, due {wanted}"
            continue
        trace = [
            (row.name, *_due(layout.table, label)) for row, label in zip(rows, labels, strict=True)
        ]
        off = sum(one != other for one, other in zip(seen.trace, trace, strict=True))
        counts["misaligned"] += off
        if off:
            yield f"step {number} has {off} rows whose trace is not the file's"
        room, since, late = layout.room
        most = max(map(len, seen.rows[late:]), default=0)
        if number >= since and most > room:
            yield f"step {number} ran {most} rows at a time, room for {room}"
        once_more = _Reference(layout, seen)
        due = due_updates(layout.table, labels)
        if due != {name for name, gradient in seen.gradients.items() if gradient is not None}:
            yield f"step {number} gives no gradient to the right adapters (due {sorted(due)})"
            continue
        errors.append(_largest(seen.gradients, once_more.gradient(rows, labels), due))
        if errors[-1] > BOUNDS[layout.dtype]:
            counts["misaligned"] += 1
            yield f"step {number} has a gradient that is off by {errors[-1]:.1e}"
        pair = _pair(draw, labels, layout.table)
        if pair is not None:
            one, other = pair
            labels[one], labels[other] = labels[other], labels[one]
            swapped.append(_largest(seen.gradients, once_more.gradient(rows, labels), due))
            if swapped[-1] < FAR * BOUNDS[layout.dtype]:
                yield f"step {number} hardly tells two labels apart ({swapped[-1]:.1e})"


def _due(table: Table, label: str) -> tuple[int, list[int]]:
    """The label's id and the codes of its routes, from the plain table."""
    return list(table).index(label), [CODES.index(name) for name, _ in meaning(table[label])]


def _in_processes(draw: random.Random, folder: Path) -> Iterator[str]:
    """Three layouts, trained one and three at a time, each in a process of its own."""
    ground = lay(folder / "ground")
    configs = [
        draw_layout(draw, folder / f"layout-{n}").config.model_copy(
            update={"model": str(ground.base)}
        )
        for n in range(3)
    ]
    ends = []
    for jobs in (1, 3):
        runs = run_in_parallel(configs, folder / str(jobs), jobs, if_exists="fail", evaluate=False)
        ends.append([finals(run.path) for run in runs])
    if ends[0] != ends[1]:
        yield f"runs in one and in three processes end differently ({folder.name})"


class _Reference:
    """The gradient of one step, computed a second time."""

    def __init__(self, layout: Layout, seen: Seen):
        self.layout = layout
        scalings = {
            name: (2 * one.rank if one.alpha is None else one.alpha) / one.rank
            for name, one in layout.config.adapters.items()
        }
        self.model = reference(_base(layout.dtype), seen.factors, scalings)

    def gradient(self, rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Tensor]:
        return self.model.gradient(
            rows, labels, self.layout.table, self.layout.config.train.loss_mean
        )


def train_and_watch(layout: Layout, folder: Path) -> list[Seen]:
    """Train from the file on, and note what every step was."""
    base = Base(_base(layout.dtype), the_tokenizer(), "tiny")
    prepared = prepare(layout.config)
    rows, _ = tokenize_examples(
        prepared.train, prepared.policy, base, layout.config.data.max_length
    )
    model = attach(telling_llama(VOCABULARY, layout.dtype), layout.config)
    generator = torch.Generator().manual_seed(layout.config.seed)
    with torch.no_grad():
        for own in adapter_parameters(model).values():
            for weight in own:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    run = RunFolder(folder / "runs" / layout.config.run_name)
    run.path.mkdir(parents=True)
    config = layout.config
    training = Training(
        settings=config.train,
        seed=config.seed,
        config_text=dump_config(config),
        told={},
        folder=run,
        model=model,
        optimizer=build_optimizer(model, config.adapters, config.train.learning_rate),
        rows=rows,
        order=data_order(
            prepared,
            rows,
            seed=config.seed,
            front_load=config.data.front_load,
            length_window=config.train.length_window,
        ),
        policy=prepared.policy,
        pad_id=base.pad_id,
        packed_into=config.data.max_length if config.train.packing else None,
        say=lambda line: None,
        audit=Audit(
            run.audit, rows, {one.id: one.label for one in prepared.train}, prepared.policy
        ),
    )
    with _watched(model, layout) as steps:
        train(training)
    for seen, line in zip(steps, read_lines(run.audit), strict=True):
        seen.trace = [(rows[place].id, label, codes) for place, label, *codes in line["rows"]]
    return steps


@contextmanager
def _watched(model: Any, layout: Layout) -> Iterator[list[Seen]]:
    """Note what the model reads in training, and what the optimizer is given."""
    steps: list[Seen] = []
    read: list[list[tuple[int, ...]]] = []
    room, since, late = layout.room

    def reads(module: Any, args: Any, kwargs: dict[str, Tensor]) -> None:
        if "attention_mask" not in kwargs:  # the head is tried, see `heads.plain_head`
            return
        full = len(steps) + 1 >= since and len(read) >= late
        if full and len(kwargs["input_ids"]) > room:
            read.clear()  # the step begins anew
            raise RuntimeError(NO_MEMORY)
        pairs = zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True)
        read.append([tuple(ids[mask == 1].tolist()) for ids, mask in pairs])

    def steps_now(optimizer: Any, args: Any, kwargs: Any) -> None:
        seen = Seen(rows=read[:])
        read.clear()
        for name, own in adapter_parameters(model).items():
            found = [p.grad for p in own if p.grad is not None]
            seen.gradients[name] = (
                torch.cat([g.double().flatten() for g in found]) if found else None
            )
        for path, layer in lora_layers(model).items():
            pairs = {name: adapter_weights(layer, name) for name in layer.lora_A}
            seen.factors[path.removeprefix(PREFIX)] = {
                name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in pairs.items()
            }
        steps.append(seen)

    handles = [
        model.register_forward_pre_hook(reads, with_kwargs=True),
        register_optimizer_step_pre_hook(steps_now),
    ]
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def _pair(draw: random.Random, labels: Sequence[str], table: Table) -> tuple[int, int] | None:
    """Two rows whose labels do different things, at least one of them to an adapter's weights."""
    pairs = [
        (i, j)
        for i, one in enumerate(labels)
        for j, other in enumerate(labels[:i])
        if meaning(table[one]) != meaning(table[other]) and due_updates(table, {one, other})
    ]
    return draw.choice(pairs) if pairs else None


def _largest(
    found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor], due: set[str]
) -> float:
    """The largest relative error of an adapter's gradient."""
    errors = [0.0]
    for name in due:
        gradient = found[name]
        assert gradient is not None
        errors.append(float((gradient - expected[name]).norm() / expected[name].norm()))
    return max(errors)


@cache
def _base(dtype: torch.dtype) -> Any:
    return telling_llama(VOCABULARY, dtype)
