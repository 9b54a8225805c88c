"""A search of a file for 32 bytes of a tensor, at any offset.

Every eight-byte word at every third byte of the tensors is kept, and a file is looked at in
aligned words, which start at every eighth byte. Three and eight have no common factor, so among
any 24 neighboring byte positions there is one where both happen, and a run of 32 equal bytes
holds 25 positions at which a word of eight fits: it cannot be missed, wherever it starts on either
side. A word that is found on both sides is then extended byte by byte.

Words whose two halves are equal (a value repeated, such as zeros) say nothing and are not looked
for; a window that is found only through such a word is what "of low entropy" means here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

WINDOW = 32
"""Bytes that must be equal."""
WORD = 8
STRIDE = 3
PIECE = 24 << 20
"""Bytes of tensors that are looked for at once; about eight times as much memory is taken."""
BLOCK = 2 << 20
"""Bytes of a file that are looked at at once."""
FORMS = (torch.float32, torch.bfloat16, torch.float16)
"""The types in which a tensor may have been written."""

_MIXERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@dataclass(frozen=True)
class _Needle:
    """A piece of the tensors' bytes with its words, sorted, and where each of them stands."""

    data: bytes
    words: np.ndarray
    places: np.ndarray

    @cached_property
    def bits(self) -> int:
        """Of a table's index; eight places for a word, or more."""
        return max(16, len(self.words).bit_length() + 3)

    @cached_property
    def tables(self) -> list[np.ndarray]:
        """For each mixer a table that is true at the hash of every word."""
        found = []
        for mixer in _MIXERS:
            table = np.zeros(1 << self.bits, dtype=bool)
            table[self._slots(self.words, mixer)] = True
            found.append(table)
        return found

    def held(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of some words are here, and from where on they stand in the sorted order.

        The tables tell most that are not, at a look each; the others are searched for.
        """
        likely = np.arange(len(words))
        for mixer, table in zip(_MIXERS, self.tables, strict=True):
            likely = likely[table[self._slots(words[likely], mixer)]]
        order = np.searchsorted(self.words, words[likely])
        same = self.words[np.minimum(order, len(self.words) - 1)] == words[likely]
        return likely[same], order[same]

    def _slots(self, words: np.ndarray, mixer: np.uint64) -> np.ndarray:
        """Multiplicative hashing (Knuth, The Art of Computer Programming 3, section 6.4)."""
        return (words * mixer) >> np.uint64(64 - self.bits)


@dataclass(frozen=True)
class Windows:
    """What is looked for.

    Attributes:
        tensors: How many tensors it is made of.
        count: Windows of 32 bytes in them, in all forms, at every byte.
    """

    tensors: int
    count: int
    _needles: tuple[_Needle, ...]

    def found_in(self, path: Path) -> int | None:
        """The offset of the first bytes in a file that are also in the tensors; None for none.

        Raises:
            OSError: The file cannot be read.
        """
        size = path.stat().st_size
        if size < WINDOW or not self._needles:
            return None
        content = np.memmap(path, dtype=np.uint8, mode="r")
        found = [at for needle in self._needles if (at := _first(needle, content)) is not None]
        return min(found, default=None)


def windows_of(states: Iterable[Mapping[str, Tensor]]) -> Windows:
    """What to look for so that no part of these tensors goes unnoticed.

    Args:
        states: Tensors by name, such as the weights of adapters.
    """
    tensors = [tensor for state in states for tensor in state.values()]
    texts = [_bytes(tensor, form) for tensor in tensors for form in FORMS]
    count = sum(max(0, len(text) - WINDOW + 1) for text in texts)
    needles = [needle for piece in _pieces(texts) if (needle := _needle(piece)) is not None]
    return Windows(len(tensors), count, tuple(needles))


def _bytes(tensor: Tensor, form: torch.dtype) -> bytes:
    plain = tensor.detach().cpu().to(form).contiguous()
    return plain.flatten().view(torch.uint8).numpy().tobytes()


def _pieces(texts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of about `PIECE`; cuts overlap, so that no window is lost."""
    held: list[bytes] = []
    for text in texts:
        for start in range(0, max(1, len(text) - WINDOW + 1), PIECE):
            held.append(text[start : start + PIECE + WINDOW - 1])
            if sum(map(len, held)) >= PIECE:
                yield b"".join(held)
                held = []
    if held:
        yield b"".join(held)


def _needle(data: bytes) -> _Needle | None:
    if len(data) < WORD:
        return None
    every = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, dtype=np.uint8), WORD)
    words = np.ascontiguousarray(every[::STRIDE]).view("<u8").ravel()
    places = np.arange(len(words), dtype=np.int64) * STRIDE
    telling = (words & _LOW) != (words >> _HALF)
    words, places = words[telling], places[telling]
    if not len(words):
        return None
    order = np.argsort(words, kind="stable")
    return _Needle(data, words[order], places[order])


def _first(needle: _Needle, content: np.ndarray) -> int | None:
    """Where the first window begins that the file shares with the needle."""
    for start in range(0, len(content) - WORD + 1, BLOCK):
        block = content[start : start + BLOCK]
        words = block[: len(block) // WORD * WORD].view("<u8")
        for index, order in zip(*needle.held(words), strict=True):
            last = np.searchsorted(needle.words, words[index], side="right")
            places = needle.places[order:last].tolist()
            at = start + int(index) * WORD
            if (begin := _extended(needle.data, places, content, at)) is not None:
                return begin
    return None


def _extended(data: bytes, places: list[int], content: np.ndarray, at: int) -> int | None:
    """Where a window around an equal word begins, or None if the equality ends too soon."""
    before = min(at, WINDOW)
    around = content[at - before : at + WORD + WINDOW].tobytes()
    for place in places:
        left = _equal(around[:before][::-1], data[max(0, place - WINDOW) : place][::-1])
        right = _equal(around[before:], data[place : place + WORD + WINDOW])
        if left + right >= WINDOW:
            return at - left
    return None


def _equal(first: bytes, second: bytes) -> int:
    """How many bytes two texts have in common from their beginning."""
    for count, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return count
    return min(len(first), len(second))
