"""Prompts of a user's own: a text file with one prompt per line, or JSON lines.

A file whose name ends in .jsonl has an object per line with `prompt`, and where they matter `id`
(it names the noise), `templated` and `follows`, see `Prompt`; other keys are not read. The pins of
`gradroute playground` are such lines. A prompt that is there twice is completed once.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from gradroute.data.jsonl import read_objects, refuse, show
from gradroute.errors import DataError
from gradroute.evaluate.generation import Prompt


@dataclass(frozen=True)
class PromptFile:
    """What a file of prompts held.

    Attributes:
        kind: Its name as a kind of prompts, `file:<filename>`.
        prompts: One per line that is not blank, named by the line: `line-1`, `line-2`, … or, of
            JSON lines, by its `id`, if no other prompt has it.
        blank: How many blank lines were skipped.
        sha256: Hash of the file's bytes.
    """

    kind: str
    prompts: list[Prompt]
    blank: int
    sha256: str


def read_prompts(path: Path) -> PromptFile:
    """Read a text file of prompts, each line taken as it is, or a file of JSON lines.

    Raises:
        DataError: The file cannot be read, is not UTF-8, or holds no prompt; a JSON line is not an
            object with a text as its `prompt`.
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
    if path.suffix == ".jsonl":
        return _read_json_lines(path)
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


def _read_json_lines(path: Path) -> PromptFile:
    digest = hashlib.sha256()
    prompts: dict[str, Prompt] = {}
    for line, row in read_objects(path, digest.update):
        text, templated = row.get("prompt"), row.get("templated", False)
        name, follows = row.get("id", f"line-{line}"), row.get("follows", Prompt.follows)
        if not (isinstance(text, str) and isinstance(name, str) and isinstance(follows, str)):
            refuse(path, line, "a prompt is needed that is a text; id and follows are texts too.")
        if not isinstance(templated, bool):
            refuse(path, line, f"templated must be true or false, got {show(templated)}.")
        prompt = Prompt(name, text, templated, follows)
        if prompts.setdefault(name, prompt) != prompt:
            prompts[f"line-{line}"] = replace(prompt, id=f"line-{line}")
    if not prompts:
        raise DataError(f"{path} holds no prompt: write one on each line.")
    return PromptFile(f"file:{path.name}", list(prompts.values()), 0, digest.hexdigest())
