"""Hostile texts wherever a page takes one from a run: the page stays that of harmless texts."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report.chromium import chromium

from gradroute.report.render import self_contained
from gradroute.runs.folder import RunFolder
from torture.strings import PIECES, faults, harmless, hostile, measured_runs, page_of, trials

EXECUTABLE = chromium()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    return measured_runs(tmp_path_factory.mktemp("strings"))


def test_hostile_texts_add_nothing_to_a_page(runs: list[RunFolder], tmp_path: Path) -> None:
    outcome = trials(150, 100, tmp_path, runs)
    assert outcome["failures"] == []
    assert outcome["trials"] == 150 and outcome["pages"] == 2
    assert outcome["new_elements"] == outcome["new_attributes"] == outcome["steering"] == 0


def test_every_place_that_takes_a_text_is_on_the_page(
    runs: list[RunFolder], tmp_path: Path
) -> None:
    texts = [f"mark{number}mark" for number in range(40)]
    html = page_of(runs, texts, tmp_path / "marked")
    assert [text for text in texts if text not in html] == []
    for place in (
        "keywords:mark0mark",
        "file:mark39mark2",
        '"mark11mark"',
        "mark0mark0",
        "mark7mark1",
    ):
        assert place in html, place


def test_a_page_that_does_not_escape_is_seen(
    runs: list[RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"<b onclick=x>{number}" for number in range(20)]
    twin = page_of(runs, [harmless(text) for text in texts], tmp_path / "twin")
    assert faults(page_of(runs, texts, tmp_path / "page"), twin) == {}
    environment = self_contained._environment("report.html")
    monkeypatch.setattr(self_contained, "_environment", lambda template: environment)
    environment.autoescape = False
    found = faults(page_of(runs, texts, tmp_path / "page"), twin)
    assert found["new_elements"] > 20 and found["new_attributes"] > 20
    environment.autoescape = True
    monkeypatch.setattr(self_contained, "script_json", lambda data: str(data).replace("'", '"'))
    assert faults(page_of(runs, texts, tmp_path / "page"), twin)["unequal_data"]


def test_a_page_that_shows_what_steers_a_screen_is_seen() -> None:
    assert faults("<p>a\u202eb\x1b\x00\u2028</p>", "<p></p>") == {"steering": 4, "unequal_data": 1}


def test_every_piece_is_used_and_texts_differ() -> None:
    texts = hostile(0, 300, 0)
    assert len(set(texts)) == 300 and len(texts[0]) > 1_000_000
    assert all(any(piece[:20] in text for text in texts) for piece in PIECES)
    assert hostile(100, 110, 0) == texts[100:110] != hostile(100, 110, 1)


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox"] if os.getuid() == 0 else []  # root has no sandbox to go into
        opened = started.chromium.launch(executable_path=EXECUTABLE, args=options)
        yield opened
        opened.close()


SHOW_ALL = """() => {
  document.querySelectorAll('details').forEach((one) => { one.open = true; });
  for (const select of document.querySelectorAll('select')) {
    for (let index = 0; index < select.options.length; index++) {
      select.selectedIndex = index;
      select.dispatchEvent(new Event('change'));
    }
  }
}"""


@pytest.mark.slow
@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium: install one, or use playwright's")
def test_a_browser_runs_and_asks_for_nothing_of_them(
    runs: list[RunFolder], tmp_path: Path, browser: Any
) -> None:
    path = tmp_path / "page.html"
    texts = [*(f"{piece}{number}" for number, piece in enumerate(PIECES)), *hostile(1, 60, 100)]
    html = page_of(runs, texts, tmp_path / "runs")
    path.write_text(html, encoding="utf-8")
    seen: dict[str, list[str]] = {"asked": [], "said": [], "opened": []}
    page = browser.new_page()
    page.set_default_timeout(300_000)  # a busy machine is no fault of the page
    page.on("request", lambda request: seen["asked"].append(request.url))
    page.on("console", lambda message: seen["said"].append(message.text))
    page.on("pageerror", lambda error: seen["said"].append(str(error)))
    page.on("dialog", lambda dialog: (seen["opened"].append(dialog.message), dialog.dismiss()))
    page.on("popup", lambda popup: seen["opened"].append(popup.url))
    page.goto(path.as_uri())
    page.evaluate(SHOW_ALL)
    page.mouse.move(200, 200)
    page.keyboard.press("Tab")
    page.wait_for_load_state("networkidle")
    assert [url for url in seen["asked"] if not url.startswith("data:")] == [path.as_uri()]
    assert seen["said"] == [] and seen["opened"] == []
    assert page.evaluate("window.pwned") is None
    assert page.url == path.as_uri()
    shown = page.evaluate("document.body.innerText")
    assert "<script>window.pwned=1</script>" in shown and "\\x1b[2J" in shown
    assert not any(letter in shown for letter in "\x1b\x00\x07\u202e\u2066\u200f\u2028\ufeff\u200b")
