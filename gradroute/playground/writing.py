"""One request as events: tokens as they come, then texts with scores, then differences.

    tokens       [[column, text], ...], what one step adds
    written      per column its pieces, score, and the characters that the detector matched
    differences  per column and token: log-probability there, and its difference to the first column

The difference of a token is log p(token) in its column less log p(token) in the first one, after
the same tokens, in nats: above 0 where the column is more inclined to write it.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from gradroute.data.behaviors import Behavior
from gradroute.data.tokenization import TokenizedExample
from gradroute.errors import DataError
from gradroute.evaluate.generation import Completion, Prompt
from gradroute.evaluate.losses import held_out_token_losses
from gradroute.evaluate.streaming import Piece, Written, stream_modes
from gradroute.playground.asked import Asked, Column
from gradroute.playground.loaded import Played
from gradroute.routing.policy import AblationMode

ROWS = 4
"""Rows at once whose log-probabilities are taken."""


class Event(NamedTuple):
    """Something for the page.

    Attributes:
        name: Which of the events it is.
        data: Plain values.
    """

    name: str
    data: Any


class Result(NamedTuple):
    """What a request gave, for a pin.

    Attributes:
        asked: The request.
        columns: Per column what is said of it in the event `written`.
    """

    asked: Asked
    columns: list[dict[str, Any]]


def write(asked: Asked, played: Mapping[str, Played]) -> Generator[Event, None, Result]:
    """Do a request; closing the generator ends it at once.

    Args:
        asked: The request.
        played: Run -> its model.

    Raises:
        GradrouteError: The prompt is too long, or numbers are not finite.
    """
    written: dict[int, Written] = {}
    with torch.no_grad():  # around the streams, which end in an order of their own
        for pieces in _side_by_side(asked, played, written):
            yield Event("tokens", pieces)
        columns = [
            _described(column, written[at], asked, played[column.run])
            for at, column in enumerate(asked.columns)
        ]
        yield Event("written", columns)
        yield Event("differences", list(_differences(asked, played, written)))
    return Result(asked, columns)


def _side_by_side(
    asked: Asked, played: Mapping[str, Played], written: dict[int, Written]
) -> Iterator[list[tuple[int, str]]]:
    """What all columns write, in steps; those of one run share a batch, runs take turns."""
    places: dict[str, list[int]] = {}
    for at, column in enumerate(asked.columns):
        places.setdefault(column.run, []).append(at)
    streams = {
        run: _stream(asked, played[run], [asked.columns[at].mode for at in own])
        for run, own in places.items()
    }
    try:
        while streams:
            step: list[tuple[int, str]] = []
            for run, stream in list(streams.items()):
                try:
                    step += [(places[run][piece.mode], piece.text) for piece in next(stream)]
                except StopIteration as done:
                    written |= zip(places[run], done.value, strict=True)
                    del streams[run]
            if step:
                yield step
    finally:
        for stream in streams.values():
            stream.close()


def _stream(
    asked: Asked, played: Played, modes: Sequence[AblationMode]
) -> Generator[list[Piece], None, list[Written]]:
    return stream_modes(
        played.model,
        played.base.tokenizer,
        asked.prompt,
        modes,
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        seed=asked.seed,
        score_thoughts=played.config.evaluate.score_thoughts,
    )


def _described(column: Column, own: Written, asked: Asked, played: Played) -> dict[str, Any]:
    completion = own.completion
    return {
        "run": column.run,
        "step": played.step,
        "mode": column.mode.name,
        "scales": dict(column.mode.scales),
        "completion": completion.text,
        "pieces": own.pieces,
        "tokens": completion.tokens,
        "ended": completion.ended,
        "scores": [
            {"label": label, **scored(behavior, completion, asked.prompt)}
            for label, behavior in played.behaviors.items()
        ],
    }


def scored(behavior: Behavior, completion: Completion, prompt: Prompt) -> dict[str, Any]:
    """The detector's score of a completion, and where in its text what it saw stands.

    Returns:
        `behavior`, `score`, `shows` (both None where it is too short to judge), `threshold`,
        `places` (characters [start, end); None where the detector names none), or `error`.
    """
    known = {"behavior": behavior.name, "threshold": behavior.threshold}
    answer = completion.scored
    try:
        score = None if answer is None else behavior.scored(answer, prompt.text)
        places = None if answer is None else behavior.located(answer, prompt.text)
    except DataError as error:
        return {**known, "score": None, "shows": None, "places": None, "error": str(error)}
    shows = None if score is None else score >= behavior.threshold
    if places is not None and answer is not None:
        start = max(0, completion.text.find(answer))
        places = [(start + low, start + high) for low, high in places]
    return {**known, "score": score, "shows": shows, "places": places}


def _differences(
    asked: Asked, played: Mapping[str, Played], written: Mapping[int, Written]
) -> Iterator[dict[str, list[float]] | None]:
    """Per column its log-probabilities and differences; None where its tokens are others."""
    first = asked.columns[0]
    known = log_probabilities(
        played[first.run], first.mode, [written[at] for at in sorted(written)]
    )
    for at, column in enumerate(asked.columns):
        if not _same_tokens(played[first.run], played[column.run]):
            yield None
        elif column == first:
            yield {"own": known[at], "difference": [0.0] * len(known[at])}
        else:
            [own] = log_probabilities(played[column.run], column.mode, [written[at]])
            pairs = zip(own, known[at], strict=True)
            yield {"own": own, "difference": [one - other for one, other in pairs]}


def log_probabilities(
    played: Played, mode: AblationMode, written: Sequence[Written]
) -> list[list[float]]:
    """The log-probability in nats of each new token under a mode, after the tokens before it."""
    rows = [
        TokenizedExample(str(at), (*one.prompt, *one.tokens), len(one.prompt) - 1, 0, "")
        for at, one in enumerate(written)
        if one.tokens
    ]
    if not rows:
        return [[] for _ in written]
    losses = held_out_token_losses(
        played.model, rows, [mode], pad_id=played.base.pad_id, rows_per_batch=ROWS
    )[mode.name]
    found = {int(row.id): (-own).tolist() for row, own in zip(rows, losses, strict=True)}
    return [found.get(at, []) for at in range(len(written))]


def _same_tokens(one: Played, other: Played) -> bool:
    """Whether two runs have the same tokens, so that one can say how likely the other's are."""
    return (
        one.base.identity == other.base.identity
        or one.base.tokenizer.get_vocab() == other.base.tokenizer.get_vocab()
    )
