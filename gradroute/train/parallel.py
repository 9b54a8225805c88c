"""How several processes train one run: the strategy, and what they must have in common.

ddp      every rank has the base; the gradients of the adapters are summed once a step
fsdp2    the base and the adapters are sharded by decoder layer, see `models.sharding`

The examples of a step are the same whatever the number of ranks: each takes an equal part of them.
"""

import hashlib
import json
from collections.abc import Sequence

from gradroute.config.run_config import RunConfig, dump_config
from gradroute.config.sections import TrainConfig
from gradroute.data.batches import TokenizedExample
from gradroute.errors import ConfigError
from gradroute.models.base import Base
from gradroute.models.checkpoint import Checkpoint
from gradroute.runs.provenance import provenance
from gradroute.system.ranks import Ranks
from gradroute.system.terminal import say


def strategy_of(config: RunConfig, ranks: Ranks, *, audit: bool) -> str:
    """What `train.parallel` comes to: none, ddp or fsdp2.

    Raises:
        ConfigError: The run cannot be trained so on these ranks.
    """
    asked, size = config.train.parallel, ranks.size
    if asked == "none" and ranks.several:
        raise ConfigError(
            f"train.parallel=none trains on one process, and {size} were launched. Start it "
            "without a launcher, or set train.parallel=auto."
        )
    chosen = "ddp" if asked == "auto" else asked
    if chosen == "ddp" and not ranks.several:
        chosen = "none"
    examples = config.train.step_examples
    if examples % size:
        fitting = ", ".join(str(n) for n in range(1, examples + 1) if examples % n == 0)
        raise ConfigError(
            f"a step has {examples} examples (train.batch_size x train.gradient_accumulation), "
            f"which {size} processes cannot share equally. Launch {fitting} of them, or change "
            "the batch."
        )
    if audit and ranks.several:
        raise ConfigError(
            f"--audit follows every example through one process, and {size} were launched. Audit "
            "the run without a launcher: its routes do not depend on how many processes train it."
        )
    if chosen == "fsdp2":
        _check_shardable(config)
    return chosen


def cached_settings(settings: TrainConfig, parallel: str, run: str | None = None) -> TrainConfig:
    """The settings by which hidden states are kept: those of the run, but for a sharded model.

    Args:
        settings: Of the run.
        parallel: From `strategy_of`.
        run: Its name, to say that `train.reuse_frozen` is left out; None says nothing.
    """
    if parallel != "fsdp2" or not settings.reuse_frozen:
        return settings
    if run is not None:
        say(
            f"{run}: train.reuse_frozen has no effect under train.parallel=fsdp2: the ranks run "
            "sharded layers together, each with its own examples."
        )
    return settings.model_copy(update={"reuse_frozen": False})


def _check_shardable(config: RunConfig) -> None:
    told = "train.parallel=fsdp2 shards the weights of the base"
    if config.quantize != "none":
        raise ConfigError(
            f"{told}, and quantize={config.quantize} packs them into blocks that cannot be cut. "
            "Use train.parallel=ddp, which quantized bases can have, or quantize=none."
        )
    for key in ("kl_good", "teacher"):
        if getattr(config.train, key):
            raise ConfigError(
                f"{told}, and every rank has to run them equally often; with train.{key} that "
                "depends on its examples. Use train.parallel=ddp."
            )


def check_equal_start(
    ranks: Ranks,
    config: RunConfig,
    base: Base,
    rows: Sequence[TokenizedExample],
    checkpoint: Checkpoint | None,
) -> None:
    """See that every rank has begun with the same settings, versions, base, data and checkpoint.

    Raises:
        ConfigError: One has another; the message names it.
    """
    if not ranks.several:
        return
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode())
    versions = provenance()["versions"]
    ranks.check_equal(
        {
            "configuration": hashlib.sha256(dump_config(config).encode()).hexdigest(),
            "versions": json.dumps(versions),
            "base model": base.identity,
            "training examples": digest.hexdigest(),
            "checkpoint to go on from": checkpoint.identity if checkpoint else "none",
        }
    )
