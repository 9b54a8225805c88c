"""The order of system calls in a save, as strace sees it: written, flushed, renamed, flushed.

Killing a process does not show what a loss of power would do; the order of the calls is what can be
shown. No file may get its final name before its bytes are flushed, nor may an older checkpoint go
before the newer one's name is; and a checkpoint is of use only if the folders above it are there.
"""

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torture.runs import NAME, lay

CALLS = (
    "write,pwrite64,writev,ftruncate,fsync,fdatasync,rename,renameat,renameat2,"
    "mkdir,mkdirat,unlink,unlinkat,rmdir,open,openat"
)
_LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (\d+)(?:<.*>)?$")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')
_HANDLE = re.compile(r"^\d+<(/[^>]*)>")


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Trace `count` whole trainings with saves of every length in between.

    Returns:
        Counts, and what failed as sentences: `saves` of checkpoints and `renamed` single files were
        seen, and `flushed` files and folders among them. Where strace is missing or may not trace,
        nothing is tried, and `skipped` says why.
    """
    why = _untraceable(folder)
    if why:
        return {"trials": 0, "skipped": why, "failures": []}
    draw = random.Random(f"durability {seed}")
    ground = lay(folder / "ground")
    order = Order()
    for number in range(count):
        changes = {
            "train.max_steps": 9,
            "train.save_every": draw.randint(2, 4),
            "train.measure_every": 2,
        }
        config = ground.config(changes, f"config-{number}")
        root = folder / f"run-{number}"
        root.mkdir()
        for line in _traced(["train", str(config), "--runs", str(root / "runs"), "--audit"], root):
            order.see(line)
        order.ended()
        if not (root / "runs" / NAME / "checkpoints" / "step-000009").is_dir():
            order.failures.append("the traced training did not end well.")
    named = ("saves", "renamed", "flushed", "removed")
    return {
        "trials": count,
        **{name: order.counts[name] for name in named},
        "failures": order.failures,
    }


def _untraceable(folder: Path) -> str | None:
    if shutil.which("strace") is None:
        return "strace is not installed here."
    command = ["strace", "-f", "-o", os.devnull, sys.executable, "-c", ""]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"strace may not trace here: {done.stderr.strip()[-200:]}" if done.returncode else None


def _traced(arguments: list[str], root: Path) -> Iterator[str]:
    """The calls of a command line, as strace writes them."""
    trace = root / "trace"
    command = ["strace", "-f", "--seccomp-bpf", "-y", "-s", "4096", "-e", f"trace={CALLS}"]
    command += ["-e", "signal=none", "-o", str(trace), sys.executable, "-m", "gradroute"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    here = str(Path(__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([here, environment.get("PYTHONPATH", "")])
    with (root / "err").open("wb") as err:
        subprocess.run([*command, *arguments], env=environment, stdout=err, stderr=err, check=False)
    yield from trace.read_text(encoding="utf-8", errors="replace").splitlines()


@dataclass
class Order:
    """What is written and not yet flushed, as the calls come by."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    unflushed: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)  # folder to flush -> what got its name
    known: set[str] = field(default_factory=set)
    new: dict[str, list[str]] = field(default_factory=dict)  # folder to flush -> new names in it

    def see(self, line: str) -> None:
        """Take note of one call."""
        found = _LINE.match(line)
        if not found:
            return
        call, arguments = found[1], found[2]
        handle = _HANDLE.match(arguments)
        texts = _TEXT.findall(arguments)
        if call in ("write", "pwrite64", "writev", "ftruncate") and handle:
            self.unflushed.add(handle[1])
        elif call in ("fsync", "fdatasync") and handle:
            self._flush(handle[1])
        elif call.startswith("mkdir") and texts:
            self.unflushed.add(texts[0])
            self._name(texts[0])
        elif call.startswith("open") and "O_CREAT" in arguments and texts:
            self._name(texts[0])
        elif call.startswith("rename"):
            self._rename(texts[0], texts[1])
        elif call in ("unlink", "unlinkat", "rmdir") and texts:
            self._remove(texts[0], handle)

    def ended(self) -> None:
        """Nothing more is written."""
        for folder, what in self.renamed.items():
            self.failures.append(f"{folder} is not flushed after {what} got its name.")
        self.renamed.clear()
        self.unflushed.clear()

    def _name(self, path: str) -> None:
        """Take note of a new name; hidden ones may be lost."""
        if path not in self.known and not Path(path).name.startswith("."):
            self.new.setdefault(str(Path(path).parent), []).append(Path(path).name)
        self.known.add(path)

    def _forget(self, path: str) -> None:
        """A name that is gone again needs no flush, such as that of a try whether one can write."""
        self.known.discard(path)
        folder, name = str(Path(path).parent), Path(path).name
        left = [other for other in self.new.pop(folder, []) if other != name]
        if left:
            self.new[folder] = left

    def _flush(self, path: str) -> None:
        self.unflushed.discard(path)
        self.new.pop(path, None)
        self.counts["flushed"] += 1
        if self.renamed.pop(path, "").startswith("step-"):
            for folder in sorted(self.new):
                if Path(path).is_relative_to(folder) or Path(folder).parent == Path(path).parent:
                    told = ", ".join(self.new.pop(folder))
                    self.failures.append(f"{folder} is not flushed with {told} new in it.")

    def _rename(self, old: str, new: str) -> None:
        own = {path for path in self.unflushed if path == old or path.startswith(old + "/")}
        if _is_inside_unfinished(new):  # it gets its final name with its folder
            self.unflushed = (self.unflushed - own) | {new}
            return
        if "/.tmp-" in new:  # what is on its way out
            self._go(old)
            return
        for path in sorted(own):
            self.failures.append(f"{path} is not flushed when it gets its name, {new}.")
        self.unflushed -= own
        self.renamed[str(Path(new).parent)] = Path(new).name
        self.counts["saves" if Path(new).name.startswith("step-") else "renamed"] += 1

    def _remove(self, path: str, handle: re.Match[str] | None) -> None:
        """Nothing that was there may go while a newer name is not flushed."""
        self.unflushed.discard(path)
        full = str(Path(handle[1], path)) if handle else path
        self._forget(full)
        if "/step-" in full:
            self._go(full)

    def _go(self, path: str) -> None:
        self.counts["removed"] += 1
        for folder, what in self.renamed.items():
            if path.startswith(folder + "/"):
                self.failures.append(f"{path} goes before {folder} is flushed after {what}.")


def _is_inside_unfinished(path: str) -> bool:
    """Whether some folder above a path is one that is being written."""
    return any(parent.name.startswith(".tmp-") for parent in Path(path).parents)
