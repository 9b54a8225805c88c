"""A measurement's request: kinds of prompts for each behavior, and ablation modes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gradroute.config.run_config import RunConfig
from gradroute.data.behaviors import BEHAVIORS, get_behavior
from gradroute.errors import ConfigError
from gradroute.evaluate.generation import Prompt
from gradroute.evaluate.modes import read_modes
from gradroute.evaluate.prompts import PromptFile, read_prompts
from gradroute.prepare import Prepared, drawing, openings, prefixes
from gradroute.routing.policy import AblationMode, standard_modes
from gradroute.runs.results import HELD_OUT_BAD

KINDS = ("prefix", "plain", HELD_OUT_BAD, "bos")
"""Kinds of prompts that a run has of its own; any other is a user's file."""


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        prompts: Kinds of prompts (`KINDS`) or files of them; none for those of the behaviour.
        modes: Ablation modes; none for those of the run's config.
        scales: Scale curves, such as `bad=0,0.1,...,1`, measured as well.
        judged: Where no prompts are named: of each behavior only the kind that verdicts read.
    """

    prompts: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    judged: bool = False


class Question(NamedTuple):
    """Prompts of one kind that are to be completed and scored for one behaviour.

    Attributes:
        label: Of the behaviour.
        kind: Of the prompts.
        file: Where they come from; None for a kind of the run's own.
    """

    label: str
    kind: str
    file: PromptFile | None


def asked_modes(
    config: RunConfig, modes: Sequence[str] | None, curves: Sequence[str]
) -> list[AblationMode]:
    """The modes that are named and the points of the curves.

    Args:
        config: Of the run.
        modes: None for those of the config, or the standard ones where it names none.
        curves: Scale curves.

    Raises:
        ConfigError: One does not fit the run's adapters.
    """
    adapters = tuple(config.adapters)
    names = modes
    if names is None:
        names = config.evaluate.modes or [mode.name for mode in standard_modes(adapters)]
    try:
        return read_modes(names, curves, adapters)
    except ConfigError as error:
        raise ConfigError(f"run {config.run_name}: {error}") from error


def asked_prompts(
    config: RunConfig, names: Sequence[str], *, judged: bool = False
) -> list[Question]:
    """Every behaviour with every kind of prompts; without names, with those that it has itself.

    Args:
        config: Of the run.
        names: Kinds of prompts or files of them.
        judged: Without names, only the kind that verdicts read.

    Raises:
        ConfigError: Two different files of one name.
        DataError: A file of prompts cannot be used.
    """
    files: dict[str, PromptFile] = {}
    given: dict[str, PromptFile | None] = {}
    for name in names:
        file = None if name in KINDS else read_prompts(Path(name))
        kind = file.kind if file else name
        if file and files.setdefault(kind, file).sha256 != file.sha256:
            raise ConfigError(
                f"two different files of prompts have the name {kind.removeprefix('file:')}, under "
                f"which their results are stored; rename one."
            )
        given[kind] = file
    found = []
    for label, name in config.behaviors.items():
        behavior = get_behavior(name)
        own = (behavior.judged_on,) if judged else behavior.asked_kinds
        for kind, file in (given or dict.fromkeys(own)).items():
            found.append(Question(label, kind, file))
    return found


def judged_kinds(config: RunConfig) -> dict[str, str]:
    """Label -> the kind of prompts that verdicts read, of each behavior."""
    return {label: get_behavior(name).judged_on for label, name in config.behaviors.items()}


def declared_kinds(config: RunConfig) -> dict[str, str]:
    """The same under the labels of result rows, for behaviors that do not ship with gradroute.

    Results say it, for whoever reads them need not be able to import a user's own behavior.
    """
    return {
        row_label(config, label): kind
        for label, kind in judged_kinds(config).items()
        if config.behaviors[label] not in BEHAVIORS
    }


def prompts_of(prepared: Prepared, config: RunConfig, kind: str, label: str) -> list[Prompt]:
    """The prompts of a kind in `KINDS` for a behaviour, with the ids that name their noise."""
    settings, behavior = config.evaluate, prepared.behaviors[label]
    if kind == "bos":
        texts = [""] * settings.bos_samples
    elif kind == HELD_OUT_BAD:
        texts = drawing(prepared, label, settings.prompts, settings.prefix_words).texts
    elif kind == "plain":
        texts = openings(prepared, behavior, settings.prompts, settings.prefix_words)
    else:
        texts = prefixes(prepared, behavior, settings.prompts, settings.prefix_words)
    # What a chat template wrote has all its special tokens.
    written = [kind != "bos" and e.asks is not None for e in prepared.normal]
    written += [False] * len(texts)
    pairs = zip(texts, written, strict=False)
    return [Prompt(f"{kind}-{i}", text, templated) for i, (text, templated) in enumerate(pairs)]


def row_label(config: RunConfig, label: str) -> str:
    """The label of a behaviour in result rows: its own, or `all` where it is the only one."""
    return "all" if isinstance(config.behavior, str) else label
