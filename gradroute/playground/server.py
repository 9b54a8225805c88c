"""The routes of the playground, and who may ask: who knows the token, from its own page.

A page of another site that somebody visits meanwhile can send requests to this machine. It does not
know the token that every path begins with, its origin is another, and a name that it has made to
point here is another host.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gradroute.errors import GradrouteError, MachineError
from gradroute.playground.asked import read_asked
from gradroute.playground.facts import page_facts
from gradroute.playground.loaded import Played
from gradroute.playground.page import Page
from gradroute.playground.pins import Pins
from gradroute.playground.prompts import plain_presets, presets
from gradroute.playground.rows import FoundRow, row_reader
from gradroute.playground.worker import Jobs
from gradroute.playground.writing import Event

MOST_BYTES = 256 * 1024
"""Of a request's body."""
HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}
_PAGE = "x-playground-page"  # names the page that asks, so that its new request ends its old


def make_app(
    played: Mapping[str, Played], jobs: Jobs, pins: Pins, page: Page, *, token: str, port: int
) -> ASGIApp:
    """The application.

    Args:
        played: Run -> its model.
        jobs: What does the requests.
        pins: Where pins go.
        page: The page.
        token: What every path begins with.
        port: Where it listens.
    """
    known: dict[str, dict[str, Any]] = {}
    facts = page_facts(played)
    routes = [
        Route("/", partial(_page, page), methods=["GET"]),
        Route("/facts", partial(_json, facts), methods=["GET"]),
        Route("/prompts", partial(_prompts, played, known), methods=["GET"]),
        Route("/write", partial(_write, played, row_reader(played), jobs), methods=["POST"]),
        Route("/pin", partial(_pin, jobs, pins), methods=["POST"]),
    ]
    return _guarded(Starlette(routes=routes), token=token, port=port)


def _guarded(app: ASGIApp, *, token: str, port: int) -> ASGIApp:
    """The application behind a look at host, origin and token, and at the size of the body."""
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refused = _refused(scope, token, hosts)
        if refused is not None:
            await refused(scope, receive, send)
            return
        inner = {**scope, "path": scope["path"].removeprefix(f"/{token}"), "root_path": ""}
        await app(inner, receive, send)

    return guard


def _refused(scope: Scope, token: str, hosts: set[str]) -> Response | None:
    """Why a request is not answered, if it is not."""
    headers = Headers(scope=scope)
    if headers.get("host", "") not in hosts:
        return _plain("This host name is not that of the playground.", 403)
    origin = headers.get("origin")
    reads = scope["method"] in ("GET", "HEAD")
    if (origin is not None or not reads) and origin not in {f"http://{host}" for host in hosts}:
        return _plain("Requests of other pages are not answered.", 403)
    given = scope["path"].lstrip("/").partition("/")[0].encode("utf-8", errors="replace")
    if not secrets.compare_digest(given, token.encode()):
        return _plain("The address is not complete: take the one that the command printed.", 404)
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MOST_BYTES:
        return _plain(f"A request may have {MOST_BYTES} bytes.", 413)
    return None


def _plain(text: str, status: int) -> Response:
    return PlainTextResponse(text, status, headers={**HEADERS, "connection": "close"})


async def _page(page: Page, request: Request) -> Response:
    headers = {**HEADERS, "content-security-policy": page.policy}
    return Response(page.html, media_type="text/html; charset=utf-8", headers=headers)


async def _json(value: Any, request: Request) -> Response:
    return JSONResponse(value, headers=HEADERS)


async def _prompts(
    played: Mapping[str, Played], known: dict[str, dict[str, Any]], request: Request
) -> Response:
    """The prompts of a run; its data are read when they are first asked for."""
    name = request.query_params.get("run", "")
    if name not in played:
        return _plain(f"The run {name!r:.80} is not open.", 404)
    if name not in known:
        known[name] = await asyncio.to_thread(lambda: plain_presets(*presets(played[name])))
    return JSONResponse(known[name], headers=HEADERS)


async def _write(
    played: Mapping[str, Played],
    row_of: Callable[[str, str], FoundRow],
    jobs: Jobs,
    request: Request,
) -> Response:
    body = await _body(request)
    if body is None:
        return _plain(f"A request may have {MOST_BYTES} bytes of UTF-8.", 413)
    first = next(iter(played.values()))
    adapters = {name: one.adapters for name, one in played.items()}
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def deliver(event: Event | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            loop.call_soon_threadsafe(events.put_nowait, event)

    try:
        asked = await asyncio.to_thread(  # a row may have to be looked for in a large file
            read_asked, body, adapters, first.config.evaluate, tuple(first.behaviors), row_of
        )
        if await request.is_disconnected():  # the page asks for something else meanwhile
            return Response(status_code=499)
        job = jobs.submit(request.headers.get(_PAGE, "")[:80], asked, deliver)
    except MachineError as error:
        return _plain(str(error), 503)
    except GradrouteError as error:
        return _plain(str(error), 400)
    return _Stream(events, lambda: jobs.cancel(job))


class _Stream(StreamingResponse):
    """Server-sent events until the last one; who leaves before ends the work."""

    def __init__(self, events: asyncio.Queue[Event | None], cancel: Callable[[], None]) -> None:
        super().__init__(_lines(events), media_type="text/event-stream", headers=HEADERS)
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancel()


async def _lines(events: asyncio.Queue[Event | None]) -> AsyncIterator[str]:
    while (event := await events.get()) is not None:
        yield f"event: {event.name}\ndata: {json.dumps(event.data)}\n\n"


async def _pin(jobs: Jobs, pins: Pins, request: Request) -> Response:
    body = await _body(request) or ""
    result = jobs.result(int(body)) if body.isdecimal() and len(body) < 16 else None
    if result is None:
        return _plain("There is nothing to pin: what was written is not kept any more.", 404)
    try:
        await asyncio.to_thread(pins.add, result)
    except GradrouteError as error:
        return _plain(str(error), 507)
    return JSONResponse({"path": str(pins.path)}, headers=HEADERS)


async def _body(request: Request) -> str | None:
    """The body as text; None where it is too large or no UTF-8."""
    parts, size = list[bytes](), 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > MOST_BYTES:
                return None
            parts.append(part)
        return b"".join(parts).decode("utf-8")
    except (ClientDisconnect, UnicodeDecodeError):
        return None
