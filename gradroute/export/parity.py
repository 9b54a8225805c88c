"""Comparisons of an exported model with the ablated run: logits, greedy tokens, weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from gradroute.evaluate.inference import inference
from gradroute.export.checks import Check
from gradroute.export.merging import distance_in_ulps, exact_update
from gradroute.models.sizes import positions_of

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Largest difference of two logits that is rounding, as a share of the largest logit."""
RANDOM_ROWS = 4
LENGTH = 24
"""Tokens that a row begins with."""
NEW = 16
"""Tokens that the ablated model adds to each row, the most probable one each time."""
_OTHER_SCALES = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern")
"""Settings of PEFT under which some readers scale by alpha / r, and others do not."""


def probe_rows(
    model: PreTrainedModel, texts: Sequence[Sequence[int]]
) -> Int[Tensor, "rows length"]:
    """Rows of tokens to compare two models on: random ones, and the beginnings of texts.

    Args:
        model: Whose vocabulary and number of positions are kept to.
        texts: Tokens of texts; those that are too short are left out.
    """
    positions = positions_of(model)
    length = LENGTH if positions is None else max(1, min(LENGTH, positions - NEW))
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(weight), (RANDOM_ROWS, length), generator=generator)
    long = [list(text[:length]) for text in texts if len(text) >= length]
    return torch.cat([rows, torch.tensor(long, dtype=torch.int64).reshape(-1, length)])


def continued(
    model: PreTrainedModel, rows: Int[Tensor, "rows length"]
) -> tuple[Int[Tensor, "rows longer"], Float[Tensor, "rows longer vocab"]]:
    """Rows with the model's most probable tokens after them, and the logits at every position."""
    with inference(model) as device:
        for _ in range(NEW):
            last = model(input_ids=rows.to(device), use_cache=False).logits[:, -1]
            rows = torch.cat([rows, last.argmax(-1, keepdim=True).cpu()], dim=1)
    return rows, logits_of(model, rows)


def logits_of(
    model: nn.Module, rows: Int[Tensor, "rows length"]
) -> Float[Tensor, "rows length vocab"]:
    """Logits at every position, in float32 on the CPU."""
    with inference(model) as device:
        logits = model(input_ids=rows.to(device), use_cache=False).logits
    return logits.float().cpu()


def logits_check(
    expected: Float[Tensor, "rows length vocab"],
    found: Float[Tensor, "rows length vocab"],
    dtype: torch.dtype,
) -> Check:
    """Whether two models' logits differ by rounding alone, and choose the same tokens.

    A token may differ only where the two most probable ones are no further apart than twice the
    difference of the logits.

    Args:
        expected: Of the ablated model.
        found: Of the exported one.
        dtype: The coarsest type that either computes or stores weights in.
    """
    error, largest, numbers, told = _compared(expected, found)
    allowed = TOLERANCE[dtype] * largest
    passed = error <= allowed and not numbers["tokens_differ_beyond_margin"]
    return Check(
        "logits",
        passed,
        f"logits differ by {error:.2e} at most, {allowed:.2e} allowed ({TOLERANCE[dtype]:g} of the "
        f"largest, {largest:.1f}); {told}",
        {**numbers, "allowed_relative": TOLERANCE[dtype]},
    )


def as_stored_check(
    expected: Float[Tensor, "rows length vocab"],
    found: Float[Tensor, "rows length vocab"],
    dtype: torch.dtype,
) -> Check:
    """The same for a model that also computes in the type that its weights are stored in.

    How far its logits are off is for reading: rounding of what is computed on the way is no fault
    of the files. They must be finite, which float16 may fail, and decided tokens must be equal.

    Args:
        expected: Of the ablated model.
        found: Of the exported one.
        dtype: In which it is stored and computes.
    """
    error, largest, numbers, told = _compared(expected, found)
    passed = math.isfinite(error) and not numbers["tokens_differ_beyond_margin"]
    name = str(dtype).removeprefix("torch.")
    text = f"computed in {name} too, logits differ by {error:.2e} (largest {largest:.1f}); {told}"
    return Check("logits_as_stored", passed, text, numbers)


