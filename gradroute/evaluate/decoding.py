"""Token-by-token decoding of many rows at once, each row until its own end.

Beside transformers' `generate`: a row that has ended leaves the batch, so that one long text does
not keep all others computing; keys and values are written into room that is there already instead
of being copied whole for each token; and a token is chosen once.
"""

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

MIN_ENDED_SHARE = 1 / 8
"""Rows leave the batch when at least this share of it has ended: each time copies the cache."""
LOOK_EVERY = 8
"""Tokens after which the host asks a device which rows have ended; a CPU is asked each time."""

_Prepare = Callable[..., dict[str, Any]]


class Step(NamedTuple):
    """One token of each row that is left in a batch.

    Attributes:
        left: Indices of the rows.
        tokens: Theirs.
    """

    left: Int[Tensor, " left"]
    tokens: Int[Tensor, " left"]


@runtime_checkable
class Sampler(Protocol):
    """Chooses the next tokens; `sampling.SharedNoise` is one."""

    @property
    def keys(self) -> Tensor:
        """A tensor on the device of the tokens."""
        ...

    def rows(self, left: Tensor) -> Any:
        """What `choose` needs to know of the rows that are left."""
        ...

    def choose(self, logits: Tensor, step: int, among: Any, ended: Tensor) -> Tensor:
        """The next token of each row; see `SharedNoise.choose`."""
        ...

    def check(self) -> None:
        """Raise NumericError if some logits were not finite."""
        ...


def look_every(device: torch.device) -> int:
    """After how many tokens it is seen which rows have ended: asking makes the host wait."""
    return 1 if device.type == "cpu" else LOOK_EVERY


