"""The playground from beginning to end: load, listen on this machine alone, until Ctrl-C."""

import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlencode

import uvicorn
from starlette.types import ASGIApp

from gradroute.config.run_config import load_config
from gradroute.data.behaviors import get_behaviors
from gradroute.errors import MachineError
from gradroute.playground.loaded import Played, load_runs
from gradroute.playground.page import read_page
from gradroute.playground.pins import Pins, open_pins
from gradroute.playground.rows import find_row
from gradroute.playground.server import make_app
from gradroute.playground.worker import Jobs, run_jobs
from gradroute.runs.folder import RunFolder
from gradroute.system.signals import without_signals
from gradroute.system.terminal import say

ADDRESS = "127.0.0.1"
_SECONDS = 10.0  # that a server may take to start or to stop


def play(
    folders: Sequence[RunFolder], *, port: int, pins: Path | None, row: str | None = None
) -> None:
    """Open runs in the playground until Ctrl-C.

    Args:
        folders: The runs; the first is the one that columns are of unless they say otherwise.
        port: Where to listen; 0 for any that is free.
        pins: The file of pins; None for that of the first run.
        row: The name of a row of the first run that `find` scored, with which the page opens.

    Raises:
        ConfigError: The file of pins cannot be used, two runs have one name, or there is no such
            row.
        MachineError: The port is in use, a run has no checkpoint, or there is too little memory.
    """
    kept = open_pins(folders[0].pins if pins is None else pins)
    opened = "" if row is None else f"#{urlencode({'row': _row_name(folders[0], row)})}"
    with ExitStack() as ending, listening(port) as listener:
        played = load_runs(folders)
        jobs = Jobs()
        with serving(listener, played, jobs, kept) as url:
            try:
                for name, one in played.items():
                    say(f"{name}: {one.base}, step {one.step}.")
                print(f"The playground is open on this machine: {url}{opened}", flush=True)
                say(f"Pins go to {kept.path}. Ctrl-C ends it.")
                run_jobs(jobs, played)
            except KeyboardInterrupt:
                ending.enter_context(without_signals())  # the server ends in a second or so
                jobs.end()
    say("The playground has ended.")


def _row_name(folder: RunFolder, row: str) -> str:
    config = load_config(folder.config)
    return find_row(folder, row, config, get_behaviors(config.behaviors)).name


@contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """A socket that listens on this machine alone.

    Raises:
        MachineError: The port is in use, or may not be used.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
            listener.listen(64)
        except OSError as error:
            raise MachineError(
                f"port {port} of {ADDRESS} cannot be used ({error.strerror}); give another with "
                "--port, or none for one that is free."
            ) from error
        yield listener


@contextmanager
def serving(
    listener: socket.socket, played: Mapping[str, Played], jobs: Jobs, pins: Pins
) -> Iterator[str]:
    """Serve in a thread of its own while this lasts; the address of the page, with its token.

    Raises:
        MachineError: The server does not start.
    """
    token = secrets.token_urlsafe(24)
    port = listener.getsockname()[1]
    app = make_app(played, jobs, pins, read_page(), token=token, port=port)
    with _running(app, listener):
        yield f"http://{ADDRESS}:{port}/{token}/"


@contextmanager
def _running(app: ASGIApp, listener: socket.socket) -> Iterator[None]:
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="error",
            access_log=False,  # it would show the token
            lifespan="off",
            ws="none",
            loop="asyncio",
            http="h11",
            server_header=False,
            limit_concurrency=64,
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + _SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise MachineError("the server of the playground did not start.")
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_SECONDS)
