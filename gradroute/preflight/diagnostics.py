"""Facts about a machine for a bug report: one block, without secrets or the home's name.

Nothing is written and nothing is fetched. The self-test reads the embedded model and runs it once.
"""

import locale
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from gradroute.errors import GradrouteError
from gradroute.runs.provenance import provenance
from gradroute.system.files import free_bytes, nearest_existing
from gradroute.system.secrets import hub_token, redact_tree
from gradroute.system.terminal import printable, safe_text

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9][0-9.]*))?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([a-z]+)['"]""")
_FOR_DEVELOPERS = "dev"


def diagnose(root: Path) -> dict[str, Any]:
    """Facts of the machine and the installation, as plain data.

    Args:
        root: the folder of the runs.

    Returns:
        `versions`, `commit`, `hardware`; `device` and `dtype` that a base is put on; `too_old`
        (package -> version, version needed, of what gradroute requires); `extras` (name ->
        packages missing, and the line that installs them); `patching` (installed library that
        patches models so that only one adapter is computed -> what to do); `runs` (folder,
        whether it can be written, bytes free); `hub` (cache, whether a token was found, never
        which); `locale`; `self_test` ("passed", or what went wrong).
    """
    requirements = metadata.requires("gradroute") or []
    test, device = _self_test()
    facts = {
        **provenance(),
        **device,
        "too_old": dict(_too_old(requirements)),
        "extras": _extras(requirements),
        "patching": _patching(),
        "runs": _runs(root),
        "hub": _hub(),
        "locale": {
            "encoding": locale.getpreferredencoding(False),
            "file_names": sys.getfilesystemencoding(),
            "output": getattr(sys.stdout, "encoding", None),
            "language": os.environ.get("LC_ALL") or os.environ.get("LANG"),
        },
        "self_test": test,
    }
    return redact_tree(facts)


def find_problems(facts: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that keeps gradroute from working here."""
    found = [
        f"{package} {version or 'is not installed'}; {package} {needed} or later is needed: "
        f"pip install '{package}>={needed}'."
        for package, (version, needed) in facts["too_old"].items()
    ]
    if facts["self_test"] != "passed":
        found.append(f"the self-test failed: {facts['self_test']}")
    if not facts["runs"]["writable"]:
        found.append(f"{facts['runs']['folder']} cannot be written to: choose another with --runs.")
    return found


def text_of(facts: Mapping[str, Any]) -> str:
    """The facts as a block to paste, a line each."""
    return safe_text("\n".join(f"{name:<14}{printable(value)}" for name, value in _lines(facts)))


def _lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    hardware, runs, hub = facts["hardware"], facts["runs"], facts["hub"]
    for package, version in facts["versions"].items():
        yield package, version or "not installed"
    yield "commit", facts["commit"] or "none (an installed package)"
    yield "system", f"{hardware['system']}, {hardware['processor']}"
    memory = "" if hardware["memory_gib"] is None else f", {hardware['memory_gib']} GiB of memory"
    yield "cores", f"{hardware['cores']}{memory}, {hardware.get('threads', '?')} threads of torch"
    yield "accelerators", ", ".join(hardware.get("accelerators", ())) or "none"
    yield "base runs on", f"{facts['device'] or 'unknown'}, {facts['dtype'] or 'unknown'}"
    for name, extra in facts["extras"].items():
        missing = ", ".join(extra["missing"])
        told = f"missing {missing}: {extra['install']}" if missing else "there"
        yield f"[{name}]", told
    for library, cure in facts["patching"].items():
        told = "a model that it patched computes one adapter only and is refused"
        yield library, f"there; {told}: {cure}"
    free = "" if runs["free"] is None else f", {runs['free'] / 1e9:.1f} GB free"
    state = "can be written" if runs["writable"] else "cannot be written"
    yield "runs", f"{runs['folder']} ({state}{free})"
    yield "hub cache", f"{hub['cache']}{', offline' if hub['offline'] else ''}"
    yield "hub token", "found" if hub["token_found"] else "none"
    yield "locale", ", ".join(f"{name} {value}" for name, value in facts["locale"].items())
    yield "self-test", facts["self_test"]


def _self_test() -> tuple[str, dict[str, Any]]:
    """Read the embedded model and run it on a few words; where and in which type it ran."""
    device: dict[str, Any] = {"device": None, "dtype": None}
    try:
        import torch

        from gradroute.models.base import choose_device_and_dtype, load_base

        chosen, dtype = choose_device_and_dtype()
        device = {"device": str(chosen), "dtype": str(dtype).removeprefix("torch.")}
        base = load_base("embedded")
        ids = base.tokenizer("Once upon a time", return_tensors="pt").input_ids
        with torch.no_grad():
            logits = base.model(input_ids=ids.to(base.model.device)).logits
        if not torch.isfinite(logits).all():
            return "the logits of the embedded model are not finite", device
    except GradrouteError as error:
        return str(error), device
    except Exception as error:  # whatever an installation that is broken does
        return f"{type(error).__name__}: {str(error).strip()[:200]}", device
    return "passed", device


def _too_old(requirements: list[str]) -> Iterator[tuple[str, tuple[str | None, str]]]:
    """Packages that gradroute needs and that are missing, or older than it needs."""
    for requirement in requirements:
        name, needed = _parsed(requirement)
        if _EXTRA.search(requirement) is None:
            version = _version(name)
            if version is None or _numbers(version) < _numbers(needed):
                yield name, (version, needed)


def _extras(requirements: list[str]) -> dict[str, dict[str, Any]]:
    """Extra -> its packages that are missing or too old, and the line that installs them."""
    extras: dict[str, dict[str, Any]] = {}
    for requirement in requirements:
        extra = _EXTRA.search(requirement)
        if extra is None or extra[1] == _FOR_DEVELOPERS:
            continue
        name, needed = _parsed(requirement)
        install = f"pip install 'gradroute[{extra[1]}]'"
        found = extras.setdefault(extra[1], {"missing": [], "install": install})
        version = _version(name)
        if version is None or _numbers(version) < _numbers(needed):
            found["missing"].append(name)
    return extras


def _patching() -> dict[str, str]:
    """Installed libraries whose kernels pass adapters by, and what to do about each."""
    from gradroute.routing.fused_kernels import CURES

    return {library: cure for library, cure in CURES.items() if _version(library) is not None}


def _parsed(requirement: str) -> tuple[str, str]:
    """Name and least version of a requirement of ours, which are all of the form `name>=1.2`."""
    match = _REQUIREMENT.match(requirement)
    assert match is not None
    return match[1], match[2] or "0"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", version)[:3])


def _runs(root: Path) -> dict[str, Any]:
    there = nearest_existing(root)
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return {"folder": str(root), "writable": writable, "free": free_bytes(there)}


def _hub() -> dict[str, Any]:
    from huggingface_hub import constants

    return {
        "cache": constants.HF_HUB_CACHE,
        "offline": bool(constants.HF_HUB_OFFLINE),
        "token_found": bool(hub_token()),
    }
