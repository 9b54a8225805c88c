"""The loop around `train_step`: data order, schedule, log lines, checkpoints, interruption."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from peft import PeftModel
from tqdm import tqdm

from gradroute.config.sections import TrainConfig
from gradroute.data.batches import Batch, DataOrder, TokenizedExample, micro_batches
from gradroute.errors import GradrouteError, Interrupted, MachineError, NumericError
from gradroute.models.checkpoint import (
    latest_checkpoint,
    load_adapters,
    load_optimizer_tensors,
    save_checkpoint,
)
from gradroute.models.hidden_state_cache import HiddenStateCache
from gradroute.routing.adapters import low_rank_products
from gradroute.routing.policy import RoutingPolicy
from gradroute.runs.folder import RunFolder
from gradroute.system.files import append_line, read_lines, sync, write_lines
from gradroute.system.memory import with_smaller_batches
from gradroute.system.signals import stop_requests
from gradroute.system.terminal import printable
from gradroute.train.audit import Audit
from gradroute.train.gradient_norms import label_gradient_norms
from gradroute.train.model_checks import check_packing, needs_no_mask
from gradroute.train.reference import Reference
from gradroute.train.step import load_optimizer_state, optimizer_tensors, schedule, train_step
from gradroute.train.step_report import StepReport
from gradroute.train.tracking import check_tracker, tracking

_PRODUCTS = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Training:
    """Everything one run's training needs; `train` consumes it.

    Attributes:
        settings: how long, how fast and on how much is trained.
        seed: of the run.
        config_text: the whole configuration; every checkpoint holds it.
        told: what a tracker is told of the configuration, see `shown_config`.
        folder: where the run is written.
        model: the routed model on its device.
        optimizer: of its adapters, from `build_optimizer`.
        rows: the tokenized training examples.
        order: which of them make up a step.
        policy: the routing table that the rows' label ids index.
        pad_id: the padding token.
        packed_into: tokens of a row of several examples; None to pad each example.
        say: where a line for the user goes.
        bar: show a progress bar rather than a line now and then.
        measure: called with the number of steps done, every `train.measure_every` of them and after
            the last; it must leave the model and the random state as they were.
        audit: follows every example of every step to its routes; nothing that training computes
            depends on it.
        states: what leaves the lower layers for every example that is visited, where it is reused.
        reference: what else the loss pulls the model to, see `open_reference`.
    """

    settings: TrainConfig
    seed: int
    config_text: str
    told: Mapping[str, Any]
    folder: RunFolder
    model: PeftModel
    optimizer: torch.optim.Optimizer
    rows: Sequence[TokenizedExample]
    order: DataOrder
    policy: RoutingPolicy
    pad_id: int
    say: Callable[[str], None]
    packed_into: int | None = None
    bar: bool = False
    measure: Callable[[int], None] | None = None
    audit: Audit | None = None
    states: HiddenStateCache | None = None
    reference: Reference | None = None

    @property
    def visited(self) -> list[TokenizedExample]:
        """The examples that all steps together take."""
        return [self.rows[at] for at in self.order.visited(self.settings.max_steps, self.each)]

    @property
    def each(self) -> int:
        """Examples of a step."""
        return self.settings.batch_size * self.settings.gradient_accumulation


class _PreparedBatches(NamedTuple):
    """The batches of a step, with so many examples at a time."""

    step: int
    size: int
    batches: list[Batch]


@dataclass
class _State:
    """What changes in the course of a run, besides its weights.

    Attributes:
        micro_batch: examples in one forward pass; less than `train.batch_size` after memory ran
            out.
        saved: steps in the newest checkpoint; 0 where there is none.
        bare: padding goes without an attention mask, see `Batch`.
        prepared: the next step's batches, where they were made while the device was busy.
    """

    micro_batch: int
    saved: int = 0
    bare: bool = False
    prepared: _PreparedBatches | None = None


def train(run: Training) -> None:
    """Train to `max_steps`, from the last checkpoint where there is one.

    Where memory runs out the examples of a step are run in more and smaller micro-batches, in that
    step and from there on; a checkpoint holds how small.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGUSR1; the step was finished and a checkpoint written.
        NumericError: a loss, gradient or weight is not finite; the step is not saved.
        ConfigError: an adapter that the table updates cannot learn, see `train_step`; or the model
            cannot be trained on packed examples.
        DataError: the audit found an example under another label or route than its own.
        MachineError: the disk refuses, memory runs out even for one example at a time, or more
            than one process was launched, or what `train.report_to` names is not installed.
    """
    settings = run.settings
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise MachineError(
            f"training was launched on {accelerator.num_processes} processes; it runs on one. "
            "Start it without a launcher."
        )
    check_tracker(settings.report_to)
    if run.packed_into is not None:
        check_packing(run.model, run.rows, run.pad_id)
    state = _resume(run, _State(settings.batch_size))
    if _is_asynchronous(run) and run.packed_into is None:
        state.bare = needs_no_mask(run.model, run.rows, run.pad_id)
    run.model.train()
    with (
        tracking(settings.report_to, run.folder, state.saved, run.told, run.say) as track,
        stop_requests() as stop,
        _progress(run, state.saved) as progress,
    ):
        for step in range(state.saved, settings.max_steps):
            began = time.perf_counter()
            row = _one_step(run, state, step)
            append_line(run.folder.metrics, row)
            seconds = time.perf_counter() - began
            append_line(run.folder.timings, {"step": step + 1, "step_seconds": seconds})
            progress(step + 1, row)
            _measure(run, state, step + 1)
            track(step + 1, row)
            last = step + 1 == settings.max_steps
            if last or stop.requested or _due(step + 1, settings.save_every):
                _save(run, state, step + 1)
            # A request that came after the look above is met by the next step, which saves. After
            # the last step too: what the caller would do next is not wanted either.
            if stop.requested and state.saved == step + 1:
                raise Interrupted(
                    f"{run.folder.name}: stopped after step {step + 1} of {settings.max_steps} "
                    "and saved. The same command goes on from there."
                )
    run.model.eval()
    if run.audit is not None:
        run.say(f"{run.folder.name}: {run.audit.summary(settings.max_steps)}")


def _one_step(run: Training, state: _State, step: int) -> dict[str, Any]:
    """Do a step, with fewer examples at a time if memory runs out; its line for `metrics.jsonl`.

    Raises:
        GradrouteError: of the kind that stopped the step; the message names run and step, and what
            is saved.
    """

    def smaller(before: int, after: int) -> None:
        state.micro_batch = after
        run.say(
            f"{run.folder.name}, step {step + 1}: memory ran out with {before} examples at a "
            f"time; it goes on with {after} at a time, the same examples in every step."
        )
        event = {"step": step + 1, "event": "out of memory", "micro_batch": [before, after]}
        append_line(run.folder.sessions, event)

    advice = (
        "Lower data.max_length or the adapters' ranks, take a smaller base model, or free memory."
    )
    try:
        size = state.micro_batch
        with low_rank_products(run.model, _PRODUCTS[run.settings.low_rank_dtype]):
            row, _ = with_smaller_batches(
                lambda size: _try_step(run, state, step, size), size, smaller, advice
            )
    except GradrouteError as error:
        kept = "there is no checkpoint yet"
        if state.saved:
            kept = f"the last good checkpoint is from step {state.saved}"
        more = [f"Nothing of this step is saved; {kept}."]
        if isinstance(error, NumericError):
            more.append(
                "Lower train.learning_rate (to go on from the checkpoint with --override "
                "train.learning_rate, or anew with --if-exists new), or look at the examples."
            )
        raise error.told(f"{run.folder.name}, step {step + 1}", *more) from error
    return row


def _try_step(run: Training, state: _State, step: int, size: int) -> dict[str, Any]:
    """The step with so many examples at a time; the weights are untouched if memory runs out."""
    settings = run.settings
    run.optimizer.zero_grad(set_to_none=True)
    batches = _batches_of(run, state, step, size)
    norms = {}
    if _due(step + 1, settings.log_gradients_every):
        _seed(run, step)
        mean = settings.loss_mean
        norms = label_gradient_norms(run.model, batches, run.policy, mean, run.reference)
    _seed(run, step)
    if run.audit is not None:
        run.audit.begin()
    report = train_step(
        run.model,
        run.optimizer,
        batches,
        run.policy,
        loss_mean=settings.loss_mean,
        rate=schedule(step, settings.max_steps, settings.warmup_steps),
        reference=run.reference,
        watch=None if run.audit is None else run.audit.check,
        while_waiting=partial(_prepare_next, run, state, step + 1, size)
        if _is_asynchronous(run)
        else None,
        check_after=not _is_asynchronous(run),
    )
    if run.audit is not None:
        run.audit.write(step + 1, _places(run, step))
    return _metrics(step + 1, report, run.optimizer, norms)


def _seed(run: Training, step: int) -> None:
    """Dropout noise is a function of (seed, step), so a resumed run draws the same."""
    torch.manual_seed(run.seed * 1_000_003 + step)


def _measure(run: Training, state: _State, step: int) -> None:
    """Measure the model after a step where that is due; before the step's checkpoint is written.

    So a resumed run has the lines of every step up to its checkpoint. A measurement that fails
    costs no training: the step is saved first.
    """
    settings = run.settings
    last = step == settings.max_steps
    if run.measure is None or not (last or _due(step, settings.measure_every)):
        return
    try:
        run.measure(step)
    except GradrouteError:
        _save(run, state, step)
        raise


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _is_asynchronous(run: Training) -> bool:
    """Whether the model's device works behind the CPU's back."""
    return run.model.device.type != "cpu"


def _prepare_next(run: Training, state: _State, step: int, size: int) -> None:
    """Make the batches of a step and send them, while the device is busy with the one before."""
    if step < run.settings.max_steps:
        state.prepared = _PreparedBatches(step, size, _micro_batches(run, state, step, size))


def _batches_of(run: Training, state: _State, step: int, size: int) -> list[Batch]:
    ahead, state.prepared = state.prepared, None
    if ahead is not None and (ahead.step, ahead.size) == (step, size):
        return ahead.batches
    return _micro_batches(run, state, step, size)


def _micro_batches(run: Training, state: _State, step: int, size: int) -> list[Batch]:
    """The examples of a step in batches of so many, on the model's device."""
    rows = [run.rows[at] for at in _places(run, step)]
    batches = micro_batches(rows, size, run.pad_id, packed_into=run.packed_into)
    if run.states is not None:
        tokens = [row.input_ids for row in rows]
        parts = [tokens[at : at + size] for at in range(0, len(tokens), size)]
        batches = [
            batch.with_states(run.states.of(part))
            for batch, part in zip(batches, parts, strict=True)
        ]
    return [replace(batch.to(run.model.device), bare=state.bare) for batch in batches]


