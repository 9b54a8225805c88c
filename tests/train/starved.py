"""Short trainings, short of memory or as if, in a process: `starved.py FOLDER ROOMS`."""

import hashlib
import json
import resource
import shutil
import sys
from pathlib import Path

import torch

from gradroute.config import load_config
from gradroute.data.batches import DataOrder, TokenizedExample
from gradroute.evaluate.losses import held_out_losses
from gradroute.files import read_lines
from gradroute.folders import RunFolder
from gradroute.routing.adapters import adapter_state, attach_adapters
from gradroute.routing.policy import AblationMode, RoutingPolicy
from gradroute.train.trainer import Training, train
from torture.bases import tiny_llama

TOKENS = 4096  # in the vocabulary
LENGTH = 129  # of a row: 64 of them need far more than Python does by the way


def model(config):
    return attach_adapters(tiny_llama(TOKENS, 2 * LENGTH), config.adapters, layers="all")


def rows(policy):
    draw = torch.Generator().manual_seed(1)
    labels = policy.label_ids(["bad", "unlabeled", "good", "unlabeled"] * 16)
    return [
        TokenizedExample(
            id=f"r{i}",
            input_ids=tuple(torch.randint(3, TOKENS, (LENGTH,), generator=draw).tolist()),
            target_start=0,
            label_id=label,
            true_label="good",
        )
        for i, label in enumerate(labels)
    ]


def limit(room):
    """Let this process have so many bytes more of address space than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def lift():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def refuse(run, refusals):
    """Have no memory in the steps and for the sizes told, once each and in this order."""

    def check(module, args, kwargs):
        # Only what trains writes a line a step, and only after it.
        lines = run.folder.metrics
        done = len(list(read_lines(lines))) if lines.is_file() else 0
        if module.training and refusals[:1] == [[done + 1, len(kwargs["input_ids"])]]:
            refusals.pop(0)
            raise torch.OutOfMemoryError("no memory for so many rows")

    run.model.register_forward_pre_hook(check, with_kwargs=True)


def main(folder, *, batch_size=64, steps=2, room=0, without=()):
    """Train in `folder` with `room` bytes, without a limit where that is 0.

    Args:
        folder: of the run.
        batch_size: that the configuration asks for, of 64 examples a step.
        steps: in all.
        room: bytes that training may add to those of the process.
        without: steps and sizes for which to say that there is no memory.

    Returns:
        What was said, the losses after the last step, and a digest of the weights.
    """
    accumulation = f"train.gradient_accumulation={64 // batch_size}"
    batch = f"train.batch_size={batch_size}"
    settings = ["run_name=x", f"train.max_steps={steps}", "train.save_every=1", batch, accumulation]
    config = load_config(None, settings)
    policy = RoutingPolicy.from_value("anchored", tuple(config.adapters))
    examples = rows(policy)
    said = []
    losses = {}

    def measure(step):
        modes = [AblationMode.parse(name, tuple(config.adapters)) for name in ("full", "base")]
        most = 2 * batch_size
        found = held_out_losses(run.model, examples, modes, pad_id=0, rows_per_batch=most)
        losses.update({mode: sums for mode, (sums, _) in found.items()})

    folder.mkdir(parents=True, exist_ok=True)
    run = Training(
        config=config,
        folder=RunFolder(folder),
        model=model(config),
        rows=examples,
        order=DataOrder(config.seed, len(examples), tuple(range(len(examples)))),
        policy=policy,
        pad_id=0,
        say=said.append,
        measure=measure,
    )
    refusals = [list(one) for one in without]
    refuse(run, refusals)
    if room:
        limit(room)
    try:
        train(run)
    finally:
        if room:
            lift()
    assert not refusals, f"never asked for: {refusals}"
    return said, losses, digest(run.model)


def digest(trained):
    digest = hashlib.sha256()
    for adapter in ("good", "bad"):
        for key, value in sorted(adapter_state(trained, adapter).items()):
            digest.update(key.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def refused(folder):
    """The steps and sizes for which memory ran out."""
    return [(row["step"], *row["micro_batch"]) for row in read_lines(RunFolder(folder).sessions)]


def four(root, rooms):
    """Train under a limit in `short`, and in three other ways that it is compared with.

    The limit is the first of `rooms` that does not do for a whole step.

    `free` has no limit, `parts` is refused the same sizes in the same steps, and `again` is `short`
    resumed before its last step, refused what was refused in that one.
    """
    # What any training needs (code, buffers) is there before the limit is.
    main(root / "before", batch_size=4, steps=1)
    told = {}
    for room in rooms:
        told["short"] = main(root / "short", room=room)
        if RunFolder(root / "short").sessions.is_file():
            break
        shutil.rmtree(root / "short")
    sizes = [(step, size) for step, size, _ in refused(root / "short")]
    shutil.copytree(root / "short", root / "again")
    shutil.rmtree(RunFolder(root / "again").checkpoints / "step-000002")
    told["free"] = main(root / "free")
    told["parts"] = main(root / "parts", without=sizes)
    told["again"] = main(root / "again", without=[one for one in sizes if one[0] == 2])
    return told


if __name__ == "__main__":
    print(json.dumps(four(Path(sys.argv[1]), json.loads(sys.argv[2]))))
