"""The page: one file made of several, whose style and script the policy names by their hash."""

import base64
import hashlib
from importlib import resources
from importlib.resources.abc import Traversable
from typing import NamedTuple


class Page(NamedTuple):
    """The page and what it may do.

    Attributes:
        html: All of it.
        policy: The content security policy: this style, this script, requests to this server.
    """

    html: str
    policy: str


def read_page() -> Page:
    """Put the page together; it shares colors and `shown` with the report's pages."""
    shared = resources.files("gradroute.report.render") / "templates"
    own = resources.files("gradroute.playground") / "assets"
    style = _text(shared / "report.css") + _text(own / "playground.css")
    script = "".join(
        _text(place)
        for place in (
            shared / "common.js",
            own / "columns.js",
            own / "row.js",
            own / "curve.js",
            own / "playground.js",
        )
    )
    html = _text(own / "playground.html").replace("{style}", style).replace("{script}", script)
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return Page(html, policy)


def _text(place: Traversable) -> str:
    return place.read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
