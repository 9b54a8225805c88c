"""Conversations as text: the tokenizer's chat template, and the parts that are answers.

What is trained is the text that the template writes for a conversation, and nothing else. A
template says how a conversation is written, not what of it is an answer. So the conversation is
rendered up to each answer with the words that ask for it, and behind it: what is new there is what
the model is to write. Where the template writes these words otherwise once the answer is there,
two made-up answers show where the real one stands.

The end-of-turn mark belongs to an answer, also where it is the mark of the role that speaks next;
the white space that follows does not. Where a template writes earlier turns otherwise once a later
one is there, there is a row for each answer, with the conversation as it was written then.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gradroute.data.chat_templates import Template, render_messages, shared_start, template_of
from gradroute.data.fields import Unusable
from gradroute.data.messages import Message

if TYPE_CHECKING:
    import transformers

_GO_ON = "write a row with prompt and completion for each answer instead"

# No letter of one is that of the other, whatever a template makes of them.
_MADE_UP = ("Xa1", "Zb2")


class Rendered(NamedTuple):
    """A conversation, or one up to an answer, as text.

    Attributes:
        prompt: All before the first answer that is learned, with the words that ask for it, as a
            server sends it.
        text: From there to the end.
        answers: Characters [start, end) of the text that are learned, in order.
        labels: The label of each of these answers' messages, or None.
        weights: The factor on the loss of each.
        asks: Characters [start, end) of the prompt that the last message before the first of these
            answers says; empty where they are not found.
        lead: What stands before the text in training, where that is not the prompt.
        number: Which answer of the conversation the row is for, from 1; 0 where it is for all.
        closed: Whether the template marks the end of every answer.
        changed: How many messages before the last answer the template leaves out or changes.
        served: Whether the answer is written behind the prompt, with the thought that the prompt
            opens, rather than as the template writes it.
        unthought: How many answers stand behind fewer words than the prompt that asks for them
            has, such as one that opens a thought.
    """

    prompt: str
    text: str
    answers: tuple[tuple[int, int], ...]
    labels: tuple[str | None, ...]
    weights: tuple[float, ...]
    asks: tuple[int, int]
    lead: str | None = None
    number: int = 0
    closed: bool = True
    changed: int = 0
    served: bool = False
    unthought: int = 0

    @property
    def context(self) -> tuple[tuple[int, int], ...]:
        """Characters [start, end) of the text that are not learned."""
        ends = [0, *(end for _, end in self.answers)]
        starts = [*(start for start, _ in self.answers), len(self.text)]
        return tuple((end, start) for end, start in zip(ends, starts, strict=True) if end < start)


class Renderer(NamedTuple):
    """What makes text of conversations.

    Attributes:
        rows: Conversation and tools -> the rows that it becomes; none where nothing is learned.
            It raises `Unusable` where it cannot be rendered, or an answer is not in what is.
        template: The template; None where there is none.
    """

    rows: Callable[[Sequence[Message], Sequence[Any] | None], list[Rendered]]
    template: Template | None


class _Turn(NamedTuple):
    """An answer that is learned: where it stands in the conversation up to it."""

    at: int  # among the messages
    ask: str
    whole: str
    start: int
    end: int
    closed: bool
    served: bool
    unthought: bool = False


def renderer(tokenizer: "transformers.PreTrainedTokenizerBase", name: str) -> Renderer:
    """What renders conversations with a tokenizer's chat template.

    Args:
        tokenizer: Of the base model.
        name: What messages call the model.
    """
    template = template_of(tokenizer, name)

    def rows(messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[Rendered]:
        if template is None:
            raise Unusable(
                "messages", f"need a chat template, which the tokenizer of {name} lacks: {_GO_ON}"
            )
        return _rendered(template, messages, tools)

    return Renderer(rows, template)


def _rendered(
    template: Template, messages: Sequence[Message], tools: Sequence[Any] | None
) -> list[Rendered]:
    spoken = [at for at, message in enumerate(messages) if message.role == "assistant"]
    learned = [at for at in spoken if messages[at].weight]
    if not learned:
        return []
    if learned[0] == 0:
        raise Unusable(
            "message 1",
            '(role assistant) answers nothing: mark it with "weight": 0, so that it is only read, '
            f"or {_GO_ON}",
        )
    turns = [_turn(template, messages, at, tools) for at in learned]
    whole = turns[-1].whole
    if spoken[-1] > learned[-1]:
        whole = _text(template, messages[: spoken[-1] + 1], tools)
    numbers = {at: number for number, at in enumerate(spoken, 1)}
    if not any(turn.served for turn in turns) and all(whole.startswith(t.whole) for t in turns):
        return [_row(template, messages, whole, turns, 0)]
    return [
        _row(template, messages, own.whole, [own], numbers[own.at] if turns[1:] else 0)
        for own in (_closed(template, messages, turn, tools) for turn in turns)
    ]


def _closed(
    template: Template, messages: Sequence[Message], turn: _Turn, tools: Sequence[Any] | None
) -> _Turn:
    """An answer by itself with the mark of who speaks next, where that is what ends it."""
    at = turn.at
    if turn.closed or at + 1 == len(messages):
        return turn
    words, following = _MADE_UP[0], messages[at + 1]
    text = _text(template, [*messages[:at], Message("assistant", words), following], tools)
    place = text.rfind(words)
    length = _mark(template, text, place + len(words), following) if place >= 0 else 0
    if not length:
        return turn
    place += len(words)
    whole = turn.whole.rstrip() + text[place : place + length]
    return turn._replace(whole=whole, end=len(whole), closed=True)


def _row(
    template: Template,
    messages: Sequence[Message],
    whole: str,
    turns: Sequence[_Turn],
    number: int,
) -> Rendered:
    first, last = turns[0], turns[-1]
    ends = []
    for turn in turns:
        behind = 0
        if not turn.closed and turn.at + 1 < len(messages):
            behind = _mark(template, whole, turn.end, messages[turn.at + 1])
        ends.append((turn.end + behind, turn.closed or behind > 0))
    before = [message for message in messages[: last.at] if message.role != "assistant"]
    said = [message.content.strip() in whole for message in before]
    lead = whole[: first.start]
    return Rendered(
        prompt=first.ask,
        text=whole[first.start :],
        answers=tuple(
            (turn.start - first.start, end - first.start)
            for turn, (end, _) in zip(turns, ends, strict=True)
        ),
        labels=tuple(messages[turn.at].label for turn in turns),
        weights=tuple(messages[turn.at].weight for turn in turns),
        asks=_asks(messages[first.at - 1], first.ask),
        lead=None if lead == first.ask else lead,
        number=number,
        closed=all(closed for _, closed in ends),
        changed=said.count(False),
        served=first.served,
        unthought=sum(turn.unthought for turn in turns),
    )


def _turn(
    template: Template, messages: Sequence[Message], at: int, tools: Sequence[Any] | None
) -> _Turn:
    """Find an answer in the conversation up to it.

    Raises:
        Unusable: It cannot be rendered, or is not there.
    """
    message = messages[at]
    content = message.content.strip()
    ask = _text(template, messages[:at], tools, ask=True)
    whole = _text(template, messages[: at + 1], tools)
    plain = whole.startswith(ask)
    place = whole.rfind(content, len(ask)) if content and plain and not message.more else -1
    if place >= 0:
        closed = whole[place + len(content) :].strip() != ""
        return _Turn(at, ask, whole, len(ask), _end(whole, closed), closed, False)
    one, other = (
        _text(template, [*messages[:at], Message("assistant", words)], tools) for words in _MADE_UP
    )
    head = one[: shared_start(one, other)]
    tail = one[len(one) - shared_start(one[::-1], other[::-1]) :]
    closed = tail.strip() != "" or not whole.endswith(tail)
    start, opened = len(ask), ""
    if not plain:
        start, opened = _answer_start(template, messages[: at + 1], tools, ask, whole, head)
    if one == other or not whole[start:].removesuffix(tail).strip():
        raise Unusable(
            f"message {at + 1}",
            f"(role assistant) is left out by the chat template of {template.name}: {_GO_ON}",
        )
    if opened.strip() and content.startswith(opened.strip()):
        served = ask + _rest(message.content, opened, whole.removesuffix(tail)) + tail
        return _Turn(at, ask, served, len(ask), _end(served, closed), closed, True)
    more = bool(opened.strip())
    return _Turn(at, ask, whole, start, _end(whole, closed), closed, False, more)


def _answer_start(
    template: Template,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    ask: str,
    whole: str,
    head: str,
) -> tuple[int, str]:
    """Where an answer begins, and what the words that ask for it open beyond that.

    Args:
        template: The template.
        messages: Those up to the answer.
        tools: What the assistant may call.
        ask: All but the answer, with the words that ask for it; the whole begins otherwise.
        whole: All messages.
        head: What stands before every answer there.

    Raises:
        Unusable: Nothing tells where the answer begins.
    """
    try:
        base = _text(template, messages[:-1], tools)
    except Unusable:  # the template wants an answer there
        base = None
    head = head[: shared_start(head, whole)]
    if base is not None and ask.startswith(base) and head.startswith(base):
        start = shared_start(ask, head)
        return start, ask[start:]
    content = messages[-1].content.strip()
    place = whole.rfind(content) if content else len(head)
    if place < 0:
        raise Unusable(
            f"message {len(messages)}",
            f"(role assistant) cannot be located in the rendered text: the chat template of "
            f"{template.name} changes it and the text before it; {_GO_ON}",
        )
    return place, ""


def _rest(content: str, opened: str, body: str) -> str:
    """What an answer says behind the words that its prompt opened, trimmed as the template does."""
    kept = content.lstrip()
    rest = kept.removeprefix(opened)
    if rest == kept:
        rest = kept.removeprefix(opened.strip()).lstrip()
    return rest.rstrip() if body == body.rstrip() else rest


def _end(whole: str, closed: bool) -> int:
    return len(whole.rstrip()) if closed else len(whole)


def _mark(template: Template, text: str, at: int, following: Message) -> int:
    """How many characters of a text, from a place on, are the mark of who speaks next.

    One added token of the tokenizer, or all that stands before the words of the next message.
    """
    rest = text[at:]
    bare = rest.lstrip()
    for mark in template.marks:
        if bare.startswith(mark):
            return len(rest) - len(bare) + len(mark)
    words = following.content.strip()
    place = rest.find(words) if words else -1
    return len(rest[:place].rstrip()) if place > 0 else 0


def _asks(question: Message, prompt: str) -> tuple[int, int]:
    words = question.content.strip()
    at = prompt.rfind(words) if words else -1
    return (at, at + len(words)) if at >= 0 else (0, 0)


def _text(
    template: Template,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    *,
    ask: bool = False,
) -> str:
    return render_messages(template, messages, tools, ask=ask, advice=_GO_ON)
