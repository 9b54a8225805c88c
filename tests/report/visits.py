"""Pages opened in a real browser, with what they say and ask for."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report.chromium import chromium


@dataclass
class Opened:
    """A page and everything that it said and asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def launched() -> Iterator[Any]:
    """A browser; there has to be one, see `chromium`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        options = ["--no-sandbox"] if os.getuid() == 0 else []  # root has no sandbox to go into
        opened = started.chromium.launch(executable_path=chromium(), args=options)
        yield opened
        opened.close()


@contextmanager
def visiting(browser: Any) -> Iterator[Callable[..., Opened]]:
    """What opens a file at a width in pixels and a color scheme, in a context of its own."""
    contexts = []

    def go(path: Path, width: int = 1280, scheme: str = "light") -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        context.set_default_timeout(300_000)  # a busy machine is no fault of the page
        opened = Opened(context.new_page())
        opened.page.on("console", lambda message: opened.said.append(message.text))
        opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
        opened.page.on("request", lambda request: opened.asked.append(request.url))
        opened.page.goto(path.as_uri())
        return opened

    yield go
    for context in contexts:
        context.close()
