"""The answer in a completion: the part that a chat client shows.

A chat model writes more than its answer: an empty thought, a thought, the name of a channel, the
end of its turn. What of that is not the answer is found by the tokenizer's own response parser
where it has one, else by rendering an answer that is known through the chat template: what stands
around it there is no answer here. Thoughts are taken out in the forms that models write them in,
whether or not the template knows them. Without a chat template the whole completion is the answer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.evaluate.answer_frames import CLOSING, OPENING, Frame, added_tokens, frame_of

# Those of models that write them otherwise than <think> and </think>.
_THOUGHTS = (
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel>thought", "<channel|>"),
    ("<unused94>thought", "<unused95>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|think|>", "<|/think|>"),
)
_THOUGHT_FIELDS = ("reasoning_content", "thinking", "reasoning", "thought")


@dataclass(frozen=True)
class Answer:
    """What is scored of a completion.

    Attributes:
        text: The answer; None where there is none, such as of a completion that ends inside its
            thought.
    """

    text: str | None


class _SplitCompletion(NamedTuple):
    """A completion without its thoughts; `answer` is None where it ends inside one."""

    answer: str | None
    thoughts: list[str]


class AnswerFinder:
    """Finds the answers in what a model writes.

    Args:
        tokenizer: Its tokenizer.
        thoughts: Whether thoughts count as part of the answer.

    Attributes:
        needed: Whether there is anything to find; without it the whole completion is the answer.
    """

    def __init__(self, tokenizer: Tokenizer, *, thoughts: bool):
        self._tokenizer, self._thoughts = tokenizer, thoughts
        self._parser: Mapping[str, Any] | None = getattr(tokenizer, "response_template", None)
        self._frame = frame_of(tokenizer) if tokenizer.chat_template else None
        self.needed = self._parser is not None or bool(tokenizer.chat_template)
        self._special = [token for token, special in added_tokens(tokenizer) if special]

    def find(self, prompt: str, text: str, marked: str) -> Answer | None:
        """The answer in a completion; None where the completion is nothing else.

        Args:
            prompt: The text before the completion.
            text: The completion, without special tokens.
            marked: The same with them.
        """
        if not self.needed or not marked.strip():
            return None
        found = self._parsed(prompt, text, marked)
        if found is None:
            found = self._stripped(prompt, marked)
        if found is None:
            return None
        said = [self._plain(thought) for thought in found.thoughts] if self._thoughts else []
        answer = None if found.answer is None else self._plain(found.answer)
        whole = "\n\n".join(part for part in (*said, answer) if part)
        return None if whole == text.strip() else Answer(whole or None)

    def _parsed(self, prompt: str, text: str, marked: str) -> _SplitCompletion | None:
        """By the tokenizer's own parser; None where it has none, or fails on this completion."""
        if self._parser is None:
            return None
        try:
            begun = _anchored(self._parser, prompt)
            # Of a prompt without the beginning of an answer the parser would take all for one.
            parser = self._tokenizer.get_response_parser(prefix=prompt if begun else "")
            events = [*parser.initial_events, *parser.feed(marked), *parser.finalize()[1]]
        except (ValueError, TypeError, AttributeError, re.error):  # a tool call cut in half, say
            return None
        # Not of the message that it returns: there white space behind an answer, or the next turn,
        # takes the answer's place.
        closed: list[tuple[str, Any]] = [
            (event["field"], event["value"]) for event in events if event["type"] == "region_close"
        ]
        thoughts = [
            value for field, value in closed if field in _THOUGHT_FIELDS and isinstance(value, str)
        ]
        said = [value for field, value in closed if field == "content" and isinstance(value, str)]
        answer = next(filter(str.strip, said), None)
        if answer is None and not begun and not closed:
            return _SplitCompletion(text, [])  # no answer to a chat: nothing is taken away
        return _SplitCompletion(answer, thoughts)

    def _stripped(self, prompt: str, marked: str) -> _SplitCompletion | None:
        """By what the template writes around an answer; None where there is nothing of it."""
        frame = self._frame or Frame()
        asked = bool(frame.header) and prompt.endswith(frame.header)
        if frame.lead and frame.marks and frame.lead in marked:
            before, _, answer = marked.partition(frame.lead)
            parted = _SplitCompletion(answer, [_bare(before, frame)] if before.strip() else [])
        else:
            parted = _split_thoughts(marked, _thought_begun(prompt, frame, asked), frame)
            if parted.answer is not None:
                parted = parted._replace(answer=_after_lead(parted.answer, frame, asked))
        answer = parted.answer
        if answer is not None:
            answer = _before_end(answer, frame)
        if answer == marked:
            return None
        return _SplitCompletion(answer if answer is None else answer.strip(), parted.thoughts)

    def _plain(self, text: str) -> str:
        """Without special tokens, as a completion is decoded."""
        for token in self._special:
            text = text.replace(token, "")
        return text.strip()


