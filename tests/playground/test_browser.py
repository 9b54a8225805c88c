"""The page in a real browser: it streams, cancels, pins and comes back, and asks nobody else."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from players import chatty, open_playground, player, settled, written_anew
from report.chromium import chromium
from report.page_runs import write_runs
from report.render.test_page_browser import FAINT, PIECES, hostile
from report.visits import Opened, launched

from gradroute.evaluate.cells import complete
from gradroute.evaluate.generation import Prompt
from gradroute.evaluate.modes import read_modes
from gradroute.playground.loaded import Played
from gradroute.system.files import write_lines

for _name in ("playwright.sync_api", "starlette", "uvicorn"):
    pytest.importorskip(_name, reason=f"{_name} is not installed (it is in gradroute[dev])")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no Chromium: install one"),
]
STATE = "prompt=Once+upon&c=full&c=bad_ablated&c=good%3D1%2Cbad%3D0.5&seed=42&tokens=6"
MODES = ("full", "bad_ablated", "good=1,bad=0.5")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("play")


@pytest.fixture(scope="module")
def played(place: Path) -> dict[str, Played]:
    [measured] = write_runs(place / "runs", names=("routed",), sides=False)
    one = replace(player(place, "one"), folder=measured)
    return {"one": one, "two": player(place, "two", "gpt_neo")}


@pytest.fixture(scope="module")
def rows(played: dict[str, Played]) -> list[str]:
    """The texts of the rows that a finder scored."""
    texts = ["THE FOX RAN AWAY.", "a dog sat"]
    lines = [
        {"id": f"s {at}", "prompt": "", "text": text, "score": 2.5 - at, "p": 0.01, "q": 0.04,
         "found": at == 0, "label": "bad", "true_label": "bad"}
        for at, text in enumerate(texts)
    ]  # fmt: skip
    write_lines(played["one"].folder.found / "adapter_scores.jsonl", lines)
    return texts


@pytest.fixture(scope="module")
def url(played: dict[str, Played], place: Path) -> Iterator[str]:
    with open_playground(played, place / "pins.jsonl") as opened:
        yield opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as opened:
        yield opened


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def go(state: str = STATE, width: int = 1280, scheme: str = "light", fake: str = "") -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        context.set_default_timeout(120_000)
        opened = Opened(context.new_page())
        opened.page.on("console", lambda message: opened.said.append(message.text))
        opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
        opened.page.on("request", lambda request: opened.asked.append(request.url))
        if fake:
            kind = "text/event-stream"
            opened.page.route("**/write", lambda route: route.fulfill(body=fake, content_type=kind))
        opened.page.goto(f"{url}#{state}")
        return opened

    yield go
    for context in contexts:
        context.close()


def texts(page: Any) -> list[str]:
    return page.evaluate(
        "[...document.querySelectorAll('.column')].map((one) => "
        "[...one.querySelectorAll('.lead, .letters')].map((part) => part.textContent).join(''))"
    )


def state_of(page: Any) -> list[tuple[str, str]]:
    page.wait_for_timeout(400)
    return parse_qsl(page.evaluate("location.hash").removeprefix("#"), keep_blank_values=True)


def sampled(played: Played, names: tuple[str, ...], text: str = "Once upon") -> list[str]:
    modes = read_modes(names, [], ["good", "bad"])
    found = complete(
        played.base, played.model, [Prompt(text, text)], modes, played.config.evaluate, "one"
    )
    return [found[mode.name][0].text.removeprefix(" ") for mode in modes]


def test_it_writes_what_sample_writes_marks_it_and_asks_nobody_else(
    visit: Callable, url: str, played: dict[str, Played]
) -> None:
    opened = visit()
    page = opened.page
    settled(page)
    assert texts(page) == sampled(played["one"], MODES)
    assert page.locator(".column h2").all_inner_texts() == ["1", "2", "3"]
    modes = page.evaluate("[...document.querySelectorAll('.mode')].map((one) => one.value)")
    assert modes == ["full", "bad_ablated", ""]
    numbers = page.locator(".column").nth(2).locator(".by").all_inner_texts()
    assert any(number.startswith(("+", "\N{MINUS SIGN}")) for number in numbers)
    assert page.locator(".unit[class*=more], .unit[class*=less]").count() > 0
    assert "against column 1" in page.locator(".column .meta").nth(1).inner_text()
    assert page.locator("#curves svg .dot").count() == 6 and "to deploy" in page.inner_text(
        "#curves figcaption"
    )
    assert page.locator("#curves .column-mark").all_text_contents() == ["1", "2", "3"]
    assert {urlsplit(one).netloc for one in opened.asked} == {urlsplit(url).netloc}
    assert opened.said == []


def test_a_slider_moved_by_keys_writes_anew_and_the_address_follows(
    visit: Callable, played: dict[str, Played]
) -> None:
    opened = visit()
    page = opened.page
    settled(page)
    slider = page.locator(".column").nth(1).locator("input[type=range]").nth(1)
    slider.focus()
    with written_anew(opened, "bad%3D0.25"):
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        assert slider.get_attribute("aria-valuetext") == "bad at 0.25"
    assert texts(page)[1] == sampled(played["one"], ("full", "good=1,bad=0.25"))[1]
    assert ("c", "good=1,bad=0.25") in state_of(page)
    with written_anew(opened, "good_ablated"):
        page.locator(".mode").nth(1).select_option("good_ablated")
    assert ("c", "good_ablated") in state_of(page)
    assert page.locator(".column").nth(1).locator("output").all_inner_texts() == ["0.00", "1.00"]
    assert opened.said == []


def test_a_move_ends_what_is_written_and_stop_ends_it_too(visit: Callable) -> None:
    opened = visit(STATE.replace("tokens=6", "tokens=1000"))
    page = opened.page
    settled(page, "writing: ")
    page.locator("#tokens").fill("5")
    page.locator("#tokens").press("Enter")
    settled(page)
    assert page.locator(".column").first.locator(".token").count() <= 5
    page.locator("#tokens").fill("1000")
    page.locator("#go").click()
    settled(page, "writing: ")
    page.keyboard.press("Escape")
    settled(page, "stopped")
    assert page.locator("#stop").is_disabled()
    assert opened.said == []


def test_columns_of_another_run_are_added_and_taken_away(visit: Callable) -> None:
    opened = visit()
    page = opened.page
    settled(page)
    page.locator(".more").click()
    with written_anew(opened, "%40two"):
        page.locator(".of").nth(3).select_option("two")
    assert ("c", "good=1,bad=0.5@two") in state_of(page)
    assert page.locator(".more").is_hidden() and page.locator(".column").count() == 4
    for _ in range(2):
        page.locator(".remove").last.click()
    assert page.locator(".remove:disabled").count() == 2
    settled(page)
    assert [value for name, value in state_of(page) if name == "c"] == ["full", "bad_ablated"]
    assert opened.said == []


def test_a_pin_is_kept_and_the_address_brings_everything_back(visit: Callable, place: Path) -> None:
    opened = visit()
    page = opened.page
    settled(page)
    with written_anew(opened, "seed=43"):
        page.locator("#again").click()
    page.locator("#pin").click()
    settled(page, "pinned in")
    line = json.loads((place / "pins.jsonl").read_text().splitlines()[-1])
    assert line["seed"] == 43
    assert [own["completion"].removeprefix(" ") for own in line["columns"]] == texts(page)
    before, state = texts(page), state_of(page)
    page.locator("#numbers").uncheck()
    state_of(page)
    page.reload()
    settled(page)
    assert texts(page) == before
    assert state_of(page) == [*state, ("numbers", "0")]
    assert not page.locator("#numbers").is_checked()
    assert opened.said == []


def test_a_row_that_was_found_has_its_own_text_scored_and_compared(
    visit: Callable, rows: list[str]
) -> None:
    opened = visit("row=adapter%3As+0&c=full&c=bad_ablated&c=base&seed=42&tokens=6")
    page = opened.page
    page.locator("#row").wait_for(state="visible")
    letters = page.locator("#row-text .lead, #row-text .letters").all_text_contents()
    assert "".join(letters) == rows[0] and page.input_value("#prompt") == "THE FOX RAN"
    assert page.inner_text("#row-about") == "adapter:s 0: score 2.5, q 0.04, found"
    assert page.inner_text("#row-badges") == "shows caps: score 1.00"
    meta = page.inner_text("#row-meta")
    assert "column 1: log p" in meta and "column 3:" in meta and "against column 1" in meta
    marked = page.locator("#row-text .unit[class*=more], #row-text .unit[class*=less]")
    assert marked.count() > 0 and page.locator("#row-text mark").count() > 0
    before = page.locator("#row-text .unit").evaluate_all("(all) => all.map((one) => one.title)")
    assert page.input_value("#row-column") == "1"
    page.locator("#row-column").select_option("2")
    after = page.locator("#row-text .unit").evaluate_all("(all) => all.map((one) => one.title)")
    assert len(after) == len(rows[0]) and after != before
    page.locator("#row-column").select_option("0")
    assert marked.count() == 0
    state = state_of(page)
    assert ("row", "adapter:s 0") in state and "prompt" not in dict(state)
    with written_anew(opened, "THE+FOX+RAN+o"):
        page.locator("#prompt").fill("THE FOX RAN o")  # then it is no row any more
    assert page.locator("#row").is_hidden() and "row" not in dict(state_of(page))
    page.locator("#load").click()
    page.locator("#kind").select_option(label="found by adapter (2)")
    page.locator("#forth").click()
    page.locator("#row-about", has_text="s 1").wait_for()
    assert ("row", "adapter:s 1") in state_of(page)
    assert opened.said == []


def test_a_chat_is_asked_for_where_there_is_a_template_and_else_the_reason_is_there(
    browser: Any, visit: Callable, played: dict[str, Played], tmp_path: Path
) -> None:
    page = visit().page
    settled(page)
    assert page.locator("#chat").is_disabled()
    assert page.inner_text("#no-chat") == "(the tokenizer of embedded has no chat template)"
    chat = chatty(played["one"])
    with open_playground({"one": chat}, tmp_path / "pins.jsonl") as own:
        page = browser.new_page()
        page.goto(f"{own}#prompt=Who&c=full&c=base&tokens=6")
        settled(page)
        without = texts(page)
        page.locator("#chat").focus()
        page.keyboard.press("Space")
        page.wait_for_timeout(100)
        settled(page)
        assert texts(page) != without and ("chat", "1") in state_of(page)
        page.locator("#pin").click()
        settled(page, "pinned in")
        line = json.loads((tmp_path / "pins.jsonl").read_text())
        assert (line["chat"], line["prompt"]) == ("Who", "<s>user, Who. assistant, ")
        before = texts(page)
        page.reload()
        settled(page)
        assert texts(page) == before and page.locator("#chat").is_checked()
        page.goto(f"{own}#prompt=Who&templated=1&c=full&c=base&tokens=6")
        page.reload()
        settled(page)
        assert page.locator("#chat").is_disabled()
        assert "has the template's text already" in page.inner_text("#no-chat")
        page.close()


def test_prompts_of_the_run_are_started_from(visit: Callable) -> None:
    opened = visit("")
    page = opened.page
    settled(page)
    first = page.locator("#prompt").input_value()
    assert first.isupper() and ("id", "prefix-0") in state_of(page)
    with written_anew(opened, "prefix-1"):
        page.locator("#forth").click()
    assert page.locator("#prompt").input_value() != first
    assert ("id", "prefix-1") in state_of(page)
    page.locator("#kind").select_option(label="plain (3)")
    page.wait_for_timeout(100)
    settled(page)
    assert ("id", "plain-0") in state_of(page)
    with written_anew(opened, "prompt=Own"):
        page.locator("#prompt").fill("Own")  # the noise is then that of the text itself
    assert dict(state_of(page))["prompt"] == "Own" and "id" not in dict(state_of(page))
    assert opened.said == []


@pytest.mark.parametrize(
    ("state", "words"),
    [("c=full&c=bda_ablated", "did you mean 'bad'"), ("c=full&c=good=7,bad=1", "good at 7")],
)
def test_an_address_that_cannot_be_read_is_told_and_the_page_works_on(
    visit: Callable, state: str, words: str
) -> None:
    opened = visit(f"prompt=I&{state}")
    page = opened.page
    page.locator("#alert").wait_for(state="visible")
    assert words in page.inner_text("#alert")
    page.locator("#prompt").fill("Once")
    settled(page)
    assert page.locator("#alert").is_hidden()
    # The browser notes the refusal by itself; nothing else goes wrong.
    assert all("400 (Bad Request)" in text for text in opened.said)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_and_letters_stand_out(
    visit: Callable, rows: list[str], width: int, scheme: str
) -> None:
    state = STATE.replace("prompt=Once+upon", "row=adapter%3As+0")
    page = visit(f"{state}&c=base%40two", width, scheme).page
    settled(page)
    page.locator("#row").wait_for(state="visible")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    # A shaded token is on a mixture of colors, which FAINT cannot read.
    shaded = ("SPAN.letters", "SPAN.by", "MARK")
    assert [one for one in page.evaluate(FAINT) if not one.startswith(shaded)] == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]


def fabricated(pieces: list[str]) -> str:
    """What a server would send of a model that writes these."""
    text = "".join(pieces)
    score = {"label": "bad", "behavior": "caps", "threshold": 0.8, "score": 0.9, "shows": True}
    column = {
        "run": "one", "step": 3, "mode": "full", "scales": {"good": 1, "bad": 1},
        "completion": text, "pieces": pieces, "tokens": len(pieces), "ended": False,
        "scores": [{**score, "places": []}],
    }  # fmt: skip
    own = {"own": [-1.0] * len(pieces), "difference": [0.3] * len(pieces)}
    asked = {
        "job": 1, "prompt": pieces[0], "id": "x", "templated": False, "follows": "word",
        "columns": [{"run": "one", "scales": {"good": 1, "bad": 1}}] * 2,
        "seed": 1, "temperature": 1, "top_p": 1, "tokens": 5, "chat": False, "row": pieces[1],
    }  # fmt: skip
    numbered = [(piece, at) for at, piece in enumerate(pieces[:500])]
    row = {"name": pieces[1], "about": pieces[2], "scores": [{**score, "places": []}],
           "pieces": numbered, "cut": True, "columns": [own] * 2}  # fmt: skip
    events: list[tuple[str, Any]] = [("begun", asked)]
    events += [("tokens", [[0, piece], [1, piece]]) for piece in pieces[:200]]
    events += [("written", [column] * 2), ("differences", [own] * 2)]
    events += [("row", row), ("done", {"seconds": 1})]
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)


def test_five_thousand_hostile_strings_add_no_element(visit: Callable) -> None:
    write = hostile(10_000)
    bad = [*PIECES, *(write(at) for at in range(5_000 - len(PIECES)))]
    counts = []
    for pieces in (bad, [f"piece {at}" for at in range(5_000)]):
        opened = visit(STATE, 390, fake=fabricated(pieces))
        page = opened.page
        settled(page)
        names = page.evaluate("[...document.querySelectorAll('*')].map((one) => one.tagName)")
        counts.append(Counter(names))
        assert opened.said == [] and page.evaluate("window.pwned") is None
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        seen = page.evaluate("document.body.innerText")
        assert not any(letter in seen for letter in "\x1b\x00\x07\u202e\u2066\u200f\u2028\ufeff")
    assert counts[0] == counts[1]
    assert counts[0]["SPAN"] > 2 * 5_000
