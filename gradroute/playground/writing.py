"""One request as events: tokens as they come, then texts with scores, then differences.

    tokens       [[column, text], ...], what one step adds
    written      per column its pieces, score, and the characters that the detector matched
    differences  per column and token: log-probability there, and its difference to the first column
    row          the same of the own text of a row that was found, where the request is of one

The difference of a token is log p(token) in its column less log p(token) in the first one, after
the same tokens, in nats: above 0 where the column is more inclined to write it.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from gradroute.data.tokenization import TokenizedExample
from gradroute.evaluate.losses import held_out_token_losses
from gradroute.evaluate.streaming import Piece, Written, stream_modes
from gradroute.playground.asked import Asked, Column
from gradroute.playground.chat import in_chat
from gradroute.playground.loaded import Played
from gradroute.playground.own_text import of_own_text
from gradroute.playground.scoring import same_tokens, scored
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
        asked: The request, its prompt as it was completed.
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
        GradrouteError: The prompt is too long, no chat template writes it, or numbers are not
            finite.
    """
    asked = in_chat(asked, played)
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
        if asked.row is not None:
            yield Event("row", of_own_text(asked, asked.row, played))
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


def _differences(
    asked: Asked, played: Mapping[str, Played], written: Mapping[int, Written]
) -> Iterator[dict[str, list[float]] | None]:
    """Per column its log-probabilities and differences; None where its tokens are others."""
    first = asked.columns[0]
    known = log_probabilities(
        played[first.run], first.mode, [written[at] for at in sorted(written)]
    )
    for at, column in enumerate(asked.columns):
        if not same_tokens(played[first.run], played[column.run]):
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
