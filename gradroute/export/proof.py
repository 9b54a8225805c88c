"""The proof of an export: the artifact, loaded from disk by plain libraries, beside the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.config.sections import EvaluateConfig
from gradroute.evaluate.generation import Completion, Prompt, generate_plain
from gradroute.evaluate.geometry import saved_factors
from gradroute.export.behavior_check import PromptSet, Samples, behavior_check, sample_prompts
from gradroute.export.checks import Check
from gradroute.export.parity import (
    adapter_weights_check,
    as_stored_check,
    coarsest,
    continued,
    logits_check,
    logits_of,
    merged_weights_check,
    probe_rows,
)
from gradroute.export.selection import Choice
from gradroute.models.base import Base
from gradroute.models.checkpoint import Checkpoint, adapter_tensors
from gradroute.routing.adapters import ablated, without_peft_warnings
from gradroute.routing.policy import AblationMode
from gradroute.system.files import read_json

TEXTS = (
    "Once there was a day - and a second one, 12 of them!",
    "  It's\n\n\tcaf\u00e9 \u00bd, \u4f60\u597d \U0001f98a  end \n",
)
"""What two tokenizers are compared on, besides their vocabularies and their special tokens."""
_BOTH = (True, False)


@dataclass(frozen=True)
class Reference:
    """What the run's own ablated model does.

    Attributes:
        base: The run's base, with the adapters on it.
        rows: Tokens that logits were computed for, [rows, length].
        logits: They, [rows, length, vocab].
        samples: Judged completions; None where there was no evaluation.
        contrast: Largest difference of these logits from those under `full`.
    """

    base: Base
    rows: Tensor
    logits: Tensor
    samples: Samples | None
    contrast: float

    @property
    def weights(self) -> dict[str, Tensor]:
        """The base's own tensors by name."""
        return {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in self.base.model.state_dict().items()
            if ".lora_" not in name
        }


@dataclass(frozen=True)
class Exported:
    """An artifact as plain libraries load it.

    Attributes:
        model: What is called.
        inner: The transformers model in it, with PEFT's layers where there are any.
        tokenizer: Of the artifact's own files.
    """

    model: nn.Module
    inner: PreTrainedModel
    tokenizer: Tokenizer


def reference(
    base: Base,
    model: PeftModel,
    mode: AblationMode,
    texts: Sequence[str] = (),
    samples: Samples | None = None,
) -> Reference:
    """Run a run's ablated model on what the artifact will be run on.

    Args:
        base: The run's base.
        model: Its trained model on it.
        mode: The ablation mode that the artifact must equal.
        texts: Of examples; others are made up beside them, see `probe_rows`.
        samples: Judged completions of the model under the mode, which are passed on.
    """
    inner = model.get_base_model()
    assert isinstance(inner, PreTrainedModel)
    tokens = [base.tokenizer.encode(text) for text in texts]
    with ablated(model, mode):
        rows, logits = continued(inner, probe_rows(inner, tokens))
    contrast = (logits_of(inner, rows) - logits).abs().max().item()
    return Reference(base, rows, logits, samples, contrast)


def load_adapter(folder: Path, base: Base) -> Exported:
    """A PEFT folder on a freshly loaded base, which is changed."""
    return with_adapter(folder, base, _tokenizer(folder))


def with_adapter(folder: Path, base: Base, tokenizer: Tokenizer) -> Exported:
    """The same for a folder without a tokenizer of its own."""
    with without_peft_warnings():
        model = PeftModel.from_pretrained(base.model, str(folder)).eval()
    inner = model.get_base_model()
    assert isinstance(inner, PreTrainedModel)
    return Exported(model, inner, tokenizer)


