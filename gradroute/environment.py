"""What the machine gives: a token for gated models, and the facts that a result is read beside.

A token comes from here, is passed on as an argument, and goes nowhere else: it is never put into
the environment, printed or written.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

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

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def hub_token() -> str | None:
    """The Hugging Face token, or None: HF_TOKEN, else that of `./.env`, else the hub login's.

    Of `.env` nothing but HF_TOKEN is read, without expanding variables in it.
    """
    from dotenv import dotenv_values

    token = os.environ.get("HF_TOKEN", "").strip()
    if not token and Path(".env").is_file():
        try:
            values = dotenv_values(".env", interpolate=False)
        except (OSError, UnicodeDecodeError):
            values = {}  # not a file of settings that we may read; then it gives no token
        token = (values.get("HF_TOKEN") or "").strip()
    if token:
        return token
    from huggingface_hub import get_token

    return get_token()


def token_places() -> str:
    """Where `hub_token` looks, for messages."""
    return "HF_TOKEN in the environment, HF_TOKEN in ./.env, and the login of `hf auth login`"


def redacted(text: str) -> str:
    """The text without tokens, passwords in addresses, and the name of the home folder."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if len(token) >= 8:
        text = text.replace(token, "[token]")
    text = _CREDENTIALS.sub("[credentials]@", _TOKEN.sub("[token]", text))
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def redacted_tree(value: Any) -> Any:
    """Mappings, lists and texts with every text redacted; what is written to be shared."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_tree(inner) for key, inner in value.items()}
    return [redacted_tree(inner) for inner in value] if isinstance(value, list) else value


def provenance() -> dict[str, Any]:
    """What a result is read beside: versions, commit and hardware; no paths, names or tokens.

    Accelerators and threads are those that torch sees, where the program has imported it.
    """
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": commit(),
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
            "memory_gib": _memory_gib(),
            **_torch_facts(),
        },
    }


def commit() -> str | None:
    """The commit of the checkout that gradroute runs from, `+` for changed files; else None.

    An installed package has none, also where it lies inside somebody's repository.
    """
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    if not head:
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str | None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, env=clean, capture_output=True, text=True, timeout=10
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


def _processor() -> str:
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
