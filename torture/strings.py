"""Hostile texts in every place of a report page that takes a text from a run's files.

Two tiny runs are trained and measured for real. Then their files are written again with hostile
texts: what models wrote and were asked, names of runs, of files of prompts and of behaviors,
notes, configurations, provenance. The page of it must have the elements and attributes of the
page of harmless texts, and none of the characters that would steer a reader's screen.
"""

import itertools
import json
import random
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from gradroute.cli.main import main
from gradroute.report.judge.comparison import compare
from gradroute.report.render.page import page_html
from gradroute.report.render.tables import tables
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_json, read_lines, write_json
from torture.runs import lay

ON_A_PAGE = 100
"""Texts on one page, each in two places at least."""
LONG = 1_000_000
"""Characters of one line on the first page."""

PIECES = (
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=1</script>",
    "</SCRIPT ><img src=x onerror=window.pwned=1>",
    "<!--<script>",
    "--><svg onload=window.pwned=1>",
    "</textarea></title></style></p></div></main></body></html><h1>",
    "<a href=javascript:window.pwned=1>x</a>",
    "javascript:window.pwned=1",
    '" onmouseover="window.pwned=1" style="position:fixed',
    "' autofocus onfocus='window.pwned=1",
    "` onclick=`window.pwned=1",
    "<iframe src=//127.0.0.1:9></iframe>",
    "<img src=http://127.0.0.1:9/x.png>",
    "<link rel=stylesheet href=//127.0.0.1:9>",
    "<meta http-equiv=refresh content=0;url=//127.0.0.1:9>",
    "<base href=//127.0.0.1:9>",
    "<style>*{display:none}@import '//127.0.0.1:9'</style>",
    "<form action=//127.0.0.1:9><input autofocus><button>",
    "<math><mi xlink:href=javascript:window.pwned=1>",
    "<template><slot></template>",
    "<![CDATA[<b>]]><?php x ?><!DOCTYPE x>",
    "&lt;script&gt;&#60;b&#62;&#x3c;i&#x3e;&quot;&amp;lt;&colon;",
    "\\u003cscript\\u003e\\x3cb\\x3e%3Cscript%3E",
    "{{ 7 * 7 }}{% raw %}{# x #}{{ self.__init__ }}",
    "${window.pwned=1} `${window.pwned=1}` #{x}",
    "\u202e\u2066dlrow\u2069\u202c \u200f\u05e9\u05dc\u05d5\u05dd\u200e",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07\x08\x9b31m",
    "\x1b]8;;http://127.0.0.1:9\x1b\\link",
    "\u2028\u2029\ufeff\u00ad\ue000\U000e0041\u200b",
    "\x00\x01\x7f\x85\x9f",
    "\ud800\udfff",
    "e\u0301\u0301\u0301 \u0915\u094d\u200d\u0937 \U0001f468\u200d\U0001f469",
    "=cmd|' /C calc'!A0",
    "<x" + " a" * 200 + ">",
    "<" * 300,
    "\n" * 40,
)
_KEPT = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789` \n")
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")
_STEERING = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
Change = Callable[[str], str]


def trials(count: int, seed: int, folder: Path, runs: Sequence[RunFolder] = ()) -> dict[str, Any]:
    """Put `count` hostile texts on pages, and compare each page with its harmless twin.

    Args:
        count: texts.
        seed: of their order and mixture.
        folder: an empty one.
        runs: of `measured_runs`; none for new ones.

    Returns:
        `trials`; `pages`; and what must be 0: `new_elements`, `new_attributes`, `steering`
        characters, `failures`.
    """
    runs = runs or measured_runs(folder / "ground")
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for start in range(0, count, ON_A_PAGE):
        texts = hostile(start, min(count, start + ON_A_PAGE), seed)
        html = page_of(runs, texts, folder / "hostile")
        twin = page_of(runs, [harmless(text) for text in texts], folder / "harmless")
        found = faults(html, twin)
        counts.update(found)
        counts["pages"] += 1
        failures += [f"page of the texts from {start}: {n} {kind}" for kind, n in found.items()]
    names = ("pages", "new_elements", "new_attributes", "steering", "pointing_out", "unequal_data")
    return {"trials": count, **{name: counts[name] for name in names}, "failures": failures}


def hostile(start: int, end: int, seed: int) -> list[str]:
    """Texts `start` to `end` of a seed, all different; the very first is one long line."""
    texts = []
    for number in range(start, end):
        draw = random.Random(f"{seed}:{number}")
        parts = [PIECES[number % len(PIECES)], *draw.choices(PIECES, k=draw.randrange(3))]
        text = "".join(parts)
        if draw.random() < 0.3:
            cut = draw.randrange(len(text))
            text = text[cut:] + text[:cut]
        if number == 0:
            text = (text * LONG)[:LONG]
        texts.append(f"{text}{number}")
    return texts


def harmless(text: str) -> str:
    """The same text with nothing in it that HTML, JSON or a terminal would take for a command.

    A backtick stays: between two of them the page sets code, which is an element.
    """
    return "".join(c if c in _KEPT else "x" for c in text)


def measured_runs(folder: Path) -> list[RunFolder]:
    """A routed and an unrouted run with everything that a page shows of runs."""
    ground = lay(folder)
    (folder / "mine.txt").write_text("once upon a time\nthe fox\n", encoding="utf-8")
    runs = str(folder / "runs")
    names = []
    for name, changes in (("routed", {}), ("unrouted", {"routing": "none"})):
        short = {"run_name": name, "train.max_steps": 4, "data.path": None, **changes}
        short |= {"data.train_examples": 40}
        config = ground.config(short, name)
        _do("train", str(config), "--runs", runs)
        names.append(name)
    _do("eval", *names, "--runs", runs, "--prompts", "prefix", "--prompts", f"{folder}/mine.txt",
        "--scale", "bad=0,0.5,1")  # fmt: skip
    _do("geometry", *names, "--runs", runs)
    _do("recover", "routed", "--runs", runs, "--steps", "1", "--examples", "4")
    _do("relearn", *names, "--runs", runs, "--examples", "4", "--max-steps", "1", "--prompts", "3")
    return [RunFolder(folder / "runs" / name) for name in names]


def _do(*arguments: str) -> None:
    code = main(arguments)
    if code:
        raise RuntimeError(f"gradroute {' '.join(arguments)} ended with {code}")


def page_of(runs: Sequence[RunFolder], texts: Sequence[str], folder: Path) -> str:
    """The page of the runs with these texts wherever their files have a text of their own."""
    shutil.rmtree(folder, ignore_errors=True)
    made = [_with_texts(run, texts, folder, number) for number, run in enumerate(runs)]
    compared = compare(made)
    return page_html(compared, tables(compared), [])


def _with_texts(run: RunFolder, texts: Sequence[str], root: Path, number: int) -> RunFolder:
    made = RunFolder(root / _file_name(texts[number * 7 % len(texts)], number))
    shutil.copytree(run.path, made.path, ignore=shutil.ignore_patterns("checkpoints", "*.png"))
    prompts = f"file:{_file_name(texts[-1], 2)}"
    samples = list(read_lines(made.samples))
    for place, row in enumerate(samples):
        asked = texts[int(row["prompt_id"].rpartition("-")[2]) * 11 % len(texts)]
        kind = prompts if row["prompts"].startswith("file:") else row["prompts"]
        text = texts[(number * len(samples) + place) % len(texts)]
        row |= {"completion": text, "prompt": asked, "prompts": kind}
        row |= {"prompt_id": f"{row['prompt_id']} {asked[:80]}"}
    # As a run writes them: what is no character is kept as the escape that JSON has for it.
    made.samples.write_text("".join(f"{json.dumps(row)}\n" for row in samples), encoding="utf-8")
    results = read_json(made.results)
    for row in results["results"]:
        for key, value in row.items():
            if isinstance(value, str) and value.startswith("file:"):
                row[key] = prompts
    write_json(made.results, results)
    _write_manifest(made, texts)
    _write_config(made, texts)
    return made


def _write_manifest(made: RunFolder, texts: Sequence[str]) -> None:
    at = itertools.cycle(texts)
    manifest = read_json(made.manifest)
    manifest |= {"data": next(at), "base": next(at), "notes": list(texts)}
    manifest["examples"] = {next(at): 3 for _ in range(4)}
    origin = manifest["provenance"]
    origin["commit"] = next(at)
    origin["versions"] = {name: next(at) for name in origin["versions"]}
    origin["hardware"] |= {"processor": next(at), "system": next(at), "accelerators": [next(at)]}
    made.manifest.write_text(json.dumps(manifest), encoding="utf-8")
    document = read_json(made.relearn)
    made.relearn.write_text(json.dumps(document | {"kept_mode": next(at)}), encoding="utf-8")
    geometry = read_json(made.geometry)
    modules = geometry["modules"]
    names = {name: f"{name} {next(at)[:80]}" for name in modules}
    write_json(made.geometry, {**geometry, "modules": {names[k]: v for k, v in modules.items()}})


def _write_config(made: RunFolder, texts: Sequence[str]) -> None:
    values = yaml.safe_load(made.config.read_text(encoding="utf-8"))
    values["behavior"] = f"keywords:{_one_line(texts[0][:200])}"
    values["model"] = _one_line(texts[1 % len(texts)][:200])
    values["data"]["path"] = _one_line(texts[2 % len(texts)][:200])
    text = yaml.safe_dump(values, allow_unicode=True)
    made.config.write_text(text, encoding="utf-8")


def _one_line(text: str) -> str:
    """What of a text a configuration takes: no control characters, and no address with a user."""
    return "".join(c for c in text if unicodedata.category(c) not in _NO_TEXT and c != "@")


def _file_name(text: str, number: int) -> str:
    """A text as a name of a file or folder, which Linux lets be nearly anything."""
    name = ("x" if c in "/\0" or unicodedata.category(c) == "Cs" else c for c in text[:40])
    return f"{''.join(name)}{number}"


class _Page(HTMLParser):
    """Elements, attributes and data of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[str] = Counter()
        self.attributes: Counter[tuple[str, str]] = Counter()
        self.pointing_out: Counter[str] = Counter()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        for name, value in attrs:
            self.attributes[tag, name] += 1
            text = (value or "").strip().lower()
            if name in ("href", "src", "srcset", "action") and not text.startswith(("#", "data:")):
                self.pointing_out[f"{tag} {name}"] += 1

    handle_startendtag = handle_starttag

    def handle_comment(self, data: str) -> None:
        self.elements["a comment"] += 1

    def handle_decl(self, decl: str) -> None:
        self.elements[f"a declaration {decl[:20].lower()}"] += 1

    def handle_pi(self, data: str) -> None:
        self.elements["an instruction"] += 1


def faults(html: str, twin: str) -> dict[str, int]:
    """What a page has that its harmless twin has not, counted; nothing where all is well."""
    page, other = _Page(html), _Page(twin)
    block = html.partition('id="explorer-data">')[2].partition("</script>")[0]
    steering = sum(unicodedata.category(c) in _STEERING for c in html if not c.isprintable())
    steering -= sum(html.count(c) for c in "\n\u200c\u200d")
    found = {
        "new_elements": (page.elements - other.elements).total(),
        "lost_elements": (other.elements - page.elements).total(),
        "new_attributes": (page.attributes - other.attributes).total(),
        "pointing_out": page.pointing_out.total(),
        "steering": steering,
        "unequal_data": int(not _is_strict(block)),
    }
    return {kind: count for kind, count in found.items() if count}


def _is_strict(block: str) -> bool:
    try:
        json.loads(block, parse_constant=_refuse)
    except ValueError:
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(constant)
