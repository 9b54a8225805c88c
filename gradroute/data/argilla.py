"""Records of Argilla as rows, one for each annotator.

A record is exported in one of three forms: `fields`, and `responses` by question, each with the
value of every annotator; the same flattened, with columns such as `question.responses`; or, as
version 1 writes it, a column per question with the answers of all.
"""

from collections import defaultdict
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

RESPONSES = ".responses"
"""Ends the name of a column with the answers to a question."""

_UNSUBMITTED = ("discarded", "draft")
"""Answers that their annotator did not give in the end."""


def rows_of_record(values: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int] | None:
    """The rows of a record, one per annotator, and how many responses were not submitted.

    Args:
        values: Column -> value of a row of a file.

    Returns:
        None for a row that is no record of Argilla.
    """
    fields, responses = values.get("fields"), values.get("responses")
    if isinstance(fields, dict) and isinstance(responses, dict | list):
        rest = {key: value for key, value in values.items() if key not in ("fields", "responses")}
        rest |= fields
        answers = _answers_in(responses)
    elif questions := [name for name in values if _flattened(name, values)]:
        parts = {name: (name, f"{name}.users", f"{name}.status") for name in questions}
        read = {column for columns in parts.values() for column in columns}
        rest = {key: value for key, value in values.items() if key not in read}
        answers = [
            one
            for name, columns in parts.items()
            for one in _zipped(
                name.removesuffix(RESPONSES), *(values.get(column) for column in columns)
            )
        ]
    elif questions := [name for name, value in values.items() if _answered(value)]:
        rest = {key: value for key, value in values.items() if key not in questions}
        answers = _answers_in({name: values[name] for name in questions})
    else:
        return None
    by_user: dict[str, dict[str, Any]] = defaultdict(dict)
    left_out: set[str] = set()
    for one in answers:
        by_user[one.user][one.question] = one.value
        if one.status in _UNSUBMITTED:
            left_out.add(one.user)
    rows = [{**rest, **given} for user, given in by_user.items() if user not in left_out]
    return rows or [rest], len(left_out)


class _Answer(NamedTuple):
    """What one annotator answered to one question."""

    user: str
    question: str
    value: Any
    status: Any


def _answers_in(responses: Mapping[str, Any] | list[Any]) -> list[_Answer]:
    """The answers by question, or (in version 1) those of each annotator."""
    answers: list[_Answer] = []
    if isinstance(responses, list):
        for at, one in enumerate(responses):
            given = one.get("values") if isinstance(one, dict) else None
            for question, answer in given.items() if isinstance(given, dict) else ():
                value = answer.get("value") if isinstance(answer, dict) else answer
                user = annotator(one.get("user_id"), at)
                answers.append(_Answer(user, question, value, one.get("status")))
        return answers
    for question, given in responses.items():
        if isinstance(given, dict):  # as tables write a list of objects
            columns = (given.get(key) for key in ("value", "user_id", "status"))
            answers += _zipped(question, *columns)
        for at, one in enumerate(given if isinstance(given, list) else ()):
            if isinstance(one, dict):
                user = annotator(one.get("user_id"), at)
                answers.append(_Answer(user, question, one.get("value"), one.get("status")))
    return answers


def _zipped(question: str, values: Any, users: Any, status: Any) -> list[_Answer]:
    """The answers to a question that stand in lists beside each other."""
    given, by, how = (one if isinstance(one, list) else [] for one in (values, users, status))
    return [
        _Answer(annotator(user, at), question, value, state)
        for at, (value, user, state) in enumerate(zip_longest(given, by, how))
        if at < len(given)
    ]


def annotator(name: Any, at: int) -> str:
    """Who answered; an answer without a name is of somebody else than the others."""
    return f"answer {at}" if name is None else f"user {name}"


def _flattened(column: str, values: Mapping[str, Any]) -> bool:
    """Whether a column holds the answers to a question whose annotators have their own column."""
    users = f"{column}.users"
    return (
        column.endswith(RESPONSES)
        and users in values
        and all(isinstance(values[name], list | None) for name in (column, users))
    )


def _answered(value: Any) -> bool:
    """Whether a column holds the answers of annotators, as version 1 writes them."""
    keys = {"user_id", "value", "status"}
    if isinstance(value, dict):
        return value.keys() == keys and all(isinstance(one, list) for one in value.values())
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and one.keys() >= keys for one in value)
    )
