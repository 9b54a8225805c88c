"""The loop around `train_step`: data order, schedule, log lines, checkpoints, interruption."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from gradroute.data.batches import Batch, micro_batches
from gradroute.errors import GradrouteError, Interrupted, MachineError, NumericError
from gradroute.models.checkpoint import (
    latest_checkpoint,
    load_adapters,
    load_optimizer_tensors,
    save_checkpoint,
)
from gradroute.routing.adapters import adapter_state, low_rank_products
from gradroute.system.files import append_line, read_lines, sync, write_lines
from gradroute.system.memory import is_out_of_memory, with_smaller_batches
from gradroute.system.sharded import whole
from gradroute.system.signals import StopRequest, stop_requests
from gradroute.system.terminal import printable
from gradroute.train.exchange import Exchange
from gradroute.train.gradient_norms import label_gradient_norms
from gradroute.train.model_checks import check_packing, needs_no_mask
from gradroute.train.optimizer import load_optimizer_state, optimizer_tensors, schedule
from gradroute.train.step import train_step
from gradroute.train.step_report import metrics_line
from gradroute.train.tracking import check_tracker, tracking
from gradroute.train.training import Training

_PRODUCTS = {"fp32": None, "bf16": torch.bfloat16}


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
        agreed: of several ranks, whether any was asked to stop by the end of the last step. What a
            rank hears later the others do not know, so it waits for the next step.
    """

    micro_batch: int
    saved: int = 0
    bare: bool = False
    prepared: _PreparedBatches | None = None
    agreed: bool | None = None

    def stops(self, stop: StopRequest) -> bool:
        """Whether the run is to stop after this step."""
        return stop.requested if self.agreed is None else self.agreed


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
        MachineError: the disk refuses, memory runs out even for one example at a time, another
            rank has ended, or what `train.report_to` names is not installed.
    """
    settings = run.settings
    check_tracker(settings.report_to)
    if run.packed_into is not None:
        check_packing(run.model, run.rows, run.pad_id)
    state = _resume(run, _State(run.at_once))
    if _is_asynchronous(run) and run.packed_into is None:
        state.bare = needs_no_mask(run.model, run.rows, run.pad_id)
    run.model.train()
    report_to = settings.report_to if run.writes else "none"
    with (
        tracking(report_to, run.folder, state.saved, run.told, run.say) as track,
        stop_requests() as stop,
        _progress(run, state.saved) as progress,
    ):
        for step in range(state.saved, settings.max_steps):
            began = time.perf_counter()
            row = _one_step(run, state, step, stop)
            _log(run.folder.metrics, run, row)
            seconds = time.perf_counter() - began
            _log(run.folder.timings, run, {"step": step + 1, "step_seconds": seconds})
            progress(step + 1, row)
            _measure(run, state, step + 1)
            track(step + 1, row)
            last = step + 1 == settings.max_steps
            if last or state.stops(stop) or _due(step + 1, settings.save_every):
                _save(run, state, step + 1)
            # A request that came after the look above is met by the next step, which saves. After
            # the last step too: what the caller would do next is not wanted either.
            if state.stops(stop) and state.saved == step + 1:
                raise Interrupted(
                    f"{run.folder.name}: stopped after step {step + 1} of {settings.max_steps} "
                    "and saved. The same command goes on from there."
                )
    run.model.eval()
    if run.audit is not None:
        run.say(f"{run.folder.name}: {run.audit.summary(settings.max_steps)}")


def _log(path: Path, run: Training, row: Mapping[str, Any]) -> None:
    """Append a line to a file of the run; one process does."""
    if run.writes:
        append_line(path, row)


def _one_step(run: Training, state: _State, step: int, stop: StopRequest) -> dict[str, Any]:
    """Do a step, with fewer examples at a time if memory runs out; its line for `metrics.jsonl`.

    Raises:
        GradrouteError: of the kind that stopped the step; the message names run and step, and what
            is saved.
    """

    def smaller(before: int, after: int) -> None:
        run.say(
            f"{run.folder.name}, step {step + 1}: memory ran out with {before} examples at a "
            f"time; it goes on with {after} at a time, the same examples in every step."
        )
        event = {"step": step + 1, "event": "out of memory", "micro_batch": [before, after]}
        _log(run.folder.sessions, run, event)
        state.micro_batch = after

    advice = (
        "Lower data.max_length or the adapters' ranks, take a smaller base model, or free memory."
    )
    try:
        size = state.micro_batch
        with low_rank_products(run.model, _PRODUCTS[run.settings.low_rank_dtype]):
            if run.ranks.several:
                row, after = _step_of_ranks(run, state, step, stop, advice)
                if after < size:
                    smaller(size, after)
            else:
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
            error.told_elsewhere = not run.writes  # it is one of numbers that all ranks share
        raise error.told(f"{run.folder.name}, step {step + 1}", *more) from error
    return row


def _step_of_ranks(
    run: Training, state: _State, step: int, stop: StopRequest, advice: str
) -> tuple[dict[str, Any], int]:
    """The step on several ranks; its line, and the examples that every rank has memory for.

    A rank whose memory runs out before it has sent anything does its part again by itself, with
    fewer examples at a time; the others hear of it and follow from the next step on.
    """

    def attempt(size: int) -> dict[str, Any]:
        nonlocal exchange
        exchange = _exchange(run, step, size, stop)
        try:
            return _try_step(run, state, step, size, exchange)
        except Exception as error:
            if not is_out_of_memory(error) or not (exchange.begun or run.sharded):
                raise
            raise MachineError(
                f"memory ran out on rank {run.ranks.rank}, with {size} examples at a time, while "
                f"the ranks waited for each other. {advice}"
            ) from error

    exchange = _exchange(run, step, state.micro_batch, stop)
    row, _ = with_smaller_batches(attempt, state.micro_batch, lambda *_: None, advice)
    state.agreed = exchange.stop
    return row, exchange.micro_batch


def _exchange(run: Training, step: int, size: int, stop: StopRequest) -> Exchange:
    """What this rank knows of the others' part in a step."""
    before: list[Batch] = []
    after: list[Batch] = []
    for rank in range(run.ranks.size):
        if rank != run.ranks.rank:
            rows = [run.rows[at] for at in run.places(step, rank)]
            others = micro_batches(rows, size, run.pad_id, packed_into=run.packed_into)
            (before if rank < run.ranks.rank else after).extend(others)
    return Exchange(run.ranks, before, after, stop.requested, size, run.sharded)


