"""Planted secrets: every verb runs, well and badly, and none of them is in what it leaves or says.

The secrets are in the environment, in `./.env`, in the arguments of commands that fail, in the
messages of a user's own program, and in the name of the home folder, under which everything lies.
Searched is every file, whatever it is called, and all that was said, as text in several encodings.
"""

import base64
import json
import os
import random
import re
import shutil
import string
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torture.forks import serving
from torture.runs import Ground, lay

# A file that holds secrets on purpose; that they are found in it shows that the search finds.
OWN = (".env", "mine.py", "x.yaml")
SHORT: Mapping[str, Any] = {"train.max_steps": 2, "data.path": None, "data.train_examples": 40}
Lines = Sequence[tuple[int, Sequence[str]]]


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run every verb `count` times with other secrets, and search for them.

    Returns:
        `trials` (commands), `secrets` planted, `planted_found` where they were planted, `files` and
        `bytes` searched; and what must be 0: `hits`, `failures`.
    """
    failures: list[str] = []
    totals: dict[str, int] = dict.fromkeys(
        ("trials", "secrets", "planted_found", "files", "bytes", "hits"), 0
    )
    for number in range(count):
        one = _round(random.Random(f"{seed}:{number}"), folder / str(number), failures)
        totals = {name: totals[name] + one[name] for name in totals}
    return totals | {"failures": failures}


def _round(draw: random.Random, folder: Path, failures: list[str]) -> dict[str, int]:
    secrets = planted(draw)
    home = folder / secrets["the home folder"]
    work = home / "work"
    work.mkdir(parents=True)
    ground = lay(home / "ground")
    config = ground.config({**SHORT, "evaluate.held_out": 3}, "x")
    _plant(work, secrets)
    environment = {
        "HOME": str(home),
        "HF_TOKEN": secrets["HF_TOKEN"],
        "WANDB_API_KEY": secrets["WANDB_API_KEY"],
        "AWS_SECRET_ACCESS_KEY": secrets["AWS_SECRET_ACCESS_KEY"],
        "PYTHONPATH": str(work),
    }
    lines = [*_good_lines(config), *_bad_lines(config, ground, secrets)]
    with serving() as server:
        given = {"lines": [list(line) for _, line in lines], "environment": environment}
        child = server.start("torture.secrets:commands", given, work)
        child.wait(600)
    codes = json.loads((work / "codes.json").read_text(encoding="utf-8"))
    for (wanted, line), code in zip(lines, codes, strict=True):
        if code != wanted:
            failures.append(f"{' '.join(line)[:100]} ended with {code} instead of {wanted}")
    # What Python keeps of a user's own module holds the path of that module.
    shutil.rmtree(work / "__pycache__", ignore_errors=True)
    found = search(folder, secrets)
    failures += [f"{secret} stands in {path}" for path, secret in found.hits]
    counts = {"trials": len(lines), "secrets": len(secrets), "hits": len(found.hits)}
    return {**counts, "planted_found": found.planted, "files": found.files, "bytes": found.bytes}


def planted(draw: random.Random) -> dict[str, str]:
    """Place -> secret; each is a text that nothing else holds."""

    def text(length: int, letters: str = string.ascii_letters + string.digits) -> str:
        return "".join(draw.choices(letters, k=length))

    return {
        "HF_TOKEN": f"hf_{text(34)}",
        "WANDB_API_KEY": text(40, "0123456789abcdef"),
        "AWS_SECRET_ACCESS_KEY": text(40),
        "HF_TOKEN of .env": f"token-{text(20)}",
        "OTHER_SECRET of .env": text(24),
        "an argument": f"hf_{text(34)}",
        "an address": f"pass{text(16)}",
        "the home folder": f"somebody-{text(12)}",
    }


def _plant(work: Path, secrets: Mapping[str, str]) -> None:
    (work / ".env").write_text(
        f"HF_TOKEN={secrets['HF_TOKEN of .env']}\nOTHER_SECRET={secrets['OTHER_SECRET of .env']}\n"
        f"# {' '.join(secrets.values())}\n",
        encoding="utf-8",
    )
    # A program of the user's own that says more than it should.
    (work / "mine.py").write_text(
        "import os\n"
        "def score(text):\n"
        '    raise ValueError(f\'{os.environ["HF_TOKEN"]} {os.environ["HOME"]}\')\n',
        encoding="utf-8",
    )
    (work / "prompts.txt").write_text("once upon a time\n", encoding="utf-8")


def _good_lines(config: Path) -> Lines:
    attack = ("--examples", "4", "--max-steps", "1", "--prompts", "3")
    other = ("run_name=y", "routing=none")
    return [
        (0, ("train", str(config), "--audit")),
        (0, ("train", str(config))),
        (0, ("train", str(config), *other)),
        (0, ("eval", "x", "y", "--prompts", "prefix", "--prompts", "prompts.txt")),
        (0, ("sample", "x", "--mode", "full", "--prompt", "once upon")),
        (0, ("geometry", "x", "y")),
        (0, ("recover", "x", "--steps", "1", "--examples", "4")),
        (0, ("relearn", "x", *attack)),
        (0, ("plot", "x")),
        (0, ("report", "x", "y", "--out", "page")),
        (0, ("schema",)),
    ]


def _bad_lines(config: Path, ground: Ground, secrets: Mapping[str, str]) -> Lines:
    token, word = secrets["an argument"], secrets["an address"]
    train = ("train", str(config), "run_name=z")
    wrong: Lines = [
        (2, (*train, f"seed={token}")),
        (2, (*train, f"{token}=1")),
        (2, (*train, f"behavior={token}")),
        (2, (*train, f"model=https://me:{word}@host/m")),
        (2, (*train, f"data.path=https://{word}@host/rows.jsonl")),
        (2, (*train, f"routing={{{token}: 1}}")),
        (2, (*train, f"model={ground.folder}/absent")),
        (4, (*train, "model=org/gated")),
        (3, (*train, f"data.path={ground.folder}/absent.jsonl")),
        (3, (*train, f"data.path={ground.folder}/base/config.json")),
        (2, ("train", f"{ground.folder}/{token}.yaml")),
        (2, ("eval", token)),
        (2, ("sample", "x", "--count", token)),
        (2, (token,)),
        (3, ("eval", "x", "--prompts", f"{ground.folder}/{token}.txt")),
        (0, ("train", str(config), "run_name=own", "behavior=python:mine.score",
             "data.behavior_fraction=0", "routing=none")),
        (3, ("eval", "own", "--prompts", "prefix")),
    ]  # fmt: skip
    return [*wrong, *((code, ("--debug", *line)) for code, line in wrong if code)]


def commands(lines: Sequence[Sequence[str]], environment: Mapping[str, str]) -> int:
    """In a child: the command lines one after the other; their codes go to `codes.json`."""
    import sys

    from gradroute.cli.main import main

    os.environ.update(environment)
    sys.path.insert(0, environment["PYTHONPATH"])
    codes: list[Any] = []
    for line in lines:
        try:
            codes.append(main(line))
        except SystemExit as stop:  # of the reader of the command line
            codes.append(stop.code)
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
            codes.append(type(error).__name__)
    Path("codes.json").write_text(json.dumps(codes), encoding="utf-8")
    return 0


class Found:
    """What a search came to: `hits` are (path, secret), of files that should hold none."""

    def __init__(self) -> None:
        self.hits: list[tuple[str, str]] = []
        self.planted = self.files = self.bytes = 0


def search(folder: Path, secrets: Mapping[str, str]) -> Found:
    """Look for secrets in all files below a folder, in their names too."""
    found = Found()
    forms = {place: list(encoded(secret)) for place, secret in secrets.items()}
    inside = secrets.get("the home folder", "\0")
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder)).replace(inside, "~", 1)
        holds = [place for place, all in forms.items() if any(one in name.encode() for one in all)]
        if path.is_file():
            content = path.read_bytes()
            found.files += 1
            found.bytes += len(content)
            for part in (content, *unpacked(content)):
                holds += [p for p, all in forms.items() if any(one in part for one in all)]
        if path.name in OWN:
            found.planted += len(set(holds))
        elif path.name != "codes.json":
            found.hits += [(name, place) for place in sorted(set(holds))]
    return found


def encoded(secret: str) -> Iterator[bytes]:
    """A secret as it may stand in a file: as text, and inside of what is in base64."""
    for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le"):
        yield secret.encode(encoding)
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + secret.encode())
        # The first and last letters hold bits of their neighbors.
        yield whole[4 if shift else 0 : -4]
    yield secret.encode().hex().encode()


def unpacked(content: bytes) -> Iterator[bytes]:
    """The streams of a PDF, which are compressed."""
    if content.startswith(b"%PDF"):
        for match in re.finditer(rb"stream\r?\n", content):
            try:
                yield zlib.decompressobj().decompress(content[match.end() :])
            except zlib.error:
                continue
