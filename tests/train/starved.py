"""A short training under a limit of memory, in a process of its own: `starved.py FOLDER JSON`."""

import hashlib
import json
import resource
import sys
from pathlib import Path

import torch

from gradroute.config import load_config
from gradroute.data.batches import DataOrder, TokenizedExample
from gradroute.errors import GradrouteError
from gradroute.evaluate.losses import held_out_losses
from gradroute.folders import RunFolder
from gradroute.routing.adapters import adapter_state, attach_adapters
from gradroute.routing.policy import AblationMode, RoutingPolicy
from gradroute.train.trainer import Training, train
from torture.bases import tiny_llama

TOKENS = 4096  # in the vocabulary: the logits of a row of 32 tokens are half a MiB


def model(config):
    return attach_adapters(tiny_llama(TOKENS, 64), config.adapters, layers="all")


def rows(policy):
    draw = torch.Generator().manual_seed(1)
    labels = policy.label_ids(["bad", "unlabeled", "good", "unlabeled"] * 16)
    return [
        TokenizedExample(
            id=f"r{i}",
            input_ids=tuple(torch.randint(3, TOKENS, (33,), generator=draw).tolist()),
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


def main(root, asked):
    batch = f"train.batch_size={asked['batch_size']}"
    accumulation = f"train.gradient_accumulation={asked['accumulation']}"
    settings = ["run_name=x", "train.max_steps=2", "train.save_every=1", batch, accumulation]
    config = load_config(None, settings)
    policy = RoutingPolicy.from_value("anchored", tuple(config.adapters))
    folder = RunFolder(root / "x")
    folder.path.mkdir(parents=True, exist_ok=True)
    examples = rows(policy)
    said = []
    losses = {}

    def measure(step):
        modes = [AblationMode.parse(name, tuple(config.adapters)) for name in ("full", "base")]
        found = held_out_losses(run.model, examples, modes, pad_id=0, rows_per_batch=128)
        losses.update({mode: sums for mode, (sums, _) in found.items()})

    run = Training(
        config=config,
        folder=folder,
        model=model(config),
        rows=examples,
        order=DataOrder(config.seed, len(examples), tuple(range(len(examples)))),
        policy=policy,
        pad_id=0,
        say=said.append,
        measure=measure,
    )
    # What the first pass alone needs (code, buffers) is there before the limit is.
    run.model(input_ids=torch.tensor([examples[0].input_ids]))
    if asked["room"]:
        limit(asked["room"])
    try:
        train(run)
    finally:
        if asked["room"]:
            lift()
    return said, losses, digest(run.model)


def digest(trained):
    digest = hashlib.sha256()
    for adapter in ("good", "bad"):
        for key, value in sorted(adapter_state(trained, adapter).items()):
            digest.update(key.encode() + value.numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    try:
        told = main(Path(sys.argv[1]), json.loads(sys.argv[2]))
    except GradrouteError as error:
        told = [str(error)], {}, type(error).__name__
    print(json.dumps(told))
