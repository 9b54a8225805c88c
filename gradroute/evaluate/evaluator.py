"""Measurement of a run: every kind of prompts under every ablation mode, each cell once.

    prompts x modes         -> completions -> eval/samples.jsonl -> behavior rates
    held-out texts x modes  -> losses      -> eval/losses.jsonl  -> held-out losses

A cell (a kind of prompts, or the losses, under one mode) is measured when its rows are in
`eval/results.json`, which is written after its lines. So an evaluation may be interrupted
anywhere, and the next one measures what is missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from gradroute.config.run_config import RunConfig, load_config
from gradroute.data.batches import TokenizedExample
from gradroute.data.behaviors import UNNAMED, Behavior, get_behaviors
from gradroute.errors import ConfigError, DataError
from gradroute.evaluate.cells import complete, losses_of
from gradroute.evaluate.elicitation import ELICITATION, why
from gradroute.evaluate.generation import Prompt
from gradroute.evaluate.request import (
    EvaluationRequest,
    Question,
    declared_kinds,
    prompts_of,
    requested_modes,
    requested_prompts,
    row_label,
    saved_drawn_by_rows,
    seen_held_out,
    with_label,
)
from gradroute.evaluate.rows import (
    behavior_rows,
    geometry_rows,
    loss_lines,
    loss_rows,
    sample_lines,
)
from gradroute.evaluate.store import StoredResults, add_to_store, read_store
from gradroute.models.base import Base, choose_device_and_dtype
from gradroute.models.checkpoint import Checkpoint
from gradroute.models.hidden_state_cache import open_state_cache
from gradroute.models.sharding import shard
from gradroute.models.shared_states import share_states
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.prepare import (
    Prepared,
    no_bad_prompts,
    prepare,
    tokenize_examples,
)
from gradroute.routing.policy import AblationMode
from gradroute.runs.folder import RunFolder
from gradroute.runs.lock import write_lock
from gradroute.runs.results import HELD_OUT_BAD, LEARNED_RATE, PREFIX, Result
from gradroute.runs.resume import check_identity
from gradroute.system.files import clear_unfinished
from gradroute.system.ranks import ALONE, Ranks, join_ranks, lost_rank_told
from gradroute.system.terminal import say

MODES_AT_ONCE = 16
"""Modes that share a generation and are kept together: the standard ones and a curve of eleven."""
COMPLETIONS_AT_ONCE = 2048
"""Completions that are kept together, about: what an interruption may cost."""


_UNNAMED = "the config names no behavior (behavior: none)"


@dataclass(frozen=True)
class _Plan:
    """A run with what is to be measured of it."""

    config: RunConfig
    checkpoint: Checkpoint
    questions: list[Question]
    modes: list[AblationMode]
    known: StoredResults

    def missing(self, question: Question) -> list[AblationMode]:
        """The modes under which a behavior's prompts of a kind are still to be completed."""
        known, label = self.known.rates, row_label(self.config.behavior, question.label)
        if (label, question.kind) in self.known.unasked:
            return []
        return [m for m in self.modes if (label, question.kind, m.name) not in known]

    def missing_losses(self) -> list[AblationMode]:
        """The modes whose losses are still to be measured."""
        known = self.known.losses
        return [mode for mode in self.modes if mode.name not in known]

    @property
    def complete(self) -> bool:
        """Whether everything is measured."""
        compared = self.known.geometry or not {"good", "bad"} <= set(self.config.adapters)
        rated = not any(self.missing(question) for question in self.questions)
        return compared and rated and not self.missing_losses()


def check_request(folder: RunFolder, request: EvaluationRequest) -> None:
    """See that what is asked of a run can be measured, before anything is.

    Raises:
        ConfigError: A mode or a scale curve that the run's adapters do not have.
        DataError: A file of prompts that cannot be used, or results that cannot be read.
        MachineError: The run has no finished checkpoint.
    """
    _plan(folder, request)


def evaluate_run(folder: RunFolder, request: EvaluationRequest | None = None) -> None:
    """Measure a run; what is measured already, in the same way, is kept.

    Args:
        folder: The run.
        request: What to measure; None for what its config says.

    Raises:
        ConfigError: A mode or curve does not fit the run, or its data have changed.
        DataError: There is nothing to prompt with, or the behavior's detector fails.
        MachineError: The run has no finished checkpoint, or another process writes to it.
    """
    request = request or EvaluationRequest()
    plan = _plan(folder, request)
    if plan.complete and plan.known.declared:
        return
    ranks = join_ranks()
    with lost_rank_told(), ExitStack() as inside:

        def open_folder() -> _Plan:
            if ranks.is_main:
                inside.enter_context(write_lock(folder.path, "measuring"))
                clear_unfinished(folder.results.parent)
            return _plan(folder, request)

        plan = ranks.main_first(open_folder)
        ranks.wait()  # until all have looked, nothing is written
        plan.known.writes = ranks.is_main
        _measure(folder, plan, ranks)
        ranks.wait()


