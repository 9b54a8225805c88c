"""Real ranks on this machine: children of the fork server, connected by gloo through a file.

    with serving() as server:
        launch(server, "torture.ranks:trained", {"parallel": "ddp"}, folder, size=2)

A rank is what a launcher would have started: RANK and WORLD_SIZE are set, and the process group is
open. It is opened through a file, so that no port is taken.
"""

import importlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import distributed

from gradroute.config.run_config import dump_config, load_config
from gradroute.data.batches import DataOrder, TokenizedExample, micro_batches
from gradroute.errors import GradrouteError
from gradroute.models.sharding import shard
from gradroute.routing.adapters import adapter_parameters, attach_adapters
from gradroute.routing.layers import adapter_weights, routed_layers
from gradroute.routing.policy import RoutingPolicy
from gradroute.runs.folder import RunFolder
from gradroute.system.launcher import own_rank
from gradroute.system.ranks import Ranks, join_ranks, lost_rank_told
from gradroute.system.sharded import whole
from gradroute.system.terminal import say
from gradroute.train import step
from gradroute.train.exchange import Exchange
from gradroute.train.gradient_norms import label_gradient_norms
from gradroute.train.optimizer import build_optimizer
from gradroute.train.tracking import tracked_config
from gradroute.train.trainer import train
from gradroute.train.training import Training
from torture.bases import tiny_llama
from torture.forks import Child, Server

_MEETINGS = itertools.count()
PATIENCE = timedelta(seconds=120)
ADAPTERS = {"good": 3, "bad": 2, "extra": 5}
POLICY = {
    "bad": {"good": "freeze", "bad": "update", "extra": "ablate"},
    "other": {"good": "freeze", "bad": "ablate", "extra": "update"},
    "unlabeled": {"good": "update", "bad": "update", "extra": "update"},
    "good": {"good": "update", "bad": "ablate", "extra": "freeze"},
}


def launch(
    server: Server,
    function: str,
    arguments: Mapping[str, Any],
    folder: Path,
    size: int,
    *,
    environments: Sequence[Mapping[str, str]] | None = None,
) -> list[Child]:
    """Start a function on so many ranks; each is given `out`, the folder.

    Args:
        server: Forks them.
        function: `module:name`; it takes the arguments and `out`.
        arguments: Whatever JSON can carry.
        folder: Their current directory.
        size: How many there are.
        environments: More variables of each rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f".meeting-{next(_MEETINGS)}"
    return [
        server.start(
            "torture.ranks:as_rank",
            {
                "function": function,
                "arguments": {**arguments, "out": str(folder)},
                "rank": rank,
                "size": size,
                "meeting": str(meeting.resolve()),
                "environment": dict(environments[rank]) if environments else {},
            },
            folder,
        )
        for rank in range(size)
    ]


def as_rank(
    function: str,
    arguments: Mapping[str, Any],
    rank: int,
    size: int,
    meeting: str,
    environment: Mapping[str, str],
) -> int:
    """In a child: join the group and call the function; its exit code, or that of its error."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        **environment,
    }
    if size > 1:
        store = distributed.FileStore(meeting, size)  # pyright: ignore[reportPrivateImportUsage]
        distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE
        )
    module, _, name = function.partition(":")
    try:
        return getattr(importlib.import_module(module), name)(**arguments) or 0
    except GradrouteError as error:
        if not error.told_elsewhere:
            say(f"error: {error}")
        return error.exit_code


def command(line: Sequence[str], out: str) -> int:
    """In a child: a line of the command line, as each rank of a launcher runs it."""
    from gradroute.cli.main import main

    return main(line)


def own_command(lines: Sequence[Sequence[str]], out: str) -> int:
    """In a child: a line of the command line that this rank alone is given."""
    return command(lines[own_rank()], out)


def examples(policy: RoutingPolicy, labels: Sequence[str]) -> list[TokenizedExample]:
    """One example a label, of several lengths; every fourth has labels by token as well."""
    draw = torch.Generator().manual_seed(1)
    rows = []
    for at, label in enumerate(labels):
        length = 5 + at % 4
        own, second = policy.label_ids([label, "good"])
        tokens = torch.randint(3, 40, (length,), generator=draw).tolist()
        by_token = (own,) * 3 + (second,) * (length - 4) + (own,) if at % 4 == 3 else ()
        rows.append(
            TokenizedExample(
                id=f"r{at}",
                input_ids=tuple(tokens),
                target_start=0,
                label_id=own,
                true_label="bad" if label == "bad" else "good",
                label_ids=by_token,
            )
        )
    return rows


