"""The processes that train one run together: who they are, and what they tell each other.

A launcher (`torchrun`, `accelerate launch`, `srun`) starts them and says in environment variables
which is which. accelerate reads these and opens the process group: gloo on CPUs, NCCL on GPUs. What
goes between them here are numbers and texts, no pickled objects.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from gradroute.errors import ConfigError, GradrouteError, MachineError
from gradroute.system.launcher import launched
from gradroute.system.memory import is_out_of_memory
from gradroute.system.terminal import first_line

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for another before it takes it for dead; a closed connection tells sooner.

Rank 0 may read and write alone for that long, while the others wait for it.
"""

_KINDS = {one.__name__: one for one in GradrouteError.__subclasses__()}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: This one, from 0.
        size: How many there are.
        device: Where numbers are put that are sent.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is anybody else."""
        return self.size > 1

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor in place by its sum over all ranks; every rank calls this.

        Raises:
            MachineError: Another rank has ended.
        """
        if self.several:
            with lost_rank_told():
                distributed.all_reduce(tensor)

    def numbers(self, own: Sequence[float]) -> list[float]:
        """The sum over all ranks of each of some numbers, in float64."""
        summed = torch.tensor(own, dtype=torch.float64, device=self.device)
        self.add(summed)
        return summed.tolist()

    def texts(self, own: str) -> list[str]:
        """What every rank says, in their order."""
        if not self.several:
            return [own]
        said = own.encode("utf-8", errors="surrogatepass")
        lengths = [0.0] * self.size
        lengths[self.rank] = len(said)
        wanted = [int(length) for length in self.numbers(lengths)]
        padded = torch.zeros(max(1, *wanted), dtype=torch.uint8)
        padded[: len(said)] = torch.frombuffer(bytearray(said or b"\0"), dtype=torch.uint8)[
            : len(said)
        ]
        everybody = [torch.empty_like(padded, device=self.device) for _ in wanted]
        with lost_rank_told():
            distributed.all_gather(everybody, padded.to(self.device))
        return [
            bytes(row[:length].tolist()).decode("utf-8", errors="surrogatepass")
            for row, length in zip(everybody, wanted, strict=True)
        ]

    def wait(self) -> None:
        """Wait until every rank has come here."""
        self.numbers([0.0])

    def on_main(self, work: Callable[[], Result]) -> Result | None:
        """Let rank 0 do a piece of work while the others wait; None on these.

        Raises:
            GradrouteError: What the work raises, on every rank; rank 0 alone tells it.
        """
        if not self.several:
            return work()
        result, trouble, text = None, None, ""
        if self.is_main:
            try:
                result = work()
            except GradrouteError as error:
                trouble, text = error, f"{type(error).__name__}:{error}"
        said, *_ = self.texts(text)
        if trouble is not None:
            raise trouble
        if said:
            kind, _, message = said.partition(":")
            raise _of_rank_0(_KINDS.get(kind, MachineError)(message))
        return result

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Let rank 0 do a piece of work, and then the others, who find what it has left."""
        if self.is_main:
            done: list[Result] = []
            self.on_main(lambda: done.append(work()))
            return done[0]
        self.on_main(lambda: None)
        return work()

    def check_equal(self, facts: dict[str, str]) -> None:
        """See that every rank says the same of each fact.

        Args:
            facts: What a fact is called in a sentence -> what this rank has; all ranks have the
                same keys, in the same order.

        Raises:
            ConfigError: One differs; the message names it and the first rank that has another.
        """
        for fact, own in facts.items():
            values = self.texts(own)
            other = next((at for at, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                error = ConfigError(
                    f"the ranks of this run do not have the same {fact}: rank {other} has "
                    f"{values[other]:.80}, rank 0 has {values[0]:.80}. Start every rank from the "
                    "same files, with the same command and the same environment."
                )
                raise error if self.is_main else _of_rank_0(error)


ALONE = Ranks()
"""One process that nobody else belongs to."""


def join_ranks() -> Ranks:
    """The processes that a launcher has started for this run, connected; `ALONE` without one.

    Raises:
        MachineError: They do not find each other.
    """
    if launched() == 1:
        return ALONE
    from accelerate import PartialState

    try:
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
    except (RuntimeError, ValueError, OSError) as error:
        raise MachineError(
            f"the {launched()} processes of this run cannot be connected ({first_line(error)}). "
            "Look at MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE, which the launcher sets."
        ) from error
    if state.num_processes != launched():
        raise MachineError(
            f"a launcher announces {launched()} processes, and {state.num_processes} came together."
        )
    return Ranks(state.process_index, state.num_processes, str(state.device))


@contextmanager
def lost_rank_told() -> Iterator[None]:
    """What the process group raises when another rank is gone, as a sentence.

    Raises:
        MachineError: This rank has waited for another in vain.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_rank(error):
            raise
        raise MachineError(
            "another process of this run has ended or does not answer. Its own message says why; "
            "the same command goes on from the last checkpoint."
        ) from error


def _is_lost_rank(error: RuntimeError) -> bool:
    """Whether an error comes from the process group; gloo's have no type of their own."""
    if isinstance(error, GradrouteError) or is_out_of_memory(error):
        return False
    told = str(error).lower()
    return isinstance(error, distributed.DistError) or "gloo" in told or "nccl" in told


def _of_rank_0(error: GradrouteError) -> GradrouteError:
    """An error that rank 0 raises too, and tells."""
    error.told_elsewhere = True
    return error
