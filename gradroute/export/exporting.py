"""A run -> a folder to ship: built, proved and put in place as a whole, or not at all.

checkpoint, kept adapters -> files (writing.py), built without looking at what is left out
files + the whole run     -> checks (proving.py, leaks.py) -> proof.json
all checks passed         -> the folder gets its name
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gradroute.checkpoint import Checkpoint, adapter_tensors
from gradroute.config import RunConfig, load_config
from gradroute.environment import provenance
from gradroute.errors import ConfigError, MachineError
from gradroute.export.card import STATEMENT, Subject, export_card
from gradroute.export.checks import Check
from gradroute.export.choosing import Choice, choose
from gradroute.export.evidence import evidence
from gradroute.export.leaks import leak_checks, text_leak
from gradroute.export.licence import base_licence
from gradroute.export.merging import merge, mergeable
from gradroute.export.placing import (
    CARD,
    MANIFEST,
    PROOF,
    SCHEMA_VERSION,
    building,
    check_out,
    put_in_place,
    record,
    write_manifest,
)
from gradroute.export.proving import (
    behavior_again,
    forward_checks,
    load_adapter,
    load_merged,
    reference,
    weight_check,
)
from gradroute.export.pushing import check_push, push
from gradroute.export.ranksum import OneAdapter, as_one
from gradroute.export.windows import windows_of
from gradroute.export.writing import (
    ADAPTER_FILES,
    MODEL_FILES,
    TOKEN_FILES,
    write_adapter,
    write_model,
    write_tokenizer,
)
from gradroute.files import write_json
from gradroute.folders import RunFolder
from gradroute.measure import finished_checkpoint, ground
from gradroute.model import Base, load_base, model_source
from gradroute.prepare import Prepared, prepare
from gradroute.sessions import same_ground
from gradroute.terminal import printable, say

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Wanted:
    """What an export is to be.

    Attributes:
        keep: The adapters to keep.
        form: `peft` (one adapter) or `merged` (a whole model).
        out: Its folder.
        dtype: Of the weights, a key of `DTYPES`; None for float32 (an adapter) or the type in which
            the base is loaded (a model).
        evaluate: Whether the behaviour evaluation is run again on it.
    """

    keep: tuple[str, ...]
    form: str
    out: Path
    dtype: str | None = None
    evaluate: bool = True


def export_run(folder: RunFolder, wanted: Wanted, *, repo: str | None, public: bool) -> None:
    """Export a finished run without some of its adapters, with the proof; print the proof.

    Args:
        folder: The run.
        wanted: What the export is to be.
        repo: Name of a repository on the hub that it is pushed to as well.
        public: Whether everybody may read that.

    Raises:
        ConfigError: What is asked for does not fit the run, or the folder is taken.
        MachineError: The run has no finished checkpoint, the disk or the hub refuses, or a check
            fails: then nothing is exported.
    """
    config = load_config(folder.config)
    choice = choose(config, wanted.keep)
    check_out(wanted.out)
    _check_form(config, wanted.form)
    checkpoint = finished_checkpoint(folder, config)
    token = check_push(repo) if repo else ""
    for warning in choice.warnings:
        say(f"{folder.name}: warning: {warning}")
    prepared = prepare(config) if wanted.evaluate else None
    with building(wanted.out) as built:
        checks = _build(folder, config, checkpoint, choice, prepared, wanted, built)
        for check in checks:
            print(
                printable(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.text}")
            )
        refuse_failed(folder, checks)
        put_in_place(built, wanted.out)
    record(folder, "export", wanted.out, choice.kept)
    print(printable(f"written: {wanted.out}"))
    say(
        f"{folder.name}: its checkpoints still hold {', '.join(choice.left) or 'everything'}; "
        "gradroute purge lists what does."
    )
    if repo:
        push(wanted.out, repo, public=public, token=token)
        print(printable(f"pushed: {repo} ({'public' if public else 'private'})"))


def _build(
    folder: RunFolder,
    config: RunConfig,
    checkpoint: Checkpoint,
    choice: Choice,
    prepared: Prepared | None,
    wanted: Wanted,
    built: Path,
) -> list[Check]:
    """Fill a fresh folder and prove it; the checks, passed or not."""
    adapter = as_one(checkpoint, choice.kept)
    base = load_base(config.model)
    facts = {"base": base.identity} if prepared is None else ground(prepared, base)
    same_ground(folder, facts)
    merged = wanted.form == "merged"
    dtype = DTYPES[wanted.dtype] if wanted.dtype else base.model.dtype if merged else torch.float32
    _write(built, adapter, base, config, dtype, merged=merged)
    write_manifest(built)
    identity, device = base.identity, base.model.device
    del base
    say(f"{folder.name}: comparing {wanted.out.name} with the run under {choice.mode.name}")
    expected = reference(config, checkpoint, choice, prepared)
    exported = (
        load_merged(built, device) if merged else load_adapter(built, load_base(config.model))
    )
    checks = [
        *forward_checks(expected, exported, dtype),
        weight_check(built, checkpoint, choice, expected, exported, merged=merged),
    ]
    if prepared is not None:
        checks.append(behavior_again(config, prepared, expected, exported, choice.mode.name))
    card = export_card(
        subject_of(folder, config, checkpoint, choice, wanted.form, identity, adapter),
        config,
        checks,
        evidence(folder, choice.mode.name),
    )
    (built / CARD).write_text(card, encoding="utf-8")
    parts = {part for name, _ in exported.model.named_parameters() for part in name.split(".")}
    places = _places(folder, config, checkpoint, wanted)
    checks += _leaks(checkpoint, choice, wanted, built, parts, places)
    proof = {
        "schema_version": SCHEMA_VERSION,
        "run": folder.name,
        "step": checkpoint.step,
        "checkpoint": checkpoint.identity,
        "base": identity,
        "format": wanted.form,
        "dtype": str(dtype).removeprefix("torch."),
        "kept": list(choice.kept),
        "left_out": list(choice.left),
        "mode": choice.mode.name,
        "warnings": list(choice.warnings),
        "passed": all(check.passed for check in checks),
        "checks": [check.to_dict() for check in checks],
        "statement": STATEMENT,
        "provenance": provenance(),
    }
    write_json(built / PROOF, proof)
    if leak := text_leak(built / PROOF, places):
        raise MachineError(f"run {folder.name} is not exported: {leak}.")
    return checks


def _write(
    built: Path,
    adapter: OneAdapter,
    base: Base,
    config: RunConfig,
    dtype: torch.dtype,
    *,
    merged: bool,
) -> None:
    """The files of the artefact itself; what is left out is not known here."""
    if merged:
        for module in adapter.modules:
            mergeable(base.model, module)
        merge(base.model, adapter, dtype)
        write_model(built, base.model, dtype)
    else:
        name = hub_name(config)
        write_adapter(built, adapter, base.model, base_name=name, dtype=dtype)
    write_tokenizer(built, base.tokenizer)


def _leaks(
    checkpoint: Checkpoint,
    choice: Choice,
    wanted: Wanted,
    built: Path,
    parts: set[str],
    places: Sequence[Path],
) -> list[Check]:
    """Look through the built folder; a left-out name that the base's own modules have says nothing.

    (An adapter called `model` is not found by its name, but its bytes are.)
    """
    return leak_checks(
        built,
        allowed=lambda name: _belongs(name, merged=wanted.form == "merged"),
        left=[name for name in choice.left if name not in parts],
        windows=windows_of(adapter_tensors(checkpoint, name) for name in choice.left),
        places=places,
    )


def _places(
    folder: RunFolder, config: RunConfig, checkpoint: Checkpoint, wanted: Wanted
) -> list[Path]:
    """Paths of this machine that have to do with the export."""
    source = Path(model_source(config.model))
    places = [Path.home(), Path.cwd(), folder.path, checkpoint.path, wanted.out.parent]
    places += [source] if source.is_dir() else []
    return [Path(os.path.realpath(place)) for place in places]


def _belongs(name: str, *, merged: bool) -> bool:
    own = MODEL_FILES.fullmatch(name) is not None if merged else name in ADAPTER_FILES
    return own or name in TOKEN_FILES or name in (MANIFEST, PROOF, CARD)


def _check_form(config: RunConfig, form: str) -> None:
    if form == "merged" and config.quantize != "nothing":
        raise ConfigError(
            f"run {config.run_name} was trained on a base in {config.quantize} (quantize), to "
            "whose weights no update can be added exactly. Use --format peft, which leaves the "
            "base as it is."
        )
    if form == "peft" and config.start_adapter:
        raise ConfigError(
            f"run {config.run_name} starts from an adapter that is merged into its base "
            "(start_adapter), so its own adapters fit no base that others can load. Use "
            "--format merged."
        )


def hub_name(config: RunConfig) -> str | None:
    """The base's name on the hub; None for a folder of this machine and the embedded model."""
    source = model_source(config.model)
    return None if Path(source).is_dir() else source


def subject_of(
    folder: RunFolder,
    config: RunConfig,
    checkpoint: Checkpoint,
    choice: Choice,
    form: str,
    identity: str,
    adapter: OneAdapter,
) -> Subject:
    """What a card is about."""
    source = model_source(config.model)
    revision = identity.removeprefix("hub revision ") if "hub revision" in identity else None
    return Subject(
        run=folder.name,
        step=checkpoint.step,
        form=form,
        kept=choice.kept,
        left=choice.left,
        base_name=hub_name(config),
        base=identity,
        licence=base_licence(source, revision),
        rank=adapter.rank,
        warnings=choice.warnings,
    )


def refuse_failed(folder: RunFolder, checks: Sequence[Check]) -> None:
    """Stop where a check has failed.

    Raises:
        MachineError: One has.
    """
    failed = [check for check in checks if not check.passed]
    if failed:
        told = "; ".join(f"{check.name}: {check.text}" for check in failed)
        raise MachineError(
            f"run {folder.name} is not exported: of {len(checks)} checks {len(failed)} failed "
            f"({told}). Nothing is left of the export."
        )
