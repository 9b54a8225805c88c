"""A hub on this machine: it serves one model or data set from a folder; all else is gated."""

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

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session


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
    kind: str = "models"
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def serve(self, name: str, folder: Path, kind: str = "models") -> None:
        """Have a model (or one of the `datasets`) of this name with the files of a folder."""
        self.name, self.folder, self.kind = name, folder, kind

    @property
    def files(self) -> str:
        """Where the files lie."""
        of = "" if self.kind == "models" else f"/{self.kind}"
        return f"{of}/{self.name}/resolve/{self.commit}/"

    @property
    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        start = f"GET {self.files}"
        return {asked.removeprefix(start) for asked, _ in self.asked if asked.startswith(start)}


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *given: Any) -> None:
        self.hub = hub
        super().__init__(*given)

    def do_GET(self) -> None:
        hub = self.hub
        path = self.path.partition("?")[0]
        hub.asked.append((f"{self.command} {path}", self.headers.get("authorization")))
        about = f"/api/{hub.kind}/{hub.name}"
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
        elif not path.startswith(hub.files):
            self._answer(404, b"", {})
        else:
            name = path.removeprefix(hub.files)
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
def asked_instead(patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine in place of the one that libraries ask."""
    with serving() as hub:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", hub.address)
        files = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        close_session()
        yield hub
        close_session()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the context ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