def _try_step(
    run: Training, state: _State, step: int, size: int, exchange: Exchange | None = None
) -> dict[str, Any]:
    """The step with so many examples at a time; the weights are untouched if memory runs out."""
    settings = run.settings
    run.optimizer.zero_grad(set_to_none=True)
    batches = _batches_of(run, state, step, size)
    norms = {}
    if _due(step + 1, settings.log_gradients_every):
        _seed(run, step)
        mean = settings.loss_mean
        norms = label_gradient_norms(run.model, batches, run.policy, mean, run.reference, exchange)
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
        exchange=exchange,
    )
    if run.audit is not None:
        run.audit.write(step + 1, run.places(step, run.ranks.rank))
    return metrics_line(step + 1, report, run.optimizer, norms)


def _seed(run: Training, step: int) -> None:
    """Dropout noise is a function of (seed, step, rank), so a resumed run draws the same."""
    torch.manual_seed(run.seed * 1_000_003 + step + (run.ranks.rank << 40))


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
    rows = [run.rows[at] for at in run.places(step, run.ranks.rank)]
    batches = micro_batches(rows, size, run.pad_id, packed_into=run.packed_into)
    if run.states is not None:
        tokens = [row.input_ids for row in rows]
        parts = [tokens[at : at + size] for at in range(0, len(tokens), size)]
        batches = [
            batch.with_states(run.states.of(part))
            for batch, part in zip(batches, parts, strict=True)
        ]
    return [replace(batch.to(run.model.device), bare=state.bare) for batch in batches]


def _save(run: Training, state: _State, step: int) -> None:
    """Write the checkpoint of a step; the ranks go on when it is on the disk."""
    # Every rank takes part in putting sharded weights together.
    weights = {
        name: {key: whole(weight) for key, weight in adapter_state(run.model, name).items()}
        for name in run.model.peft_config
    }
    moments = optimizer_tensors(run.model, run.optimizer)

    def write() -> None:
        for path in _line_files(run):
            sync(path)  # a checkpoint's lines are on the disk before it is
            sync(path.parent)
        saved = save_checkpoint(
            run.folder.checkpoints,
            step,
            run.model,
            moments,
            weights=weights,
            config_text=run.config_text,
            policy=run.policy.to_plain(),
            micro_batch=state.micro_batch if state.micro_batch < run.at_once else None,
        )
        append_line(run.folder.timings, {"step": step, "saved": saved.path.name, "at": time.time()})

    run.ranks.on_main(write)
    state.saved = step


def _resume(run: Training, state: _State) -> _State:
    checkpoint = latest_checkpoint(run.folder.checkpoints)
    if checkpoint is not None:
        load_adapters(checkpoint, run.model)
        load_optimizer_state(run.model, run.optimizer, load_optimizer_tensors(checkpoint))
        state.saved = checkpoint.step
        state.micro_batch = min(state.micro_batch, checkpoint.micro_batch or state.micro_batch)
        run.say(f"{run.folder.name}: goes on after step {state.saved}.")

    def forget() -> None:  # lines of steps that a checkpoint does not hold are computed again
        for path in _line_files(run):
            write_lines(path, [row for row in read_lines(path) if row["step"] <= state.saved])

    run.ranks.on_main(forget)
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
