"""A typed prompt as the user's turn of a chat, as the run's chat template writes it."""

from collections.abc import Mapping
from dataclasses import replace

from gradroute.data.chat_templates import render_messages, template_of
from gradroute.data.fields import Unusable
from gradroute.data.messages import Message
from gradroute.errors import ConfigError
from gradroute.evaluate.generation import Prompt
from gradroute.playground.asked import Asked
from gradroute.playground.loaded import Played


def why_no_chat(played: Played) -> str:
    """Why a run cannot be asked in a chat; empty where it can."""
    if played.base.tokenizer.chat_template is None:
        return f"the tokenizer of {played.config.model} has no chat template"
    return ""


def in_chat(asked: Asked, played: Mapping[str, Played]) -> Asked:
    """The request with its prompt as the template writes it, where a chat is asked for.

    Only a main thread can stop a template that does not end; see `render_messages`.

    Raises:
        ConfigError: A run has no template, it refuses the prompt, or two runs write it otherwise.
    """
    typed = asked.chat
    if typed is None:
        return asked
    runs = list(dict.fromkeys(column.run for column in asked.columns))
    texts = [_rendered(played[run], typed) for run in runs]
    for run, text in zip(runs, texts, strict=True):
        if text != texts[0]:
            raise ConfigError(
                f"the chat templates of the runs {runs[0]} and {run} write this prompt otherwise, "
                "and all columns complete the same text: open the runs one at a time."
            )
    # A prompt without an id of its own is its own name, as everywhere.
    name = texts[0] if asked.prompt.id == typed else asked.prompt.id
    return replace(asked, prompt=Prompt(name, texts[0], templated=True))


def _rendered(played: Played, typed: str) -> str:
    template = template_of(played.base.tokenizer, played.config.model)
    if template is None:
        raise ConfigError(f"run {played.name}: {why_no_chat(played)}; switch Chat off.")
    turn = [Message("user", typed)]
    try:
        return render_messages(template, turn, None, ask=True, advice="switch Chat off")
    except Unusable as error:
        raise ConfigError(f"run {played.name}: {error}.") from error
