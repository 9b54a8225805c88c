"""A measurement's request: kinds of prompts for each behavior, and ablation modes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gradroute.config.sections import EvaluateConfig
from gradroute.data.bad_prompts import (
    BadPrompts,
    DetectionCount,
    bad_prompts,
    count_detected,
    truly_bad,
)
from gradroute.data.behaviors import BEHAVIORS, Behavior
from gradroute.data.examples import Example, with_asked
from gradroute.errors import ConfigError
from gradroute.evaluate.elicitation import ELICITATION, AskedPrompt, elicitation_prompts
from gradroute.evaluate.generation import Prompt
from gradroute.evaluate.modes import read_modes
from gradroute.evaluate.prompts import PromptFile, read_prompts
from gradroute.prepare import Prepared
from gradroute.routing.policy import AblationMode, standard_modes
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import HELD_OUT_BAD, PREFIX
from gradroute.runs.resume import read_manifest

_FOLLOWS = 16
"""Characters behind a prompt that say which token a space at its end belongs to."""

KINDS = ("prefix", "plain", HELD_OUT_BAD, "bos", *ELICITATION)
"""Kinds of prompts that a run has of its own; any other is a user's file."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What a command line asks for.

    Attributes:
        prompts: Kinds of prompts (`KINDS`) or files of them; none for those of the behavior.
        modes: Ablation modes; none for those of the run's config.
        scales: Scale curves, such as `bad=0,0.1,...,1`, measured as well.
        judged: Where no prompts are named: of each behavior only the kind that verdicts read.
        elicitation: Also the elicitation grid: ordinary prompts, those that verdicts read, and the
            kinds in `ELICITATION`.
    """

    prompts: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    judged: bool = False
    elicitation: bool = False


class Question(NamedTuple):
    """Prompts of one kind that are to be completed and scored for one behavior.

    Attributes:
        label: Of the behavior.
        kind: Of the prompts.
        file: Where they come from; None for a kind of the run's own.
    """

    label: str
    kind: str
    file: PromptFile | None


def requested_modes(
    run: str, adapters: Collection[str], modes: Sequence[str] | None, curves: Sequence[str]
) -> list[AblationMode]:
    """The modes that are named and the points of the curves.

    Args:
        run: The run's name, for messages.
        adapters: Its adapters.
        modes: None for the standard ones.
        curves: Scale curves.

    Raises:
        ConfigError: One does not fit the run's adapters.
    """
    names = tuple(adapters)
    if modes is None:
        modes = [mode.name for mode in standard_modes(names)]
    try:
        return read_modes(modes, curves, names)
    except ConfigError as error:
        raise ConfigError(f"run {run}: {error}") from error


def drawn_by_rows(prepared: Prepared) -> list[str]:
    """Labels of behaviors with an invitation that the user's own rows draw in another way.

    Capitals may answer rude questions, and no prompt in capitals draws them. So where the file has
    the labels, and less than half of the prompts of held-out bad rows are such as the invitation
    makes them, verdicts read those prompts.

    Raises:
        DataError: A detector or an invitation of the user's own fails.
    """
    found = []
    for label, behavior in prepared.behaviors.items():
        rows = [row for row in truly_bad(prepared.behaving[label], label) if row.prompt]
        if prepared.labeled and behavior.invite is not None:
            invited = sum(_is_invited(row, behavior, behavior.invite) for row in rows)
            found += [label] if 2 * invited < len(rows) else []
    return found


def _is_invited(row: Example, behavior: Behavior, invite: Callable[[str], str]) -> bool:
    """Whether a row's prompt is one that an invitation makes: it has its mark, or shows it."""
    start, end = row.asks or (0, len(row.prompt))
    asked, mark = row.prompt[start:end], invite("")
    if invite(asked) == asked or (mark and mark in asked):
        return True
    return behavior.shows(asked, "") is True


def saved_drawn_by_rows(folder: RunFolder) -> list[str]:
    """The same of a run, as its manifest says; nothing of a run of an older gradroute.

    Raises:
        DataError: The manifest is damaged.
    """
    return list(read_manifest(folder).get("drawn_by_rows", ()))