def _measure(folder: RunFolder, plan: _Plan, ranks: Ranks) -> None:
    config, known = plan.config, plan.known
    if known.stale:
        say(
            f"{folder.name}: {known.stale} earlier numbers were measured on another checkpoint or "
            f"in another way, or their lines are missing; they are ignored."
        )
    if plan.complete:
        add_to_store(known, ())
        return
    if UNNAMED in config.behaviors.values():
        say(f"{folder.name}: its config names no behavior; of it only losses are measured.")
    prepared = prepare(config, training=False)
    check_held_out(folder, prepared)
    # A sharded model is run by all ranks together, so that each measures everything.
    sharded = ranks.several and config.train.parallel == "fsdp2"
    parts = ALONE if sharded else ranks
    base, model = restore(config, plan.checkpoint, on_cpu=sharded)
    check_identity(folder, run_identity(prepared, base))
    asked = _prompts(plan, prepared)
    of = {"run": folder.name, "step": plan.checkpoint.step, "seed": config.seed}
    compared = [] if known.geometry else geometry_rows(model, **of)
    if sharded:
        shard(model, ranks, choose_device_and_dtype()[0])
    for together in _together(plan, asked):
        label = together[0][0].label
        own, behavior = row_label(config.behavior, label), prepared.behaviors[label]
        for question, prompts in together:
            where = f"{folder.name}: {with_label(question.kind, own)}"
            _say_prompts(where, question, behavior, prompts, config.evaluate.prompts)
        what = with_label(", ".join(question.kind for question, _ in together), own)
        every = [prompt for _, prompts in together for prompt in prompts]
        for modes in _groups(plan.missing(together[0][0]), len(every)):
            names = ", ".join(mode.name for mode in modes)
            say(f"{folder.name}: measuring {what}: {names}")
            completions = complete(base, model, every, modes, config.evaluate, folder.name, parts)
            samples = list[dict[str, Any]]()
            at = 0
            for question, prompts in together:
                part = {m: made[at : at + len(prompts)] for m, made in completions.items()}
                samples += sample_lines(part, prompts, question.kind, behavior, own)
                at += len(prompts)
            add_to_store(known, behavior_rows(samples, **of), samples=samples)
    _measure_losses(plan, prepared, base, model, of, parts, reuse=not sharded)
    if compared:
        add_to_store(known, compared)


_Asked = tuple[Question, list[Prompt]]


def _together(plan: _Plan, asked: Sequence[_Asked]) -> list[list[_Asked]]:
    """What shares a generation: the elicitation kinds of a behavior that lack the same modes."""
    found: dict[tuple[Any, ...], list[_Asked]] = {}
    for question, prompts in asked:
        modes = tuple(mode.name for mode in plan.missing(question))
        grid = question.kind in ELICITATION
        key = (question.label, modes) if grid else (question.label, question.kind)
        found.setdefault((grid, *key), []).append((question, prompts))
    return list(found.values())


def _prompts(plan: _Plan, prepared: Prepared) -> list[_Asked]:
    """What is still to be asked; of what cannot be the results say why."""
    config, known = plan.config, plan.known
    found = []
    for question in plan.questions:
        if not plan.missing(question):
            continue
        label, kind, file = question
        prompts = file.prompts if file else prompts_of(prepared, config.evaluate, kind, label)
        own = row_label(config.behavior, label)
        if kind == HELD_OUT_BAD:
            counted = seen_held_out(prepared, label)._asdict()
            known.origin["seen"] = {**known.origin.get("seen", {}), own: counted}
        if prompts:
            found.append((question, prompts))
            continue
        reason = why(kind) or no_bad_prompts(config.data, prepared, label)
        say(f"{known.folder.name}: {with_label(kind, own)}: not measured: {reason}.")
        unasked = known.origin.get("unasked", {})
        known.origin["unasked"] = {**unasked, own: {**unasked.get(own, {}), kind: reason}}
        add_to_store(known, ())
    return found


def run_identity(prepared: Prepared, base: Base) -> dict[str, str]:
    """What a run stands on besides its config; see `gradroute.runs.resume`."""
    return {"data": prepared.identity, "base": base.identity}


