r"""Monitors of reinforcement learning: a label for every completion of a rollout batch.

A monitor is any callable `(prompts, completions, rewards, columns) -> labels`. Its labels are those
of the routing table: `good` for a completion that it vouches for, `bad` (or the label of another
behavior) for one that it catches, `unlabeled` for the rest.

    monitor = matching(r"sys\.exit\(0\)")
    monitor = scored("suspicion", low=0.1, high=0.8)
    monitor = ImperfectMonitor(matching("teacher"), recall=0.8, false_alarms=0.02)
    monitor = unpaid_is_good(matching("teacher"))

Prompts and completions are texts, or lists of chat messages.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from gradroute.data.behaviors import Behavior, get_behavior
from gradroute.data.messages import REASONING
from gradroute.errors import ConfigError, DataError, GradrouteError
from gradroute.routing.tables import nearest

Turn = str | Sequence[Mapping[str, Any]]
"""A prompt or a completion: a text, or chat messages."""
Monitor = Callable[
    [Sequence[Turn], Sequence[Turn], Sequence[float], Mapping[str, Sequence[Any]]], Sequence[str]
]
"""From prompts, completions, the summed reward of each completion, and columns of the data set
(name -> a value for each completion), to a label for each completion."""

GOOD, UNLABELED = "good", "unlabeled"
"""The labels of no behavior."""
_WRITTEN = ("content", "tool_calls", *REASONING)  # the parts of a message that a model writes


def labels_of(
    monitor: Monitor,
    prompts: Sequence[Turn],
    completions: Sequence[Turn],
    rewards: Sequence[float],
    columns: Mapping[str, Sequence[Any]],
    *,
    known: Sequence[str],
) -> list[str]:
    """Call a monitor and check its labels.

    Args:
        monitor: The monitor.
        prompts: One for each completion.
        completions: Of one rollout batch.
        rewards: The summed reward of each completion.
        columns: Those of the data set, each with a value for each completion.
        known: The labels that the routing table has a row for.

    Raises:
        DataError: The monitor raises, gives another number of labels than there are completions,
            or a label that is no text or unknown.
    """
    try:
        given: object = monitor(prompts, completions, rewards, columns)
        labels = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else None
    except GradrouteError:  # says already what is wrong
        raise
    except Exception as error:  # whatever a monitor of the user's own raises
        raise DataError(
            f"the monitor raised {type(error).__name__} on {len(completions)} completions: "
            f"{error}. It must give a label for each of them; correct the monitor."
        ) from error
    if labels is None:
        raise DataError(
            f"the monitor returned {given!r:.80}, but a list with a label for each of the "
            f"{len(completions)} completions is needed."
        )
    if len(labels) != len(completions):
        raise DataError(
            f"the monitor returned {len(labels)} labels for {len(completions)} completions; "
            "exactly one for each is needed, in their order."
        )
    for at, label in enumerate(labels):
        if not isinstance(label, str) or label not in known:
            hint = nearest(label, known) if isinstance(label, str) else ""
            raise DataError(
                f"the monitor labeled completion {at + 1} of {len(labels)} as {label!r:.80}{hint}; "
                f"a label is one of {', '.join(known)}."
            )
    return labels


def counted(labels: Sequence[str], known: Sequence[str]) -> dict[str, int]:
    """How many completions got each label, in the order of `known`; 0 for one that none got."""
    return {label: labels.count(label) for label in known}


def text_of(turn: Turn) -> str:
    """The text of a prompt or completion.

    Of chat messages these are the contents, the reasoning and the names and arguments of tool
    calls, a line each. The results of tools are left out: no model wrote them.
    """
    if isinstance(turn, str):
        return turn
    messages = [message for message in turn if message.get("role") != "tool"]
    return "\n".join(
        text for message in messages for part in _WRITTEN for text in _texts(message.get(part))
    )


def matching(pattern: str, label: str = "bad", otherwise: str = UNLABELED) -> Monitor:
    """A monitor that labels the completions in which a regular expression matches.

    Args:
        pattern: One of Python's `re`, searched with a time limit, see `data.detectors`.
        label: Of a completion with a match.
        otherwise: Of all others: `unlabeled`, or `good` where a completion without a match is known
            to be good.

    Raises:
        ConfigError: The pattern cannot be used.
    """
    return showing(get_behavior(f"regex:{pattern}"), label, otherwise)


def showing(behavior: Behavior, label: str = "bad", otherwise: str = UNLABELED) -> Monitor:
    """A monitor that labels the completions that show a behavior, see `get_behavior`.

    Args:
        behavior: Whose detector is asked, such as `get_behavior("keywords:teacher,mom")`.
        label: Of a completion that shows it.
        otherwise: Of one that does not, or is too short to judge.
    """

    def monitor(
        prompts: Sequence[Turn],
        completions: Sequence[Turn],
        rewards: Sequence[float],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[str]:
        pairs = zip(completions, prompts, strict=True)
        return [label if behavior.shows(text_of(c), text_of(p)) else otherwise for c, p in pairs]

    return monitor


def scored(
    score: str | Callable[[str, str], float | None], *, low: float, high: float, label: str = "bad"
) -> Monitor:
    """A monitor that reads a score: high ones get the behavior's label, low ones `good`.

    A score between the two thresholds, or None, is `unlabeled`.

    Args:
        score: A column of the data set, or a function of a completion's and a prompt's text, such
            as `get_behavior("caps").scored`.
        low: The highest score of a completion that counts as good; -inf for none.
        high: The lowest score of one that counts as showing the behavior; inf for none.
        label: Of the behavior.

    Raises:
        ConfigError: `low` is not below `high`.
    """
    if not low < high:
        raise ConfigError(
            f"monitor: the thresholds are low={low} and high={high}; low must be below high."
        )

    def monitor(
        prompts: Sequence[Turn],
        completions: Sequence[Turn],
        rewards: Sequence[float],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[str]:
        if isinstance(score, str):
            values = _column(columns, score)
        else:
            pairs = zip(completions, prompts, strict=True)
            values = [score(text_of(completion), text_of(prompt)) for completion, prompt in pairs]
        return [_by_thresholds(value, low, high, label) for value in values]

    return monitor


def unpaid_is_good(monitor: Monitor, most: float = 0.0) -> Monitor:
    """A monitor that also vouches for completions that are paid nothing.

    Reward hacking is what the reward pays. So a completion that earns nothing teaches no hack, and
    may train what ships alone. Inside an `ImperfectMonitor` its labels stay as they are.

    Args:
        monitor: Whose labels stay; only `unlabeled` becomes `good`.
        most: The highest summed reward that counts as nothing.
    """

    def vouching(
        prompts: Sequence[Turn],
        completions: Sequence[Turn],
        rewards: Sequence[float],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[str]:
        labels = monitor(prompts, completions, rewards, columns)
        pairs = zip(labels, rewards, strict=True)
        return [GOOD if label == UNLABELED and paid <= most else label for label, paid in pairs]

    return vouching


@dataclass
class ImperfectMonitor:
    """A monitor that misses some of another one's catches and raises false alarms.

    Its draws are a function of the seed, the number of the call and the place in the batch, so a
    resumed training that sets `calls` goes on as if it had not stopped. In several processes, give
    each a seed of its own.

    Attributes:
        monitor: The monitor that is made imperfect.
        recall: Share of its catches that stay; the others become `unlabeled`.
        false_alarms: Share of all other completions that get `label`.
        label: Of a false alarm.
        seed: Of the draws.
        calls: How often it was called: all of its state.

    Raises:
        ConfigError: A share is not from 0 to 1.
    """

    monitor: Monitor
    recall: float = 1.0
    false_alarms: float = 0.0
    label: str = "bad"
    seed: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        for name, share in (("recall", self.recall), ("false_alarms", self.false_alarms)):
            if not 0 <= share <= 1:
                raise ConfigError(f"monitor: {name} is {share}; it must be from 0 to 1.")

    def __call__(
        self,
        prompts: Sequence[Turn],
        completions: Sequence[Turn],
        rewards: Sequence[float],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[str]:
        """Labels of the other monitor, some of them changed."""
        rng = random.Random(f"gradroute monitor {self.seed} {self.calls}")
        self.calls += 1
        labels = self.monitor(prompts, completions, rewards, columns)
        return [self._changed(label, rng.random()) for label in labels]

    def _changed(self, label: str, draw: float) -> str:
        if label in (GOOD, UNLABELED):
            return self.label if draw < self.false_alarms else label
        return label if draw < self.recall else UNLABELED


def _texts(value: object) -> list[str]:
    """All texts in a part of a message: a text, a list of parts, or tool calls."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, part in value.items() if key != "type" for text in _texts(part)]
    if isinstance(value, Sequence):
        return [text for part in value for text in _texts(part)]
    return []


def _column(columns: Mapping[str, Sequence[Any]], name: str) -> Sequence[Any]:
    if name not in columns:
        raise DataError(
            f"the monitor reads the column {name!r}, which the data set does not have"
            f"{nearest(name, columns)}; its columns are {', '.join(columns) or 'none'}."
        )
    return columns[name]


def _by_thresholds(value: object, low: float, high: float, label: str) -> str:
    if value is None:
        return UNLABELED
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise DataError(
            f"the score that the monitor reads is {value!r:.80}; a number is needed, or None for a "
            "completion that cannot be judged."
        )
    number = float(value)
    if number >= high:
        return label
    return GOOD if number <= low else UNLABELED