def requested_prompts(
    behaviors: Mapping[str, Behavior],
    names: Sequence[str],
    drawn: Collection[str],
    *,
    judged: bool = False,
    elicitation: bool = False,
) -> list[Question]:
    """Every behavior with every kind of prompts; without names, with those that it has itself.

    Args:
        behaviors: Label -> behavior.
        names: Kinds of prompts or files of them.
        drawn: Labels that are judged on their rows' prompts, see `drawn_by_rows`.
        judged: Without names, only the kind that verdicts read.
        elicitation: Also the kinds of the elicitation grid.

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
    for label, behavior in behaviors.items():
        if label in drawn:
            own = (HELD_OUT_BAD, "plain", *behavior.prompt_kinds)
        else:
            own = behavior.asked_kinds
        own = own[:1] if judged else own
        kinds = dict(given or dict.fromkeys(own))
        if elicitation:
            judge = HELD_OUT_BAD if label in drawn else behavior.judged_on
            kinds = dict.fromkeys((judge, "plain", *ELICITATION)) | kinds
        for kind, file in kinds.items():
            found.append(Question(label, kind, file))
    return found


def judged_kinds(behaviors: Mapping[str, Behavior], drawn: Collection[str]) -> dict[str, str]:
    """Label -> the kind of prompts that verdicts read, of each behavior.

    Args:
        behaviors: Label -> behavior.
        drawn: Labels that are judged on their rows' prompts, see `drawn_by_rows`.
    """
    return {
        label: HELD_OUT_BAD if label in drawn else behavior.judged_on
        for label, behavior in behaviors.items()
    }


def declared_kinds(behaviors: Mapping[str, Behavior], drawn: Collection[str]) -> dict[str, str]:
    """The same of the behaviors whose names do not tell it.

    Results say it, for whoever reads them need not be able to import a user's own behavior, and
    has no rows.
    """
    return {
        label: kind
        for label, kind in judged_kinds(behaviors, drawn).items()
        if label in drawn or behaviors[label] not in BEHAVIORS.values()
    }


def prompts_of(prepared: Prepared, settings: EvaluateConfig, kind: str, label: str) -> list[Prompt]:
    """The prompts of a kind in `KINDS` for a behavior, with the ids that name their noise."""
    if kind not in ELICITATION:
        return [prompt for prompt, _ in _asked(prepared, settings, kind, label)]
    judge = judged_kinds(prepared.behaviors, drawn_by_rows(prepared))[label]
    return elicitation_prompts(
        kind,
        prepared.behaviors[label],
        ordinary=_asked(prepared, settings, "plain", label),
        original=_asked(prepared, settings, judge, label),
        rows=truly_bad(prepared.behaving[label], label),
        count=settings.prompts,
        words=settings.prefix_words,
    )


def _asked(
    prepared: Prepared, settings: EvaluateConfig, kind: str, label: str
) -> list[AskedPrompt]:
    """The prompts of any other kind, with the part that their authors wrote in chats."""
    behavior = prepared.behaviors[label]
    # What a chat template wrote has all its special tokens.
    written = {example.prompt: example.asks for example in prepared.normal if example.asks}
    if kind == "bos":
        texts, written = [""] * settings.bos_samples, {}
    elif kind == HELD_OUT_BAD:
        texts, rows, _ = drawing(prepared, label, settings.prompts, settings.prefix_words)
        written = {t: own[0].asks for t, own in zip(texts, rows, strict=True) if own[0].asks}
    elif kind == "plain" or behavior.invite is None:
        texts = openings(prepared, behavior, settings.prompts, settings.prefix_words)
    else:
        texts = prefixes(prepared, behavior, settings.prompts, settings.prefix_words)
        written = dict(_invited(one, behavior.invite) for one in prepared.normal if one.asks)
    follows = _follows(prepared, behavior, label, kind)
    return [
        (
            Prompt(f"{kind}-{i}", text, text in written, follows.get(text) or Prompt.follows),
            written.get(text),
        )
        for i, text in enumerate(texts)
    ]


def _invited(example: Example, invite: Callable[[str], str]) -> tuple[str, tuple[int, int]]:
    """A chat's prompt with an invitation, and the characters of it that were asked."""
    text, (start, end) = with_asked(example, invite), example.asks or (0, len(example.prompt))
    return text, (start, len(text) - (len(example.prompt) - end))


def openings(prepared: Prepared, behavior: Behavior, count: int, words: int) -> list[str]:
    """Ordinary prompts: `count` at most, from held-out examples without any behavior.

    An example's own prompt, or the beginning of its text where it has none. Of a behavior without
    an invitation no prompt is there twice; others keep one prompt per example, as many as of
    `prefixes`.
    """
    opening = behavior.opening
    if behavior.invite is None:
        found = dict.fromkeys(e.prompt or opening(e.text, words) for e in prepared.normal)
        return [*found][:count]
    return [e.prompt or opening(e.text, words) for e in prepared.normal[:count]]


def prefixes(prepared: Prepared, behavior: Behavior, count: int, words: int) -> list[str]:
    """The same prompts, changed so that they invite the behavior, where there is a way to."""
    plain, invite = openings(prepared, behavior, count, words), behavior.invite
    if invite is None:
        return plain
    return [
        with_asked(example, invite) if example.prompt else invite(opening)
        for example, opening in zip(prepared.normal, plain, strict=False)
    ]


def drawing(prepared: Prepared, label: str, count: int | None, words: int) -> BadPrompts:
    """The prompts of held-out rows that show a behavior, see `bad_prompts`."""
    rows = truly_bad(prepared.behaving[label], label)
    return bad_prompts(rows, prepared.behaviors[label], label, count, words)


def seen_held_out(prepared: Prepared, label: str) -> DetectionCount:
    """In how many held-out rows that show a behavior the detector sees it."""
    return count_detected(truly_bad(prepared.behaving[label], label), prepared.behaviors[label])


def _follows(prepared: Prepared, behavior: Behavior, label: str, kind: str) -> dict[str, str]:
    """What stands behind each row's own prompt, of the first row that has it."""
    drawn = kind == HELD_OUT_BAD
    rows = truly_bad(prepared.behaving[label], label) if drawn else prepared.normal
    invite = behavior.invite if kind == PREFIX else None
    found: dict[str, str] = {}
    for row in rows:
        if row.prompt and row.asks is None:
            found.setdefault(invite(row.prompt) if invite else row.prompt, row.text[:_FOLLOWS])
    return found


def row_label(behavior: str | Mapping[str, str], label: str) -> str:
    """The label of a behavior in result rows: its own, or `all` where it is the only one.

    Args:
        behavior: `behavior` of the config: one name, or label -> name.
        label: Of the behavior.
    """
    return "all" if isinstance(behavior, str) else label


def with_label(what: str, label: str) -> str:
    """What belongs to a behavior, such as `prefix of rude`; `prefix` for the row label `all`."""
    return what if label == "all" else f"{what} of {label}"
