"""One random fault in one random file of a real checkpoint: it is noticed, every time.

With the newest checkpoint damaged, the older one is taken and said to be; with both damaged, there
is an error, and never a run that silently starts over.
"""

import os
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gradroute.errors import MachineError
from gradroute.models.checkpoint import latest_checkpoint
from torture.forks import Server, serving
from torture.runs import NAME, Quiet, lay, lines, one_line_error, quiet_run, start, unequal


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Damage checkpoints `count` times, now and then both that a run keeps.

    Returns:
        Counts, and what failed as sentences: trials by the `kinds` of fault, how many were
        `detected`, `fell_back` to the older checkpoint or were `refused`, none being left; and the
        `commands`, a few of them, that met the damage as a user would.
    """
    draw = random.Random(f"damage {seed}")
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    failures: list[str] = []
    with serving() as server:
        ground = lay(folder / "ground")
        config = ground.config({}, "config")
        quiet = quiet_run(server, lines(config), ground.folder / "quiet", config)
        kept = ground.folder / "quiet" / "runs" / NAME
        for _ in range(count):
            both = draw.random() < 0.2
            what, wrong = _one(kept / "checkpoints", both, draw, kinds)
            counts["trials"] += 1
            counts["refused" if both else "fell_back"] += wrong is None
            counts["detected"] += wrong is None
            if wrong:
                failures.append(f"{what}: {wrong}")
        for number in range(max(2, count // 50)):
            failures += _command(server, quiet, kept, folder / f"command-{number}", number, draw)
            counts["commands"] += 1
    named = ("trials", "detected", "fell_back", "refused", "commands")
    return {
        **{name: counts[name] for name in named},
        "kinds": dict(sorted(kinds.items())),
        "failures": failures,
    }


def _one(
    checkpoints: Path, both: bool, draw: random.Random, kinds: Counter[str]
) -> tuple[str, str | None]:
    """Damage, look, repair; what was done, and what is wrong with what was seen."""
    older, newest = sorted(checkpoints.glob("step-*"))
    whole = {path: _contents(path) for path in (older, newest)}
    done = [_damaged(one, draw, kinds) for one in ((newest, older) if both else (newest,))]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = latest_checkpoint(checkpoints)
            wrong = _misjudged(found and found.path.name, None if both else older.name)
        except MachineError as error:
            wrong = None if both else f"refused altogether: {error}"
    notes = [str(note.message) for note in said]
    if wrong is None and not any(newest.name in note and "is skipped" in note for note in notes):
        wrong = f"the newest was passed over without a word, but for {notes}"
    for path, files in whole.items():
        _restore(path, files)
    return " and ".join(done), wrong


def _misjudged(taken: str | None, due: str | None) -> str | None:
    if taken is None:
        return "taken for a run without checkpoints, which would start over"
    return None if taken == due else f"{taken} was taken"


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _restore(folder: Path, files: Mapping[Path, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _damaged(folder: Path, draw: random.Random, kinds: Counter[str]) -> str:
    """Put a random fault into a random file, and say which."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kind, damage = draw.choice(list(_FAULTS.items()))
    path = draw.choice(files)
    damage(path, files, draw)
    kinds[kind] += 1
    return f"{kind}, {path.relative_to(folder.parent)}"


def _flip(path: Path, files: list[Path], draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def _truncate(path: Path, files: list[Path], draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def _append(path: Path, files: list[Path], draw: random.Random) -> None:
    with path.open("ab") as stream:
        stream.write(draw.randbytes(draw.randint(1, 100)))


def _delete(path: Path, files: list[Path], draw: random.Random) -> None:
    path.unlink()


def _empty(path: Path, files: list[Path], draw: random.Random) -> None:
    path.write_bytes(b"")


def _block(path: Path, files: list[Path], draw: random.Random) -> None:
    """Some bytes are zeros, as after a crash of the file system."""
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content))
    length = min(draw.randint(1, 512), len(content) - start)
    zeros = bytes(length)
    if content[start : start + length] == zeros:
        zeros = b"\xff" * length
    content[start : start + length] = zeros
    path.write_bytes(content)


def _swap(path: Path, files: list[Path], draw: random.Random) -> None:
    """Two files of the checkpoint have each other's names."""
    content = path.read_bytes()
    other = draw.choice([one for one in files if one.read_bytes() != content])
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def _stale(path: Path, files: list[Path], draw: random.Random) -> None:
    """The file is that of the other checkpoint; where both have the same, it is deleted."""
    (folder,) = [parent for parent in path.parents if parent.name.startswith("step-")]
    (other,) = [one for one in folder.parent.glob("step-*") if one != folder]
    its = other / path.relative_to(folder)
    if its.is_file() and its.read_bytes() != path.read_bytes():
        path.write_bytes(its.read_bytes())
    else:
        path.unlink()


def _link(path: Path, files: list[Path], draw: random.Random) -> None:
    """A link to another file stands in its place."""
    other = draw.choice([one for one in files if one.read_bytes() != path.read_bytes()])
    path.unlink()
    path.symlink_to(draw.choice([other, Path("/dev/null"), Path("nowhere")]))


def _folder(path: Path, files: list[Path], draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _stranger(path: Path, files: list[Path], draw: random.Random) -> None:
    """A file that does not belong to the checkpoint lies in it."""
    (path.parent / f"{path.stem}-copy{path.suffix}").write_bytes(path.read_bytes())


_FAULTS: Mapping[str, Callable[[Path, list[Path], random.Random], None]] = {
    "a flipped bit": _flip,
    "another flipped bit": _flip,
    "truncated": _truncate,
    "bytes appended": _append,
    "deleted": _delete,
    "empty": _empty,
    "a lost block": _block,
    "swapped": _swap,
    "of another checkpoint": _stale,
    "a link in its place": _link,
    "a folder in its place": _folder,
    "a file too many": _stranger,
}


def _command(
    server: Server, quiet: Quiet, kept: Path, root: Path, number: int, draw: random.Random
) -> list[str]:
    """Meet the damage by the command line; what failed."""
    run = root / "runs" / NAME
    shutil.copytree(kept, run)
    older, newest = sorted((run / "checkpoints").glob("step-*"))
    both = number % 2 == 1
    what = " and ".join(
        _damaged(one, draw, Counter()) for one in ((newest, older) if both else (newest,))
    )
    child = start(server, lines(quiet.config), root)
    child.wait()
    if both:
        wrong = one_line_error(child, 4)
        return [f"{what}: {wrong}"] if wrong else []
    if child.code or "is skipped" not in child.said:
        return [f"{what}: ended with {child.code}: {child.said[-300:]}"]
    different = unequal(run, quiet.finals)
    return [f"{what}: then differs in {', '.join(different)}"] if different else []