def training(
    out: Path,
    ranks: Ranks,
    *,
    parallel: str = "ddp",
    labels: Sequence[str] = ("bad", "good", "unlabeled", "other"),
    overrides: Sequence[str] = (),
    dtype: str = "float64",
    checkpointing: bool = False,
) -> Training:
    """A run of a tiny model with three adapters of unequal ranks, on some labels in turn."""
    torch.set_num_threads(1)
    config = load_config(None, ["run_name=x", "train.learning_rate=0.01", *overrides])
    policy = RoutingPolicy.parse(POLICY, tuple(ADAPTERS))
    shapes = {
        name: config.adapters["good"].model_copy(update={"rank": rank})
        for name, rank in ADAPTERS.items()
    }
    base = tiny_llama(64, 64, spread=0.3, dtype=getattr(torch, dtype))
    model = attach_adapters(base, shapes, layers="all")
    _randomize(model, torch.float64 if dtype == "float64" else torch.float32)
    if checkpointing:
        model.enable_input_require_grads()
        base.gradient_checkpointing_enable({"use_reentrant": False})
    if parallel == "fsdp2":
        shard(model, ranks, torch.device("cpu"))
    folder = RunFolder(out / "x")
    folder.path.mkdir(parents=True, exist_ok=True)
    rows = examples(policy, labels)
    return Training(
        settings=config.train,
        seed=config.seed,
        config_text=dump_config(config),
        told=tracked_config(config.values_by_key),
        folder=folder,
        model=model,
        optimizer=build_optimizer(model, shapes, config.train.learning_rate),
        rows=rows,
        order=DataOrder(config.seed, len(rows), tuple(range(len(rows)))),
        policy=policy,
        pad_id=0,
        packed_into=config.data.max_length if config.train.packing else None,
        say=say,
        ranks=ranks,
        sharded=parallel == "fsdp2",
    )


def trained(out: str, **arguments: Any) -> int:
    """In a child: train a run of `training` to its end."""
    train(training(Path(out), join_ranks(), **arguments))
    return 0


def gradients(out: str, **arguments: Any) -> int:
    """In a child: the gradients of step 0 and its norms by label, written by rank 0."""
    ranks = join_ranks()
    run = training(Path(out), ranks, **arguments)
    exchange, batches = exchange_of(run)
    norms = label_gradient_norms(run.model, batches, run.policy, "token", None, exchange)
    step._backward(run.model, batches, run.policy, run.settings.loss_mean, None, None, exchange)
    found = adapter_parameters(run.model)
    exchange.add_gradients(p for own in found.values() for p in own)
    missing = [name for name, own in found.items() if any(p.grad is None for p in own)]
    tensors = {
        f"{name}.{at}": whole(p.grad)
        for name, own in found.items()
        for at, p in enumerate(own)
        if p.grad is not None
    }
    if ranks.is_main:
        save_file(tensors, Path(out) / "gradients.safetensors")
        told = {"norms": norms, "missing": missing, "sent": exchange.sent}
        (Path(out) / "told.json").write_text(json.dumps(told), encoding="utf-8")
    return 0


def exchange_of(run: Training, number: int = 0) -> tuple[Exchange, list[Any]]:
    """What the ranks exchange in a step, and the micro-batches of this one."""
    parts = [
        micro_batches(
            [run.rows[at] for at in run.places(number, rank)],
            run.at_once,
            run.pad_id,
            packed_into=run.packed_into,
        )
        for rank in range(run.ranks.size)
    ]
    own = run.ranks.rank
    before = [batch for part in parts[:own] for batch in part]
    after = [batch for part in parts[own + 1 :] for batch in part]
    return Exchange(run.ranks, before, after, False, run.at_once, run.sharded), parts[own]


def _randomize(model: PeftModel, dtype: torch.dtype) -> None:
    """Adapters away from zero, so that every one of them has a gradient, in this dtype."""
    draw = torch.Generator().manual_seed(2)
    for layer in routed_layers(model).layers.values():
        for name in layer.lora_A:
            for weight in adapter_weights(layer, name):
                weight.data = (0.2 * torch.randn(weight.shape, generator=draw)).to(dtype)


def starved(out: str, rank: int, most: int, **arguments: Any) -> int:
    """In a child: as `trained`, on a rank that has memory for so many examples at a time only."""
    run = training(Path(out), join_ranks(), **arguments)
    whole_pass = step.run_model

    def limited(model: PeftModel, inputs: Mapping[str, Any], head: Any) -> torch.Tensor:
        if run.ranks.rank == rank and len(inputs["input_ids"]) > most:
            raise MemoryError
        return whole_pass(model, inputs, head)

    with patch.object(step, "run_model", limited), lost_rank_told():
        train(run)
    return 0


def poisoned(out: str, rank: int, **arguments: Any) -> int:
    """In a child: as `trained`, with a rank whose model returns NaN for its first example."""
    run = training(Path(out), join_ranks(), **arguments)
    whole_pass = step.run_model

    def broken(model: PeftModel, inputs: Mapping[str, Any], head: Any) -> torch.Tensor:
        states = whole_pass(model, inputs, head)
        if run.ranks.rank != rank:
            return states
        first = inputs["input_ids"].shape[1]
        return torch.cat([states[:first] * torch.nan, states[first:]])

    with patch.object(step, "run_model", broken), lost_rank_told():
        train(run)
    return 0
