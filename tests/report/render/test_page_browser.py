"""The page in a real browser: nothing leaves it, nothing overflows, and its two controls work."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report.chromium import chromium
from report.page_runs import write_runs
from report.visits import Opened, launched, visiting

from gradroute.report.judge.comparison import compare
from gradroute.report.render.explorer import explore
from gradroute.report.render.page import page_html
from gradroute.report.render.tables import tables

pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (it is in gradroute[dev])"
)

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")


EXECUTABLE = chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        EXECUTABLE is None,
        reason="no Chromium: install one, or run `playwright install chromium`",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as opened:
        yield opened


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Opened]]:
    with visiting(browser) as go:
        yield go


def unfold(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


def test_nothing_is_asked_for_and_nothing_goes_wrong(report: Path, visit: Callable) -> None:
    opened = visit(report / "report.html")
    unfold(opened.page)
    for name in ("#scale-forth", "#sample-forth"):
        opened.page.click(name)
    opened.page.wait_for_load_state("networkidle")
    outside = [url for url in opened.asked if not url.startswith("data:")]
    assert outside == [(report / "report.html").as_uri()]
    assert opened.said == []


def test_the_policy_stops_what_the_page_did_not_bring(report: Path, visit: Callable) -> None:
    opened = visit(report / "report.html")
    failed: list[tuple[str, str]] = []
    opened.page.on("requestfailed", lambda request: failed.append((request.url, request.failure)))
    opened.page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', "
        '\'<img src="http://127.0.0.1:9/x.png"><p onclick="window.ran=1" id=p>x</p>\')'
    )
    opened.page.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; "
        "document.body.append(s); document.getElementById('p').click(); })()"
    )
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("window.ran") is None
    assert failed == [("http://127.0.0.1:9/x.png", "csp")]
    assert any("Content Security Policy" in text for text in opened.said)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_overflows(report: Path, visit: Callable, width: int, scheme: str) -> None:
    page = visit(report / "report.html", width, scheme).page
    for prepare in (lambda: None, lambda: unfold(page)):
        prepare()
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        # Whatever is wider than the page lies in something that scrolls by itself.
        wide = page.evaluate(
            """() => [...document.querySelectorAll('main *')].filter((one) =>
              one.getBoundingClientRect().right > innerWidth + 1
              && !one.closest('.wide, pre, .prompt, .contents, svg')).map((one) => one.outerHTML)"""
        )
        assert wide == []


def test_light_and_dark_paper_differ_and_figures_follow(report: Path, visit: Callable) -> None:
    seen = {}
    for scheme in SCHEMES:
        page = visit(report / "report.html", 1280, scheme).page
        unfold(page)
        page.wait_for_function("[...document.images].every((one) => one.complete)")
        seen[scheme] = (
            page.evaluate("getComputedStyle(document.body).backgroundColor"),
            page.evaluate("[...document.images].map((one) => one.currentSrc)"),
        )
        assert all(page.evaluate("[...document.images].map((one) => one.naturalWidth > 0)"))
    assert seen["light"][0] == "rgb(255, 255, 255)"
    assert seen["dark"][0] == "rgb(21, 24, 28)"
    pairs = list(zip(seen["light"][1], seen["dark"][1], strict=True))
    assert len(pairs) >= 6
    assert all(light != dark for light, dark in pairs)


def test_letters_stand_out_from_their_paper(report: Path, visit: Callable) -> None:
    """Contrast of at least 4.5 (WCAG 2.2, 1.4.3) for every text in both themes."""
    for scheme in SCHEMES:
        page = visit(report / "report.html", 1280, scheme).page
        unfold(page)
        assert page.evaluate(FAINT) == []


FAINT = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) **
    2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const found = numbers(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const one of document.querySelectorAll('main *, nav *')) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || one.closest('svg, script, :disabled') || !one.getClientRects().length) continue;
    const [a, b] = [light(numbers(getComputedStyle(one).color).slice(0, 3)), light(paper(one))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faint.push(`${one.tagName}.${one.className} ${contrast.toFixed(2)}
    ${one.textContent.slice(0, 30)}`);
  }
  return faint;
}"""


