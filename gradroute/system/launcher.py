"""What a launcher (`torchrun`, `accelerate launch`, `srun`) says of the processes it started."""

import os


def launched() -> int:
    """How many processes run this command together; 1 without a launcher."""
    return max(1, _number("WORLD_SIZE", 1))


def own_rank() -> int:
    """Which of them this process is, from 0."""
    return max(0, _number("RANK", 0)) if launched() > 1 else 0


def local_rank() -> int:
    """Which of those on this machine it is, from 0."""
    return max(0, _number("LOCAL_RANK", 0)) if launched() > 1 else 0


def _number(variable: str, otherwise: int) -> int:
    try:
        return int(os.environ.get(variable, otherwise))
    except ValueError:
        return otherwise
