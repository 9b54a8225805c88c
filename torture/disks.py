"""Disks that are full, read-only, or gone: one line of error, and nothing that was good is harmed.

Full disks are real where this machine lets us mount one (tmpfs), else limits on the size of a file.
When there is room again, the same command goes on, and ends as if there had always been.
"""

import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torture.forks import Child, Server, serving
from torture.runs import (
    NAME,
    Quiet,
    broken,
    lay,
    one_line_error,
    quiet_run,
    saving,
    standing,
    start,
    steps_done,
    unequal,
    until,
)

SMALLEST = 64 << 10
PAGE = 4096
ENOUGH = 16 << 20
# Adapters that make a checkpoint of some hundred kilobytes, as disks are filled by pages.
WIDE = {
    "adapters": {"good": {"rank": 100, "dropout": 0.1}, "bad": {"rank": 60, "dropout": 0.1}},
    "train.max_steps": 12,
}


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run on `count` disks of as many sizes, all too small; and a few of the other faults.

    Returns:
        Counts, and what failed as sentences: `disks` is "tmpfs" or "limit". So many trials
        ended with `one_line_errors`, left a `damaged` checkpoint, and, given room, were
        `resumed_equal`. They include `evaluations` on a disk that filled up after training, disks
        that are `read_only`, and `deleted` run folders, which have nothing to resume.
    """
    draw = random.Random(f"disks {seed}")
    found = _Found(Counter(), [])
    folder.chmod(0o755)
    with serving() as server:
        ground = lay(folder / "ground")
        mountable = _mountable(folder)
        config = ground.config(WIDE, "wide")
        root = ground.folder / "quiet"
        quiet = quiet_run(server, _asked(config, root / "disk"), root, config, "disk/runs")
        sizes = _sizes(count, _pages(root / "disk"), draw)
        for number, size in enumerate(sizes):
            place = folder / f"size-{number}"
            (_small_disk if mountable else _small_files)(server, quiet, place, size, found)
        few = max(1, count // 8)
        for number in range(few):
            _gone(server, quiet, folder / f"gone-{number}", draw, found)
            _read_only(server, quiet, folder / f"read-only-{number}", mountable, found)
            if mountable:
                _full_evaluation(server, quiet, folder / f"evaluation-{number}", draw, found)
    named = (
        "trials",
        "one_line_errors",
        "resumed_equal",
        "damaged",
        "evaluations",
        "read_only",
        "deleted",
    )
    return {
        "disks": "tmpfs" if mountable else "limit",
        "sizes": [sizes[0], sizes[-1]],
        **{name: found.counts[name] for name in named},
        "failures": found.failures,
    }


@dataclass
class _Found:
    counts: Counter[str]
    failures: list[str] = field(default_factory=list)

    def refusal(self, child: Child, run: Path, what: str) -> None:
        """Judge how a run on a bad disk ended."""
        self.counts["trials"] += 1
        wrong = one_line_error(child, 4)
        self.counts["one_line_errors"] += wrong is None
        if wrong:
            self.failures.append(f"{what}: {wrong}")
        if harmed := broken(run):
            self.counts["damaged"] += 1
            self.failures.append(f"{what}: {'; '.join(harmed)}.")

    def going_on(self, child: Child, run: Path, quiet: Quiet, what: str) -> None:
        """Judge how the same command ended when the disk was good again."""
        if child.wait():
            self.failures.append(f"{what}: later ended with {child.code}: {child.said[-300:]}")
        elif different := unequal(run, quiet.finals):
            self.failures.append(f"{what}: later differs in {', '.join(different)}.")
        elif left := sorted(path.name for path in run.rglob(".tmp-*")):
            self.failures.append(f"{what}: later left behind {', '.join(left)}.")
        else:
            self.counts["resumed_equal"] += 1


def limited(size: int, lines: list[list[str]]) -> int:
    """In a child: the command lines, with no file larger than `size` bytes."""
    import resource

    from torture.runs import command

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return command(lines)


def _asked(config: Path, disk: Path) -> list[list[str]]:
    runs = str(disk / "runs")
    return [["train", str(config), "--runs", runs], ["eval", NAME, "--runs", runs]]


def _small_disk(server: Server, quiet: Quiet, root: Path, size: int, found: _Found) -> None:
    disk = root / "disk"
    run, asked = disk / "runs" / NAME, _asked(quiet.config, root / "disk")
    with _mounted(disk, size):
        child = start(server, asked, root)
        child.wait()
        what = f"a disk of {size} bytes"
        found.refusal(child, run, what)
        _mount("remount", ENOUGH, disk)
        found.going_on(start(server, asked, root), run, quiet, what)


def _small_files(server: Server, quiet: Quiet, root: Path, size: int, found: _Found) -> None:
    run, asked = root / "disk" / "runs" / NAME, _asked(quiet.config, root / "disk")
    # The largest file is a third of a checkpoint; the smallest limit leaves room for messages.
    limit = max(2 * PAGE, size // 12)
    child = server.start("torture.disks:limited", {"size": limit, "lines": asked}, root)
    child.wait()
    what = f"files of at most {limit} bytes"
    found.refusal(child, run, what)
    found.going_on(start(server, asked, root), run, quiet, what)


def _full_evaluation(
    server: Server, quiet: Quiet, root: Path, draw: random.Random, found: _Found
) -> None:
    """The disk is filled, but for a few pages, between training and evaluation."""
    disk = root / "disk"
    train, measure = _asked(quiet.config, disk)
    run = disk / "runs" / NAME
    with _mounted(disk, ENOUGH):
        start(server, [train], root).wait()
        left = PAGE * draw.randint(0, 5)
        free = os.statvfs(disk).f_bavail * PAGE
        (disk / "filler").write_bytes(bytes(free - left))
        child = start(server, [measure], root)
        child.wait()
        what = f"an evaluation with {left} bytes left on the disk"
        found.refusal(child, run, what)
        (disk / "filler").unlink()
        found.going_on(start(server, [train, measure], root), run, quiet, what)
        found.counts["evaluations"] += 1


def _read_only(server: Server, quiet: Quiet, root: Path, mountable: bool, found: _Found) -> None:
    """A half-trained run on a disk that takes nothing more."""
    disk = root / "disk"
    run, asked = disk / "runs" / NAME, _asked(quiet.config, disk)
    if not mountable and os.geteuid() == 0:
        return  # nothing that the superuser could not write to
    with _mounted(disk, ENOUGH) if mountable else _plain(disk):
        _half(server, quiet, root, run, asked)
        if mountable:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        else:
            _writable(disk, False)
        child = start(server, asked, root)
        child.wait()
        what = "a disk that is read-only"
        found.refusal(child, run, what)
        if mountable:
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        else:
            _writable(disk, True)
        found.going_on(start(server, asked, root), run, quiet, what)
        found.counts["read_only"] += 1


def _gone(server: Server, quiet: Quiet, root: Path, draw: random.Random, found: _Found) -> None:
    """The run folder is removed while it trains: nothing may be written as if it were there."""
    run, asked = root / "disk" / "runs" / NAME, _asked(quiet.config, root / "disk")
    child = start(server, asked, root)
    step, in_save = draw.randint(1, 8), draw.random() < 0.5
    # Not at the very end, where a run may be through with its folder.
    if until(child, lambda: step <= steps_done(run) < 10 and (saving(run) or not in_save)):
        run.rename(root / "removed")  # at once, where removing file by file would take a while
        shutil.rmtree(root / "removed")
        child.wait()
        found.refusal(child, run, f"a run folder removed after step {step}")
        found.counts["deleted"] += 1
        if run.exists():
            there = ", ".join(sorted(path.name for path in run.rglob("*")))
            found.failures.append(f"a run folder that was removed is there again, with {there}.")
    child.wait()
    shutil.rmtree(root)
    child = start(server, asked, root)
    if child.wait() or unequal(run, quiet.finals):
        found.failures.append("a removed run, begun again, ended otherwise.")


def _half(server: Server, quiet: Quiet, root: Path, run: Path, asked: list[list[str]]) -> None:
    """Train until there is a checkpoint, and end there."""
    child = start(server, asked, root)
    until(child, lambda: standing(run).newest > 0)
    child.kill()


def _sizes(count: int, largest: int, draw: random.Random) -> list[int]:
    """As many different sizes, in whole pages, from the smallest to one that is still too small."""
    pages = range(SMALLEST // PAGE, largest // PAGE)
    return sorted(PAGE * page for page in draw.sample(pages, min(count, len(pages))))


def _pages(folder: Path) -> int:
    """Bytes that the files of a folder take on a disk of ours, without the folders themselves."""
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def _mountable(folder: Path) -> bool:
    place = folder / "mountable"
    try:
        with _mounted(place, SMALLEST):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _mount(how: str, size: int, place: Path) -> None:
    options = f"size={size}" if how == "mount" else f"{how},size={size}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def _mounted(place: Path, size: int) -> Iterator[None]:
    place.mkdir(parents=True)
    _mount("mount", size, place)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def _plain(place: Path) -> Iterator[None]:
    place.mkdir(parents=True)
    yield


def _writable(folder: Path, yes: bool) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755 if yes else 0o555)
        else:
            path.chmod(0o644 if yes else 0o444)
