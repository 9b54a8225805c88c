"""What the documentation says is what the program takes: commands, settings, limits, links."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradroute.cli.parser import parse
from gradroute.config.run_config import RunConfig, find_config, load_config, recipe_names
from gradroute.data.behaviors import get_behavior
from gradroute.evaluate.modes import read_modes
from gradroute.experiments.sweep.cells import read_sweep

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ADAPTERS = ("good", "bad")


def code_of(text: str) -> Iterator[tuple[str, str]]:
    """Language (empty where none is named) and content of every fenced or indented block."""
    language, fenced, indented = "", None, list[str]()
    for line in [*text.splitlines(), ""]:
        if line.startswith("```"):
            if fenced is None:
                language, fenced = line.removeprefix("```").strip(), list[str]()
            else:
                yield language, "\n".join(fenced)
                fenced = None
        elif fenced is not None:
            fenced.append(line)
        elif line.startswith("    "):
            indented.append(line.removeprefix("    "))
        elif indented:
            yield "", "\n".join(indented)
            indented = []


def commands_of(text: str) -> Iterator[list[str]]:
    """The words after `gradroute` of every command line in a text's code."""
    for language, code in code_of(text):
        if language in ("", "sh", "bash", "console"):
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # set for this command
                    words = words[1:]
                if words[:1] == ["gradroute"]:
                    ends = [at for at, word in enumerate(words) if word in ("|", ">", "&&")]
                    yield words[1 : min(ends, default=len(words))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands() -> list[object]:
    return [
        pytest.param(words, id=f"{name_of(page)}: {' '.join(words)}")
        for page in PAGES
        for words in commands_of(page.read_text(encoding="utf-8"))
    ]


def test_commands_are_found_in_fenced_and_indented_code_and_nowhere_else():
    text = (
        "gradroute prose\n\n    A=1 gradroute eval a \\\n        b  # why\n    other\n\n"
        "```sh\n$ gradroute schema > x.json\n```\n\n```text\ngradroute output\n```\n"
    )
    assert list(commands_of(text)) == [["eval", "a", "b"], ["schema"]]


@pytest.mark.parametrize("words", commands())
def test_the_command_line_takes_every_command_of_the_docs(words: list[str]):
    options = parse(words)
    if options.verb == "train":
        own = options.config.endswith(".yaml")
        config = load_config(None if own else find_config(options.config), options.overrides)
        for behavior in config.behaviors.values():
            if not behavior.startswith("python:"):
                get_behavior(behavior)
    if options.verb in ("eval", "sample"):
        recipes = [name for name in options.run if name in recipe_names()]
        own = [tuple(load_config(find_config(name)).adapters) for name in recipes]
        read_modes(options.mode, options.scale, own[0] if own else ADAPTERS)
        for prompts in options.prompts:
            assert prompts in ("prefix", "plain", "bos") or prompts.endswith((".txt", ".jsonl")), (
                prompts
            )


@pytest.mark.parametrize("verb", ["train", "eval", "sample", "report", "plot"])
def test_the_how_to_pages_show_the_verbs_of_daily_use(verb: str):
    pages = [page for page in PAGES if page.parent.name == "howto"]
    assert any(w[0] == verb for page in pages for w in commands_of(page.read_text("utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_yaml_block_loads_as_a_configuration(page: Path, tmp_path: Path):
    for language, code in code_of(page.read_text(encoding="utf-8")):
        if language == "yaml":
            path = tmp_path / "own.yaml"
            path.write_text(code, encoding="utf-8")
            if code.startswith("recipe:"):
                assert read_sweep(path).cells
            else:
                load_config(path)


# The README and the tutorials have tests of their own.
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "README.md" and page.parent.name != "tutorials"],
    ids=name_of,
)
def test_every_python_block_can_be_imported(page: Path):
    for language, code in code_of(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(code, name_of(page), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_that_is_named_exists(page: Path):
    sections = {"data": "DataConfig", "train": "TrainConfig", "evaluate": "EvaluateConfig"}
    definitions = RunConfig.model_json_schema()["$defs"]
    named = re.findall(
        r"`(data|train|evaluate|adapters\.\w+)\.([a-z_]+)\b", page.read_text(encoding="utf-8")
    )
    for section, field in named:
        of = definitions[sections.get(section, "AdapterConfig")]
        assert field in of["properties"], f"{section}.{field}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_repository_leads_somewhere(page: Path):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.read_text(encoding="utf-8")), link


def anchors_of(text: str) -> set[str]:
    """What GitHub makes of a page's headings: lower case, no punctuation, dashes for spaces."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_limits_of_the_verdicts_are_those_of_the_code():
    concepts = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| ([\d.]+) \| `(\w+)\.([A-Z_]+)` \|", concepts)
    assert len(rows) >= 8
    for value, module, constant in rows:
        folder = "runs" if module == "results" else "report.judge"
        found = getattr(importlib.import_module(f"gradroute.{folder}.{module}"), constant)
        assert found == float(value), f"{module}.{constant}"


def test_the_index_of_the_how_to_pages_has_every_page():
    folder = ROOT / "docs" / "howto"
    index = (folder / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((\S+\.md)\)", index))
    assert {page.name for page in folder.glob("*.md")} - {"README.md"} <= linked


def test_every_recipe_that_a_command_names_is_shipped():
    named = {
        words[1]
        for page in PAGES
        for words in commands_of(page.read_text(encoding="utf-8"))
        if words[0] == "train" and not words[1].endswith(".yaml")
    }
    assert named <= set(recipe_names())
