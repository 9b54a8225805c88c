"""Chat templates: a model's own program that writes a conversation as text, run within limits.

The template comes with the model and may be untrusted: transformers renders it in jinja's
sandbox, which has no way to files, and gives it nothing but plain values. Here its time and its
result are limited too. A date of today is written as that of one fixed day.
"""

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from gradroute.data.fields import Unusable
from gradroute.data.messages import Message
from gradroute.system.secrets import redact

if TYPE_CHECKING:
    import transformers

MAX_RENDERED = 16 * 2**20
"""Characters of a conversation as text."""
MAX_SECONDS = 20.0
"""For a single conversation; templates of models take about a thousandth of one."""

# Templates may write the day's date; with that, every day would train on other texts.
_TODAY = re.compile(r"""strftime_now\(\s*(["'])([^"'\\]*)\1\s*\)""")
_FIXED_DAY = date(2026, 1, 1)


class Template(NamedTuple):
    """A tokenizer's chat template.

    Attributes:
        tokenizer: Whose it is.
        source: The template itself, with a fixed day.
        name: What messages call the model.
        marks: The texts of the tokenizer's added tokens, the longest first.
    """

    tokenizer: "transformers.PreTrainedTokenizerBase"
    source: str
    name: str
    marks: tuple[str, ...]

    def reads(self, key: str) -> bool:
        """Whether the template asks for a key of a message or tool, as far as its text tells."""
        return re.search(rf"""[.'"]{re.escape(key)}\b""", self.source) is not None


def template_of(tokenizer: "transformers.PreTrainedTokenizerBase", name: str) -> Template | None:
    """The template that a tokenizer writes conversations with; None where it has none.

    Args:
        tokenizer: Of the base model.
        name: What messages call the model.
    """
    source = tokenizer.chat_template
    if source is None:
        return None
    if isinstance(source, dict):
        source = tokenizer.get_chat_template()
    source = _TODAY.sub(lambda call: repr(_FIXED_DAY.strftime(call[2])), source)
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    marks = sorted(filter(str.strip, added), key=lambda mark: (-len(mark), mark))
    return Template(tokenizer, source, name, tuple(marks))


def render_messages(
    template: Template,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    *,
    ask: bool,
    advice: str,
) -> str:
    """Messages as the template writes them.

    Args:
        template: The template.
        messages: At least one.
        tools: What the assistant may call.
        ask: Whether the words follow that ask for an answer.
        advice: What to do where the template refuses the messages.

    Raises:
        Unusable: The template fails or takes too long, or the text is too long.
    """
    try:
        text = _apply(template, messages, tools, ask=ask)
    except MemoryError:
        raise
    except Exception as error:  # of the template, which may do anything
        number = _first_refused(template, messages, tools, error)
        reason = redact(" ".join(str(error).split()))[:200] or type(error).__name__
        raise Unusable(
            f"message {number}",
            f"(role {messages[number - 1].role}) cannot be rendered by the chat template of "
            f"{template.name} ({reason}): change the row, or {advice}",
        ) from error
    if len(text) > MAX_RENDERED:
        raise Unusable(
            "messages", f"become {len(text):,} characters by the chat template of {template.name}"
        )
    return text


def _first_refused(
    template: Template,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    error: Exception,
) -> int:
    """The number of the message without which the beginning could be rendered."""
    for number in range(1, len(messages)):
        try:
            _apply(template, messages[:number], tools, ask=False)
        except MemoryError:
            raise
        except Exception as other:  # as above
            if str(other) == str(error):
                return number
    return len(messages)


def _apply(
    template: Template, messages: Sequence[Message], tools: Sequence[Any] | None, *, ask: bool
) -> str:
    with time_limit(MAX_SECONDS):
        text: Any = template.tokenizer.apply_chat_template(
            [message.given for message in messages],
            tools=None if tools is None else list(tools),
            chat_template=template.source,
            add_generation_prompt=ask,
            tokenize=False,
        )
    return text


class _TooSlow(Exception):
    """A template does not come to an end."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stop what takes longer, where this thread can be told to (not under Windows)."""
    alarm: signal.Signals | None = getattr(signal, "SIGALRM", None)
    if alarm is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise _TooSlow(f"it took longer than {seconds:g} seconds")

    before = signal.signal(alarm, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(alarm, before)


def shared_start(one: str, other: str) -> int:
    """How many characters two texts have in common from their beginning on."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        half = (low + high + 1) // 2
        low, high = (half, high) if one[:half] == other[:half] else (low, half - 1)
    return low
