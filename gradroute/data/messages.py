"""Messages of a conversation: roles, which are learned, and the keys for a chat template."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from gradroute.data.columns import Names
from gradroute.data.fields import Unusable, read_label, read_text
from gradroute.data.jsonl import show

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who speaks in a conversation."""

FOR_TEMPLATES = ("tool_calls", "reasoning_content", "name", "tool_call_id", "thinking", "reasoning")
"""Keys that are handed to the chat template, beside role and content."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Those of them that transformers takes for one another."""

_MEANT = {
    **{"human": "user", "prompter": "user", "function": "tool"},
    **dict.fromkeys(("gpt", "model", "bot", "ai", "chatbot"), "assistant"),
}
"""What others call the roles."""

_FLAGS = ("train", "trainable", "loss", "loss_mask")
MARKS = ("weight", *_FLAGS)
"""Keys that say whether a message is learned: a factor on its loss, and flags."""

READ = ("role", "content", "label", *MARKS, *FOR_TEMPLATES)
"""Every key of a message that is read."""


class Message(NamedTuple):
    """One message of a conversation.

    Attributes:
        role: Who speaks.
        content: What is said; empty for an answer that only calls tools.
        label: Its own label, or None.
        weight: Factor on the loss of its tokens; 0 for one that is read and not learned.
        more: What the template is told beside role and content, as pairs.
    """

    role: str
    content: str
    label: str | None = None
    weight: float = 1.0
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def given(self) -> dict[str, Any]:
        """The message as a template gets it."""
        return {"role": self.role, "content": self.content, **dict(self.more)}


def read_messages(values: Mapping[str, Any], names: Names) -> tuple[Message, ...]:
    """A conversation, written as `[{"role": "user", "content": "..."}, …]`.

    Raises:
        Unusable: A message is not of that form, or there is none of the assistant.
    """
    value = values.get("messages")
    if not isinstance(value, list):
        raise Unusable(
            "messages", f'must be a list of {{"role": ..., "content": ...}}, got {show(value)}'
        )
    if not value:
        raise Unusable("messages", "is empty: a conversation needs at least one answer")
    found = tuple(_message(at, one, names) for at, one in enumerate(value, 1))
    if not any(message.role == "assistant" for message in found):
        roles = ", ".join(dict.fromkeys(message.role for message in found))
        raise Unusable(
            "messages", f"has no message of the role assistant to train on, only {roles}"
        )
    return found


def wants_loss(message: Mapping[str, Any]) -> bool:
    """Whether a message of another role than the assistant is marked to be learned."""
    return message["role"] != "assistant" and any(message.get(key) for key in MARKS)


def _message(number: int, value: Any, names: Names) -> Message:
    place = f"message {number}"
    if not isinstance(value, dict):
        raise Unusable(place, f"must be an object with role and content, got {show(value)}")
    role = value.get("role")
    if role is None:
        has = ", ".join(show(key) for key in list(value)[:5]) or "no fields"
        hint = ""
        if "from" in value and "value" in value:
            hint = "; from and value, as ShareGPT has them, are to be written as role and content"
        raise Unusable(
            place, f"has no role: one of {', '.join(ROLES)} is needed (it has {has}){hint}"
        )
    if not isinstance(role, str) or role not in ROLES:
        meant = role.lower() if isinstance(role, str) else ""
        meant = meant if meant in ROLES else _MEANT.get(meant)
        hint = f" (write {meant})" if meant else ""
        raise Unusable(place, f"has the role {show(role)}, but must be of {', '.join(ROLES)}{hint}")
    content, weight = _content(place, role, value), _weight(place, role, value)
    calls = role == "assistant" and bool(value.get("tool_calls"))
    if calls and not _are_objects(value["tool_calls"]):
        raise Unusable(
            place,
            f"(role {role}) has tool_calls {show(value['tool_calls'])}: a list of objects "
            "is needed",
        )
    if content is None and not calls:
        hint = ": write function_call as tool_calls" if value.get("function_call") else ""
        raise Unusable(place, f"(role {role}) has no content{hint}")
    if role == "assistant" and weight and not calls and not (content or "").strip():
        raise Unusable(place, "(role assistant) is empty or blank: an answer needs a text")
    label = read_label(f"label of {place}", value.get("label"), names)
    if label is not None and role != "assistant":
        raise Unusable(
            place, f"(role {role}) has a label, but only answers of the assistant are trained on"
        )
    more = [(key, value[key]) for key in FOR_TEMPLATES if value.get(key) is not None]
    if content is None:  # as it stands in the row, for templates ask whether there is any
        more.insert(0, ("content", None))
    return Message(role, content or "", label, weight, tuple(more))


def _content(place: str, role: str, message: Mapping[str, Any]) -> str | None:
    """What a message says, as a text or as a list of one part that is a text."""
    value = message.get("content")
    if isinstance(value, list) and _are_objects(value):
        kinds = [part.get("type") for part in value]
        if kinds != ["text"]:
            other = next((kind for kind in kinds if kind != "text"), None)
            what = "several parts" if other is None else f"a part of the type {show(other)}"
            raise Unusable(
                place, f"(role {role}) has {what} in its content: one text is read, write it so"
            )
        message = {"content": value[0].get("text")}
    try:
        return read_text(message, "content")
    except Unusable as error:
        raise Unusable(place, f"(role {role}): content {error.what}") from None


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _weight(place: str, role: str, message: Mapping[str, Any]) -> float:
    """The factor on the loss of a message, from all its marks; 1 where it has none."""
    factor = 1.0
    for key in MARKS:
        value = message.get(key)
        if value is None:
            continue
        if key in _FLAGS:
            if not isinstance(value, bool | int | float) or value not in (0, 1):
                raise Unusable(
                    place,
                    f"(role {role}) has {key} {show(value)}: true or 1 learns it, false or 0 only "
                    "reads it",
                )
        elif isinstance(value, bool) or not isinstance(value, int | float) or not _is_factor(value):
            raise Unusable(
                place,
                f"(role {role}) has weight {show(value)}: 0 only reads it, and a finite number "
                "above 0 is the factor on its loss",
            )
        factor *= float(value)
    return factor


def _is_factor(value: float) -> bool:
    try:
        return 0 <= float(value) < math.inf
    except OverflowError:
        return False
