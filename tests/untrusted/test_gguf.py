"""The header of a GGUF file: whole ones pass, whatever leads astray is named."""

import struct
from pathlib import Path

import pytest

from gradroute.untrusted.gguf import NotGguf, check_gguf

U32, U64, TEXT, ARRAY = 4, 10, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def words(count: int, *values: str) -> bytes:
    return struct.pack("<IQ", TEXT, count) + b"".join(text(value) for value in values)


def tensor(name: str, *shape: int, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", 0, offset)


ARCHITECTURE = pair("general.architecture", TEXT, text("llama"))
PAIRS = (
    ARCHITECTURE,
    pair("llama.block_count", U32, struct.pack("<I", 2)),
    pair("tokenizer.ggml.tokens", ARRAY, words(2, "a", "bc")),
    pair("tokenizer.ggml.scores", ARRAY, struct.pack("<IQ2f", 6, 2, 0.5, 1.0)),
)
TENSORS = (tensor("token_embd.weight", 4, 2), tensor("output.weight", 4, 2, offset=32))


def gguf(
    pairs: tuple[bytes, ...] = PAIRS,
    tensors: tuple[bytes, ...] = TENSORS,
    counts: tuple[int, int] | None = None,
    start: bytes = b"GGUF" + struct.pack("<I", 3),
) -> bytes:
    own = counts or (len(tensors), len(pairs))
    return start + struct.pack("<QQ", *own) + b"".join(pairs + tensors)


DATA = bytes(64)


def test_a_whole_file_passes_and_names_its_architecture(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf() + DATA)
    assert check_gguf(tmp_path / "x.gguf") == "llama"


def test_a_header_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = gguf()
    for length in range(len(whole)):
        (tmp_path / "x.gguf").write_bytes(whole[:length])
        with pytest.raises(NotGguf):
            check_gguf(tmp_path / "x.gguf")


WRONG = {
    "not a GGUF file": gguf(start=b"PK\x03\x04" + struct.pack("<I", 3)),
    "version 50331648": gguf(start=b"GGUF" + struct.pack(">I", 3)),
    "version 1": gguf(start=b"GGUF" + struct.pack("<I", 1)),
    "counts 1,152,921,504,606,846,976 tensors": gguf(counts=(2**60, 4)),
    "counts 1,152,921,504,606,846,976 keys": gguf(counts=(2, 2**60)),
    "counts 0 tensors": gguf(tensors=(), counts=(0, 4)),
    "a name in its header is 9,223,372,036,854,775,808 bytes": gguf(
        (struct.pack("<Q", 2**63), *PAIRS)
    ),
    "a name in its header is not text": gguf((struct.pack("<Q", 2) + b"\xff\xfe", *PAIRS)),
    "leads beyond its end": gguf((ARCHITECTURE, pair("x", ARRAY, words(2**62, "a")))),
    r"to 1\d,\d\d\d,\d\d\d,\d\d\d,\d\d\d,\d\d\d,\d\d\d": gguf(
        (ARCHITECTURE, pair("x", ARRAY, struct.pack("<IQ", 4, 2**62)))
    ),
    "'x' is of the kind 99": gguf((ARCHITECTURE, pair("x", 99, b""))),
    "'x' is a list of the kind 9": gguf((ARCHITECTURE, pair("x", ARRAY, struct.pack("<IQ", 9, 1)))),
    "'general.architecture' is there twice": gguf((ARCHITECTURE, ARCHITECTURE)),
    "does not name its architecture": gguf(PAIRS[1:]),
    "one part of several": gguf((*PAIRS, pair("split.count", 2, struct.pack("<H", 3)))),
    "'output.weight' is there twice": gguf(tensors=(TENSORS[1], TENSORS[1])),
    "'a' is there twice or has no shape": gguf(tensors=(tensor("a"),)),
    "'b' is there twice or has no shape": gguf(tensors=(tensor("b", 1, 1, 1, 1, 1),)),
    "'c' lies beyond its end": gguf(tensors=(tensor("c", 4, offset=10**6),)),
    "'d' lies beyond its end": gguf(tensors=(tensor("d", 2**40, 2**40),)),
    "'e' lies beyond its end": gguf(tensors=(tensor("e", 0),)),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_header_that_leads_astray_is_refused_in_words(sentence: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(WRONG[sentence] + DATA)
    with pytest.raises(NotGguf, match=sentence):
        check_gguf(tmp_path / "x.gguf")
