"""The state of a model during a measurement, and the number of rows at once."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from gradroute.models.sizes import largest
from gradroute.system.memory import with_smaller_batches
from gradroute.system.modules import evaluation_mode

MEMORY_AT_ONCE = 2**31
"""Bytes that an evaluation on a CPU may plan with."""
_ADVICE = "Lower evaluate.max_new_tokens or data.max_length, take a smaller model, or free memory."


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """Measure a model: evaluation mode and no gradients, restored afterwards module by module.

    `torch.inference_mode` is not used: a tensor that a layer caches under it could never take part
    in training again.

    Yields:
        The device of the model's parameters, where inputs belong.
    """
    with evaluation_mode(model), torch.no_grad():
        yield next(model.parameters()).device


def in_batches(
    items: int,
    modes: int,
    rows: int,
    measure: Callable[[slice, slice], None],
    *,
    alone: bool = False,
) -> None:
    """Measure all items under all modes, some rows (items times modes) at a time.

    Where memory runs out it goes on with half as many rows, and says so once: first with fewer
    items, then with fewer modes of one item.

    Args:
        items: How many there are.
        modes: How many there are, at least 1.
        rows: At a time; at least one item under all modes as long as memory lasts.
        measure: Called with the items and the modes of a piece; again, with parts of it, when it
            ran out of memory, so it must keep its results by their place.
        alone: One row at a time from the beginning.

    Raises:
        MachineError: Memory does not even last for one row.
    """
    start, size = 0, 1 if alone else max(rows, modes)
    while start < items:

        def measure_from(size: int, start: int = start) -> int:
            end = min(items, start + max(1, size // modes))
            together = min(size, modes)
            for mode in range(0, modes, together):
                measure(slice(start, end), slice(mode, min(modes, mode + together)))
            return end

        size = min(size, (items - start) * modes)  # the last piece may be smaller
        start, size = with_smaller_batches(measure_from, size, _say_smaller, _ADVICE)


def memory_at_once(device: torch.device) -> int:
    """Bytes that an evaluation may plan with beside the model's weights.

    The same at every call, whatever else runs on the machine: how rows are batched decides how
    results are rounded. A quarter of a GPU; on a CPU, where running out of memory may end the
    process instead of raising an error, `MEMORY_AT_ONCE`.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 4
    return MEMORY_AT_ONCE


def bytes_of_row(model: PreTrainedModel, length: int) -> int:
    """About how many bytes one row of a generation takes: keys, values, logits and activations.

    Args:
        model: A causal model; what its config does not say is left out.
        length: Tokens of the row in the end.
    """
    config = model.config.get_text_config()
    hidden = largest(config, "hidden_size", 0)
    heads = largest(config, "num_attention_heads", 1)
    size = largest(config, "head_dim", hidden // heads)
    cached = 2 * largest(config, "num_hidden_layers", 1) * size
    cached *= largest(config, "num_key_value_heads", heads)
    passing = 4 * hidden + 2 * largest(config, "intermediate_size", 4 * hidden)  # of one layer
    logits = 6 * largest(config, "vocab_size", 0)  # with noise and what is made of both
    return length * (cached + passing) * model.dtype.itemsize + 4 * logits


def _say_smaller(before: int, after: int) -> None:
    warnings.warn(
        "memory ran out in an evaluation; it goes on with fewer rows at a time. Nothing is left "
        "out. A lower evaluate.batch_rows avoids the failed attempt.",
        stacklevel=2,
    )
