"""Text of a chat template around an answer, found by rendering an answer that is known."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.data.chat_templates import MAX_SECONDS, time_limit

_NAME = "[A-Za-z_:.-]*(?:think|thought|reasoning)[A-Za-z_:.-]*"
OPENING = re.compile(f"<({_NAME})>", re.IGNORECASE)
"""A tag that opens a thought; `</name>` closes it."""
CLOSING = re.compile(f"</({_NAME})>", re.IGNORECASE)
# A thought that the template writes whatever it is given; the header may have opened it.
_EMPTY = re.compile(rf"(?:<{_NAME}>)?\s*</{_NAME}>")

# Words that no template has; trimmed, as some templates trim.
_QUESTION = "Which qzqzq?"
_ANSWER = "Zxzxz, this."
_THOUGHT = "Hmm, vwvwv."
_NEXT = "And which jkjkj?"
_THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning", "thought")


class Frame(NamedTuple):
    """What stands around an answer.

    Attributes:
        header: What asks for the answer, behind the user's words.
        lead: What the template writes before the answer and the model is to write itself, without
            thoughts; stripped.
        marks: The tokenizer's added tokens in the lead, in order.
        thoughts: What opens and what closes a thought; stripped.
        begun: What closes the thought that the header opens; empty where it opens none.
        ends: Marks of which each ends an answer: tokens, or the words for who speaks next.
        closing: Words that the template writes behind an answer, where they are no marks.
    """

    header: str = ""
    lead: str = ""
    marks: tuple[str, ...] = ()
    thoughts: tuple[tuple[str, str], ...] = ()
    begun: str = ""
    ends: tuple[str, ...] = ()
    closing: str = ""


def added_tokens(tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The tokens that were added to a vocabulary, the longest first, and whether each is special.

    The special ones are those that decoding leaves out.
    """
    found = {str(token): bool(token.special) for token in tokenizer.added_tokens_decoder.values()}
    return sorted(found.items(), key=lambda item: (-len(item[0]), item[0]))


def frame_of(tokenizer: Tokenizer) -> Frame | None:
    """What a tokenizer's chat template writes around an answer; None where it cannot be told."""
    ask = {"role": "user", "content": _QUESTION}
    answer = {"role": "assistant", "content": _ANSWER}
    before = _rendered(tokenizer, [ask], ask=True)
    behind = _rendered(tokenizer, [ask, answer], ask=False)
    if _QUESTION not in before or _ANSWER not in behind or _QUESTION not in behind:
        return None
    header = before.rpartition(_QUESTION)[2]
    told, _, tail = behind.rpartition(_ANSWER)
    middle = told.rpartition(_QUESTION)[2]
    lead = middle[_shared(header, middle) :]
    thoughts, begun = _thoughts(tokenizer, ask, answer, header)
    # Of an empty thought only the marks are there.
    for opening, closing in thoughts:
        start, end = lead.find(opening) if opening else 0, lead.find(closing)
        if 0 <= start <= end and not lead[start + len(opening) : end].strip():
            lead = lead[:start] + lead[end + len(closing) :]
    lead = _EMPTY.sub("", lead).strip()
    tokens = [token for token, _ in added_tokens(tokenizer) if token.strip()]
    between = _rendered(tokenizer, [ask, answer, {**ask, "content": _NEXT}], ask=False)
    between = between.partition(_ANSWER)[2].partition(_NEXT)[0] if _NEXT in between else ""
    ends = {token for token in tokens if token in tail or token in between}
    words = tail
    for token in tokens:
        words = words.partition(token)[0]
    words = words.strip()
    follows = between.strip()
    if follows and not follows.isalnum() and not any(token in between for token in tokens):
        ends.add(between.rstrip())  # with its line break, for "User:" may be in an answer too
    if len(words) > 1 and words[0] in "<[|#":
        ends.add(words)
    return Frame(
        header,
        lead,
        tuple(sorted((t for t in tokens if t in lead), key=lead.find)),
        tuple(thoughts),
        begun,
        tuple(sorted(ends)),
        words,
    )


def _thoughts(
    tokenizer: Tokenizer, ask: Mapping[str, Any], answer: Mapping[str, Any], header: str
) -> tuple[list[tuple[str, str]], str]:
    """What opens and closes a thought in a message's own field, and `begun` of a frame."""
    for key in _THOUGHT_KEYS:
        text = _rendered(tokenizer, [ask, {**answer, key: _THOUGHT}], ask=False)
        before, _, after = text.rpartition(_THOUGHT)
        if not before or _ANSWER not in after:
            continue
        opening = before.rpartition(_QUESTION)[2]
        opening = opening[_shared(header, opening) :].strip()
        closing = after.partition(_ANSWER)[0].strip()
        if closing:
            return [(opening, closing)], "" if opening else closing
    return [], ""


def _rendered(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], *, ask: bool) -> str:
    """A conversation as text; empty where the template refuses it."""
    try:
        with time_limit(MAX_SECONDS):
            text: Any = tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=ask, tokenize=False
            )
    except MemoryError:
        raise
    except Exception:  # of the template, which may do anything
        return ""
    return text


def _shared(header: str, other: str) -> int:
    """How many characters of a header begin another text too; never half of a tag."""
    pairs = zip(header, other, strict=False)
    end = min(len(header), len(other))
    end = next((at for at, (a, b) in enumerate(pairs) if a != b), end)
    half = header.rfind("<", 0, end)
    return half if half >= 0 and ">" not in header[half:end] else end
