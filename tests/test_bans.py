"""What runs code from data, or writes files that do, is not in the package: the linter's rules, and
what it cannot see."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    path for part in ("gradroute", "tools", "examples") for path in (ROOT / part).rglob("*.py")
)
TEMPLATES = sorted((ROOT / "gradroute" / "report" / "render" / "templates").iterdir())

BANNED = {
    "import pickle": "TID251",
    "from pickle import loads": "TID251",
    "import _pickle": "TID251",
    "import dill": "TID251",
    "import cloudpickle": "TID251",
    "import joblib": "TID251",
    "import shelve": "TID251",
    "import marshal": "TID251",
    "import torch\ntorch.load('x')": "TID251",
    "import torch as t\nt.load('x', weights_only=True)": "TID251",
    "from torch import load as read\nread('x')": "TID251",
    "import torch\ntorch.save({}, 'x')": "TID251",
    "from torch.serialization import load": "TID251",
    "import torch\ntorch.jit.load('x')": "TID251",
    "import torch\ntorch.hub.load('a/b', 'c')": "TID251",
    "import torch.distributed.checkpoint as dcp": "TID251",
    "import numpy as np\nnp.load('x', allow_pickle=True)": "TID251",
    "import numpy\nnumpy.save('x', [])": "TID251",
    "import numpy\nnumpy.savez('x', a=[])": "TID251",
    "import yaml\nyaml.load('x', Loader=yaml.Loader)": "TID251",
    "import yaml\nyaml.unsafe_load('x')": "TID251",
    "import yaml\nyaml.full_load('x')": "TID251",
    "import shutil\nshutil.unpack_archive('x')": "TID251",
    "import os\nos.system('x')": "TID251",
    "import os\nos.popen('x')": "TID251",
    "import subprocess\nsubprocess.getoutput('x')": "TID251",
    "import builtins\nbuiltins.eval('x')": "TID251",
    "import tempfile\ntempfile.mktemp()": "TID251",
    "exec('x')": "S102",
    "eval('x')": "S307",
    "import os\nos.chmod('x', 0o777)": "S103",
    "import socket\nsocket.socket().bind(('0.0.0.0', 80))": "S104",
    "import tarfile\ntarfile.open('x').extractall()": "S202",
    "import marshal\nmarshal.loads(b'')": "S302",
    "import pickle\npickle.loads(b'')": "S301",
    "import requests\nrequests.get('x', verify=False, timeout=1)": "S501",
    "import yaml\nyaml.load('x', yaml.Loader)": "S506",
    "import subprocess\nsubprocess.run('x', shell=True)": "S602",
    "from jinja2 import Environment\nEnvironment()": "S701",
    "from markupsafe import Markup\ndef page(text):\n    return Markup(text)": "S704",
}


def test_every_ban_fires(tmp_path: Path) -> None:
    """Each snippet in a file of its own, under the rules of this project."""
    for number, snippet in enumerate(BANNED):
        (tmp_path / f"snippet_{number}.py").write_text(f"{snippet}\n")
    told = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=json",
         f"--config={ROOT / 'pyproject.toml'}", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    fired: dict[str, set[str]] = {}
    for found in json.loads(told.stdout):
        fired.setdefault(Path(found["filename"]).name, set()).add(found["code"])
    missed = [
        snippet
        for number, (snippet, code) in enumerate(BANNED.items())
        if code not in fired.get(f"snippet_{number}.py", set())
    ]
    assert missed == []


# A keyword with any other value than this one turns a safeguard off.
SAFE = {
    "allow_pickle": False,
    "trust_remote_code": False,
    "shell": False,
    "weights_only": True,
    "use_safetensors": True,
    "autoescape": True,
}
# A method or function that reads or writes objects with code in them, whatever it is called on.
UNSAFE = ("load", "save", "extractall", "unsafe_load", "unpack_archive", "from_file", "loadtxt")
ALLOWED = {
    ("gradroute/report/render/figure_style.py", "save"),  # a picture
    ("gradroute/harness/tasks.py", "load"),  # lm-eval's tasks, by name
}
CALLS = ("eval", "exec", "compile", "__import__")
IMPORTS = {"gradroute/__init__.py", "gradroute/data/detectors.py"}
"""Modules that import by name: the package's own names, and a user's own functions."""


def faults(tree: ast.AST, where: str) -> Iterator[str]:
    """What is wrong in a module, with its line."""
    for node in ast.walk(tree):
        told = ""
        match node:
            case ast.keyword(arg=str(name), value=value) if name in SAFE:
                safe = isinstance(value, ast.Constant) and value.value is SAFE[name]
                told = "" if safe else f"{name} must be {SAFE[name]}"
            case ast.Attribute(attr=name) if name in UNSAFE and (where, name) not in ALLOWED:
                told = f".{name}"
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                told = f"{name}()"
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=name), *_]) if (
                name in (*UNSAFE, *CALLS, "system")
            ):
                told = f"getattr(..., {name!r})"
            case ast.Attribute(attr="import_module") | ast.alias(name="import_module") if (
                where not in IMPORTS
            ):
                told = "import_module"
        if told:
            yield f"{where}:{getattr(node, 'lineno', 0)}: {told}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_turns_a_safeguard_off_or_reads_objects_with_code(path: Path) -> None:
    where = path.relative_to(ROOT).as_posix()
    assert list(faults(ast.parse(path.read_text()), where)) == []


@pytest.mark.parametrize(
    "program",
    [
        "np.load(p, allow_pickle=True)",
        "sys.modules['torch'].load(p)",
        "getattr(torch, 'load')(p)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "AutoModel.from_pretrained(p, trust_remote_code=options.trust)",
        "AutoModel.from_pretrained(p, use_safetensors=None)",
        "read(p, weights_only=False)",
        "subprocess.run(line, shell=True)",
        "archive.extractall()",
        "compile(text, 'x', 'exec')",
        "__import__(name)",
        "importlib.import_module(name)",
        "from importlib import import_module",
        "Environment(autoescape=False)",
    ],
)
def test_what_the_linter_cannot_see_is_seen(program: str) -> None:
    assert list(faults(ast.parse(program), "gradroute/x.py"))


def test_templates_escape_everything_and_ask_for_nothing() -> None:
    """No text of data is markup, and nothing on the page comes from elsewhere."""
    assert {path.suffix for path in TEMPLATES} == {".css", ".html", ".js"}
    for path in TEMPLATES:
        text = path.read_text().replace('{% include "head.html" +%}', "", 1)  # one of these
        assert not re.search(r"\|\s*safe\b|autoescape|{%-?\s*(include|import|extends)", text)
        assert not re.search(r"(inner|outer)HTML|insertAdjacent|document\.write|\beval\b", text)
        assert not re.search(
            r"\bnew Function\b|setTimeout\(\s*['\"]|fetch\(|XMLHttp|import\(", text
        )
        outside = re.findall(r"https?://[^\s\"'<>)]+|@import|url\(", text)
        assert [one for one in outside if "www.w3.org" not in one] == []
