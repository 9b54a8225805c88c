"""The adapters of a run that an export keeps, and what a reader must know of the choice."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from gradroute.errors import ConfigError
from gradroute.evaluate.modes import read_modes
from gradroute.routing.policy import AblationMode


@dataclass(frozen=True)
class Choice:
    """What of a run is kept.

    Attributes:
        shipped: Adapters, in the order of the run's.
        left_out: The others.
        mode: The ablation mode that computes with the kept ones alone.
        warnings: What a reader of the result must know.
    """

    shipped: tuple[str, ...]
    left_out: tuple[str, ...]
    mode: AblationMode
    warnings: tuple[str, ...]


def choose(
    keep: Sequence[str] | None,
    adapters: Sequence[str],
    *,
    learned: Collection[str],
    run_name: str,
    all_may_stay: bool = False,
) -> Choice:
    """Keep the named adapters of a run.

    Args:
        keep: Their names; None for those that did not learn a behavior.
        adapters: Those of the run.
        learned: Of them, those that learned from examples of a behavior; see
            `RunConfig.behavior_adapters`.
        run_name: Name of the run, for messages.
        all_may_stay: Whether all of several adapters may be kept, each in a file of its own.

    Raises:
        ConfigError: A name is none of the run's, or all of several adapters are kept, so that
            nothing would be left out, or none is named and the run does not tell which is which.
    """
    if keep is None:
        keep = [name for name in adapters if name not in learned]
        if not keep or not learned:
            raise ConfigError(
                f"run {run_name}: {'every' if learned else 'no'} adapter was trained on examples "
                "labeled as showing the behavior, so which ones may be shipped is not known. Name "
                f"them with --keep; the adapters are {', '.join(adapters)}."
            )
    if unknown := [name for name in keep if name not in adapters]:
        raise ConfigError(
            f"--keep {','.join(keep)}: run {run_name} has no adapter "
            f"{', '.join(map(repr, unknown))}; its adapters are {', '.join(adapters)}."
        )
    kept = tuple(name for name in adapters if name in keep)
    left = tuple(name for name in adapters if name not in keep)
    if not kept:
        raise ConfigError(f"--keep names no adapter; the adapters are {', '.join(adapters)}.")
    if not left and len(adapters) > 1 and not all_may_stay:
        raise ConfigError(
            f"--keep {','.join(keep)} keeps every adapter of run {run_name}, so no adapter "
            f"would be left out and there is nothing to prove. Leave one out, or write them all "
            "for an auditor with gradroute audit-adapter."
        )
    scales = ",".join(f"{name}={int(name in kept)}" for name in adapters)
    (mode,) = read_modes([scales], (), adapters)
    return Choice(kept, left, mode, tuple(_warnings(kept, left, learned)))


def _warnings(
    shipped: Sequence[str], left_out: Sequence[str], learned: Collection[str]
) -> Iterator[str]:
    if not left_out and len(shipped) > 1:
        yield (
            f"Every adapter of the run is here, each in a file of its own, also "
            f"{', '.join(name for name in shipped if name in learned) or 'all that was trained'}: "
            "this is for auditors. Do not ship it."
        )
        return
    if own := [name for name in shipped if name in learned]:
        yield (
            f"The kept adapter {', '.join(own)} was itself updated by examples that are labeled as "
            f"showing the behavior: the left-out adapter alone did not learn it."
        )
    if not left_out:
        yield "The run has one adapter and nothing is left out."
    elif idle := [name for name in left_out if name not in learned]:
        yield (
            f"The left-out adapter {', '.join(idle)} was not the one that examples of a behavior "
            "were routed to."
        )