def _plan(folder: RunFolder, request: EvaluationRequest) -> _Plan:
    config = load_config(folder.config)
    named = request.modes or config.evaluate.modes or None
    modes = requested_modes(folder.name, config.adapters, named, request.scales)
    behaviors, drawn = get_behaviors(config.behaviors), saved_drawn_by_rows(folder)
    grid = request.elicitation or (config.evaluate.elicitation and not request.prompts)
    questions = requested_prompts(
        behaviors, request.prompts, drawn, judged=request.judged, elicitation=grid
    )
    if (request.prompts or grid) and UNNAMED in config.behaviors.values():
        raise ConfigError(
            f"run {folder.name}: its config names no behavior (behavior: none), so completions of "
            f"prompts cannot be judged. Name one in {folder.config}, or ask for no prompts."
        )
    checkpoint = finished_checkpoint(folder, config.train.max_steps)
    known = read_store(
        folder,
        step=checkpoint.step,
        checkpoint=checkpoint.identity,
        settings=config.evaluate.model_dump(mode="json"),
        files={kind: file.sha256 for _, kind, file in questions if file},
        judged_on={
            row_label(config.behavior, label): kind
            for label, kind in declared_kinds(behaviors, drawn).items()
        },
        learned={
            row_label(config.behavior, label): behavior.learned
            for label, behavior in behaviors.items()
            if behavior.learned != LEARNED_RATE
        },
    )
    if (unasked := _unasked(config, questions, known)) != known.origin.get("unasked", {}):
        known.origin["unasked"] = unasked
    return _Plan(config, checkpoint, questions, modes, known)


def _unasked(
    config: RunConfig, questions: Sequence[Question], known: StoredResults
) -> dict[str, dict[str, str]]:
    """By label and kind why no prompts are asked; every kind of a behavior that is not named."""
    found: dict[str, dict[str, str]] = {}
    for label, own in known.origin.get("unasked", {}).items():
        found[label] = {kind: reason for kind, reason in own.items() if reason != _UNNAMED}
    for label, kind, _ in questions:
        if config.behaviors[label] == UNNAMED:
            found.setdefault(row_label(config.behavior, label), {})[kind] = _UNNAMED
    return found


def check_held_out(folder: RunFolder, prepared: Prepared) -> None:
    """See that there is a held-out example without any behavior.

    Raises:
        DataError: There is none.
    """
    if not prepared.normal:
        raise DataError(
            f"run {folder.name}: no held-out example is without the behavior, so there is nothing "
            "to prompt with. Give some in data.eval_path, or raise data.eval_fraction."
        )


def _say_prompts(
    where: str, question: Question, behavior: Behavior, prompts: Sequence[Prompt], wanted: int
) -> None:
    file = question.file
    if file and file.blank:
        say(f"{where}: {file.blank} blank lines are skipped.")
    distinct = behavior.invite is None
    if question.kind == HELD_OUT_BAD or (question.kind == "plain" and distinct):
        what = "distinct prompt" if len(prompts) == 1 else "distinct prompts"
        there = "are no more of them among the held-out rows"
        if question.kind == HELD_OUT_BAD:
            there += " that show the behavior"
    elif question.kind in (PREFIX, "plain"):
        what, there = "prompts", "are no more held-out examples"
    else:
        return
    if len(prompts) < wanted:
        say(f"{where}: {len(prompts)} {what} instead of evaluate.prompts={wanted}: there {there}.")


def _groups(modes: Sequence[AblationMode], prompts: int) -> Iterator[Sequence[AblationMode]]:
    size = max(1, min(MODES_AT_ONCE, COMPLETIONS_AT_ONCE // prompts))
    for start in range(0, len(modes), size):
        yield modes[start : start + size]


def _measure_losses(
    plan: _Plan,
    prepared: Prepared,
    base: Base,
    model: PeftModel,
    of: Mapping[str, Any],
    ranks: Ranks,
    *,
    reuse: bool,
) -> None:
    missing = plan.missing_losses()
    if not missing:
        return
    config, name = plan.config, plan.known.folder.name
    held_out: dict[tuple[str, str], list[TokenizedExample]] = {}
    every: list[TokenizedExample] = []
    sets = [(("normal", "all"), prepared.normal)]
    sets += [
        (("behavior", row_label(config.behavior, key)), own)
        for key, own in prepared.behaving.items()
    ]
    for (dataset, label), examples in sets:
        if examples:
            kept = examples[: config.evaluate.held_out]
            rows, notes = tokenize_examples(kept, None, base, config.data.max_length)
            held_out[dataset, label] = rows
            every += rows
            for note in notes:
                say(f"{name}, held-out {with_label(f'{dataset} texts', label)}: {note}")
    states = None
    if reuse:
        states = open_state_cache(
            plan.known.folder, config.train, base, model, every, quantize=config.quantize
        )
    if not ranks.several:
        share_states(plan.known.folder, config, base, model, every)
    for modes in _groups(missing, 1):
        say(f"{name}: measuring losses: {', '.join(mode.name for mode in modes)}")
        new: list[Result] = []
        lines: list[dict[str, Any]] = []
        for (dataset, label), rows in held_out.items():
            found = losses_of(base, model, rows, modes, config.evaluate.batch_rows, states, ranks)
            new += loss_rows(found, dataset, **of, label=label)
            lines += loss_lines(found, dataset, [row.id for row in rows], label)
        add_to_store(plan.known, new, losses=lines)
