"""The page of rows that were found: what it holds, in a browser too, and what it downloads."""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report.chromium import chromium
from report.render.test_page import Reader
from report.render.test_page_browser import FAINT, PIECES
from report.visits import Opened, launched, visiting

from gradroute.data.found import read_found
from gradroute.data.reading import read_examples
from gradroute.report.render.found_page import MOST_ROWS, found_page, token_pieces

LABELS = ("good", "bad", "unlabeled")


def summary(found: int, rows: int, **more: Any) -> dict[str, Any]:
    return {
        "run": "half", "by": "adapter", "behavior": "bad", "fdr": 0.05, "found": found,
        "unlabeled": rows, "null": 300, "bad": {"estimate": 6.2, "low": 2.0, "high": 9.0},
        "remaining": 2.4, "least_by_rank": 7, "truth": {"bad": 0}, **more,
    }  # fmt: skip


def lines(texts: list[str], found: int, prompt: str = "") -> list[dict[str, Any]]:
    made = []
    for at, text in enumerate(texts):
        words = [word for word in text.split(" ") if word]
        made.append(
            {
                "id": f"s{at}", "prompt": prompt, "text": text, "score": float(len(texts) - at),
                "p": 0.5 if at >= found else 0.0002, "q": 0.9 if at >= found else 0.01,
                "found": at < found, "label": "bad", "true_label": "good",
                "tokens": [[f" {word}", 1.5 if n == 0 else 0.0] for n, word in enumerate(words)],
            }
        )  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("THE FOX ran", [["THE", 0.5], [" FOX", 1.0], [" ran", 0.0], ["</s>", 0.25]]),
        ("THE FOX ran", [["THE", 0.5], ["FOX", 1.0], ["ran", 0.0], ["", 0.25]]),
        ("THE FOX ran", [["THE", 0.5], ["\ufffd", 0.125], ["FOX", 1.0], ["\ufffd", 0.125]]),
    ],
)
def test_pieces_make_the_text_and_every_share_is_placed_or_counted(text, tokens):
    pieces, outside = token_pieces(text, tokens)
    assert "".join(piece for piece, _ in pieces) == text
    assert [(piece.strip(), share) for piece, share in pieces if share] == [
        ("THE", 0.5),
        ("FOX", 1.0),
    ]
    assert outside == 0.25
    assert token_pieces(text, []) == ([(text, 0.0)], 0.0)


def test_the_best_rows_are_on_the_page_and_what_is_left_out_is_said():
    texts = [f"row {at}" for at in range(MOST_ROWS + 5)]
    html = found_page(summary(MOST_ROWS + 2, len(texts)), lines(texts, MOST_ROWS + 2), [])
    (data,) = [json.loads(text) for kind, text in Reader(html).scripts if kind]
    assert [row["id"] for row in data["rows"]] == [f"s{at}" for at in range(MOST_ROWS)]
    assert "2,000 texts, of the 2,000 best-scored of 2,005 rows, are on this page" in html
    assert "2 rows that were found have a lower score" in html
    html = found_page(summary(1, 3), lines(["a", "b", "a"], 1), [])
    (data,) = [json.loads(text) for kind, text in Reader(html).scripts if kind]
    assert [row["copies"] for row in data["rows"]] == [2, 1]
    few = found_page(summary(1, 2), lines(["a", "b"], 1), [])
    assert "All 2 rows are on this page" in few and "lower score" not in few


def test_the_page_says_what_the_terminal_says_and_what_was_left_out():
    html = found_page(summary(1, 2, notes=["7 rows <were> trained on."]), lines(["a", "b"], 1), [])
    found, left_out = (
        "1 of 2 unlabeled rows look like bad by adapter",
        "7 rows &lt;were&gt; trained",
    )
    for said in (found, "About 6 [2, 9]", "300 rows known to be good", "7 rows or more", left_out):
        assert said in html


pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
EXECUTABLE = chromium()
in_browser = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium: install one")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as opened:
        yield opened


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    with visiting(browser) as go:

        def go_to(html: str, width: int = 1280, scheme: str = "light") -> Opened:
            path = tmp_path / f"page-{len(list(tmp_path.iterdir()))}.html"
            path.write_bytes(html.encode(errors="backslashreplace"))
            return go(path, width, scheme)

        yield go_to


def saved(page: Any, button: str) -> str:
    with page.expect_download() as waited:
        page.click(f"#save-{button}")
    return Path(waited.value.path()).read_text(encoding="utf-8")


def decisions(page: Any) -> list[str]:
    return page.evaluate(
        "[...document.querySelectorAll('.row input:checked')].map((one) => one.value)"
    )


TEXTS = ["THE FOX", "THE CAT\u2028\x1b\n</script>", "a dog", "a hen"]


@pytest.mark.slow
@in_browser
def test_rows_are_moved_through_and_decided_by_keys_and_clicks(visit: Callable) -> None:
    opened = visit(found_page(summary(2, 4), lines(TEXTS, 2), []))
    page = opened.page
    assert decisions(page) == ["bad", "bad", "undecided", "undecided"]
    for key in "jgjkjjbju":
        page.keyboard.press(key)
    assert decisions(page) == ["good", "bad", "bad", "undecided"]
    assert page.locator(".row.now").count() == 1 and "a hen" in page.inner_text(".row.now")
    page.locator(".row").nth(3).get_by_label("good").check()
    assert decisions(page) == ["good", "bad", "bad", "good"]
    assert page.inner_text("#count") == "4 of 4 shown; 2 bad, 2 good, 0 undecided."
    page.fill("#search", "A ")
    page.keyboard.type("Hb")  # letters of a search are no keys
    page.keyboard.press("Backspace")
    assert decisions(page) == ["good", "bad", "bad", "good"]
    assert page.locator(".row:visible").all_inner_texts() == [page.inner_text(".row >> nth=3")]
    page.fill("#search", "")
    page.select_option("#filter", "found")
    assert page.locator(".row:visible").count() == 2
    page.fill("#search", "nowhere")
    assert page.locator(".row:visible").count() == 0 and page.is_visible("#none")
    assert opened.said == []


@pytest.mark.slow
@in_browser
def test_a_word_is_as_dark_as_its_share_and_its_title_has_the_number(visit: Callable) -> None:
    (line,) = lines(["THE FOX ran"], 1)
    line |= {"score": 2.25, "tokens": [["THE", 0.25], [" FOX", 2.0], [" ran", 0.0]]}
    page = visit(found_page(summary(1, 1), [line], [])).page
    marks = page.evaluate(
        "[...document.querySelectorAll('.text span')]"
        ".map((one) => [one.textContent, one.className, one.title])"
    )
    assert marks == [
        ["THE", "heat1", "0.250 of 2.250"],
        ["FOX", "heat8", "2.000 of 2.250"],
    ]


@pytest.mark.slow
@in_browser
def test_each_row_has_the_command_that_opens_it_as_a_shell_reads_it(visit: Callable) -> None:
    made = lines(TEXTS, 2)
    made[1] |= {"id": "it's $HOME; x"}
    opened = visit(found_page(summary(2, 4, run="my run"), made, [], "rude/new-1a2b"))
    page = opened.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for at, name in enumerate(("s0", "it's $HOME; x")):
        page.keyboard.press("j")
        page.keyboard.press("c")
        assert (
            page.evaluate("String(getSelection())")
            == page.locator(".opens code").nth(at).inner_text()
        )
        page.locator("#count", has_text=f"Copied: row {at + 1}.").wait_for()
        words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
        assert words == [
            "gradroute", "playground", "my run", "--row", f"rude/new-1a2b/adapter:{name}"
        ]  # fmt: skip
    page.locator(".opens button").nth(2).click()
    page.locator("#count", has_text="Copied: row 3.").wait_for()
    assert opened.said == [] and len(opened.asked) == 1


