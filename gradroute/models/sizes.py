"""Sizes in a model's config, and its number of positions."""

import re
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel

from gradroute.system.memory import is_out_of_memory
from gradroute.system.modules import evaluation_mode

_POSITIONS = ("max_position_embeddings", "max_seq_len")
"""What configs call their number of positions; transformers maps other names to the first."""
_STRETCHED = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling whose factor may come on top of the number in the config."""
_TRIED = 4  # tokens of the row that shows where a table of positions begins

_positions: WeakKeyDictionary[nn.Module, int | None] = WeakKeyDictionary()


def largest(config: PreTrainedConfig, name: str, default: int) -> int:
    """A size in a model's config; of one that differs by layer, the largest.

    Args:
        config: Of the part of the model that reads text.
        name: Of the size.
        default: What is returned where the config has no such number.
    """
    parts = config.per_layer_config if config.is_heterogeneous else [config]
    found: list[int] = []
    for part in parts:
        value = getattr(part, name, None)
        values = value if isinstance(value, list | tuple) else [value]
        found += [one for one in values if isinstance(one, int) and one > 0]
    return max(found, default=default)


def ordinary_tokens(model: PreTrainedModel, count: int) -> list[int]:
    """Tokens from all over the vocabulary, none of which the config gives a meaning of its own.

    Args:
        model: Whose vocabulary.
        count: How many; in a small vocabulary some occur several times.
    """
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    special: set[int] = set()
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        if config is not None:
            special |= _token_ids(config.to_dict())
    usual = [token for token in range(len(weight)) if token not in special]
    return [usual[(place + 1) * len(usual) // (count + 2)] for place in range(count)]


def _token_ids(settings: Mapping[str, Any]) -> set[int]:
    """The numbers that settings call the id or index of a token."""
    found: set[int] = set()
    for name, value in settings.items():
        if re.search(r"token_(id|index)", name):
            found |= {one for one in (value if isinstance(value, list) else [value]) if one}
    return found


def positions_of(model: PreTrainedModel) -> int | None:
    """How many tokens a row may have; None where nothing limits it.

    A table of learned positions is a hard limit, which the model is run on four tokens to find:
    some tables begin with rows that are never used. Of rotary positions it is the number in the
    config, or a multiple of it where a scaling states one. The answer is kept with the model.
    """
    if model not in _positions:
        config = model.config.get_text_config()
        stated = [_stated(config, name) for name in _POSITIONS]
        limits = [limit for limit in (*stated, _learned(model)) if limit is not None]
        _positions[model] = min(limits, default=None)
    return _positions[model]


def _stated(config: PreTrainedConfig, name: str) -> int | None:
    """The number of positions in a config, scaling included."""
    number = largest(config, name, 0)
    if not number:
        return None
    rope = getattr(config, "rope_parameters", None)
    rope = rope if isinstance(rope, dict) else {}
    stretched = [number]
    for own in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        factor, begun = own.get("factor"), own.get("original_max_position_embeddings") or number
        if own.get("rope_type") in _STRETCHED and isinstance(factor, int | float):
            stretched.append(int(factor * begun))
    return max(stretched)


def _learned(model: PreTrainedModel) -> int | None:
    """Rows of the smallest table that the model looks positions up in; None without one."""
    tokens = model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not tokens]
    device = next(model.parameters()).device
    if not tables or device.type == "meta":
        return None
    looked_up = _LookUps()
    # The same token everywhere: only positions count upwards.
    ids = torch.tensor([ordinary_tokens(model, 1) * _TRIED], device=device)
    try:
        with evaluation_mode(model), torch.no_grad(), looked_up:
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        return None  # it cannot be tried; what runs the model next says why
    return min(looked_up.tables, default=None)


class _LookUps(TorchFunctionMode):
    """Inside, tables whose rows are taken one after another are seen, however they are called.

    Attributes:
        tables: Of each such table the rows from the one that the first token takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.embedding and len(args) >= 2:
            self._see(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _see(self, ids: Tensor, weight: Tensor) -> None:
        rows = ids.flatten().tolist()
        if len(rows) == _TRIED and rows == list(range(rows[0], rows[0] + _TRIED)):
            self.tables.append(len(weight) - rows[0])
