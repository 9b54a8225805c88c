"""The search for a tensor's bytes: nothing of 32 bytes is missed, nothing shorter is found."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradroute.export import byte_search
from gradroute.export.byte_search import FORMS, STRIDE, WINDOW, WORD, windows_of

BAD = {
    "a": torch.randn(9, 40, generator=torch.Generator().manual_seed(1)) * 0.02,
    "b": torch.randn(31, 7, generator=torch.Generator().manual_seed(2)) * 3,
}
LOOKED_FOR = windows_of([BAD])
AROUND = torch.randn(300, generator=torch.Generator().manual_seed(3)).numpy().tobytes()


def raw(tensor, form):
    return tensor.to(form).flatten().view(torch.uint8).numpy().tobytes()


def found_in(folder, content, looked_for=LOOKED_FOR):
    path = folder / "file.bin"
    path.write_bytes(content)
    return looked_for.found_in(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("windows")


@given(
    name=st.sampled_from(sorted(BAD)),
    form=st.sampled_from(FORMS),
    start=st.integers(0, 10_000),
    at=st.integers(0, len(AROUND)),
)
def test_32_bytes_from_anywhere_are_found_at_any_offset(folder, name, form, start, at):
    text = raw(BAD[name], form)
    start %= len(text) - WINDOW + 1
    content = AROUND[:at] + text[start : start + WINDOW] + AROUND[at:]
    begin = found_in(folder, content)
    assert begin is not None and at - WINDOW < begin <= at


@given(start=st.integers(0, 1000), at=st.integers(0, 64), size=st.integers(0, WINDOW - 1))
def test_fewer_bytes_are_not_found(folder, start, at, size):
    text = raw(BAD["a"], torch.float32)
    content = bytes(at) + text[start : start + size] + bytes(64)
    assert found_in(folder, content) is None


def test_any_window_holds_a_word_of_the_tensor_where_the_file_has_one_too():
    for one in range(STRIDE):
        for other in range(WORD):
            both = [
                at
                for at in range(WINDOW - WORD + 1)
                if (one + at) % STRIDE == 0 and (other + at) % WORD == 0
            ]
            assert both


def test_files_without_the_bytes_are_clean(folder):
    assert found_in(folder, AROUND * 50) is None
    assert found_in(folder, b"") is None
    assert found_in(folder, b"short") is None


def test_repeated_values_are_told_from_weights(folder):
    looked_for = windows_of([{"zeros": torch.zeros(50, 4), "ones": torch.ones(99)}])
    assert found_in(folder, bytes(4096) + torch.ones(64).numpy().tobytes(), looked_for) is None


def test_large_tensors_and_files_are_looked_at_in_pieces(folder, monkeypatch):
    monkeypatch.setattr(byte_search, "PIECE", 256)
    monkeypatch.setattr(byte_search, "BLOCK", 128)
    looked_for = windows_of([BAD])
    text = raw(BAD["a"], torch.float32)
    for start in range(0, len(text) - WINDOW, 97):
        for at in (start % 200, 128 - WINDOW // 2, 256 - 5):
            content = AROUND[:at] + text[start : start + WINDOW] + AROUND[at:]
            assert found_in(folder, content, looked_for) is not None
    assert found_in(folder, AROUND, looked_for) is None


def test_what_was_looked_for_is_counted():
    sizes = [len(raw(tensor, form)) for tensor in BAD.values() for form in FORMS]
    assert LOOKED_FOR.count == sum(size - WINDOW + 1 for size in sizes)
    assert LOOKED_FOR.tensors == 2
