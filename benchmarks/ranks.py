"""What a step costs on two ranks: gradroute's against PEFT LoRA with accelerate, and one process.

    python benchmarks/ranks.py
    python benchmarks/ranks.py --rounds 3 --shapes 2M-16x256

Two processes of one thread each, connected by gloo. Each has a batch of its own, so that a step has
twice the examples of the shape. The usual way is one LoRA adapter of the whole rank in accelerate's
DDP. All ways run in the same two processes, in turn; a way begins when both are there and ends when
both are done. "One process" does both batches while the other waits.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import measuring
import shapes
import steps
import torch
from accelerate import Accelerator
from measuring import Bound, Seconds
from torch import distributed, nn
from transformers import LlamaForCausalLM

from gradroute.config.sections import AdapterConfig
from gradroute.data.batches import Batch
from gradroute.models.sharding import shard
from gradroute.system.ranks import Ranks, join_ranks
from gradroute.train.exchange import Exchange
from gradroute.train.optimizer import build_optimizer
from gradroute.train.step import train_step

ALONE, DDP, FSDP2, PEFT = (
    "one process, routed",
    "two ranks, routed, ddp",
    "two ranks, routed, fsdp2",
    "two ranks, PEFT LoRA, accelerate",
)
SHAPES = ("2M-16x256", "135M-4x64")
MEETING = "GRADROUTE_BENCH_MEETING"


def routed(
    base: LlamaForCausalLM, batches: Sequence[Batch], ranks: Ranks, parallel: str
) -> Callable:
    """Gradroute's step on this rank's batch."""
    model = shapes.routed_model(base)
    if parallel == "fsdp2":
        shard(model, ranks, torch.device("cpu"))
    names = tuple(model.peft_config)
    rules = steps.policy("anchored", names)
    optimizer = build_optimizer(model, {name: AdapterConfig() for name in names}, steps.RATE)
    own, others = batches[ranks.rank], batches[1 - ranks.rank]

    def step() -> int:
        before, after = ([], [others]) if ranks.is_main else ([others], [])
        exchange = Exchange(ranks, before, after, False, len(own.ids), parallel == "fsdp2")
        train_step(model, optimizer, [own], rules, loss_mean="token", rate=1.0, exchange=exchange)
        return exchange.sent

    return step


def peft(base: LlamaForCausalLM, batch: Batch) -> Callable:
    """The usual way: PEFT's adapter in accelerate's DDP, mean loss, clip, AdamW."""
    accelerator = Accelerator(cpu=True)
    bare = shapes.peft_model(base, {"one": 2 * shapes.RANK})
    weights = [weight for weight in bare.parameters() if weight.requires_grad]
    model, optimizer = accelerator.prepare(bare, steps.adamw(weights))

    def step() -> float:
        loss = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.input_ids
        ).loss
        accelerator.backward(loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def measure(name: str, rounds: int, seed: int) -> list[dict]:
    """The tables of one shape: CPU time of rank 0, and the wall clock."""
    ranks = join_ranks()
    of = shapes.shape(name)
    base = shapes.base(of.size)
    ids = steps.label_ids("anchored")
    batches = [shapes.batch(of, ids, seed + rank) for rank in range(2)]
    alone = steps.routed(shapes.routed_model(base), batches, "anchored")
    ddp = routed(base, batches, ranks, "ddp")
    sent = ddp()
    # The sharded model has a base of its own: sharding takes the weights away.
    ways = {
        ALONE: alone if ranks.is_main else lambda: None,
        DDP: ddp,
        PEFT: peft(base, batches[ranks.rank]),
        FSDP2: routed(shapes.base(of.size), batches, ranks, "fsdp2"),
    }

    def together(way: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            ranks.wait()
            way()
            ranks.wait()

        return run

    times = measuring.interleaved(
        {name: together(way) for name, way in ways.items()}, rounds, seed, warm=2
    )
    if not ranks.is_main:
        return []
    adapters = 4 * sum(p.numel() for p in shapes.routed_model(base).parameters() if p.requires_grad)
    tokens = 2 * of.examples * of.tokens
    wall = {way: Seconds(own.wall, own.wall) for way, own in times.items()}
    facts = {
        "bytes_sent": sent,
        "bytes_of_gradients": adapters,
        "tokens_per_second": {
            way: round(tokens / sorted(own.wall)[len(own.wall) // 2]) for way, own in times.items()
        },
    }
    bound = [Bound(DDP, PEFT, 1.05)]
    return [
        measuring.table(
            f"{name}, CPU time of rank 0", times, PEFT, seed=seed, bounds=bound, **facts
        ),
        measuring.table(f"{name}, wall clock", wall, PEFT, seed=seed, bounds=bound),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Start the two ranks, or be one of them."""
    asked = measuring.options(__doc__, argv, rounds=20, shapes=SHAPES)
    if MEETING not in os.environ:
        _start(sys.argv[1:] if argv is None else list(argv))
        return
    rank = int(os.environ["RANK"])
    store = distributed.FileStore(os.environ[MEETING], 2)  # pyright: ignore[reportPrivateImportUsage]
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(minutes=10)
    )
    torch.set_num_threads(1)
    load = measuring.load_average()
    tables = [one for name in asked.shapes for one in measure(name, asked.rounds, asked.seed)]
    if rank == 0:
        question = "What does a step cost on two ranks?"
        measuring.write("ranks", question, tables, asked, load)
    distributed.barrier()


def _start(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            MEETING: str(Path(folder) / "meeting"),
        }
        children = [
            subprocess.Popen(
                [sys.executable, __file__, *arguments],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]
        if any([child.wait() for child in children]):
            raise SystemExit("error: a rank has failed; see above.")


if __name__ == "__main__":
    main()