def _places(run: Training, step: int) -> list[int]:
    return run.order.batch(step, run.each)


def _metrics(
    step: int,
    report: StepReport,
    optimizer: torch.optim.Optimizer,
    norms: dict[str, dict[str, float]],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": step,
        "loss": report.loss,
        "loss_per_label": {
            label: report.nll[label] / report.tokens[label] for label in sorted(report.nll)
        },
        "examples": dict(sorted(report.examples.items())),
        "tokens": dict(sorted(report.tokens.items())),
        "learning_rate": {group["adapter"]: group["lr"] for group in optimizer.param_groups},
        "gradient_norm": dict(sorted(report.gradient_norms.items())),
    }
    if report.divergence is not None:
        row["divergence"] = report.divergence
    if norms:
        row["gradient_norm_per_label"] = norms
    return row


def _save(run: Training, state: _State, step: int) -> None:
    for path in _line_files(run):
        sync(path)  # a checkpoint's lines are on the disk before it is
        sync(path.parent)
    whole = run.settings.batch_size
    saved = save_checkpoint(
        run.folder.checkpoints,
        step,
        run.model,
        optimizer_tensors(run.model, run.optimizer),
        config_text=run.config_text,
        policy=run.policy.to_plain(),
        micro_batch=state.micro_batch if state.micro_batch < whole else None,
    )
    state.saved = step
    append_line(run.folder.timings, {"step": step, "saved": saved.path.name, "at": time.time()})


