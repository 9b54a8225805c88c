"""All adapters of a run as one, for auditors and for servers that take one adapter."""

from pathlib import Path

import torch

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError
from gradroute.evaluate.modes import read_modes
from gradroute.export.card import audit_card, how_to_load
from gradroute.export.export_run import hub_name, show_checks, subject_of
from gradroute.export.files import write_adapter, write_tokenizer
from gradroute.export.forms import checks_of
from gradroute.export.proof import load_adapter, reference
from gradroute.export.rank_concat import as_one
from gradroute.export.selection import Choice
from gradroute.export.staging import CARD, building, check_out, put_in_place, record, write_manifest
from gradroute.models.base import load_base_of
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.runs.folder import RunFolder
from gradroute.runs.resume import check_identity
from gradroute.system.terminal import printable, say


def audit_adapter(folder: RunFolder, out: Path) -> None:
    """Write every adapter of a finished run, the bad one too, as one PEFT adapter.

    Loaded by plain PEFT it gives the logits of `full`, which is checked.

    Args:
        folder: The run.
        out: A folder that is not there yet.

    Raises:
        ConfigError: The folder is taken, or the run's base is one that others cannot load.
        MachineError: The run has no finished checkpoint, the disk refuses, or a check fails.
    """
    config = load_config(folder.config)
    check_out(out)
    if config.start_adapter:
        raise ConfigError(
            f"run {config.run_name} starts from an adapter that is merged into its base "
            "(start_adapter), so its own adapters do not fit any base that others can load."
        )
    checkpoint = finished_checkpoint(folder, config.train.max_steps)
    adapters = tuple(config.adapters)
    (full,) = read_modes(["full"], (), adapters)
    choice = Choice(adapters, (), full, ())
    adapter = as_one(checkpoint, adapters)
    base = load_base_of(config)
    check_identity(folder, {"base": base.identity})
    with building(out) as built:
        write_adapter(
            built, adapter, base.model, base_name=hub_name(config.model), dtype=torch.float32
        )
        write_tokenizer(built, base.tokenizer)
        write_manifest(built)
        expected = reference(*restore(config, checkpoint), full)
        exported = load_adapter(built, base)
        dtype = torch.float32
        checks = checks_of(built, "peft", checkpoint, choice, expected, exported, dtype)
        show_checks(folder, checks)
        about = subject_of(
            folder.name,
            checkpoint.step,
            choice,
            model=config.model,
            form="peft",
            base=base.identity,
            rank=adapter.rank,
            scale=adapter.scale,
        )
        (built / CARD).write_text(audit_card(about, checks[0]), encoding="utf-8")
        put_in_place(built, out)
    record(folder, "audit-adapter", out, adapters)
    print(printable(f"written: {out}"))
    say(
        f"{folder.name}: {out} CONTAINS EVERYTHING that was trained, including the unwanted "
        f"behavior."
    )
    print(printable(how_to_load("peft", hub_name(config.model), repr(str(out)))))