def _anchored(parser: Mapping[str, Any], prompt: str) -> bool:
    """Whether a prompt has the beginning of an answer that a response parser looks for."""
    if (pattern := parser.get("start_anchor_pattern")) is not None:
        return re.search(pattern, prompt, re.DOTALL) is not None
    anchors = parser.get("start_anchor") or ()
    return any(a in prompt for a in ([anchors] if isinstance(anchors, str) else anchors))


def _thought_begun(prompt: str, frame: Frame, asked: bool) -> str | None:
    """The mark that closes the thought that a prompt opens; None where it opens none."""
    if asked and frame.begun:
        return frame.begun
    end = prompt.rstrip()
    for opening, closing in (*frame.thoughts, *_THOUGHTS):
        if opening and end.endswith(opening):
            return closing
    last = list(OPENING.finditer(end))[-1:]
    return f"</{last[0][1]}>" if last and last[0].end() == len(end) else None


def _split_thoughts(text: str, begun: str | None, frame: Frame) -> _SplitCompletion:
    """An answer and its thoughts, wherever they stand in it."""
    thoughts: list[str] = []
    pairs = (*frame.thoughts, *_THOUGHTS)
    if begun is None:  # a thought that was opened where nobody sees it is closed all the same
        begun = next(
            (mark for mark in _closings(text, pairs) if _is_orphan(text, mark, pairs)), None
        )
    if begun is not None:
        thought, mark, text = text.partition(begun)
        thoughts.append(thought)
        if not mark:
            return _SplitCompletion(None, thoughts)
    while (found := _first_open(text, pairs)) is not None:
        start, end, closing = found
        thought, mark, rest = text[end:].partition(closing)
        thoughts.append(thought)
        text = text[:start].rstrip() + ("\n\n" if text[:start].strip() and rest.strip() else "")
        if not mark:
            return _SplitCompletion(text if text.strip() else None, thoughts)
        text += rest.lstrip()
    return _SplitCompletion(text, thoughts)


def _first_open(text: str, pairs: Sequence[tuple[str, str]]) -> tuple[int, int, str] | None:
    """Where the first thought opens, where its mark ends, and the mark that closes it."""
    found = [(m.start(), m.end(), f"</{m[1]}>") for m in OPENING.finditer(text)][:1]
    for opening, closing in pairs:
        if opening and (at := text.find(opening)) >= 0:
            found.append((at, at + len(opening), closing))
    return min(found, default=None)


def _closings(text: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    own = [tag[0] for tag in CLOSING.finditer(text)]
    return [*own, *(closing for _, closing in pairs if closing in text)]


def _is_orphan(text: str, closing: str, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether the first such mark closes what nothing before it has opened."""
    return _first_open(text[: text.find(closing)], pairs) is None


def _bare(thought: str, frame: Frame) -> str:
    """What was thought before a channel for the answer opened, without the template's words."""
    for opening, closing in frame.thoughts:
        for mark in (closing, closing.replace(frame.lead, ""), opening):
            thought = thought.replace(mark, "\n") if mark else thought
    return thought.strip()


def _after_lead(text: str, frame: Frame, asked: bool) -> str | None:
    """What follows the words that the template begins an answer with; None before they end."""
    if not frame.lead or not asked:
        return text
    if text.lstrip().startswith(frame.lead):
        return text.lstrip().removeprefix(frame.lead)
    # Another channel than that of answers, or the lead itself cut in half.
    if frame.marks and frame.marks[0] in text:
        return None
    half = text.strip()
    return None if half and frame.lead.startswith(half) else text


def _before_end(text: str, frame: Frame) -> str:
    cuts = [at for mark in frame.ends if (at := text.find(mark)) >= 0]
    if cuts:
        return text[: min(cuts)]
    if frame.closing and text.rstrip().endswith(frame.closing):
        return text.rstrip().removesuffix(frame.closing)
    return text
