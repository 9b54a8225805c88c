"""Completions of the same prompts under several modes, side by side on the terminal."""

from collections.abc import Sequence

from gradroute.config.run_config import RunConfig, load_config
from gradroute.data.behaviors import get_behaviors
from gradroute.errors import DataError
from gradroute.evaluate.cells import complete
from gradroute.evaluate.generation import Prompt
from gradroute.evaluate.request import (
    EvaluationRequest,
    Question,
    prompts_of,
    requested_modes,
    requested_prompts,
    saved_drawn_by_rows,
)
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.prepare import no_bad_prompts, prepare
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import HELD_OUT_BAD
from gradroute.system.terminal import printable, say


def sample_run(
    folder: RunFolder, request: EvaluationRequest, *, texts: Sequence[str], count: int
) -> None:
    """Print completions of the same prompts, with the same noise, under several modes.

    Prompts of a kind have the noise that they have in the evaluation, so that these are the
    completions that its rates count.

    Args:
        folder: the run.
        request: kinds and files of prompts; modes and scale curves, where there are none of either
            the modes of the run's config.
        texts: prompts, taken as they are; with these and no kind, only these are completed.
        count: how many prompts of each kind, at most.
    """
    config = load_config(folder.config)
    checkpoint = finished_checkpoint(folder, config.train.max_steps)
    curves_alone = request.scales and not request.modes
    named = () if curves_alone else request.modes or config.evaluate.modes or None
    modes = requested_modes(folder.name, config.adapters, named, request.scales)
    prompts = [Prompt(id=text, text=text) for text in texts]
    whose = [""] * len(texts)
    if request.prompts or not texts:
        for question, own in _requested_prompts(folder, config, request, count):
            prompts += own
            marks = [question.label] if len(config.behaviors) > 1 and not question.file else []
            marks += [HELD_OUT_BAD] if question.kind == HELD_OUT_BAD else []
            whose += [f" [{', '.join(marks)}]" if marks else ""] * len(own)
    if not prompts:
        raise DataError(f"run {folder.name}: there is no prompt to complete; give one: --prompt.")
    base, model = restore(config, checkpoint)
    completions = complete(base, model, prompts, modes, config.evaluate, folder.name)
    width = max(len(mode.name) for mode in modes)
    for at, (prompt, label) in enumerate(zip(prompts, whose, strict=True)):
        opening = f"{printable(prompt.text)} …" if prompt.text else "(from nothing) …"
        print(f"\n{opening}{label}")
        for mode in modes:
            print(f"  {mode.name:<{width}}  {printable(completions[mode.name][at].text.strip())}")


def _requested_prompts(
    folder: RunFolder, config: RunConfig, request: EvaluationRequest, count: int
) -> list[tuple[Question, list[Prompt]]]:
    found: list[tuple[Question, list[Prompt]]] = []
    prepared = None
    behaviors = get_behaviors(config.behaviors)
    for question in requested_prompts(behaviors, request.prompts, saved_drawn_by_rows(folder)):
        label, kind, file = question
        if file and any(kind == known.kind for known, _ in found):
            continue  # one file is the same for every behavior
        if file:
            own = file.prompts
        else:
            prepared = prepared or prepare(config, training=False)
            own = prompts_of(prepared, config.evaluate, kind, label)
        if not own:
            why = no_bad_prompts(config.data, prepared, label) if prepared else "it is empty"
            say(f"{folder.name}: {kind}: no prompts to complete: {why}.")
        if file and len(own) > count:
            say(f"{folder.name}: {kind}: the first {count} of {len(own)} prompts; see --count.")
        found.append((question, own[:count]))
    return found
