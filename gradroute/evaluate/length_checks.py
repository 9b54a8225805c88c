"""Checks before training that what will be evaluated can be, and fits the model's positions.

Training rows are looked at where they are made (`prepare.tokenize_examples`). A run whose held-out
texts or prompts are too long would train for hours and then be refused in its evaluation.
"""

from gradroute.config.sections import EvaluateConfig
from gradroute.evaluate.generation import check_prompts
from gradroute.evaluate.request import drawn_by_rows, prompts_of, requested_prompts
from gradroute.models.base import Base
from gradroute.prepare import Prepared, tokenize_examples


def check_lengths(
    prepared: Prepared, base: Base, settings: EvaluateConfig, max_length: int
) -> None:
    """See that held-out examples, and prompts with their completions, fit the model's positions.

    And that a behavior which has right answers has one to the prompts that will be asked.

    Args:
        prepared: The examples of a run.
        base: Its base model.
        settings: Of its evaluation.
        max_length: Tokens at which an example is cut.

    Raises:
        ConfigError: A held-out example is longer than the model has positions.
        DataError: A prompt with `evaluate.max_new_tokens` is, or a prompt has no right answer.
    """
    _check_answers(prepared, settings)
    if base.positions is None:
        return
    if max_length > base.positions:
        for examples in (prepared.normal, *prepared.behaving.values()):
            if kept := examples[: settings.held_out]:
                tokenize_examples(kept, None, base, max_length)
    if not prepared.normal:
        return  # nothing to prompt with, which the evaluation says
    drawn, grid = drawn_by_rows(prepared), settings.elicitation
    for label, kind, _ in requested_prompts(prepared.behaviors, (), drawn, elicitation=grid):
        prompts = prompts_of(prepared, settings, kind, label)
        check_prompts(base.model, base.tokenizer, prompts, settings.max_new_tokens)


def _check_answers(prepared: Prepared, settings: EvaluateConfig) -> None:
    if not prepared.normal:
        return
    for label, kind, _ in requested_prompts(prepared.behaviors, (), drawn_by_rows(prepared)):
        behavior = prepared.behaviors[label]
        if behavior.correct is not None:
            for prompt in prompts_of(prepared, settings, kind, label)[:1]:
                behavior.scored("a word", prompt.text)