def _resume(run: Training, state: _State) -> _State:
    checkpoint = latest_checkpoint(run.folder.checkpoints)
    if checkpoint is not None:
        load_adapters(checkpoint, run.model)
        load_optimizer_state(run.model, run.optimizer, load_optimizer_tensors(checkpoint))
        state.saved = checkpoint.step
        state.micro_batch = min(state.micro_batch, checkpoint.micro_batch or state.micro_batch)
        run.say(f"{run.folder.name}: goes on after step {state.saved}.")
    # Lines of steps that a checkpoint does not hold are computed again.
    for path in _line_files(run):
        write_lines(path, [row for row in read_lines(path) if row["step"] <= state.saved])
    return state


def _line_files(run: Training) -> list[Path]:
    """The files that have lines of their own for each step, those that are there."""
    files = (run.folder.metrics, run.folder.measures, run.folder.audit)
    return [path for path in files if path.is_file()]


@contextmanager
def _progress(run: Training, start: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """A progress bar, or a plain line now and then."""
    total = run.settings.max_steps
    every = max(1, total // 5)
    name = run.folder.name
    with tqdm(total=total, initial=start, desc=name, disable=not run.bar, unit="step") as bar:

        def show(step: int, row: dict[str, Any]) -> None:
            losses = " ".join(f"{k} {v:.3f}" for k, v in row["loss_per_label"].items())
            if run.bar:
                bar.set_postfix_str(printable(losses), refresh=False)
                bar.update()
            elif step % every == 0 or step == total:
                run.say(f"{name}: step {step}/{total}, loss {losses}")

        yield show
