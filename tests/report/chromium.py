"""Where a browser to test pages in may be found."""

import functools
import shutil
from pathlib import Path


@functools.cache
def chromium() -> str | None:
    """A Chromium on this machine: one in PATH, or playwright's own."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        own = started.chromium.executable_path
    return own if Path(own).is_file() else None
