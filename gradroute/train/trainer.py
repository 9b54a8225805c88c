"""The loop around `train_step`: data order, schedule, log lines, checkpoints, interruption."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from tqdm import tqdm

from gradroute.checkpoint import (
    latest_checkpoint,
    load_adapters,
    load_optimizer_tensors,
    save_checkpoint,
)
from gradroute.config import RunConfig, dump_config
from gradroute.data.batches import Batch, DataOrder, TokenizedExample, collate
from gradroute.errors import GradrouteError, Interrupted, MachineError, NumericError
from gradroute.files import append_line, read_lines, write_lines
from gradroute.folders import RunFolder
from gradroute.routing.policy import RoutingPolicy
from gradroute.train.step import (
    StepReport,
    build_optimizer,
    label_gradient_norms,
    load_optimizer_state,
    optimizer_tensors,
    schedule,
    train_step,
)


@dataclass(frozen=True)
class Training:
    """Everything one run's training needs; `train` consumes it.

    Attributes:
        config: the resolved configuration.
        folder: where the run is written.
        model: the routed model on its device.
        rows: the tokenised training examples.
        order: which of them make up a step.
        policy: the routing table that the rows' label ids index.
        pad_id: the padding token.
        say: where a line for the user goes.
        bar: show a progress bar rather than a line now and then.
        measure: called with the number of steps done, every `train.measure_every` of them and after
            the last; it must leave the model and the random state as they were.
    """

    config: RunConfig
    folder: RunFolder
    model: PeftModel
    rows: Sequence[TokenizedExample]
    order: DataOrder
    policy: RoutingPolicy
    pad_id: int
    say: Callable[[str], None]
    bar: bool = False
    measure: Callable[[int], None] | None = None


def train(run: Training) -> None:
    """Train to `max_steps`, from the last checkpoint where there is one.

    Raises:
        Interrupted: SIGINT or SIGTERM; the step was finished and a checkpoint written.
        NumericError: a loss or gradient is not finite; the optimizer has not acted in that step.
        MachineError: the disk refuses, or more than one process was launched.
    """
    settings = run.config.train
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise MachineError(
            f"training was launched on {accelerator.num_processes} processes; it runs on one. "
            "Start it without a launcher."
        )
    optimizer = build_optimizer(run.model, run.config.adapters, settings.learning_rate)
    start = _resume(run, optimizer)
    run.model.train()
    with _stop_requests() as stop, _progress(run, start) as progress:
        for step in range(start, settings.max_steps):
            began = time.perf_counter()
            # Dropout noise is a function of (seed, step), so a resumed run draws the same.
            torch.manual_seed(run.config.seed * 1_000_003 + step)
            row = _one_step(run, optimizer, step)
            append_line(run.folder.metrics, row)
            seconds = time.perf_counter() - began
            append_line(run.folder.timings, {"step": step + 1, "step_seconds": seconds})
            progress(step + 1, row)
            last = step + 1 == settings.max_steps
            _measure(run, optimizer, step + 1)
            if last or stop.requested or _due(step + 1, settings.save_every):
                _save(run, optimizer, step + 1)
            if stop.requested and not last:
                raise Interrupted(
                    f"{run.folder.name}: stopped after step {step + 1} of {settings.max_steps} "
                    "and saved. The same command goes on from there."
                )
    run.model.eval()


def _one_step(run: Training, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    settings = run.config.train
    batches = _micro_batches(run, step)
    norms = {}
    if _due(step + 1, settings.log_gradients_every):
        norms = label_gradient_norms(run.model, batches, run.policy, settings.loss_mean)
        torch.manual_seed(run.config.seed * 1_000_003 + step)
    rate = schedule(step, settings.max_steps, settings.warmup_steps)
    try:
        report = train_step(
            run.model, optimizer, batches, run.policy, loss_mean=settings.loss_mean, rate=rate
        )
    except NumericError as error:
        ids = ", ".join(name for batch in batches for name in batch.ids)
        raise NumericError(
            f"{run.folder.name}, step {step + 1}: {error} Nothing was updated in this step. "
            "Lower the learning rate and start again with --if-exists new, or look at its "
            f"examples: {ids}."
        ) from error
    return _metrics(step + 1, report, optimizer, norms)


def _measure(run: Training, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Measure the model after a step where that is due; before the step's checkpoint is written.

    So a resumed run has the lines of every step up to its checkpoint. A measurement that fails
    costs no training: the step is saved first.
    """
    settings = run.config.train
    last = step == settings.max_steps
    if run.measure is None or not (last or _due(step, settings.measure_every)):
        return
    try:
        run.measure(step)
    except GradrouteError:
        _save(run, optimizer, step)
        raise


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _micro_batches(run: Training, step: int) -> list[Batch]:
    settings = run.config.train
    size = settings.batch_size
    wanted = size * settings.gradient_accumulation
    indices = run.order.batch(step, wanted)
    device = run.model.device
    return [
        collate([run.rows[i] for i in indices[at : at + size]], run.pad_id).to(device)
        for at in range(0, wanted, size)
    ]


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
    if norms:
        row["gradient_norm_per_label"] = norms
    return row


def _save(run: Training, optimizer: torch.optim.Optimizer, step: int) -> None:
    saved = save_checkpoint(
        run.folder.checkpoints,
        step,
        run.model,
        optimizer_tensors(run.model, optimizer),
        config_text=dump_config(run.config),
        policy=run.policy.to_dict(),
    )
    append_line(run.folder.timings, {"step": step, "saved": saved.path.name, "at": time.time()})


def _resume(run: Training, optimizer: torch.optim.Optimizer) -> int:
    checkpoint = latest_checkpoint(run.folder.checkpoints)
    start = 0
    if checkpoint is not None:
        load_adapters(checkpoint, run.model)
        load_optimizer_state(run.model, optimizer, load_optimizer_tensors(checkpoint))
        start = checkpoint.step
        run.say(f"{run.folder.name}: goes on after step {start}.")
    # Lines of steps that a checkpoint does not hold are computed again.
    for path in (run.folder.metrics, run.folder.measures):
        if path.is_file():
            write_lines(path, [row for row in read_lines(path) if row["step"] <= start])
    return start


class _Stop:
    """Set by a signal, read at step boundaries."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """SIGINT, SIGTERM and SIGUSR1 ask for a stop; a second SIGINT leaves at once."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    try:
        before = {number: signal.signal(number, ask) for number in watched}
    except ValueError:  # not the main thread: signals belong to somebody else
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(run: Training, start: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """A progress bar, or a plain line now and then."""
    total = run.config.train.max_steps
    every = max(1, total // 5)
    name = run.folder.name
    with tqdm(total=total, initial=start, desc=name, disable=not run.bar, unit="step") as bar:

        def show(step: int, row: dict[str, Any]) -> None:
            losses = " ".join(f"{k} {v:.3f}" for k, v in row["loss_per_label"].items())
            if run.bar:
                bar.set_postfix_str(losses, refresh=False)
                bar.update()
            elif step % every == 0 or step == total:
                run.say(f"{name}: step {step}/{total}, loss {losses}")

        yield show