@pytest.mark.slow
@in_browser
def test_decisions_are_read_back_as_they_were_made(visit: Callable, tmp_path: Path) -> None:
    earlier = [{"text": "an old one", "label": "bad"}, {"text": "a dog", "label": "unlabeled"}]
    opened = visit(found_page(summary(2, 4), lines(TEXTS, 2, "Say:"), earlier))
    page = opened.page
    page.keyboard.press("j")
    page.keyboard.press("g")
    made = {("Say:", TEXTS[0]): "good", ("Say:", TEXTS[1]): "bad"}
    own = tmp_path / "own.jsonl"
    own.write_text(saved(page, "jsonl"), encoding="utf-8")
    old = {("", "an old one"): "bad", ("", "a dog"): "unlabeled"}
    assert read_found(own, LABELS).labels == {**made, **old}

    tasks = json.loads(saved(page, "label-studio"))
    records = json.loads(saved(page, "argilla"))
    assert [len(task["annotations"]) for task in tasks] == [1, 1, 0, 0]
    # In the tools a reviewer accepts what is there and answers what is not.
    for task in tasks[2:]:
        mark = {**tasks[0]["annotations"][0]["result"][0], "value": {"choices": ["good"]}}
        task["annotations"] = [{"result": [mark]}]
    for record in records:
        suggested = record["suggestions"].get("label", {"value": "good"})["value"]
        record["responses"] = {
            "label": [{"value": suggested, "user_id": "u", "status": "submitted"}]
        }
    whole = {**made, ("Say:", "a dog"): "good", ("Say:", "a hen"): "good"}
    for name, rows in (("studio", tasks), ("argilla", records)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert read_found(path, LABELS).labels == whole, name
        read = read_examples(path)
        assert {(e.prompt, e.text): e.label for e in read.examples} == whole, name
    assert opened.said == []


@pytest.mark.slow
@in_browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_rows_are_letters_and_nothing_overflows(
    visit: Callable, width: int, scheme: str
) -> None:
    counts = []
    for texts in (PIECES, [f"piece {at}" for at in range(len(PIECES))]):
        made = lines([f"{at}{text}{'x' * 300 * (at == 3)}" for at, text in enumerate(texts)], 5)
        for line, text in zip(made, texts, strict=True):
            tokens = [[line["text"][:2], 0.5]]
            line |= {"id": f"{line['id']}{text}", "prompt": f"p{text}", "tokens": tokens}
        asked = summary(5, len(made), run=f"r{texts[0]}", notes=[f"n{texts[2]}"])
        opened = visit(found_page(asked, made, []), width, scheme)
        page = opened.page
        for key in "jbjgju":
            page.keyboard.press(key)
        page.wait_for_load_state("networkidle")
        assert opened.said == [] and len(opened.asked) == 1
        assert page.evaluate("window.pwned") is None
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        # A shaded word is on a mixture of colors, which FAINT cannot read.
        assert [one for one in page.evaluate(FAINT) if not one.startswith("SPAN.heat")] == []
        names = page.evaluate("[...document.querySelectorAll('*')].map((one) => one.tagName)")
        counts.append(Counter(names))
        shown = page.evaluate("document.body.innerText")
        assert not any(letter in shown for letter in "\x1b\x00\x07\u202e\u2066\u200f\u2028\ufeff")
    assert counts[0] == counts[1]


@pytest.mark.slow
@in_browser
def test_a_page_of_as_many_rows_as_there_may_be_works(visit: Callable) -> None:
    texts = [f"row {at} " + "word " * 80 for at in range(MOST_ROWS)]
    opened = visit(found_page(summary(9, MOST_ROWS), lines(texts, 9), []))
    opened.page.fill("#search", "row 1999 ")
    assert opened.page.inner_text("#count").startswith("1 of 2000 shown; 9 bad")
    assert opened.said == []
