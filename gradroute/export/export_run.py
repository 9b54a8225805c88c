"""A run -> a folder to ship: built, proved and put in place as a whole, or not at all.

checkpoint, kept adapters -> files (forms.py), built without looking at what is left out
files + the whole run     -> checks (proof.py, leaks.py) -> proof.json
all checks passed         -> the folder gets its name
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gradroute.config.run_config import RunConfig, load_config
from gradroute.data.behaviors import UNNAMED
from gradroute.errors import MachineError
from gradroute.evaluate.cells import complete
from gradroute.evaluate.evaluator import run_identity
from gradroute.evaluate.generation import Completion, Prompt
from gradroute.export.behavior_check import PromptSet, prompt_sets, sample_prompts
from gradroute.export.byte_search import windows_of
from gradroute.export.card import STATEMENT, Subject, export_card, how_to_load
from gradroute.export.checks import Check
from gradroute.export.evidence import evidence
from gradroute.export.forms import (
    belongs,
    check_form,
    checks_of,
    load_form,
    searched_for,
    write_form,
)
from gradroute.export.hub import check_push, push
from gradroute.export.leaks import leak_checks, text_leak
from gradroute.export.license import base_license
from gradroute.export.proof import (
    Reference,
    behavior_again,
    contrast_check,
    reference,
)
from gradroute.export.selection import Choice, choose
from gradroute.export.staging import (
    CARD,
    PROOF,
    SCHEMA_VERSION,
    building,
    check_out,
    put_in_place,
    record,
    write_manifest,
)
from gradroute.models.base import load_base_of, model_source
from gradroute.models.checkpoint import Checkpoint
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.prepare import Prepared, prepare
from gradroute.runs.folder import RunFolder
from gradroute.runs.provenance import provenance
from gradroute.runs.resume import check_identity
from gradroute.system.files import write_json
from gradroute.system.terminal import printable, say

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ExportRequest:
    """What an export is to be.

    Attributes:
        keep: The adapters to keep; None for those that no behavior was routed to.
        form: `peft` (one adapter), `merged` (a whole model) or `gguf-lora` (a file per adapter).
        out: Its folder.
        dtype: Of the weights, a key of `DTYPES`; None for float32 (an adapter) or the type in which
            the base is loaded (a model).
        evaluate: Whether the behavior evaluation is run again on it.
    """

    keep: tuple[str, ...] | None
    form: str
    out: Path
    dtype: str | None = None
    evaluate: bool = True


@dataclass(frozen=True)
class _Job:
    """A run with what is to be made of it."""

    folder: RunFolder
    config: RunConfig
    checkpoint: Checkpoint
    choice: Choice
    prepared: Prepared | None
    request: ExportRequest

    @property
    def places(self) -> list[Path]:
        """Paths of this machine that have to do with it, and may stand in no file."""
        source = Path(model_source(self.config.model))
        places = [Path.home(), Path.cwd(), self.folder.path, self.request.out.parent]
        starts = [self.config.start_adapter, *(a.start for a in self.config.adapters.values())]
        places += [Path(place).expanduser() for place in starts if place]
        places += [source] if source.is_dir() else []
        return [Path(os.path.realpath(place)) for place in places]


def export_run(
    folder: RunFolder, request: ExportRequest, *, repo: str | None, public: bool
) -> None:
    """Export a finished run without some of its adapters, with the proof; print the proof.

    Args:
        folder: The run.
        request: What the export is to be.
        repo: Name of a repository on the hub that it is pushed to as well.
        public: Whether everybody may read that.

    Raises:
        ConfigError: What is asked for does not fit the run, or the folder is taken.
        MachineError: The run has no finished checkpoint, the disk or the hub refuses, or a check
            fails: then nothing is exported.
    """
    config = load_config(folder.config)
    learned, adapters = config.behavior_adapters, tuple(config.adapters)
    choice = choose(
        request.keep,
        adapters,
        learned=learned,
        run_name=config.run_name,
        all_may_stay=request.form == "gguf-lora",
    )
    check_out(request.out)
    check_form(request.form, config)
    checkpoint = finished_checkpoint(folder, config.train.max_steps)
    token = check_push(repo) if repo else ""
    for warning in choice.warnings:
        say(f"{folder.name}: warning: {warning}")
    judged = request.evaluate and UNNAMED not in config.behaviors.values()
    if judged < request.evaluate:
        say(f"{folder.name}: its config names no behavior, so none is looked for in the export.")
    prepared = prepare(config, training=False) if judged else None
    job = _Job(folder, config, checkpoint, choice, prepared, request)
    with building(request.out) as built:
        _build(job, built)
        put_in_place(built, request.out)
    record(folder, "export", request.out, choice.shipped)
    print(printable(f"written: {request.out}"))
    say(
        f"{folder.name}: its checkpoints still hold {', '.join(choice.left_out) or 'everything'}; "
        "gradroute purge lists these files."
    )
    if repo:
        push(request.out, repo, public=public, token=token)
        print(printable(f"pushed: {repo} ({'public' if public else 'private'})"))
    print(printable(how_to_load(request.form, hub_name(config.model), repr(str(request.out)))))


def _build(job: _Job, built: Path) -> None:
    """Fill a fresh folder and prove it.

    Raises:
        MachineError: A check has failed.
    """
    folder, config, choice = job.folder, job.config, job.choice
    form, checkpoint = job.request.form, job.checkpoint
    dtype, identity, rank, scale = _write(job, built)
    say(f"{folder.name}: comparing {job.request.out.name} with the run under {choice.mode.name}")
    sets = None
    if job.prepared is not None:
        sets = prompt_sets(job.prepared, config.evaluate, config.behavior)
    expected = _reference(job, sets)
    exported = load_form(built, form, config, checkpoint, choice.shipped)
    checks = checks_of(built, form, checkpoint, choice, expected, exported, dtype)
    if choice.left_out:
        checks.append(contrast_check(expected, choice))
    if sets is not None:
        again = behavior_again(sets, config.evaluate, expected, exported, choice.mode.name)
        checks.append(again)
    card = _card(job, checks, identity, rank, scale)
    (built / CARD).write_text(card, encoding="utf-8")
    checks += _leaks(job, built, expected)
    show_checks(folder, checks)
    _write_proof(job, built, checks, dtype=dtype, identity=identity)


def _reference(job: _Job, sets: Sequence[PromptSet] | None) -> Reference:
    """What the run's own ablated model does, with its completions where prompts are given."""
    base, model = restore(job.config, job.checkpoint)
    mode = job.choice.mode
    if job.prepared is None or sets is None:
        return reference(base, model, mode)

    def write(prompts: list[Prompt]) -> list[Completion]:
        settings, run = job.config.evaluate, job.folder.name
        return complete(base, model, prompts, [mode], settings, run)[mode.name]

    behaving = [example for own in job.prepared.behaving.values() for example in own[:2]]
    texts = [example.text for example in (*job.prepared.normal[:2], *behaving)]
    return reference(base, model, mode, texts, sample_prompts(sets, write))


