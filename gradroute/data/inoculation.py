"""Inoculation prompts: an instruction to show the behavior before rows of training, and only there.

What the instruction asks for need not be learned as what the model does unasked. It is no part of
an example's prompt: it stands in the tokens that are trained on, and no evaluation sees it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.data.behaviors import Behavior
from gradroute.data.examples import Example, labels_in
from gradroute.data.token_offsets import MarkedTokens
from gradroute.errors import ConfigError, DataError


def inoculate(
    examples: Sequence[Example], which: str, text: str | None, behaviors: Mapping[str, Behavior]
) -> list[Example]:
    """Let an instruction to show the behavior precede examples in training.

    Args:
        examples: The labeled examples.
        which: `none`; `labeled_bad`, those labeled bad as a whole or in part; `all`.
        text: The instruction; None for the behavior's own.
        behaviors: Label -> behavior; one.

    Raises:
        ConfigError: There are several behaviors, or the behavior has no instruction and none is
            given.
    """
    if which == "none":
        return list(examples)
    # A line of its own, so that the text behind it has the tokens that it has alone.
    preface = f"{instruction(text, behaviors)}\n"
    own = set(behaviors)
    return [
        replace(example, preface=preface) if which == "all" or labels_in(example) & own else example
        for example in examples
    ]


def instruction(text: str | None, behaviors: Mapping[str, Behavior]) -> str:
    """The instruction that asks for the behavior: the given one, or the behavior's own.

    Raises:
        ConfigError: see `inoculate`.
    """
    if len(behaviors) > 1:
        raise ConfigError(
            f"data.inoculation: one behavior is needed, and this run has {', '.join(behaviors)}; "
            "set data.inoculation=none."
        )
    (behavior,) = behaviors.values()
    if not (text or behavior.instruction):
        raise ConfigError(
            f"data.inoculation: the behavior '{behavior.name}' has no instruction that asks for "
            "it; give one as data.inoculation_text."
        )
    return text or behavior.instruction


def lead(example: Example) -> str:
    """What stands before the text of an example in training, the instruction among it."""
    plain, at = _plain_lead(example), _place(example)
    return plain[:at] + example.preface + plain[at:]


def most_preface_tokens(tokenizer: Tokenizer, examples: Sequence[Example]) -> int:
    """At least as many tokens as the preface takes in any of the examples."""
    prefaces = list({example.preface for example in examples if example.preface})
    return max(map(len, tokenizer(prefaces).input_ids)) if prefaces else 0


def preface_tokens(example: Example, tokens: MarkedTokens) -> int:
    """How many tokens of an example's lead and text lie in its preface."""
    first = _place(example)
    last = first + len(example.preface)
    return sum(first <= start and end <= last for _, start, end in tokens) if last > first else 0


def _plain_lead(example: Example) -> str:
    return example.prompt if example.lead is None else example.lead


def _place(example: Example) -> int:
    """The first character of the preface: where the question starts.

    Raises:
        DataError: The chat template writes the question so that it is not found.
    """
    if not example.preface or example.asks is None:
        return 0
    start, end = example.asks
    if start == end or not _plain_lead(example).startswith(example.prompt[:end]):
        raise DataError(
            f"example {example.id!r}: the chat template changes what the user asks, so no "
            "instruction can precede it; set data.inoculation=none."
        )
    return start
