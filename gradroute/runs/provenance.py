"""Provenance of results: versions, commit and hardware."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from gradroute.system.launcher import launched

PACKAGES = (
    "gradroute",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "tokenizers",
    "numpy",
)


# Its programs, its settings and its language; no secret, and no GIT_DIR of another repository.
_GIT_NEEDS = ("PATH", "HOME", "XDG_CONFIG_HOME", "LANG", "LC_ALL", "SYSTEMROOT", "USERPROFILE")


def provenance() -> dict[str, Any]:
    """What a result is read beside: versions, commit and hardware; no paths, names or tokens.

    Accelerators and threads are those that torch sees, where the program has imported it.
    """
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": commit(),
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
            "memory_gib": _memory_gib(),
            "ranks": launched(),
            **_torch_facts(),
        },
    }


def commit() -> str | None:
    """The commit of the checkout that gradroute runs from, `+` for changed files; else None.

    An installed package has none, also where it lies inside somebody's repository.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    if not head:
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str | None:
    needed = {name: os.environ[name] for name in _GIT_NEEDS if name in os.environ}
    # `git status` would write what it learned into the index: a run that is killed meanwhile would
    # leave a lock behind, with which no commit can be made.
    asked = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(
            asked, cwd=root, env=needed, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def processor() -> str:
    """The processor's name as the system has it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or "unknown"
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _memory_gib() -> float | None:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    return round(pages * size / 2**30, 1)


def _torch_facts() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"threads": torch.get_num_threads(), "accelerators": gpus, "cuda": torch.version.cuda}