def test_the_slider_shows_rate_and_samples_of_every_scale(report: Path, visit: Callable) -> None:
    opened = visit(report / "report.html")
    page = opened.page
    page.select_option("#scale-run", label="routed")
    document = json.loads((report / "eval_multi_results.json").read_text())["runs"]["routed"]
    lines = (report / "runs" / "seed-0" / "routed" / "eval" / "samples.jsonl").read_text()
    samples = [json.loads(line) for line in lines.splitlines()]
    seen = []
    scales = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    for index, scale in enumerate(scales):
        page.locator("#scale-input").fill(str(index))
        mode = {0.0: "bad_ablated", 1.0: "full"}.get(scale, f"good=1,bad={scale:g}")
        rate = document[mode]["prompts"]["prefix"]["behavior_rate"]
        assert page.inner_text("#scale-output") == f"bad at {scale:g}"
        numbers = page.inner_text("#scale-numbers")
        assert f"{100 * rate['mean']:.0f} %\n" in numbers
        assert f"[{100 * rate['lower']:.0f}, {100 * rate['upper']:.0f}] of {rate['n']}" in numbers
        assert f"{document[mode]['held_out_loss']['normal']['mean']:.3f}" in numbers
        (text,) = [
            row["completion"]
            for row in samples
            if (row["mode"], row["prompts"], row["prompt_id"]) == (mode, "prefix", "prefix-0")
        ]
        cards = page.locator("#scale-cards .card")
        assert text.strip() in cards.nth(0 if index == 0 else 1).inner_text()
        assert page.locator("#scale-chart .dot.now").count() == 1
        seen.append(page.inner_html("#scale-chart"))
    assert len(set(seen)) == len(scales)
    assert opened.said == []


def test_the_slider_moves_by_keyboard_and_says_where_it_is(report: Path, visit: Callable) -> None:
    page = visit(report / "report.html").page
    page.select_option("#scale-run", label="unrouted")
    page.focus("#scale-input")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#scale-output") == "bad at 0.1"
    assert page.get_attribute("#scale-input", "aria-valuetext") == "bad at 0.1"


def test_samples_are_browsed_by_run_mode_and_prompt(report: Path, visit: Callable) -> None:
    opened = visit(report / "report.html")
    page = opened.page
    page.select_option("#sample-run", label="unrouted")
    page.select_option("#sample-kind", label="plain")
    page.select_option("#sample-prompt", index=3)
    titles = page.locator("#sample-cards h4").all_inner_texts()
    assert titles == ["full", "bad_ablated", "good_ablated", "base"]
    texts = page.locator("#sample-cards .text").all_inner_texts()
    assert [text.lower() for text in texts] == [
        f"{mode} wrote number 3 of unrouted." for mode in titles
    ]
    assert page.inner_text("#sample-asked") == "ONCE UPON 3"
    page.click("#sample-forth")
    assert page.inner_text("#sample-asked") == "ONCE UPON 4"
    assert "prompt plain-4, 5 of 12" in page.inner_text("#sample-id")
    page.uncheck("#sample-modes input[value=base]")
    page.check("#sample-scales")
    page.check("#sample-modes input[value='good=1,bad=0.5']")
    titles = page.locator("#sample-cards h4").all_inner_texts()
    assert titles == ["full", "bad_ablated", "good_ablated", "good=1,bad=0.5"]
    page.select_option("#sample-view", "runs")
    page.check("#sample-modes input[value=full]")
    titles = page.locator("#sample-cards h4").all_inner_texts()
    assert titles == ["baseline", "unrouted", "routed", "filter", "oracle"]
    assert page.locator("#sample-cards .text").nth(2).inner_text().lower() == (
        "full wrote number 4 of routed."
    )
    assert opened.said == []


def test_what_is_folded_away_is_printed(report: Path, visit: Callable) -> None:
    page = visit(report / "report.html").page
    before = page.locator("details[open]").count()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    folded = page.locator("details:not([open])").count()
    assert folded == page.locator("details.screen").count()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == before
    assert page.pdf().startswith(b"%PDF")


