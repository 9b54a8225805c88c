"""The reference pages say what the source says."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradroute
from gradroute import integrations
from gradroute.cli.parser import build_parser
from gradroute.config.run_config import load_config
from tools.make_reference import pages

FOLDER = Path(__file__).parent.parent / "docs" / "reference"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def test_the_committed_pages_are_up_to_date(made: dict[str, str]):
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    assert there == made, "make reference"


def test_every_public_name_has_a_section_that_says_something(made: dict[str, str]):
    sections = dict(re.findall(r"\n## (\w+)\n(.*?)(?=\n## |\Z)", made["api.md"], re.DOTALL))
    assert set(sections) == {*gradroute._HOME_OF, *integrations._NAMES}
    for name, text in sections.items():
        prose = re.sub(r"```py\n(class )?\w+(\(.*?)?\n```", "", text, flags=re.DOTALL)
        assert len(prose.split()) >= 5, name


def test_every_setting_has_a_row_with_its_default(made: dict[str, str]):
    rows = re.findall(
        r"^\| `([a-z_.]+)` \| [^|]+ \| `?(.*?)`? \| (.+) \|$", made["config.md"], re.M
    )
    defaults = {key: default for key, default, _ in rows}
    assert all(told.strip() for *_, told in rows)
    plain = dict(_flat(load_config(None).model_dump()))
    for key, value in plain.items():
        wanted = {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
        assert defaults[key] == wanted, key


def _flat(values: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if key != "adapters" and isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif key != "adapters":
            yield f"{prefix}{key}", value


def test_every_verb_has_a_section(made: dict[str, str]):
    usage = build_parser().format_help()
    verbs = re.findall(r"^    ([a-z-]+) ", usage, re.MULTILINE)
    assert len(verbs) >= 12
    for verb in set(verbs) - {"data"}:  # whose own verbs have sections of theirs
        assert re.search(rf"^## gradroute {verb}\b", made["cli.md"], re.MULTILINE), verb
