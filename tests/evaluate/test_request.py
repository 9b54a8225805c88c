"""What is asked of a run: prompts with what is known of them."""

from gradroute.config.run_config import load_config
from gradroute.data.behaviors import get_behavior
from gradroute.data.examples import Example
from gradroute.evaluate.request import prompts_of
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
        assert [one.templated for one in prompts_of(prepared, config, kind, label)] == [True, False]
    assert not any(one.templated for one in prompts_of(prepared, config, "bos", label))
