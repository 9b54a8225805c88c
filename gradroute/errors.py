"""The errors a user can meet, each with the exit code that the command line returns.

    GradrouteError
    ├── ConfigError   2   the configuration or the command is wrong
    ├── DataError     3   a data file, or what it holds, is wrong
    ├── MachineError  4   disk, memory, device, a model or checkpoint not to be had
    ├── NumericError  5   a loss, gradient or weight is not finite
    └── Interrupted   75  stopped on request; the same command goes on

A message is a sentence or two: what was given and where, what is needed, what to do.
"""

from typing import Self


class GradrouteError(Exception):
    """Base of every error that gradroute raises on purpose.

    Attributes:
        exit_code: Of a command that it ends.
        told_elsewhere: Another process of the same run tells it, so that this one need not.
    """

    exit_code = 1
    told_elsewhere = False

    def told(self, where: str, *more: str) -> Self:
        """The same error, saying first where it came up and last what follows from it.

        Args:
            where: stands before the message, with a colon.
            more: sentences that stand behind it.
        """
        error = type(self)(" ".join([f"{where}: {self}", *more]))
        error.told_elsewhere = self.told_elsewhere
        return error


class ConfigError(GradrouteError, ValueError):
    """The configuration, a table, a mode or the command line cannot be used as given."""

    exit_code = 2


class DataError(GradrouteError, ValueError):
    """A data file cannot be read, or its rows cannot be used as given."""

    exit_code = 3


class MachineError(GradrouteError, RuntimeError):
    """The machine refuses (disk, memory, device), or a model or checkpoint is not to be had."""

    exit_code = 4


class NumericError(GradrouteError, ArithmeticError):
    """A loss, gradient or weight is not a finite number."""

    exit_code = 5


class Interrupted(GradrouteError):
    """Stopped on request at a step boundary; the same command resumes the work."""

    exit_code = 75
