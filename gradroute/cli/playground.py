"""`playground`."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from gradroute.cli.arguments import Verbs, add_verb, libraries, run_folders
from gradroute.errors import MachineError

PACKAGES = ("starlette", "uvicorn")
"""What the extra installs."""


def add(verbs: Verbs) -> None:
    """Add the verb that opens runs in a browser."""
    play = add_verb(
        verbs,
        "playground",
        "open runs on a page of this machine: move scales, read completions side by side",
        _play,
        [
            "gradroute playground 0.1_0.5",
            "gradroute playground 0.1_0.5 0.1_0.5-filter --port 8400",
            "gradroute playground 0.1_0.5 --row adapter:story-12",
        ],
        runs="+",
    )
    play.add_argument(
        "--port", type=_port, default=0, help="where to listen on 127.0.0.1 (one that is free)"
    )
    play.add_argument(
        "--pins",
        type=Path,
        metavar="FILE",
        help="a .jsonl file for what is pinned (pins.jsonl of the first run)",
    )
    play.add_argument(
        "--row",
        metavar="NAME",
        help="open with a row of the first run that find scored: FINDER:ID, as its page says it, "
        "or an ID alone",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) < 65536:
        raise argparse.ArgumentTypeError(f"a number from 0 to 65535 is needed, got {text!r}")
    return int(text)


def _play(options: argparse.Namespace) -> None:
    folders = run_folders(options)
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise MachineError(
            f"the playground needs {' and '.join(missing)}: pip install 'gradroute[playground]'."
        )
    with libraries(folders):
        from gradroute.playground.serving import play

    play(folders, port=options.port, pins=options.pins, row=options.row)
