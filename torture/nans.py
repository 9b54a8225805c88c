"""Numbers that are not finite, put into real runs: each stops in that step and spoils no file.

The faults are planted in the memory of a run while it trains (weights, moments, gradients, a row
whose activations overflow), in its settings, in the base model's file or in a checkpoint's. When a
run has stopped, everything that it wrote is read back, and the same command without the fault must
end with the bits of a run that never had it.
"""

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gradroute.config.run_config import RunConfig, load_config
from gradroute.errors import NumericError
from gradroute.models.base import load_base_of
from gradroute.models.checkpoint import latest_checkpoint
from gradroute.prepare import data_order, prepare, tokenize_examples
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder
from torture.planted import KINDS, MICRO_BATCHES, STEPS, Clean, Fault, Watch, planted
from torture.runs import NAME, Ground, finals, lay, sha256, unequal

VARIANTS: tuple[Mapping[str, Any], ...] = (
    {"train.save_every": 1, "routing": "anchored"},
    {"train.save_every": 2, "routing": "absorb"},
    {"train.save_every": 3, "routing": "none", "train.loss_mean": "example"},
)


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Plant numbers that are not finite, one in each run.

    Args:
        count: runs.
        seed: of everything that is drawn.
        folder: where runs are written.

    Returns:
        "trials"; of them "stopped" in the right step with the right error; files read back
        ("files_read") and of them "files_not_finite"; "continued" by the same command without the
        fault, and of them "equal" in the end, bit for bit, to a run that never had it; what was
        planted; "failures".
    """
    ground = lay(folder / "ground")
    clean = [_clean(ground, number) for number in range(min(len(VARIANTS), count))]
    counts: Counter[str] = Counter(stopped=0, files_read=0, files_not_finite=0)
    counts.update(continued=0, equal=0)
    drawn: Counter[str] = Counter()
    failures: list[str] = []
    for number in range(count):
        draw = random.Random(f"nans {seed} {number}")
        variant = number % len(clean)
        kind = list(KINDS)[number % len(KINDS)]
        fault = KINDS[kind](draw, clean[variant], ground)
        drawn[fault.kind] += 1
        root = folder / f"run-{number}"
        for text in _trial(fault, clean[variant], root, counts):
            failures.append(f"trial {number} ({fault.kind}, variant {variant}): {text}.")
        shutil.rmtree(root)
    return {
        "trials": count,
        **counts,
        "planted": dict(sorted(drawn.items())),
        "failures": failures,
    }


def _trial(fault: Fault, clean: Clean, root: Path, counts: Counter[str]) -> Iterator[str]:
    folder = RunFolder(root / NAME)
    settings = {**fault.settings, **({"model": fault.base} if fault.base else {})}
    config = _changed(clean.config, settings)
    if fault.signed:
        _stop_early(config, root)
        spoiled = _spoil(folder, *fault.signed)
    else:
        spoiled = None
    stopped, watch = _run(fault, config, root)
    if not isinstance(stopped, NumericError) or stopped.exit_code != 5:
        yield f"ended with {stopped!r}"
        return
    said, due = str(stopped), watch.first if fault.step is None else fault.step
    told = re.findall(r"\bstep[ -](\d+)", said)
    where = fault.base is not None or fault.signed is not None or (told and int(told[0]) == due)
    # Nothing that can be seen from outside: a gradient, or a step too long for a number.
    hidden = "gradient of" in said or ("learning rate" in said and "overflows" in said)
    if not where and not (due is None and hidden):
        yield f"was due to stop in step {due}, says {said!r}"
    elif missing := [word for word in fault.words if word not in said]:
        yield f"does not say {', '.join(missing)}: {said!r}"
    else:
        counts["stopped"] += 1
    wrong = _not_finite(folder.path, counts, spoiled)
    counts["files_not_finite"] += len(wrong)
    if wrong:
        yield f"left numbers that are not finite in {', '.join(wrong)}"
    if spoiled is not None:
        shutil.rmtree(
            spoiled.parent if spoiled.name == "optimizer.safetensors" else spoiled.parent.parent
        )
    if not (fault.settings or fault.base):
        yield from _go_on(config, root, clean, due, counts)


def _go_on(
    config: RunConfig, root: Path, clean: Clean, due: int | None, counts: Counter[str]
) -> Iterator[str]:
    """The last good checkpoint is there, and the same command ends as if nothing had been."""
    folder = RunFolder(root / NAME)
    every = config.train.save_every
    kept = latest_checkpoint(folder.checkpoints)
    held = 0 if kept is None else kept.step
    if due is not None and held != (due - 1) // every * every:
        yield f"has a checkpoint of step {held} after a fault in step {due}"
    counts["continued"] += 1
    train_run(config, root, if_exists="resume", bar=False)
    if different := unequal(folder.path, clean.finals):
        yield f"went on to another end: {', '.join(different)}"
    else:
        counts["equal"] += 1


def _run(fault: Fault, config: RunConfig, root: Path) -> tuple[BaseException | None, Watch]:
    with planted(fault) as watch:
        try:
            train_run(config, root, if_exists="resume", bar=False)
        except Exception as error:  # one that is not ours is a failure, told as such
            return error, watch
    return None, watch


def _clean(ground: Ground, number: int) -> Clean:
    settings = {"train.max_steps": STEPS, "train.gradient_accumulation": MICRO_BATCHES}
    config = load_config(ground.config({**settings, **VARIANTS[number]}, f"clean-{number}"))
    root = ground.folder / f"clean-{number}"
    train_run(config, root, if_exists="fail", bar=False)
    prepared, base = prepare(config), load_base_of(config)
    rows, _ = tokenize_examples(prepared.train, prepared.policy, base, config.data.max_length)
    order = data_order(
        prepared,
        rows,
        seed=config.seed,
        front_load=config.data.front_load,
        length_window=config.train.length_window,
    )
    size = config.train.batch_size * config.train.gradient_accumulation
    steps = [[rows[at] for at in order.batch(step, size)] for step in range(STEPS)]
    return Clean(config, finals(root / NAME), steps)


def _changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    values = config.model_dump()
    for key, value in settings.items():
        place = values
        *parents, last = key.split(".")
        for parent in parents:
            place = place[parent]
        place[last] = str(value) if isinstance(value, Path) else value
    return RunConfig.model_validate(values)


def _stop_early(config: RunConfig, root: Path) -> None:
    """Train half of the run, as if it had been stopped."""

    class Enough(Exception):
        pass

    def stop(optimizer: Any, args: Any, kwargs: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise Enough

    left = [STEPS // 2 + 3]
    handle = register_optimizer_step_pre_hook(stop)
    try:
        train_run(config, root, if_exists="resume", bar=False)
    except Enough:
        return
    finally:
        handle.remove()
    raise RuntimeError("the run was not stopped.")


def _spoil(folder: RunFolder, file: str, value: float) -> Path:
    """Put a number into a file of the newest checkpoint, and sign it again."""
    newest = max(folder.checkpoints.glob("step-*"))
    path = newest / file
    tensors = load_file(path)
    name = next(n for n, tensor in tensors.items() if tensor.dim())
    tensors[name].view(-1)[0] = value
    save_file(tensors, path)
    manifest = json.loads((newest / "manifest.json").read_text(encoding="utf-8"))
    manifest["sha256"][file] = sha256(path)
    (newest / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return path


def _not_finite(run: Path, counts: Counter[str], spoiled: Path | None) -> list[str]:
    """The files of a run that hold a number that is not finite; the one planted does not count."""
    found = []
    for path in sorted(run.rglob("*")):
        if path == spoiled or not path.is_file():
            continue
        counts["files_read"] += 1
        if path.suffix == ".safetensors":
            good = all(bool(t.isfinite().all()) for t in load_file(path).values())
        elif path.suffix in (".json", ".jsonl"):
            good = all(map(_strict, path.read_text(encoding="utf-8").splitlines()))
            good = good or _strict(path.read_text(encoding="utf-8"))
        else:
            good = True
        if not good:
            found.append(str(path.relative_to(run)))
    return found


def _strict(text: str) -> bool:
    """Whether a text is JSON without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True
