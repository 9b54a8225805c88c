"""A hub on this machine: it serves one model from a folder, and anything else is gated."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Hub:
    """What is served and what was asked for.

    Attributes:
        address: of the server.
        asked: (method and path, authorization) of every request.
    """

    address: str = ""
    name: str = ""
    folder: Path = Path()
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def serve(self, name: str, folder: Path) -> None:
        """Have a model `name` with the files of a folder."""
        self.name, self.folder = name, folder

    @property
    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        start = f"GET /{self.name}/resolve/{self.commit}/"
        return {asked.removeprefix(start) for asked, _ in self.asked if asked.startswith(start)}


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *given: Any) -> None:
        self.hub = hub
        super().__init__(*given)

    def do_GET(self) -> None:
        hub = self.hub
        path = self.path.partition("?")[0]
        hub.asked.append((f"{self.command} {path}", self.headers.get("authorization")))
        about = f"/api/models/{hub.name}"
        if not hub.name:
            why = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
            self._answer(403, b"", why)
        elif path.startswith((f"{about}/revision/", about)) and "/tree/" not in path:
            self._json({"id": hub.name, "sha": hub.commit, "siblings": []})
        elif path.startswith(f"{about}/tree/"):
            files = [one for one in sorted(hub.folder.rglob("*")) if one.is_file()]
            names = [(one.relative_to(hub.folder).as_posix(), one) for one in files]
            self._json(
                [
                    {"type": "file", "path": name, "size": one.stat().st_size, "oid": _sum(one)}
                    for name, one in names
                ]
            )
        else:
            name = path.removeprefix(f"/{hub.name}/resolve/{hub.commit}/")
            content = (hub.folder / name).read_bytes()
            marks = {"ETag": f'"{_sum(hub.folder / name)}"', "X-Repo-Commit": hub.commit}
            self._answer(200, content, marks)

    do_HEAD = do_GET

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _sum(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the context ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