def _compared(expected: Tensor, found: Tensor) -> tuple[float, float, dict[str, Any], str]:
    """Largest difference, largest logit, both with more as plain values, tokens in words."""
    error = (found - expected).abs().max().item()
    error = error if math.isfinite(error) else math.inf
    largest = expected.abs().max().item()
    top = expected.topk(2).values
    decided = top[..., 0] - top[..., 1] > 2 * error
    other = found.argmax(-1) != expected.argmax(-1)
    wrong = int((other & decided).sum())
    numbers = {
        "difference": error,
        "largest_logit": largest,
        "relative": error / largest if largest else 0.0,
        "positions": other.numel(),
        "tokens_differ": int(other.sum()),
        "tokens_differ_beyond_margin": wrong,
    }
    told = (
        f"{int(other.sum())} of {other.numel()} most probable tokens differ, {wrong} of them where "
        "the margin is over twice the difference (0 allowed)"
    )
    return error, largest, numbers, told


def merged_weights_check(
    found: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    shipped: Sequence[tuple[Mapping[str, Tensor], float]],
    *,
    transposed: bool,
) -> Check:
    """Whether the exported weights are the base's plus the kept updates, to a unit at the end.

    Args:
        found: The exported model's tensors by name.
        base: The base's.
        shipped: Of every kept adapter its tensors, read again from the checkpoint, and its scale.
        transposed: Whether adapted weights are stored as [in, out] (Conv1D).
    """
    adapted = {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        for tensors, _ in shipped
        for key in tensors
        if key.endswith(".lora_A.weight")
    }
    worst, other = 0.0, 0
    for name, tensor in found.items():
        module = name.removesuffix(".weight")
        own = base[name].cpu()
        if module not in adapted or module == name:
            other += not own.to(tensor.dtype).equal(tensor.cpu())
            continue
        update = sum(exact_update(tensors, module, scale) for tensors, scale in shipped)
        assert isinstance(update, Tensor)
        exact = own.double() + (update.T if transposed else update)
        worst = max(worst, distance_in_ulps(tensor.cpu(), exact))
    complete = found.keys() == base.keys() and {f"{name}.weight" for name in adapted} <= set(found)
    return Check(
        "weights",
        complete and not other and worst <= 1,
        f"{len(adapted)} merged weights are within {worst:.2f} units in the last place of base "
        f"+ s B A, recomputed in float64 from the checkpoint (1 allowed); "
        f"{other} of the other {len(found) - len(adapted)} tensors differ from the base's",
        {"merged": len(adapted), "ulps": worst, "others": len(found) - len(adapted)},
    )


def adapter_weights_check(
    found: Mapping[str, Tensor],
    described: Mapping[str, Any],
    shipped: Sequence[tuple[Mapping[str, Tensor], float]],
) -> Check:
    """Whether an exported adapter is the kept ones, stacked and scaled, to a unit at the end.

    Readers must agree on the scale: it is lora_alpha / r, which those compute that pass over the
    settings of other scales, and these settings are off.

    Args:
        found: Its tensors by name.
        described: The settings that were written beside them.
        shipped: Of every kept adapter its tensors, read again from the checkpoint, and its scale.
    """
    first, _ = shipped[0]
    scale = described["lora_alpha"] / described["r"]
    other_scales = [name for name in _OTHER_SCALES if described.get(name)]
    worst = 0.0
    for name, tensor in found.items():
        if name not in first:
            continue
        if name.endswith(".lora_A.weight"):
            exact = torch.cat([tensors[name].double() for tensors, _ in shipped])
        else:
            exact = torch.cat([own / scale * tensors[name].double() for tensors, own in shipped], 1)
        fits = exact.shape == tensor.shape
        worst = max(worst, distance_in_ulps(tensor, exact) if fits else float("inf"))
    return Check(
        "weights",
        found.keys() == first.keys() and worst <= 1 and not other_scales,
        f"{len(found)} tensors are within {worst:.2f} units in the last place of those of the "
        "checkpoint (1 allowed) where B A is scaled by lora_alpha / r, and there are no others; "
        f"settings of another scale: {', '.join(other_scales) or 'none'}",
        {"tensors": len(found), "ulps": worst, "scale": scale},
    )


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """The type with the largest rounding."""
    return max(dtypes, key=TOLERANCE.__getitem__)
