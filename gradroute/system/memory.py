"""Recovery from exhausted memory: recognized, freed, and retried with less at once.

Every allocator says it in its own words. An error is recognized by its type where it has one of
its own, else by the sentence; the sentences are those of PyTorch's CPU and CUDA allocators, of
cuBLAS, and of C++.
"""

import errno
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gradroute.errors import MachineError
from gradroute.system.terminal import first_line

Result = TypeVar("Result")

_SENTENCES = (
    "can't allocate memory",  # DefaultCPUAllocator, Linux
    "not enough memory",  # DefaultCPUAllocator, Windows; others
    "cannot allocate memory",
    "out of memory",
    "std::bad_alloc",
    "cublas_status_alloc_failed",
    "could not create a memory object",  # oneDNN
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the machine or the device had no memory left.

    Does not import torch: where nobody has, no error can be torch's.
    """
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # A sentence of ours may speak of memory too, but it is no longer news.
    if not isinstance(error, RuntimeError) or isinstance(error, MachineError):
        return False
    told = str(error).lower()
    return any(sentence in told for sentence in _SENTENCES)


def available_bytes() -> int | None:
    """Memory that a process may still take without swapping; None where the system does not tell.

    On Linux what the kernel calls available, or what the process's control group has left.
    """
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    if found is None:
        return None
    free = int(found[1]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        return min(free, int(limit) - int(used)) if limit.strip() != "max" else free
    except (OSError, ValueError):
        return free


def release() -> None:
    """Give back what is held without need: unreachable objects, and the device's free blocks.

    Call it after the `except` block that met the error: until then its traceback holds the frames,
    and they the tensors.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def with_smaller_batches(
    work: Callable[[int], Result], size: int, on_smaller: Callable[[int, int], None], advice: str
) -> tuple[Result, int]:
    """Do a piece of work, with half as much at once each time that memory runs out.

    Args:
        work: Called with the size; it must leave nothing behind when it fails, for it is then
            called again.
        size: At first, at least 1; halved, rounded up.
        on_smaller: Called with the size that did not fit and the one that is tried next.
        advice: What to do where even one row at a time is too much.

    Returns:
        What the work returned, and the size that it took.

    Raises:
        MachineError: Memory ran out at size 1.
    """
    while True:
        try:
            return work(size), size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            told = _error_line(error)
        # Out here the traceback is gone, and with it what the work held.
        release()
        if size <= 1:
            raise MachineError(f"there is no memory for even one row at a time ({told}). {advice}")
        size, before = (size + 1) // 2, size
        on_smaller(before, size)


def _error_line(error: Exception) -> str:
    told = re.sub(r"^\[enforce fail at [^]]*\] err == 0\. ", "", first_line(error))
    return told or type(error).__name__
