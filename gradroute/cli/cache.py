"""`cache list`, `cache prune`."""

import argparse
import json
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradroute.cli.arguments import Verbs, add_verb

if TYPE_CHECKING:
    from gradroute.runs.states import Pruned, States

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_LIMIT = "8GiB"  # the default of train.reuse_gib
_SPANS = (("day", 86400), ("hour", 3600), ("minute", 60))


def add(verbs: Verbs) -> None:
    """Add the verb `cache` with verbs of its own."""
    parser = verbs.add_parser("cache", help="list or prune the hidden states that runs share")
    own = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    listed = add_verb(
        own,
        "list",
        "list the hidden states beside the runs: of which base, how large, when used last",
        _list,
        ["gradroute cache list", "gradroute cache list --json"],
    )
    prune = add_verb(
        own,
        "prune",
        "remove the hidden states that were not used for longest, never those in use",
        _prune,
        ["gradroute cache prune --max-size 2GB", "gradroute cache prune --all"],
    )
    how = prune.add_mutually_exclusive_group()
    how.add_argument(
        "--max-size",
        type=size_in_bytes,
        default=_LIMIT,
        metavar="SIZE",
        help=f"what may stay, such as 500MB or 2GiB ({_LIMIT})",
    )
    how.add_argument("--all", action="store_true", help="remove all that nobody uses now")
    for verb in (listed, prune):
        verb.add_argument("--json", action="store_true", help="print one JSON object")


def size_in_bytes(text: str) -> int:
    """A size such as 2GB (10^9 bytes each), 2GiB (2^30) or 1000 (bytes)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"a size is needed, such as 500MB, 2GB or 1.5GiB, got {text!r}"
        )
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** _UNITS[unit.upper()])


def _list(options: argparse.Namespace) -> None:
    from gradroute.runs.states import list_states, places_of

    found = list_states(places_of(options.runs))
    if options.json:
        states = [
            {
                "folder": str(one.folder),
                "about": one.about,
                "files": one.files,
                "bytes": one.size,
                "used": one.used,
            }
            for one in found
        ]
        print(json.dumps({"bytes": sum(one.size for one in found), "states": states}, indent=2))
        return
    print(list_text(found, time.time()) or f"no hidden states beside the runs in {options.runs}.")


def list_text(found: "Sequence[States]", now: float) -> str:
    """Two lines for each kind of states, and their sum; nothing where there are none."""
    from gradroute.system.files import format_bytes

    lines = []
    for one in found:
        about, base = one.about, one.about.get("base")
        held = "of one example each" if about.get("kind") != "batches" else "of whole batches"
        told = "about.json is missing or damaged"
        if isinstance(base, dict):
            told = (
                f"{about.get('model')}, {base.get('identity')}: {about.get('layers')} layers of "
                f"width {about.get('width')}, {about.get('dtype')}, torch {about.get('torch')}"
            )
        lines += [
            f"{one.folder}: {format_bytes(one.size)} in {one.files} files {held}, used last "
            f"{_ago(now - one.used) if one.files else 'never'}",
            f"  {told}",
        ]
    if found:
        lines.append(f"{format_bytes(sum(one.size for one in found))} in all.")
    return "\n".join(lines)


def _ago(seconds: float) -> str:
    for name, length in _SPANS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "less than a minute ago"


def _prune(options: argparse.Namespace) -> None:
    from gradroute.runs.states import places_of, prune

    done = prune(places_of(options.runs), 0 if options.all else options.max_size)
    print(json.dumps(done._asdict()) if options.json else _prune_text(done))


def _prune_text(done: "Pruned") -> str:
    from gradroute.system.files import format_bytes

    text = f"removed {format_bytes(done.size)} in {done.files} files; {format_bytes(done.left)} "
    text += "are left"
    if done.in_use:
        text += f"; {done.in_use} files are in use and stay"
    return text + "."
