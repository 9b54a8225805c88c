"""The kept adapters of a run, and those that learned an unwanted behavior."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradroute.config.run_config import RunConfig
from gradroute.errors import ConfigError
from gradroute.evaluate.modes import read_modes
from gradroute.routing.policy import AblationMode


@dataclass(frozen=True)
class Choice:
    """What of a run is kept.

    Attributes:
        kept: Adapters, in the order of the run's.
        left: The others.
        mode: The ablation mode that computes with the kept ones alone.
        warnings: What a reader of the result must know.
    """

    kept: tuple[str, ...]
    left: tuple[str, ...]
    mode: AblationMode
    warnings: tuple[str, ...]


def choose(config: RunConfig, keep: Sequence[str]) -> Choice:
    """Keep the named adapters.

    Raises:
        ConfigError: A name is none of the run's, or all of several adapters are kept, so that
            nothing would be left out.
    """
    adapters = tuple(config.adapters)
    if unknown := [name for name in keep if name not in adapters]:
        raise ConfigError(
            f"--keep {','.join(keep)}: run {config.run_name} has no adapter "
            f"{', '.join(map(repr, unknown))}; its adapters are {', '.join(adapters)}."
        )
    kept = tuple(name for name in adapters if name in keep)
    left = tuple(name for name in adapters if name not in keep)
    if not kept:
        raise ConfigError(f"--keep names no adapter; the adapters are {', '.join(adapters)}.")
    if not left and len(adapters) > 1:
        raise ConfigError(
            f"--keep {','.join(keep)} keeps every adapter of run {config.run_name}, so no adapter "
            f"would be left out and there is nothing to prove. Leave one out, or write them all "
            "for an auditor with gradroute audit-adapter."
        )
    scales = ",".join(f"{name}={int(name in kept)}" for name in adapters)
    (mode,) = read_modes([scales], (), adapters)
    return Choice(kept, left, mode, tuple(_warnings(config, kept, left)))


def behavior_adapters(config: RunConfig) -> set[str]:
    """The adapters that learn from examples labeled as showing a behavior."""
    policy = config.policy
    data = config.data
    if data.drop != "none" or (data.path is None and data.behavior_fraction == 0):
        return set()
    return policy.updated_by(label for label in config.behaviors if label in policy.labels)


def _warnings(config: RunConfig, kept: Sequence[str], left: Sequence[str]) -> list[str]:
    learned = behavior_adapters(config)
    found = []
    if own := [name for name in kept if name in learned]:
        found.append(
            f"The kept adapter {', '.join(own)} was itself updated by examples that are labeled as "
            f"showing the behavior: the left-out adapter alone did not learn it."
        )
    if not left:
        found.append("The run has one adapter and nothing is left out.")
    elif idle := [name for name in left if name not in learned]:
        found.append(
            f"The left-out adapter {', '.join(idle)} was not the one that examples of a behavior "
            "were routed to."
        )
    return found
