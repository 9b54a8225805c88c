"""The page's own files: no call parses HTML, nothing is fetched from elsewhere, and it is small."""

import re
from importlib import resources

from gradroute.playground.page import read_page

ASSETS = sorted(
    (place for place in (resources.files("gradroute.playground") / "assets").iterdir()),
    key=lambda place: place.name,
)


def test_no_file_parses_markup_or_names_another_place() -> None:
    assert {place.name.rpartition(".")[2] for place in ASSETS} == {"css", "html", "js"}
    for place in ASSETS:
        text = place.read_text(encoding="utf-8")
        assert not re.search(
            r"(inner|outer)HTML|insertAdjacent|document\.write|\beval\b|\bnew Function\b"
            r"|setTimeout\(\s*['\"]|import\(|DOMParser|setHTML|srcdoc|\son\w+=",
            text,
        ), place.name
        outside = re.findall(r"https?://[^\s\"'<>)]+|@import|url\(", text)
        assert [one for one in outside if "www.w3.org" not in one] == []
        asked = re.findall(r"fetch\(\s*[`\"']([^`\"'?]*)", text)
        assert set(asked) <= {"facts", "prompts", "write", "pin"}  # beside the page itself


def test_the_whole_page_is_small_and_its_policy_names_its_script() -> None:
    page = read_page()
    assert len(page.html.encode()) < 100_000
    assert page.html.count("<script>") == page.html.count("<style>") == 1
    assert "{style}" not in page.html and "{script}" not in page.html
    assert page.policy.count("sha256-") == 2 and "unsafe" not in page.policy
