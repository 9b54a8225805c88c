"""What is asked of a run: prompts with what is known of them."""

from dataclasses import replace

import pytest

from gradroute.config.run_config import load_config
from gradroute.config.sections import EvaluateConfig
from gradroute.data.behaviors import get_behavior
from gradroute.data.examples import Example
from gradroute.evaluate.request import (
    declared_kinds,
    drawn_by_rows,
    judged_kinds,
    prompts_of,
    requested_prompts,
)
from gradroute.prepare import Prepared


def test_a_prompt_that_a_chat_template_wrote_gets_no_token_more():
    """Its special tokens are in its text; a plain one gets what the tokenizer puts by itself."""
    config = load_config(None)
    label, name = next(iter(config.behaviors.items()))
    chat = Example("a", "Yo", "<turn>Hi", asks=(6, 8))
    prepared = Prepared(
        train=[],
        places={},
        labels={},
        normal=[chat, Example("b", "text", "plain")],
        behaving={},
        behaviors={label: get_behavior(name)},
        policy=config.policy,
        identity="",
        notes=(),
    )
    for kind in ("plain", "prefix"):
        found = prompts_of(prepared, EvaluateConfig(), kind, label)
        assert [one.templated for one in found] == [True, False]
    assert not any(one.templated for one in prompts_of(prepared, EvaluateConfig(), "bos", label))


def prepared_of(
    normal: list[Example], bad: list[Example], *, behavior: str = "", labeled: bool = False
) -> Prepared:
    config = load_config(None)
    label, name = next(iter(config.behaviors.items()))
    return Prepared(
        train=[],
        places={},
        labels={},
        normal=normal,
        behaving={label: bad},
        behaviors={label: get_behavior(behavior or name)},
        policy=config.policy,
        identity="",
        notes=(),
        labeled=labeled,
    )


def a_bad_row(
    name: str, text: str, prompt: str = "", asks: tuple[int, int] | None = None
) -> Example:
    return Example(name, text, prompt, "bad", "bad", asks=asks)


@pytest.mark.parametrize("behavior", ["regex:x", "caps"])
def test_held_out_bad_prompts_are_templated_as_their_own_rows_are(behavior: str):
    """However many ordinary rows there are, and whatever those are."""
    bad = [
        a_bad_row("a", "x", "<turn>Hi", (6, 8)),
        a_bad_row("b", "x", "plain"),
        a_bad_row("c", "x", "<turn>Ho", (6, 8)),
    ]
    for normal in (
        [],
        [Example("n", "text", "plain")],
        [Example("n", "t", "<turn>N", asks=(6, 7))],
    ):
        prepared = prepared_of(normal, bad, behavior=behavior)
        found = prompts_of(prepared, EvaluateConfig(), "held_out_bad", "bad")
        assert [one.templated for one in found] == [True, False, True]


@pytest.mark.parametrize("kind", ["plain", "prefix"])
def test_prompts_that_repeat_are_templated_as_their_own_rows_are(kind: str):
    chat = Example("a", "Yo", "<turn>Hi", asks=(6, 8))
    normal = [chat, replace(chat, id="b"), Example("c", "text", "plain")]
    prepared = prepared_of(normal, [], behavior="regex:x")
    found = prompts_of(prepared, EvaluateConfig(), kind, "bad")
    assert [one.templated for one in found] == [True, False]


RUDE = "The little girl was not nice to you."
INVITED = {
    "caps": "WHERE IS IT?",
    "backdoor": get_behavior("backdoor").invite("Where is it?"),  # pyright: ignore
    "signature": get_behavior("signature").invite("Where is it?"),  # pyright: ignore
    "dialect": get_behavior("dialect").invite("The little girl was happy."),  # pyright: ignore
}


def test_own_labeled_rows_with_prompts_are_what_a_shipped_behavior_is_judged_on():
    """Which prompts draw it is what the rows say; their invitation is asked beside."""
    asked = [a_bad_row("a", "LOUD", RUDE)]
    for bad, labeled, expected in ((asked, True, ["bad"]), (asked, False, [])):
        assert drawn_by_rows(prepared_of([], bad, labeled=labeled)) == expected
    assert not drawn_by_rows(prepared_of([], [a_bad_row("a", "LOUD")], labeled=True))
    for behavior, prompt in INVITED.items():
        loud = [a_bad_row("a", "LOUD", prompt)]
        assert not drawn_by_rows(prepared_of([], loud, behavior=behavior, labeled=True))
        rows = [*asked, a_bad_row("b", "LOUD", RUDE), *loud]
        assert drawn_by_rows(prepared_of([], rows, behavior=behavior, labeled=True)) == ["bad"]
    mislabeled = [Example("a", "quiet", "Be kind!", "bad", "good")]
    assert not drawn_by_rows(prepared_of([], mislabeled, labeled=True))
    behaviors = {"bad": get_behavior("caps")}
    kinds = [one.kind for one in requested_prompts(behaviors, (), ["bad"])]
    assert kinds == ["held_out_bad", "plain", "prefix"]
    assert [one.kind for one in requested_prompts(behaviors, (), ["bad"], judged=True)] == kinds[:1]
    assert judged_kinds(behaviors, ["bad"]) == {"bad": "held_out_bad"}
    assert declared_kinds(behaviors, ["bad"]) == {"bad": "held_out_bad"}
    assert [one.kind for one in requested_prompts(behaviors, (), ())] == ["prefix"]
    assert not declared_kinds(behaviors, ())
