"""What an attack is measured on and trained on: prompts and examples of the behavior.

Neither training nor evaluation saw the examples, and none of them shares its prompt with what is
measured.
"""

from collections.abc import Sequence

from gradroute.config.sections import DataConfig, EvaluateConfig
from gradroute.data.examples import Example
from gradroute.data.label_assignment import insert_behavior
from gradroute.errors import DataError
from gradroute.evaluate.generation import Prompt
from gradroute.evaluate.request import drawing, prompts_of
from gradroute.prepare import Prepared, embedded, no_bad_prompts
from gradroute.runs.results import HELD_OUT_BAD
from gradroute.system.terminal import say

ATTACK_SEED = -1
"""Of an attack's examples, adapter and order, the same for every run; no run's seed is negative."""


def attack_prompts(
    run: str,
    data: DataConfig,
    settings: EvaluateConfig,
    prepared: Prepared,
    kind: str,
    label: str,
) -> tuple[list[Prompt], list[Example]]:
    """The prompts of a measurement, and the rows of the behavior that they stand on.

    Raises:
        DataError: there is nothing to prompt with.
    """
    prompts = prompts_of(prepared, settings, kind, label)
    if not prompts and kind == HELD_OUT_BAD:
        why = no_bad_prompts(data, prepared, label)
        raise DataError(f"run {run}: relearning is not measured: {why}.")
    if not prompts:
        raise DataError(
            f"run {run}: no held-out example is without the behavior, so there is nothing "
            "to prompt with. Give some in data.eval_path, or raise data.eval_fraction."
        )
    drawn = data.path is None and prepared.behaviors[label].make is not None
    reserved = list[Example]()
    if kind == HELD_OUT_BAD and not drawn:
        prompts, reserved = _half(run, prepared, prompts, label, settings.prefix_words)
    if len(prompts) < settings.prompts:
        say(f"{run}: only {len(prompts)} of the {settings.prompts} requested prompts exist.")
    return prompts, reserved


def _half(
    run: str, prepared: Prepared, prompts: Sequence[Prompt], label: str, words: int
) -> tuple[list[Prompt], list[Example]]:
    """At most half of the prompts of held-out rows, and all rows that have one of these.

    Held-out rows that show the behavior are needed twice: to ask and to attack with. So no row
    with a prompt that is asked is attacked with, unless all rows have the same prompt.
    """
    every = drawing(prepared, label, None, words)
    half = [*prompts[: max(1, len(every.texts) // 2)]]
    sharing = every.rows[: len(half)]
    asked = [example for rows in sharing for example in rows]
    if len(asked) < len(prepared.behaving[label]):
        return half, asked
    say(
        f"{run}: the rows to attack with share their prompts with the measurement, since "
        f"the held-out rows of the behavior have no others."
    )
    return half, [rows[0] for rows in sharing]


def attack_examples(
    run: str,
    data: DataConfig,
    prepared: Prepared,
    reserved: Sequence[Example],
    count: int,
    label: str,
) -> list[Example]:
    """Examples of the behavior that the run was neither trained on nor is measured on.

    Of the embedded data they are drawn for this purpose, the same for all runs; of a user's data
    they are the last of the held-out ones. A behavior on embedded data may have few forms, so that
    new questions turn into ones that training had; those come last and are counted.

    Args:
        run: name of the run, for messages.
        data: the section of its config.
        prepared: what the run learned from and is measured on.
        reserved: the held-out examples that an attack is measured on.
        count: how many, at most.
        label: of the behavior.

    Raises:
        DataError: there is none.
    """
    behavior = prepared.behaviors[label]
    if data.path is None and (make := behavior.make) is not None:
        trained = {(example.prompt, example.text) for example in prepared.train}
        fresh, seen = [], []
        for example in embedded(behavior, "tune", 2 * count, ATTACK_SEED):
            shown = make(example.prompt, example.text)
            if shown[1] != example.text:
                new = trained.isdisjoint([shown, (example.prompt, example.text)])
                (fresh if new else seen).append(example)
        if len(fresh) < count:
            say(
                f"{run}: {min(len(seen), count - len(fresh))} of the examples to attack "
                f"with are in the training data too; '{behavior.name}' has few forms."
            )
        chosen = insert_behavior([*fresh, *seen][:count], behavior, 1.0, ATTACK_SEED)
    else:
        measured = {example.id for example in reserved}
        chosen = [e for e in prepared.behaving[label] if e.id not in measured][-count:]
    if not chosen:
        raise DataError(
            f"run {run}: no held-out example of the behavior '{behavior.name}' is left to "
            "attack with; give more in data.eval_path, or raise data.eval_fraction."
        )
    if len(chosen) < count:
        say(f"{run}: only {len(chosen)} of the {count} requested examples to attack with exist.")
    return chosen
