"""What the columns say of a found row's own text: the detector's score, and token by token.

`pieces` are the row's text in parts, see `token_places`. Per column, `own` is the log-probability
of every target token in nats and `difference` that less the one of the first column.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.data.batches import IGNORED, TokenizedExample
from gradroute.data.behaviors import Behavior
from gradroute.data.examples import Example
from gradroute.data.inoculation import lead
from gradroute.data.token_offsets import beginning_tokens, token_lists
from gradroute.errors import GradrouteError
from gradroute.evaluate.answers import Answer, AnswerFinder
from gradroute.evaluate.generation import Completion
from gradroute.evaluate.losses import held_out_token_losses
from gradroute.playground.asked import Asked
from gradroute.playground.loaded import Played
from gradroute.playground.rows import FoundRow
from gradroute.playground.scoring import same_tokens, scored
from gradroute.prepare import tokenize_examples
from gradroute.routing.policy import AblationMode


def of_own_text(asked: Asked, row: FoundRow, played: Mapping[str, Played]) -> dict[str, Any]:
    """The row's own text under the columns of a request.

    Args:
        asked: The request; its first column is what the others are compared with.
        row: The row.
        played: Run -> its model.

    Returns:
        `name`, `about`, `scores` as of a completion, and `pieces`, `cut` (whether tokens at the
        end are left out) and `columns` (see above; None where the tokens are others), or `error`.
    """
    first = played[asked.columns[0].run]
    example = row.example
    scores = [
        {"label": label, **_score_of(row, behavior, first)}
        for label, behavior in first.behaviors.items()
    ]
    known = {"name": row.name, "about": row.about, "scores": scores}
    most = first.config.data.max_length
    try:
        rows, _ = tokenize_examples([example], None, first.base, most)
        columns = list(_columns(asked, rows, played))
    except GradrouteError as error:
        return {**known, "error": str(error)}
    pieces = token_places(example, rows[0], first.base.tokenizer)
    cut = len(rows[0].input_ids) == most and bool(pieces) and pieces[-1][1] is None
    return {**known, "pieces": pieces, "cut": cut, "columns": columns}


def _score_of(row: FoundRow, behavior: Behavior, played: Played) -> dict[str, Any]:
    """The score of a row's text; of a chat that of its last answer, without marks."""
    example = row.example
    if example.asks is None:
        return scored(behavior, Completion(example.text, 0, ended=True), row.prompt)
    ends = (end for _, end in example.context if end < len(example.text))
    at = max(ends, default=0)
    tokenizer, marked = played.base.tokenizer, example.text[at:]
    ids: list[int] = tokenizer(marked, add_special_tokens=False).input_ids
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    answers = AnswerFinder(tokenizer, thoughts=played.config.evaluate.score_thoughts)
    answer = answers.find(lead(example) + example.text[:at], text, marked) or Answer(text.strip())
    found = scored(behavior, Completion(marked, len(ids), True, answer), row.prompt)
    places = found["places"]
    return {**found, "places": places and [(low + at, high + at) for low, high in places]}


def token_places(
    example: Example, row: TokenizedExample, tokenizer: Tokenizer
) -> list[tuple[str, int | None]]:
    """The text of an example in pieces, each with the number of its target token.

    Args:
        example: The example.
        row: Its tokens.
        tokenizer: That made them.

    Returns:
        The pieces, which make the text; None stands for a piece that is no target, such as what a
        user says between two answers. A target without characters of its own, such as an end
        token, has no piece.
    """
    text, before = example.text, lead(example)
    [marked] = token_lists(tokenizer, [before + text], len(row.input_ids), offsets=True)
    ids = tuple(token for token, _, _ in marked)
    both = min(len(ids), len(row.input_ids))
    shift = 0 if ids[:both] == row.input_ids[:both] else len(beginning_tokens(tokenizer))
    pieces: list[tuple[str, int | None]] = []
    at = 0
    targets = (place for place, target in enumerate(row.targets) if target != IGNORED)
    for number, place in enumerate(targets):
        index = place + 1 - shift
        low, high = marked[index][1:] if index < len(marked) else (0, 0)
        start, end = max(low - len(before), at), high - len(before)
        if start < end:
            pieces += [(text[at:start], None)] if at < start else []
            pieces.append((text[start:end], number))
            at = end
    return [*pieces, (text[at:], None)] if at < len(text) else pieces


def _columns(
    asked: Asked, rows: list[TokenizedExample], played: Mapping[str, Played]
) -> Iterator[dict[str, list[float]] | None]:
    first = played[asked.columns[0].run]
    found: dict[tuple[str, str], list[float]] = {}
    for run in dict.fromkeys(column.run for column in asked.columns):
        if not same_tokens(first, played[run]):
            continue
        modes = {c.mode.name: c.mode for c in asked.columns if c.run == run}
        for name, own in _log_probabilities(played[run], list(modes.values()), rows).items():
            found[run, name] = own
    start = found[asked.columns[0].run, asked.columns[0].mode.name]
    for column in asked.columns:
        own = found.get((column.run, column.mode.name))
        if own is None:
            yield None
        else:
            difference = [one - other for one, other in zip(own, start, strict=True)]
            yield {"own": own, "difference": difference}


def _log_probabilities(
    played: Played, modes: list[AblationMode], rows: list[TokenizedExample]
) -> dict[str, list[float]]:
    losses = held_out_token_losses(
        played.model, rows, modes, pad_id=played.base.pad_id, rows_per_batch=len(modes)
    )
    return {name: (-own[0]).tolist() for name, own in losses.items()}