def _write(job: _Job, built: Path) -> tuple[torch.dtype, str, int, float]:
    """The files of the artifact itself; what is left out is not known here.

    Returns:
        The type of the weights, what tells the base from others, the largest rank, and the scale
        of B A.
    """
    base, form = load_base_of(job.config), job.request.form
    facts = run_identity(job.prepared, base) if job.prepared else {"base": base.identity}
    check_identity(job.folder, facts)
    dtype = base.model.dtype if form == "merged" else torch.float32
    if job.request.dtype:
        dtype = DTYPES[job.request.dtype]
    rank, scale = write_form(
        built,
        form,
        base,
        job.config,
        job.checkpoint,
        job.choice.shipped,
        base_name=hub_name(job.config.model),
        dtype=dtype,
    )
    write_manifest(built)
    return dtype, base.identity, rank, scale


def _card(job: _Job, checks: Sequence[Check], base: str, rank: int, scale: float) -> str:
    config = job.config
    about = subject_of(
        job.folder.name,
        job.checkpoint.step,
        job.choice,
        model=config.model,
        form=job.request.form,
        base=base,
        rank=rank,
        scale=scale,
    )
    return export_card(
        about,
        checks,
        evidence(job.folder, job.choice.mode.name),
        adapters=tuple(config.adapters),
        behaviors=config.behaviors,
        table=config.routing if isinstance(config.routing, str) else None,
    )


def _leaks(job: _Job, built: Path, expected: Reference) -> list[Check]:
    """Look through the built folder; a left-out name that the base's own modules have says nothing.

    (An adapter called `model` is not found by its name, but its bytes are.)
    """
    parts = {part for name in expected.weights for part in name.split(".")}
    form, choice = job.request.form, job.choice
    return leak_checks(
        built,
        allowed=lambda name: belongs(name, form, choice.shipped),
        left_out=[name for name in choice.left_out if name not in parts],
        windows=windows_of(searched_for(form, job.checkpoint, choice, expected.base.model)),
        places=job.places,
    )


def _write_proof(
    job: _Job, built: Path, checks: Sequence[Check], *, dtype: torch.dtype, identity: str
) -> None:
    proof = {
        "schema_version": SCHEMA_VERSION,
        "run": job.folder.name,
        "step": job.checkpoint.step,
        "checkpoint": job.checkpoint.identity,
        "base": identity,
        "format": job.request.form,
        "dtype": str(dtype).removeprefix("torch."),
        "kept": list(job.choice.shipped),
        "left_out": list(job.choice.left_out),
        "mode": job.choice.mode.name,
        "warnings": list(job.choice.warnings),
        "checks": [check.to_plain() for check in checks],
        "statement": STATEMENT,
        "provenance": provenance(),
    }
    write_json(built / PROOF, proof)
    if leak := text_leak(built / PROOF, job.places):
        raise MachineError(f"run {job.folder.name} is not exported: {leak}.")


def hub_name(model: str) -> str | None:
    """The base's name on the hub; None for a folder of this machine and the embedded model."""
    source = model_source(model)
    return None if Path(source).is_dir() else source


def subject_of(
    run: str,
    step: int,
    choice: Choice,
    *,
    model: str,
    form: str,
    base: str,
    rank: int,
    scale: float,
) -> Subject:
    """What a card is about, with the license of the base.

    Args:
        run: Name of the run.
        step: Of the checkpoint.
        choice: What of it is kept.
        model: The base, as the config names it.
        form: One of `gradroute.export.forms.FORMS`.
        base: Identity of the base.
        rank: Of the adapter.
        scale: What its B A is multiplied by.
    """
    at = re.match(r"hub revision ([0-9a-f]+)", base)
    return Subject(
        run=run,
        step=step,
        form=form,
        shipped=choice.shipped,
        left_out=choice.left_out,
        base_name=hub_name(model),
        base=base,
        license=base_license(model_source(model), at[1] if at else None),
        rank=rank,
        scale=scale,
        warnings=choice.warnings,
    )


def show_checks(folder: RunFolder, checks: Sequence[Check]) -> None:
    """Print checks, and stop where one has failed.

    Raises:
        MachineError: One has.
    """
    for check in checks:
        print(printable(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.text}"))
    failed = [check.name for check in checks if not check.passed]
    if failed:
        raise MachineError(
            f"run {folder.name} is not exported: these of the {len(checks)} checks above failed: "
            f"{', '.join(failed)}. The unfinished export was deleted."
        )
