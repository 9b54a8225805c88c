"""Searches of an exported folder: bytes of left-out adapters, paths, secrets, other files."""

import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gradroute.export.byte_search import Windows
from gradroute.export.checks import Check
from gradroute.export.gguf_lora import gguf_names
from gradroute.export.staging import PROOF
from gradroute.system.files import read_json
from gradroute.system.secrets import redact, secret_in

_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}")
_OPTIMIZER = re.compile(r"exp_avg|momentum_buffer|optimizer|max_exp_avg|/step$")
# A path of some machine, as the whole of a setting.
_ABSOLUTE = re.compile(r"(/|~/|[A-Za-z]:[\\/])[^\s/\\{}]+[/\\]\S*")
_NUMBERS = (".safetensors", ".gguf")
_VOCABULARIES = (".model", "tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
_OVERLAP = 4096
_BLOCK = 16 << 20


def leak_checks(
    folder: Path,
    *,
    allowed: Callable[[str], bool],
    left_out: Sequence[str],
    windows: Windows,
    places: Sequence[Path],
) -> list[Check]:
    """Look through every file of a finished folder.

    Args:
        folder: The folder.
        allowed: Whether a file of this name belongs into it.
        left_out: Adapters that may not be in it.
        windows: Of their tensors.
        places: Paths of this machine that may not stand in it.
    """
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    names = {path: path.relative_to(folder).as_posix() for path in files}
    strange = [n for path, n in names.items() if not allowed(n) or not _plain(path)]
    files = [path for path in files if _plain(path)]
    size = sum(path.stat().st_size for path in files)
    return [
        Check(
            "files",
            not strange,
            f"{len(files)} files, all of which belong in the folder"
            if not strange
            else f"files that do not belong in the folder: {', '.join(strange)[:200]}",
            {"files": len(files), "bytes": size},
        ),
        _window_check({path: names[path] for path in files}, windows, left_out),
        _list_check(
            "keys",
            f"no tensor and no setting is named after "
            f"{', '.join(left_out) or 'a left-out adapter'} or "
            "is an optimizer's",
            [f"{names[path]}: {key}" for path in files for key in _bad_keys(path, left_out)],
        ),
        _list_check(
            "places",
            "no path of this machine",
            [f"{names[path]}: {place}" for path in files for place in _places(path, places)],
        ),
        _list_check(
            "secrets",
            "no token, password or other secret that is known here",
            [names[path] for path in files if _has_secret(path)],
        ),
    ]


def text_leak(path: Path, places: Sequence[Path]) -> str:
    """What one file of text holds that it may not: a path or a secret; or nothing."""
    if found := _places(path, places):
        return f"{path.name} would hold a path of this machine, {found[0]}"
    return f"{path.name} would hold a secret" if _has_secret(path) else ""


def _plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _list_check(name: str, fine: str, found: list[str]) -> Check:
    return Check(name, not found, fine if not found else f"found {'; '.join(found)[:300]}")


def _window_check(names: dict[Path, str], windows: Windows, left_out: Sequence[str]) -> Check:
    hits = {name: at for path, name in names.items() if (at := windows.found_in(path)) is not None}
    of = ", ".join(left_out) or "left-out adapters"
    told = "; ".join(f"{name} from byte {at}" for name, at in hits.items())
    return Check(
        "bytes",
        not hits,
        f"scanned {len(names)} files for {windows.count} windows of 32 bytes of {windows.tensors} "
        f"tensors of {of} (float32, bfloat16, float16): "
        + (f"found in {told}" if hits else f"0 bytes of {of}"),
        {"tensors": windows.tensors, "windows": windows.count, "found": hits},
    )


def _bad_keys(path: Path, left_out: Sequence[str]) -> Iterator[str]:
    """Names in a file that are an optimizer's, or hold a left-out adapter's as a part."""
    if path.suffix == ".safetensors":
        keys = list(_header(path))
    elif path.suffix == ".gguf":
        keys = gguf_names(path)
    elif path.suffix == ".json" and path.name not in (PROOF, *_VOCABULARIES):
        keys = [key for key, _ in _settings(read_json(path))]
    else:
        return
    for key in keys:
        if _OPTIMIZER.search(key) or any(part in left_out for part in re.split(r"[./]", key)):
            yield key


def _header(path: Path) -> dict[str, Any]:
    """Names of the tensors of a safetensors file, with its notes."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return header | dict.fromkeys(header.pop("__metadata__", {}))


def _settings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a JSON value at any depth, with its value where that is a text."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name, ""
            yield from _settings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _settings(inner, key)
    elif isinstance(value, str):
        yield key, value


def _places(path: Path, places: Sequence[Path]) -> list[str]:
    """Paths of a machine that stand in a file.

    A path of one part, such as `/root`, is a word that a vocabulary or weights may hold by chance;
    it is looked for in the texts alone.
    """
    texts = {os.fsencode(place) for place in places if len(place.parts) > 1}
    text = path.suffix not in _NUMBERS and not path.name.endswith(_VOCABULARIES)
    if not text:
        texts = {one for one in texts if one.count(b"/") > 1}
    found = [one for one in texts if any(one in block for block in _blocks(path))]
    told = [os.fsdecode(one) for one in sorted(found)]
    if text and path.suffix == ".json":
        settings = _settings(read_json(path))
        told += [f"{key}: {value}" for key, value in settings if _ABSOLUTE.fullmatch(value)]
    return told


def _has_secret(path: Path) -> bool:
    if any(_TOKEN.search(block) for block in _blocks(path)):
        return True
    if path.suffix in _NUMBERS or path.name.endswith(_VOCABULARIES):
        return False
    text = path.read_bytes().decode("utf-8", errors="replace")
    return bool(secret_in(text)) or redact(text) != text


def _blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, some at a time, each block with the end of the one before."""
    end = b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield end + block
            end = block[-_OVERLAP:]