def test_without_scripts_every_number_is_still_there(report: Path, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((report / "report.html").as_uri())
    assert page.locator("td[data-json]").count() > 300
    assert page.locator("#slider").is_hidden()
    assert page.get_by_text("The slider needs scripts").is_visible()
    context.close()


PIECES = (
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 1</script>",
    '</script><img src=x onerror="window.pwned=1">',
    "</textarea></p></div></main></body></html><h1>hello",
    "<svg onload=window.pwned=1><a href=javascript:window.pwned=1>x",
    "<!--<script>",
    "]]>&lt;b&gt;&#60;i&#62;&quot;",
    "\u202e\u2066dlrow\u2069\u202c \u200f\u05e9\u05dc\u05d5\u05dd",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07\x00\x08\x9b",
    "\u2028\u2029\ufeff\u00ad\ue000\U000e0041",
    "`${window.pwned=1}` {{ 7 * 7 }} {% raw %} $x$",
    "\n" * 40,
    "\ud83d\ude00 \u0915\u094d\u200d\u0937 e\u0301\u0301\u0301",
    '" onmouseover="window.pwned=1" style="position:fixed',
    "' autofocus onfocus='window.pwned=1",
)


def hostile(longest: int) -> Callable[[int], str]:
    """Gives a different string each time; every thousandth is that long."""
    count = 0

    def write(_: int) -> str:
        nonlocal count
        count += 1
        piece = PIECES[count % len(PIECES)] + PIECES[(count // 7) % len(PIECES)]
        if count % 1_000 == 1:
            piece = (piece * longest)[:longest]
        return f"{piece}{count}"

    return write


def elements(page: Any) -> Counter[str]:
    """How many elements of each kind the page has had, with every sample shown once."""
    counts = page.evaluate(
        """() => {
          const counts = {};
          const count = () => {
            for (const one of document.querySelectorAll('*')) {
              counts[one.tagName] = (counts[one.tagName] || 0) + 1;
            }
          };
          const at = (id) => document.getElementById(id);
          const set = (select, index) => {
            select.selectedIndex = index;
            select.dispatchEvent(new Event('change'));
          };
          count();
          at('sample-scales').checked = true;
          for (let run = 0; run < at('sample-run').options.length; run++) {
            set(at('sample-run'), run);
            for (let kind = 0; kind < at('sample-kind').options.length; kind++) {
              set(at('sample-kind'), kind);
              for (const box of at('sample-modes').querySelectorAll('input')) box.checked = true;
              for (let prompt = 0; prompt < at('sample-prompt').options.length; prompt++) {
                set(at('sample-prompt'), prompt);
                for (const tag of ['cards', 'asked', 'id', 'prompt']) {
                  for (const one of at(`sample-${tag}`).querySelectorAll('*')) {
                    counts[one.tagName] = (counts[one.tagName] || 0) + 1;
                  }
                }
              }
            }
          }
          count();
          return counts;
        }"""
    )
    return Counter(counts)


def test_five_thousand_hostile_strings_add_no_element(tmp_path: Path, visit: Callable) -> None:
    pages = {}
    for name, writer, prompt in (
        ("benign", None, None),
        ("hostile", hostile(1_000_000), hostile(10_000)),
    ):
        folders = write_runs(tmp_path / name, prompts=50, writer=writer, prompt=prompt, sides=False)
        compared = compare(folders)
        assert explore(compared).shown >= 5_000
        path = tmp_path / f"{name}.html"
        path.write_bytes(
            page_html(compared, tables(compared), []).encode(errors="backslashreplace")
        )
        pages[name] = visit(path, 390)
    counts = {name: elements(opened.page) for name, opened in pages.items()}
    assert counts["hostile"] == counts["benign"]
    assert counts["hostile"]["ARTICLE"] > 5_000
    page = pages["hostile"].page
    assert pages["hostile"].said == []
    assert len(pages["hostile"].asked) == 1
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    shown = page.evaluate("document.body.innerText")
    assert "first 2,000 of 1,000," not in shown  # of the last prompt, which is short
    assert not any(letter in shown for letter in "\x1b\x00\x07\u202e\u2066\u200f\u2028\ufeff")


def test_what_would_steer_the_page_is_shown_as_an_escape(tmp_path: Path, visit: Callable) -> None:
    folders = write_runs(
        tmp_path / "runs",
        prompts=4,
        names=("routed",),
        writer=lambda index: "a\x1b[31mb\u202ec\u2028d\ud800e\x00f \u200d \u05e9\n<b>g</b>",
        prompt=lambda index: "\x07" + "p" * 3_000,
        sides=False,
    )
    compared = compare(folders)
    path = tmp_path / "page.html"
    path.write_bytes(page_html(compared, tables(compared), []).encode(errors="backslashreplace"))
    page = visit(path).page
    text = page.locator("#sample-cards .text").first.inner_text()
    assert text == "a\\x1b[31mb\\u202ec\\u2028d\\ud800e\\x00f \u200d \u05e9\n<b>g</b>"
    assert page.inner_text("#sample-asked").startswith("\\x07ppp")
    assert len(page.inner_text("#sample-asked")) == 2_003