def write_on(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    sampler: Sampler,
    scope: Callable[[Int[Tensor, " left"]], AbstractContextManager[None]],
    *,
    end_tokens: Sequence[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """The new tokens of each row.

    Args:
        model: Any causal model, in evaluation mode and without gradients.
        rows: The tokens that each row begins with, at least one.
        sampler: Chooses the tokens.
        scope: What the model runs in, given the indices (ascending, on the CPU) of the rows that
            are left in the batch; opened again whenever some have left.
        end_tokens: What ends a row.
        max_new_tokens: Where a row is cut that does not end.

    Returns:
        Per row its new tokens, the end token and whatever comes after it included.

    Raises:
        NumericError: The logits of a row that has not ended are not finite.
    """
    steps = write_steps(
        model, rows, sampler, scope, end_tokens=end_tokens, max_new_tokens=max_new_tokens
    )
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


def write_steps(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    sampler: Sampler,
    scope: Callable[[Int[Tensor, " left"]], AbstractContextManager[None]],
    *,
    end_tokens: Sequence[int],
    max_new_tokens: int,
) -> Generator[Step, None, list[list[int]]]:
    """`write_on`, a token of each row at a time, for what looks on or stops early.

    Between two steps the scope stays in force, so nothing else may run the model; closing the
    generator ends it.

    Args:
        model: See `write_on`, as for all others.
        rows: See there.
        sampler: See there.
        scope: See there.
        end_tokens: See there.
        max_new_tokens: See there.

    Yields:
        The token that each row still in the batch got, on the device; what a row gets after its
        end means nothing.

    Returns:
        What `write_on` returns.
    """
    batch = _Batch(model, rows, sampler, end_tokens, max_new_tokens)
    while len(batch.left):
        with scope(batch.left.cpu()):
            yield from batch.write_until_some_end()
        batch.remove_ended()
    return batch.written.tolist()


class _Batch:
    """The rows that still write.

    Attributes:
        written: New tokens of the rows that have left.
        left: Indices of the rows that have not.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Sequence[int]],
        sampler: Sampler,
        end_tokens: Sequence[int],
        max_new_tokens: int,
    ) -> None:
        device = sampler.keys.device
        self._model = model
        self._prepare = cast(_Prepare, model.prepare_inputs_for_generation)
        self._sampler = sampler
        self._ends = torch.tensor(list(end_tokens), dtype=torch.long, device=device)
        self._start = max(map(len, rows))
        self._step, self._steps = 0, max_new_tokens
        self._tokens, mask = (part.to(device) for part in _left_padded(rows, max_new_tokens))
        self._positions = (mask.cumsum(1) - 1).clamp(min=0)
        # Without padding no mask is needed, and models look at one for each token.
        self._mask = mask if any(len(row) < self._start for row in rows) else None
        self._ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
        self._cache: Cache | None = None
        self._accepted = set(inspect.signature(model.forward).parameters)
        self._look_every = look_every(device)
        self.written = self._tokens[:, self._start :].clone()
        self.left = torch.arange(len(rows), device=device)

    def write_until_some_end(self) -> Iterator[Step]:
        """Write until enough rows have ended to be worth leaving, or all is written."""
        among = self._sampler.rows(self.left)
        worth = max(1, int(len(self.left) * MIN_ENDED_SHARE))
        while self._step < self._steps:
            logits = self._next_logits()
            token = self._sampler.choose(logits, self._step, among, self._ended)
            self._tokens[:, self._start + self._step] = token
            self._ended |= torch.isin(token, self._ends)
            self._step += 1
            yield Step(self.left, token)
            if self._step % self._look_every == 0 or self._step == self._steps:
                self._sampler.check()
                ended = int(self._ended.sum())
                if ended == len(self.left) or (ended >= worth and self._can_remove()):
                    return

    def remove_ended(self) -> None:
        """Take the rows that have ended out of the batch; all, if there is nothing to write."""
        gone = self._ended if self._step < self._steps else torch.ones_like(self._ended)
        self.written[self.left[gone]] = self._tokens[gone, self._start :]
        stay = (~gone).nonzero().squeeze(1)
        self.left, self._ended = self.left[stay], self._ended[stay]
        self._tokens, self._positions = self._tokens[stay], self._positions[stay]
        self._mask = None if self._mask is None else self._mask[stay]
        if self._cache is not None and len(stay):
            # Of the ways to select rows, the one that all kinds of layers have.
            self._cache.reorder_cache(cast(torch.LongTensor, stay))

    def _can_remove(self) -> bool:
        """Whether the cache, if there is one, is of a kind whose rows can be selected."""
        return self._cache is None or isinstance(self._cache, DynamicCache)

    def _next_logits(self) -> Float[Tensor, "left vocab"]:
        end = self._start + self._step
        optional: dict[str, Any] = {
            "position_ids": self._positions[:, :end],
            "logits_to_keep": 1,
        }
        # What a family needs besides is known to it: some begin anew when a text grows long.
        inputs = self._prepare(
            self._tokens[:, :end],
            next_sequence_length=None if self._cache is None else 1,
            past_key_values=self._cache,
            attention_mask=None if self._mask is None else self._mask[:, :end],
            use_cache=True,
            is_first_iteration=self._step == 0,
            **{name: value for name, value in optional.items() if name in self._accepted},
        )
        output = self._model(**inputs, return_dict=True)
        cache = output.get("past_key_values")
        # A state of any other kind is not relied on: such a model reads its whole text each time.
        if isinstance(cache, Cache) and cache is not self._cache:
            _make_room(cache, self._start + self._steps)
            self._cache = cache
        return output.logits[:, -1].to(torch.float32)


class _RoomyLayer(DynamicLayer):
    """Keys and values of one layer with room for all tokens to come."""

    def __init__(self, filled: DynamicLayer, room: int) -> None:
        super().__init__()
        assert filled.keys is not None and filled.values is not None
        self.lazy_initialization(filled.keys, filled.values)
        self._room = room
        self._fill(filled.keys, filled.values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values behind the others, and return them all."""
        assert self.keys is not None
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        self._keys[..., start:end, :] = key_states
        self._values[..., start:end, :] = value_states
        self.keys, self.values = self._keys[..., :end, :], self._values[..., :end, :]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Int[Tensor, " rows"]) -> None:
        """Keep these rows."""
        assert self.keys is not None and self.values is not None
        self._fill(self.keys.index_select(0, beam_idx), self.values.index_select(0, beam_idx))

    def _fill(self, keys: Tensor, values: Tensor) -> None:
        length = keys.shape[-2]
        self._keys, self._values = (
            part.new_empty(*part.shape[:-2], self._room, part.shape[-1]) for part in (keys, values)
        )
        self.keys, self.values = self._keys[..., :length, :], self._values[..., :length, :]
        self.keys.copy_(keys)
        self.values.copy_(values)


def _make_room(cache: Cache, room: int) -> None:
    """Room in the layers that keep every token; windows and states stay as they are."""
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[index] = _RoomyLayer(layer, room)


def _left_padded(
    rows: Sequence[Sequence[int]], more: int
) -> tuple[Int[Tensor, "rows room"], Bool[Tensor, "rows room"] | Int[Tensor, "rows room"]]:
    """Tokens and mask with the rows' ends side by side, and room for more tokens."""
    length = max(map(len, rows))
    tokens = [[row[0]] * (length - len(row)) + list(row) + [0] * more for row in rows]
    mask = [[0] * (length - len(row)) + [1] * (len(row) + more) for row in rows]
    return torch.tensor(tokens), torch.tensor(mask)
