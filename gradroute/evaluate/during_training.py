"""Measurements during training: behavior rate and normal loss at intervals."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from peft import PeftModel

from gradroute.config.run_config import RunConfig
from gradroute.evaluate.cells import complete, losses_of
from gradroute.evaluate.evaluator import check_held_out
from gradroute.evaluate.losses import ExampleLosses
from gradroute.evaluate.request import (
    drawn_by_rows,
    judged_kinds,
    prompts_of,
    row_label,
    with_label,
)
from gradroute.evaluate.rows import sample_lines
from gradroute.models.base import Base
from gradroute.models.hidden_state_cache import open_state_cache
from gradroute.prepare import Prepared, no_bad_prompts, tokenize_examples
from gradroute.routing.policy import AblationMode, shipped_mode
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import PREFIX
from gradroute.system.files import append_line
from gradroute.system.terminal import say

DURING_LOSSES = 64
"""Held-out normal examples whose loss is measured during training."""


def during_training(
    folder: RunFolder,
    config: RunConfig,
    prepared: Prepared,
    base: Base,
    model: PeftModel,
    *,
    writes: bool = True,
) -> Callable[[int], None]:
    """A function of the step that measures the model and appends a line per mode to `during.jsonl`.

    Measured are `full` and, where there is such an adapter, `bad_ablated` (of several behaviors
    `good_alone`): the behavior rate over the first `train.measure_prompts` inviting prompts (of a
    behavior without an invitation those of held-out rows that show it, which the line then says; it
    has no rate where there are none), and the loss on the first `DURING_LOSSES` held-out normal
    examples. Of several behaviors each has lines of its own, with its `label`. Neither weights nor
    random state change. Of several ranks each measures, and one writes.

    Raises:
        DataError: There is nothing to prompt with.
    """
    check_held_out(folder, prepared)
    modes = _modes(tuple(config.adapters), tuple(config.behaviors))
    most, settings = config.train.measure_prompts, config.evaluate
    kinds = judged_kinds(prepared.behaviors, drawn_by_rows(prepared))
    asked = {
        label: prompts_of(prepared, settings, kind, label)[:most] for label, kind in kinds.items()
    }
    for label in (label for label, prompts in asked.items() if not prompts):
        what = with_label(kinds[label], row_label(config.behavior, label))
        _say_unmeasured(folder.name, what, no_bad_prompts(config.data, prepared, label))
    normal = prepared.normal[:DURING_LOSSES]
    held_out, _ = tokenize_examples(normal, None, base, config.data.max_length)
    states = open_state_cache(folder, config.train, base, model, held_out, quantize=config.quantize)

    def measure(step: int) -> None:
        samples = {
            label: sample_lines(
                complete(base, model, prompts, modes, settings, folder.name),
                prompts,
                kinds[label],
                prepared.behaviors[label],
            )
            for label, prompts in asked.items()
            if prompts
        }
        losses = losses_of(base, model, held_out, modes, settings.batch_rows, states)
        if not writes:
            return
        folder.check_there()
        folder.measures.parent.mkdir(exist_ok=True)
        for label, mode in product(asked, modes):
            lines = [line for line in samples.get(label, ()) if line["mode"] == mode.name]
            own = {"label": label} if len(asked) > 1 else {}
            own |= {} if kinds[label] == PREFIX else {"prompts": kinds[label]}
            own |= _rate_of(lines) | _loss_of(losses[mode.name])
            append_line(folder.measures, {"step": step, "mode": mode.name, **own})

    return measure


def _modes(adapters: tuple[str, ...], behaviors: tuple[str, ...]) -> list[AblationMode]:
    """`full`, and the mode that ships where there is one."""
    shipped = shipped_mode(adapters, behaviors)
    return [AblationMode.parse("full", adapters), *([shipped] if shipped else [])]


def _say_unmeasured(run: str, what: str, why: str) -> None:
    say(f"{run}: {what}: the behavior rate is not measured during training: {why}.")


def _loss_of(losses: ExampleLosses) -> dict[str, float]:
    """The mean over all tokens, in nats."""
    return {"normal_loss": sum(losses.sums) / sum(losses.counts)}


def _rate_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | int]:
    """How many completions show the behavior; nothing where none was asked for."""
    if not lines:
        return {}
    shown = sum(line["shows"] is True for line in lines)
    return {"behavior_rate": shown / len(lines), "shown": shown, "n": len(lines)}
