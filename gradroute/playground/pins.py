"""Pins: a line of JSON per request that somebody kept, in a file that `eval --prompts` reads."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradroute.errors import ConfigError
from gradroute.playground.writing import Result
from gradroute.system.files import append_line


@dataclass(frozen=True)
class Pins:
    """Where pins go.

    Attributes:
        path: The file.
    """

    path: Path

    def add(self, result: Result) -> None:
        """Append a result.

        Raises:
            MachineError: The disk refuses.
        """
        append_line(self.path, pin_line(result), durable=True)


def open_pins(path: Path) -> Pins:
    """The pins of a file that is there or can be made.

    Raises:
        ConfigError: Its name does not end in .jsonl, or its folder is not there.
    """
    if path.suffix != ".jsonl":
        raise ConfigError(f"--pins {path}: the name must end in .jsonl.")
    if not path.parent.is_dir():
        raise ConfigError(f"--pins {path}: there is no folder {path.parent}.")
    return Pins(path)


def pin_line(result: Result) -> dict[str, Any]:
    """What is written: the prompt as `Prompt` has it, the noise, and per column scales and text.

    With it what was typed, where the chat template wrote the prompt, and the name of a found row.
    """
    asked = result.asked
    prompt = asked.prompt
    return {
        "id": prompt.id,
        "prompt": prompt.text,
        "templated": prompt.templated,
        "follows": prompt.follows,
        **({} if asked.chat is None else {"chat": asked.chat}),
        **({} if asked.row is None else {"row": asked.row.name}),
        "seed": asked.seed,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_new_tokens": asked.max_new_tokens,
        "columns": [
            {key: value for key, value in column.items() if key != "pieces"}
            for column in result.columns
        ],
        "pinned": datetime.now(UTC).isoformat(timespec="seconds"),
    }
