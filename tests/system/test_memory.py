"""Running out of memory is seen for what it is, and work goes on with less at once."""

import errno
import gc
import weakref

import pytest
import torch

from gradroute.errors import MachineError
from gradroute.system.memory import is_out_of_memory, with_smaller_batches


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: bytearray(2**62),
        lambda: [0] * 2**60,
    ],
)
def test_what_allocators_really_raise_is_known(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (MachineError("there is no memory for even one row at a time (out of memory)."), False),
    ],
)
def test_what_is_lack_of_memory_and_what_is_not(error, known):
    assert is_out_of_memory(error) == known


def test_work_is_done_again_with_half_as_much_rounded_up():
    tried: list[int] = []
    told: list[tuple[int, int]] = []

    def work(size):
        tried.append(size)
        if size > 2:
            raise MemoryError
        return "done"

    found = with_smaller_batches(work, 13, lambda before, after: told.append((before, after)), "")
    assert found == ("done", 2)
    assert tried == [13, 7, 4, 2]
    assert told == [(13, 7), (7, 4), (4, 2)]


def test_at_one_row_it_says_what_is_missing_and_what_to_do():
    def work(size):
        torch.empty(2**60, dtype=torch.uint8)

    with pytest.raises(MachineError, match=r"even one row .*tried to allocate .* Buy some\.$"):
        with_smaller_batches(work, 2, lambda before, after: None, "Buy some.")


def test_another_error_is_not_tried_again():
    tried: list[int] = []

    def work(size):
        tried.append(size)
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        with_smaller_batches(work, 8, lambda before, after: None, "")
    assert tried == [8]


class Held:
    pass


def test_what_a_failed_try_held_is_given_back_before_the_next_one():
    held: list[weakref.ref] = []
    gc.disable()  # only what is asked for is collected
    try:

        def work(size):
            alive = sum(one() is not None for one in held)
            mine = Held()
            mine.itself = mine  # pyright: ignore
            held.append(weakref.ref(mine))
            if size > 1:
                raise MemoryError
            return alive

        assert with_smaller_batches(work, 4, lambda before, after: None, "") == (0, 1)
    finally:
        gc.enable()