def load_merged(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> Exported:
    """A transformers folder as its readers will load it.

    Args:
        folder: The folder.
        device: Where to.
        dtype: In which it computes; None for that in which it is stored.
    """
    model = AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=dtype or "auto",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    torch.nn.Module.to(model, device)
    return Exported(model.eval(), model, _tokenizer(folder))


def _tokenizer(folder: Path) -> Tokenizer:
    return AutoTokenizer.from_pretrained(
        str(folder), trust_remote_code=False, local_files_only=True
    )


def forward_checks(
    folder: Path, expected: Reference, exported: Exported, dtype: torch.dtype, *, merged: bool
) -> list[Check]:
    """Logits of the artifact against those of the run.

    A model that is stored in another type than the run computes in is loaded in the run's for
    that: what is compared is what the files hold.

    Args:
        folder: Of the artifact.
        expected: Of the run.
        exported: The artifact.
        dtype: In which its weights are stored.
        merged: Whether it is a whole model.
    """
    own = expected.base.model.dtype
    found = logits_of(exported.model, expected.rows)
    checks = []
    if merged and dtype != own:
        checks.append(as_stored_check(expected.logits, found, dtype))
        computed = load_merged(folder, expected.base.model.device, own)
        found = logits_of(computed.model, expected.rows)
    return [logits_check(expected.logits, found, coarsest(own, dtype)), *checks]


def tokenizer_check(own: Tokenizer, exported: Tokenizer) -> Check:
    """Whether two tokenizers make the same of texts, of special tokens in a text, and of chats."""
    special = sorted(own.all_special_tokens)
    texts = [*TEXTS, *(f"a {token} b{token}{token}\n c" for token in special)]

    def made(tokenizer: Tokenizer) -> list[Any]:
        rows = [
            tokenizer.encode(text, add_special_tokens=added) for text in texts for added in _BOTH
        ]
        shown = [tokenizer.decode(row, skip_special_tokens=left) for row in rows for left in _BOTH]
        return [rows, shown, sorted(tokenizer.all_special_tokens), tokenizer.special_tokens_map]

    other = [
        what
        for what, same in (
            ("vocabulary", own.get_vocab() == exported.get_vocab()),
            ("tokens of texts", made(own) == made(exported)),
            ("chat template", own.chat_template == exported.chat_template),
        )
        if not same
    ]
    text = (
        f"the exported tokenizer has another {', '.join(other)} than the base's"
        if other
        else "the exported tokenizer is the base's: same vocabulary and chat template, same "
        f"tokens of {len(texts)} texts"
    )
    return Check("tokenizer", not other, text)


def contrast_check(expected: Reference, choice: Choice) -> Check:
    """How much what is left out had to say; for reading, it never fails."""
    largest = expected.logits.abs().max().item()
    left = ", ".join(choice.left_out)
    text = (
        f"with {left} the logits differ by up to {expected.contrast:.2e} (largest {largest:.1f})"
        if expected.contrast
        else f"with {left} the logits are the same: the left-out part has no effect"
    )
    return Check("left_out", True, text, {"difference": expected.contrast})


def behavior_again(
    sets: Sequence[PromptSet],
    settings: EvaluateConfig,
    expected: Reference,
    exported: Exported,
    mode: str,
) -> Check:
    """The behavior evaluation of the artifact, beside that of the ablated model.

    Args:
        sets: The prompts that the samples of `expected` answer.
        settings: How these were drawn.
        expected: Of the run.
        exported: The artifact.
        mode: Name of the ablation mode.
    """

    def write(prompts: list[Prompt]) -> list[Completion]:
        return generate_plain(
            exported.inner,
            exported.tokenizer,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            rows_per_batch=settings.batch_rows,
            score_thoughts=settings.score_thoughts,
        )

    assert expected.samples is not None
    return behavior_check(expected.samples, sample_prompts(sets, write), mode)


def weight_check(
    folder: Path,
    checkpoint: Checkpoint,
    choice: Choice,
    expected: Reference,
    exported: Exported,
    *,
    merged: bool,
) -> Check:
    """The artifact's weights against those of the checkpoint, read again and recomputed."""
    kept = _shipped_tensors(checkpoint, choice.shipped)
    if not merged:
        described = read_json(folder / "adapter_config.json")
        tensors = load_file(folder / "adapter_model.safetensors")
        return adapter_weights_check(tensors, described, kept)
    described = read_json(checkpoint.path / choice.shipped[0] / "adapter_config.json")
    return merged_weights_check(
        exported.inner.state_dict(),
        expected.weights,
        kept,
        transposed=bool(described.get("fan_in_fan_out")),
    )


def _shipped_tensors(
    checkpoint: Checkpoint, adapters: Sequence[str]
) -> list[tuple[Mapping[str, Tensor], float]]:
    found = []
    for name in adapters:
        scale = next(iter(saved_factors(checkpoint, name).values())).scale
        found.append((adapter_tensors(checkpoint, name), scale))
    return found
