"""The page as text: whole, closed, equal to the JSON, and deaf to what a model wrote."""

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image
from report.page_runs import write_runs

from gradroute.report.judge.comparison import (
    Comparison,
    SingleBehaviorComparison,
    compare,
    single_behavior_comparison,
)
from gradroute.report.publish import publish
from gradroute.report.render.explorer import LONGEST, explore, script_json
from gradroute.report.render.figure_style import DrawnForms
from gradroute.report.render.markdown import markdown
from gradroute.report.render.page import page_html
from gradroute.report.render.self_contained import with_code_tags
from gradroute.report.render.tables import tables
from gradroute.report.results.reading import read_runs


class Reader(HTMLParser):
    """Elements, cells that name a place in the JSON, and texts by element."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[tuple[str, str]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.styles: list[str] = []
        self._open: str | None = None
        self._text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("td", "th", "script", "style"):
            self._open, self._text, self._attributes = tag, "", dict(attrs)

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag != self._open:
            return
        if tag == "script":
            self.scripts.append((self._attributes.get("type"), self._text))
        elif tag == "style":
            self.styles.append(self._text)
        elif (place := self._attributes.get("data-json")) is not None:
            self.cells.append((place, self._text.strip()))
        self._open = None


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> SingleBehaviorComparison:
    root = tmp_path_factory.mktemp("runs")
    folders = write_runs(root, seeds=2, prompts=12, names=("baseline", "routed", "filter"))
    return single_behavior_comparison(read_runs(folders))


def bare(comparison: Comparison) -> str:
    """The page without figures, which take their time."""
    return page_html(comparison, tables(comparison), [])


def at(document: Any, place: str) -> Any:
    for step in place.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document


def test_every_number_of_a_table_is_the_one_in_the_json(report: Path) -> None:
    document = json.loads((report / "eval_multi_results.json").read_text())
    cells = Reader((report / "report.html").read_text()).cells
    assert len(cells) > 300
    sections = {place.split("/")[1] for place, _ in cells}
    assert sections >= {"runs", "groups", "claims", "tests", "deployment", "relearning"}
    for place, text in cells:
        check(at(document, place), text, place)


def check(value: Any, text: str, place: str) -> None:
    """Whether a cell says what the JSON has: the same numbers, rounded as the text rounds."""
    if value is None:
        assert text.startswith("not"), place
        return
    wanted: list[Any] = [value]
    if isinstance(value, dict):
        middle = value.get("mean", value.get("value"))
        wanted = [middle, value.get("lower"), value.get("upper")]
    if text.startswith("< 0.001"):
        assert wanted[0] < 0.001, place
        return
    found = re.findall(r"[-+]?[\d,]*\.?\d+", text)
    digits = len(found[0].partition(".")[2])
    shown = [float(number.replace(",", "")) for number in found[: len(wanted)]]
    for scale in (1, 100):
        again = [round(scale * number, digits) for number in wanted if number is not None]
        if again == pytest.approx(shown[: len(again)], abs=1e-9):
            return
    raise AssertionError(f"{place}: the page says {text!r}, the JSON {value!r}")


def test_the_headline_says_what_how_sure_compared_with_what_and_at_what_cost(report: Path) -> None:
    html = (report / "report.html").read_text()
    for title in ("Shown", "Compared with", "At what cost", "How sure"):
        assert f"<dt>{title}</dt>" in html
    assert "One seed: 95 % intervals over its own completions" in html
    assert "Not compared with refined, " in html and ", random_labels" in html


@pytest.mark.parametrize(
    ("decided", "title", "told"),
    [
        ("no different", "Not beaten", "filter, which uses flags"),
        ("higher", "Not beaten", "filter, which uses flags"),
        (
            "inconclusive",
            "Not shown to beat",
            "filter (labeled bad examples dropped; labels: flags,",
        ),
    ],
)
def test_a_control_that_routing_does_not_beat_stands_in_the_headline(
    comparison: SingleBehaviorComparison, decided: str, title: str, told: str
) -> None:
    def changed(outcome: str) -> SingleBehaviorComparison:
        claims = [
            replace(
                c,
                decided=outcome if c.rival else "higher",
                equal_gain=replace(c.equal_gain, short=False),
            )
            for c in comparison.claims
        ]
        return replace(comparison, claims=tuple(claims))

    unbeaten = ("Not beaten", "Not shown to beat")
    assert not any(one in bare(changed("lower")) for one in unbeaten)
    assert title in markdown(changed(decided), [], [])
    html = bare(changed(decided))
    assert f'<div class="lost">\n<dt>{title}</dt>' in html and told in html
    assert html.index("<dt>Shown</dt>") > html.find("<dt>Not beaten</dt>")


def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else(report: Path) -> None:
    page = Reader((report / "report.html").read_text())
    (policy,) = [
        attributes["content"]
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    (style,) = page.styles
    scripts = {kind: text for kind, text in page.scripts}
    assert set(scripts) == {None, "application/json"}
    for kind, text in (("style", style), ("script", scripts[None])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["base-uri"] == rules["form-action"] == "'none'"


def test_nothing_in_the_page_points_outside_it(report: Path) -> None:
    page = Reader((report / "report.html").read_text())
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "form", "base", "video", "audio")
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "style", (tag, name)
            if name in ("href", "src", "srcset"):
                assert value is not None and value.startswith(("#", "data:"))
    (style,) = page.styles
    assert "url(" not in style and "@import" not in style


def test_every_link_of_the_contents_leads_somewhere(report: Path) -> None:
    page = Reader((report / "report.html").read_text())
    there = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(there) == len(set(there))
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert len(links) >= 10
    assert {link for link in links if link} <= {f"#{name}" for name in there}


def test_the_report_reads_run_folders_without_torch(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs", prompts=4, names=("routed",), sides=False)
    program = (
        "import sys; from pathlib import Path; from gradroute.runs.folder import RunFolder; "
        "from gradroute.report.judge.comparison import compare; from gradroute.report import "
        "publish; "
        "from gradroute.report.render.page import page_html; from "
        "gradroute.report.render.tables import tables; "
        f"found = compare([RunFolder(Path({str(tmp_path / 'runs/seed-0/routed')!r}))]); "
        "page_html(found, tables(found), []); "
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_same_runs_give_the_same_page(comparison: Comparison) -> None:
    assert bare(comparison) == bare(comparison)


def test_one_lonely_unmeasured_run_has_a_page_too(tmp_path: Path) -> None:
    html = bare(compare(write_runs(tmp_path, prompts=4, names=("filter",), sides=False)))
    assert "No claim is made: a claim needs a routed run" in html
    assert "not measured (<code>gradroute relearn RUN…</code>)" in html


def test_what_a_report_does_not_know_is_said(comparison: Comparison) -> None:
    html = bare(comparison)
    for missing in (
        "Controls that are not here: ",
        "text written from an empty prompt: not measured",
        "Behavior in a form that the detector does not see",
    ):
        assert missing in html


def test_what_changed_from_run_to_run_is_listed(comparison: Comparison) -> None:
    (table,) = [table for table in tables(comparison) if table.name == "differences"]
    rows = [[cell.text for cell in row] for row in table.rows]
    assert ["routed@0", "baseline@0", "data.behavior_fraction", "0.0", "0.1"] in rows
    assert ["filter@0", "routed@0", "adapters.bad.rank", "32", "not there"] in rows


def test_right_answers_stand_beside_the_rates(comparison: Comparison) -> None:
    groups = tuple(replace(group, accuracy=group.rates) for group in comparison.groups)
    (table,) = [t for t in tables(replace(comparison, groups=groups)) if t.name == "prompts"]
    assert table.heads[2:] == (
        "rate, prefix", "rate, plain", "right answers, prefix", "right answers, plain"
    )  # fmt: skip
    for row in table.rows:
        assert [cell.text for cell in row[2:4]] == [cell.text for cell in row[4:]]
        assert row[4].at == row[2].at.replace("/rates/", "/accuracy/")


HOSTILE = "</script><script>alert(1)</script><!-- & \u2028 \u202e \x1b[31m \x00 \ud800"


def test_no_text_can_leave_the_element_of_the_data() -> None:
    text = script_json({"texts": [HOSTILE]})
    assert not re.search("[<>&\u2028\u2029\x00-\x1f\x7f-\x9f]", text)
    assert json.loads(text) == {"texts": [HOSTILE]}


@pytest.mark.parametrize("text", ["a `b` c", "`", "``", "a ` b", "<i>`<b>`</i>", "```"])
def test_backticks_set_code_and_escape_everything(text: str) -> None:
    html = with_code_tags(text)
    assert re.sub("</?code>", "", html).replace("&lt;", "<").replace("&gt;", ">").replace(
        "`", ""
    ) == text.replace("`", "")
    assert html.count("<") == 2 * html.count("<code>")


def test_hostile_names_are_letters_in_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = io.BytesIO()
    Image.new("RGB", (1, 1)).save(image, "PNG")
    dot = DrawnForms(image.getvalue(), image.getvalue(), b"%PDF")
    monkeypatch.setattr("gradroute.report.publish.draw_forms", lambda draw: dot)
    behavior = "regex:<script>alert(1)</script>|`$x$`"
    folders = write_runs(tmp_path, prompts=4, names=("routed",), behavior=behavior)
    hostile = folders[0].path.rename(tmp_path / "seed-0" / "<img src=x onerror=alert(1)>|*a*")
    out = tmp_path / "out"
    publish([type(folders[0])(hostile)], out, page=True)
    html = (out / "report.html").read_text()
    assert "<img src=x" not in html and "<script>alert" not in html
    tags = {tag for tag, _ in Reader(html).elements}
    assert tags == {tag for tag, _ in Reader(html.replace("&lt;", "")).elements}
    text = (out / "report.md").read_text()
    assert not re.search(r"(?<!\\)<(img|script)", text)


def test_samples_are_capped_and_the_cap_is_said(tmp_path: Path) -> None:
    long = "x" * 5_000
    folders = write_runs(
        tmp_path, prompts=8, names=("routed",), writer=lambda index: f"{index} {long}"
    )
    compared = compare(folders)
    whole = explore(compared)
    assert whole.shown == whole.measured == 8 * 2 * 13
    assert whole.cut == whole.measured
    assert all(len(text) <= LONGEST for text in whole.data["texts"])
    assert "208 longer than 2,000 characters are cut there" in whole.sentence
    some = explore(compared, budget=10_000)
    assert 0 < some.shown < some.measured
    kinds = some.data["runs"][0]["kinds"]
    counts = {len(samples) for kind in kinds for samples in kind["modes"].values()}
    assert counts == {some.shown // (2 * 13)}
    assert (
        f"{some.shown:,} of 208 samples are on this page: the same first prompts" in some.sentence
    )


def test_a_sample_on_the_page_is_the_one_of_its_mode_and_prompt(comparison: Comparison) -> None:
    data = explore(comparison).data
    for run, there in zip(comparison.runs, data["runs"], strict=True):
        for kind in there["kinds"]:
            for mode, samples in kind["modes"].items():
                own = [
                    row
                    for row in run.samples
                    if (row["mode"], row["prompts"]) == (mode, kind["kind"])
                ]
                assert [data["texts"][one[0]] for one in samples] == [
                    row["completion"] for row in own
                ]
                assert [one[2] for one in samples] == [row["shows"] for row in own]
                assert [prompt for prompt, _ in kind["prompts"]] == [r["prompt_id"] for r in own]


def test_the_slider_has_the_scales_that_were_measured(comparison: Comparison) -> None:
    by_name = {run["name"]: run for run in explore(comparison).data["runs"]}
    routed = by_name["routed@0"]["scales"]
    assert [point["scale"] for point in routed] == [0, 0.1, 0.25, 0.5, 0.75, 1]
    assert [point["mode"] for point in routed][::5] == ["bad_ablated", "full"]
    assert by_name["filter@0"]["scales"] == []
    run = next(run for run in comparison.runs if run.name == "routed@0")
    for point in routed:
        assert point["rates"]["prefix"] == run.cells[point["mode"]].rates["prefix"]._asdict()


def test_tables_are_written_as_csv_with_unrounded_numbers(report: Path) -> None:
    document = json.loads((report / "eval_multi_results.json").read_text())
    with (report / "tables" / "modes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(
        (len(run["config"]["adapters"]) == 1 and 6) or 13 for run in document["runs"].values()
    )
    for row in rows:
        there = document["runs"][row["run"]][row["mode"]]
        assert float(row["rate"]) == there["behavior_rate"]["mean"]
        assert float(row["normal_loss_upper"]) == there["held_out_loss"]["normal"]["upper"]
        assert int(row["rate_n"]) == 12


def test_markdown_names_only_figures_that_are_there(report: Path) -> None:
    text = (report / "report.md").read_text()
    named = [unquote(name) for name in re.findall(r"\]\((figures/[^)]+)\)", text)]
    assert len(named) >= 6
    assert all((report / name).is_file() for name in named)
    assert "## Limits" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) > 50
