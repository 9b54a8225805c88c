"""Conversations as text: the tokenizer's chat template, and which part of it are the answers.

A template says how a conversation is written, not what of it is an answer. So the beginning of the
conversation is rendered up to each answer, with the words that ask for it, and behind it: each of
these must begin with the one before, and what an answer adds is what the model is to write. Its
end-of-turn token belongs to it; the white space that follows does not.
"""

import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from gradroute.data.values import Message, Unusable
from gradroute.environment import redacted

if TYPE_CHECKING:
    import transformers

MAX_RENDERED = 16 * 2**20
"""Characters of a conversation as text."""
MAX_SECONDS = 20.0
"""For a single conversation; templates of models take about a thousandth of one."""

# Templates may write the day's date; with that, every day would train on other texts.
_TODAY = re.compile(r"""strftime_now\(\s*(["'])([^"'\\]*)\1\s*\)""")
_FIXED_DAY = date(2026, 1, 1)

_GO_ON = "write a row with prompt and completion for each answer instead"


class Rendered(NamedTuple):
    """A conversation as text.

    Attributes:
        prompt: All before the first answer, with the words that ask for it.
        text: From there to the end of the last answer.
        answers: Characters [start, end) of the text that are answers, in order.
        labels: The label of each answer's message, or None.
        ends: Whether the template closes the last answer itself.
        asks: Characters [start, end) of the prompt that the last message before the first answer
            says; empty where they are not found.
    """

    prompt: str
    text: str
    answers: tuple[tuple[int, int], ...]
    labels: tuple[str | None, ...]
    ends: bool
    asks: tuple[int, int]

    @property
    def context(self) -> tuple[tuple[int, int], ...]:
        """Characters [start, end) of the text between the answers."""
        ends = [end for _, end in self.answers]
        starts = [start for start, _ in self.answers]
        return tuple(
            (end, start) for end, start in zip([0, *ends], starts, strict=False) if end < start
        )


def renderer(
    tokenizer: "transformers.PreTrainedTokenizerBase", name: str
) -> Callable[[Sequence[Message]], Rendered]:
    """A function that renders a conversation with a tokenizer's chat template.

    The template comes with the model and may be a stranger's: transformers renders it in jinja's
    sandbox, which has no way to files, and gives it nothing but plain values. Here its time and
    its result are limited too. A date of today is written as that of one fixed day.

    Args:
        tokenizer: Of the base model.
        name: What messages call the model.

    The function raises `Unusable` where the conversation cannot be rendered, or where the text of
    the answers cannot be told from the rest.
    """

    def render(messages: Sequence[Message]) -> Rendered:
        template = tokenizer.chat_template
        if template is None:
            raise Unusable(
                "messages", f"need a chat template, which the tokenizer of {name} lacks: {_GO_ON}"
            )
        if isinstance(template, dict):
            template = tokenizer.get_chat_template()
        template = _TODAY.sub(lambda call: repr(_FIXED_DAY.strftime(call[2])), template)
        return _rendered(tokenizer, template, name, messages)

    return render


def _rendered(
    tokenizer: "transformers.PreTrainedTokenizerBase",
    template: str,
    name: str,
    messages: Sequence[Message],
) -> Rendered:
    whole, first, spoken = "", 0, 0
    answers: list[tuple[int, int]] = []
    ends = False
    for at in (at for at, message in enumerate(messages) if message.role == "assistant"):
        if at == 0:
            raise Unusable("message 1", f"(role assistant) answers nothing: {_GO_ON}")
        before = _text(tokenizer, template, name, messages[:at], ask=True)
        behind = _text(tokenizer, template, name, messages[: at + 1], ask=False)
        if not before.startswith(whole) or not behind.startswith(before):
            raise Unusable(
                f"message {at + 1}",
                f"(role assistant) cannot be told from the rest: the chat template of {name} "
                f"writes what stands before it otherwise once it is there; {_GO_ON}",
            )
        _check_said(name, messages, spoken, at, before[len(whole) :])
        first = first or len(before)
        end, ends = _end(name, at + 1, messages[at].content, behind, len(before))
        answers.append((len(before) - first, end - first))
        whole, spoken = behind, at + 1
    text = whole[first : first + answers[-1][1]]
    labels = tuple(message.label for message in messages if message.role == "assistant")
    prompt = whole[:first]
    return Rendered(prompt, text, tuple(answers), labels, ends, _asks(messages, prompt))


def _check_said(name: str, messages: Sequence[Message], start: int, end: int, written: str) -> None:
    """What was said since the last answer must be written as it was said."""
    for number, message in enumerate(messages[start:end], start + 1):
        if message.content.strip() not in written:
            raise Unusable(
                f"message {number}",
                f"(role {message.role}) is left out or changed by the chat template of {name}: "
                "remove it, or put it into another message",
            )


def _end(name: str, number: int, content: str, behind: str, start: int) -> tuple[int, bool]:
    """Where an answer ends, and whether the template closes it."""
    at = behind.find(content.strip(), start)
    if at < 0:
        raise Unusable(
            f"message {number}",
            f"(role assistant) is changed by the chat template of {name}: {_GO_ON}",
        )
    closed = behind[at + len(content.strip()) :].strip() != ""
    return (len(behind.rstrip()) if closed else len(behind)), closed


def _asks(messages: Sequence[Message], prompt: str) -> tuple[int, int]:
    answer = next(at for at, message in enumerate(messages) if message.role == "assistant")
    question = messages[answer - 1].content.strip()
    at = prompt.rfind(question) if question else -1
    return (at, at + len(question)) if at >= 0 else (0, 0)


def _text(
    tokenizer: "transformers.PreTrainedTokenizerBase",
    template: str,
    name: str,
    messages: Sequence[Message],
    *,
    ask: bool,
) -> str:
    try:
        text = _applied(tokenizer, template, messages, ask=ask)
    except MemoryError:
        raise
    except Exception as error:  # of the template, which may do anything
        number = _first_refused(tokenizer, template, messages, error)
        reason = redacted(" ".join(str(error).split()))[:200] or type(error).__name__
        raise Unusable(
            f"message {number}",
            f"(role {messages[number - 1].role}) cannot be rendered by the chat template of {name} "
            f"({reason}): change the row, or {_GO_ON}",
        ) from error
    if len(text) > MAX_RENDERED:
        raise Unusable(
            "messages", f"become {len(text):,} characters by the chat template of {name}"
        )
    return text


def _first_refused(
    tokenizer: "transformers.PreTrainedTokenizerBase",
    template: str,
    messages: Sequence[Message],
    error: Exception,
) -> int:
    """The number of the message without which the beginning could be rendered."""
    for number in range(1, len(messages)):
        try:
            _applied(tokenizer, template, messages[:number], ask=False)
        except MemoryError:
            raise
        except Exception as other:  # as above
            if str(other) == str(error):
                return number
    return len(messages)


def _applied(
    tokenizer: "transformers.PreTrainedTokenizerBase",
    template: str,
    messages: Sequence[Message],
    *,
    ask: bool,
) -> str:
    conversation = [{"role": one.role, "content": one.content} for one in messages]
    with _limited(MAX_SECONDS):
        text: Any = tokenizer.apply_chat_template(
            conversation, chat_template=template, add_generation_prompt=ask, tokenize=False
        )
    return text


class _TooSlow(Exception):
    """A template does not come to an end."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Stop what takes longer, where this thread can be told to (not under Windows)."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise _TooSlow(f"it took longer than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
