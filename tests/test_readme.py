"""What the front page and the reproduction say is what the program does."""

import re
from pathlib import Path

import pytest
import yaml

from gradroute.config.run_config import load_config
from gradroute.routing.policy import RoutingPolicy
from tools import make_drawing

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPRODUCTION = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_runs():
    (example,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert list(getattr(names["logits"], "shape", ())) == [3, 16, 2048]


def test_the_routing_table_is_the_one_called_anchored():
    (example,) = blocks("yaml")
    own = RoutingPolicy.parse(yaml.safe_load(example)["routing"], ["good", "bad"])
    named = RoutingPolicy.parse("anchored", ["good", "bad"])
    assert own.table == named.table


def test_the_dials_have_the_defaults_in_the_table():
    config = load_config(None)
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\S*) ?\| `([a-z_.]+)` \|$", REPRODUCTION, re.MULTILINE)
    assert len(rows) == 7
    for dial, default, field in rows:
        value = config
        for part in field.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        assert dial == "RUN_NAME" or float(default) == value, field


def test_its_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_files_it_links_to_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r'src(?:set)?="([^"]+)"', README)
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("theme", make_drawing.COLORS)
def test_the_drawing_is_what_its_script_makes(theme: str):
    committed = make_drawing.FOLDER / f"mechanism_{theme}.svg"
    assert committed.read_text(encoding="utf-8") == make_drawing.drawing(theme)


def test_the_front_page_can_be_read_in_a_minute():
    assert len(README.encode()) < 8192
