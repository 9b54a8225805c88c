"""Prompts of a user's own: a text file with one prompt per line."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from gradroute.errors import DataError
from gradroute.evaluate.generation import Prompt


@dataclass(frozen=True)
class PromptFile:
    """What a file of prompts held.

    Attributes:
        kind: Its name as a kind of prompts, `file:<filename>`.
        prompts: One per line that is not blank, named by the line: `line-1`, `line-2`, …
        blank: How many blank lines were skipped.
        sha256: Hash of the file's bytes.
    """

    kind: str
    prompts: list[Prompt]
    blank: int
    sha256: str


def read_prompts(path: Path) -> PromptFile:
    """Read a text file of prompts, each line taken as it is.

    Raises:
        DataError: The file cannot be read, is not UTF-8, or holds no prompt.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"there is no file of prompts {path}: give a text file with one prompt per line, or "
            "one of prefix, plain, held_out_bad or bos."
        ) from None
    except OSError as error:
        raise DataError(f"the prompts {path} cannot be read: {error.strerror or error}.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: the line is not UTF-8; save the file as UTF-8.") from error
    # Not splitlines, which also breaks a prompt at form feeds and Unicode's separators.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if lines[-1] == "":
        lines.pop()  # what follows the newline at the end is no line
    prompts = [Prompt(f"line-{i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise DataError(f"{path} holds no prompt: write one on each line.")
    return PromptFile(
        kind=f"file:{path.name}",
        prompts=prompts,
        blank=len(lines) - len(prompts),
        sha256=hashlib.sha256(content).hexdigest(),
    )
