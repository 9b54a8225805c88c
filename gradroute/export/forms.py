"""The forms of an export: what each writes, how it is loaded again, which files belong to it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gradroute.config.run_config import RunConfig
from gradroute.errors import ConfigError
from gradroute.evaluate.geometry import saved_factors
from gradroute.export.checks import Check
from gradroute.export.files import (
    ADAPTER_FILES,
    MODEL_FILES,
    TOKEN_FILES,
    write_adapter,
    write_model,
    write_tokenizer,
)
from gradroute.export.gguf_layout import architecture_of, check_base_file, places_of
from gradroute.export.gguf_lora import gguf_name, write_gguf
from gradroute.export.gguf_proof import gguf_weights_check, load_gguf, states_in_order
from gradroute.export.merging import merge
from gradroute.export.proof import (
    Exported,
    Reference,
    forward_checks,
    load_adapter,
    load_merged,
    tokenizer_check,
    weight_check,
)
from gradroute.export.rank_concat import as_one
from gradroute.export.selection import Choice
from gradroute.export.staging import CARD, MANIFEST, PROOF
from gradroute.models.base import Base, load_base_of, model_source
from gradroute.models.checkpoint import Checkpoint, adapter_tensors
from gradroute.models.files import check_extra, hub_snapshot

FORMS = ("peft", "merged", "gguf-lora")
"""One PEFT adapter; a whole model; a file per adapter for llama.cpp."""


def check_form(form: str, config: RunConfig) -> None:
    """Refuse a form that a run on such a base cannot have; see the fields of the config.

    Raises:
        ConfigError: It cannot.
        MachineError: The package that writes it is not installed.
    """
    run = config.run_name
    if form == "merged" and config.quantize != "none":
        raise ConfigError(
            f"run {run} was trained on a base in {config.quantize} (quantize), and no "
            f"update can be added exactly to quantized weights. Use --format peft, which leaves "
            f"the base as it is."
        )
    if form != "merged" and config.start_adapter:
        raise ConfigError(
            f"run {run} starts from an adapter that is merged into its base "
            "(start_adapter), so its own adapters do not fit any base that others can load. Use "
            "--format merged."
        )
    if form == "gguf-lora":
        check_extra("gguf", "gguf", "writes GGUF files")


def write_form(
    folder: Path,
    form: str,
    base: Base,
    config: RunConfig,
    checkpoint: Checkpoint,
    shipped: Sequence[str],
    *,
    base_name: str | None,
    dtype: torch.dtype,
) -> tuple[int, float]:
    """Write the artifact's own files; what is left out is not known here.

    Args:
        folder: There, and empty.
        form: One of `FORMS`.
        base: The base, which is changed.
        config: Of the run.
        checkpoint: Whose adapters they are.
        shipped: The adapters.
        base_name: Name of the base on the hub; None where it has none.
        dtype: Of the weights.

    Returns:
        The largest rank of an adapter that was written, and what a reader scales B A by.

    Raises:
        ConfigError: The form cannot hold these adapters.
    """
    if form == "gguf-lora":
        return _write_files(folder, base.model, config, checkpoint, shipped, dtype), 1.0
    adapter = as_one(checkpoint, shipped)
    if form == "merged":
        merge(base.model, adapter, dtype)
        write_model(folder, base.model, dtype)
    else:
        write_adapter(folder, adapter, base.model, base_name=base_name, dtype=dtype)
    write_tokenizer(folder, base.tokenizer)
    return adapter.rank, adapter.scale


def _write_files(
    folder: Path,
    model: PreTrainedModel,
    config: RunConfig,
    checkpoint: Checkpoint,
    shipped: Sequence[str],
    dtype: torch.dtype,
) -> int:
    """A file per adapter."""
    architecture, rank = architecture_of(model), 0
    for name in shipped:
        factors = saved_factors(checkpoint, name)
        places = places_of(model, factors)
        if config.gguf_file is not None:
            source = model_source(config.model)
            own = Path(source) if Path(source).is_dir() else hub_snapshot(source, config.gguf_file)
            sizes = {places[m].name: (len(f.B), f.A.shape[1]) for m, f in factors.items()}
            check_base_file(own / config.gguf_file, architecture, sizes)
        path = folder / gguf_name(name)
        write_gguf(path, factors, places, architecture=architecture, dtype=dtype)
        rank = max(rank, *(len(own.A) for own in factors.values()))
    return rank


def load_form(
    folder: Path, form: str, config: RunConfig, checkpoint: Checkpoint, shipped: Sequence[str]
) -> Exported:
    """The artifact as its readers load it, from disk; arguments as above."""
    base = load_base_of(config)
    if form == "merged":
        return load_merged(folder, base.model.device)
    if form == "peft":
        return load_adapter(folder, base)
    return load_gguf(folder, base, checkpoint, shipped)


def checks_of(
    folder: Path,
    form: str,
    checkpoint: Checkpoint,
    choice: Choice,
    expected: Reference,
    exported: Exported,
    dtype: torch.dtype,
) -> list[Check]:
    """Logits, tokenizer (where there is one) and weights of the artifact against the run's.

    Args:
        folder: Of the artifact.
        form: One of `FORMS`.
        checkpoint: Of the run.
        choice: What of it is kept.
        expected: Of the run.
        exported: The artifact, see `load_form`.
        dtype: In which its weights are stored.
    """
    merged = form == "merged"
    checks = forward_checks(folder, expected, exported, dtype, merged=merged)
    if form == "gguf-lora":
        model = expected.base.model
        places = places_of(model, saved_factors(checkpoint, choice.shipped[0]))
        return [*checks, gguf_weights_check(folder, checkpoint, choice.shipped, places, dtype)]
    return [
        *checks,
        tokenizer_check(expected.base.tokenizer, exported.tokenizer),
        weight_check(folder, checkpoint, choice, expected, exported, merged=merged),
    ]


def searched_for(
    form: str, checkpoint: Checkpoint, choice: Choice, model: PreTrainedModel
) -> Iterator[Mapping[str, Tensor]]:
    """The tensors of which nothing may be in the artifact, in every order in which they could be.

    Args:
        form: One of `FORMS`.
        checkpoint: Of the run.
        choice: What of it is kept.
        model: The base.
    """
    for name in choice.left_out:
        if form == "gguf-lora":
            places = places_of(model, saved_factors(checkpoint, name))
            yield states_in_order(checkpoint, name, places)
        else:
            yield adapter_tensors(checkpoint, name)


def belongs(name: str, form: str, shipped: Sequence[str]) -> bool:
    """Whether a file of this name belongs in the folder of an artifact; arguments as above."""
    if name in (MANIFEST, PROOF, CARD):
        return True
    if form == "gguf-lora":
        return name in (gguf_name(adapter) for adapter in shipped)
    own = MODEL_FILES.fullmatch(name) is not None if form == "merged" else name in ADAPTER_FILES
    return own or name in TOKEN_FILES
