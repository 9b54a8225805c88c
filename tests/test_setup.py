"""What installs gradroute agrees with itself: pins, targets, package data."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def test_torch_is_pinned_to_one_release_in_both_places() -> None:
    pins = [line for line in CONSTRAINTS if re.match(r"torch\b", line)]
    assert pins == PROJECT["tool"]["uv"]["constraint-dependencies"]
    assert re.fullmatch(r"torch==[0-9]+\.[0-9]+\.[0-9]+", pins[0])


def test_constraints_are_pins_without_addresses_or_hashes() -> None:
    for line in CONSTRAINTS:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; .+)?", line), line


def test_each_dependency_has_a_lower_bound_and_no_other() -> None:
    for requirement in PROJECT["project"]["dependencies"]:
        assert re.fullmatch(r"[a-z0-9-]+>=[0-9.]+", requirement), requirement


def test_each_dependency_is_constrained() -> None:
    pinned = {line.partition("==")[0] for line in CONSTRAINTS}
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = PROJECT["project"]["dependencies"] + [one for extra in extras for one in extra]
    names = {re.split(r"[>=\[]", requirement)[0] for requirement in wanted}
    assert names - {"gradroute"} <= pinned  # `dev` takes in the other extras by its own name


# Packages that gradroute needs and does not import itself -> the package that imports them.
IMPORTED_BY_OTHERS = {
    "bitsandbytes": "transformers",
    "tensorboard": "accelerate",
    "tokenizers": "transformers",
}
# Parts of a package that is named: they have no requirement of their own.
PART_OF = {"markupsafe": "jinja2", "pydantic-core": "pydantic"}


def imported() -> set[str]:
    """The distributions that the modules of the package import."""
    modules: set[str] = set()
    for path in Path(str(files("gradroute"))).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module)
    tops = {module.partition(".")[0] for module in modules}
    names = metadata.packages_distributions()
    return {
        re.sub(r"[-_.]+", "-", names.get(top, [top])[0]).lower()
        for top in tops - sys.stdlib_module_names - {"gradroute", "__future__"}
    }


def test_the_package_imports_what_it_requires_and_requires_what_it_imports() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    wanted = {
        re.split(r"[>=\[]", requirement)[0]
        for requirement in [
            *project["dependencies"],
            *(one for name, extra in extras.items() if name != "dev" for one in extra),
        ]
    }
    found = imported()
    assert set(IMPORTED_BY_OTHERS.values()) <= found
    assert wanted - IMPORTED_BY_OTHERS.keys() == {PART_OF.get(name, name) for name in found}


def test_make_lists_every_target() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("setup", "demo", "test", "check", "lock", "base", "clean"):
        assert re.search(rf"^make {target} +\w", done.stdout, re.MULTILINE), target


def test_what_make_starts_keeps_bytecode_whatever_the_environment_says(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.write_text("include Makefile\nprobe:\n\t@env\n", encoding="utf-8")
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = ["make", "--no-print-directory", "-f", str(probe), "probe"]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "PATH=" in said.stdout and "PYTHONDONTWRITEBYTECODE" not in said.stdout


def test_a_wheel_holds_every_file_of_the_package_that_is_no_cache(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    package = files("gradroute")
    files_here = {
        str(path.relative_to(ROOT))
        for path in Path(str(package)).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files_here <= held
    assert {"gradroute/py.typed", "gradroute/recipes/caps.yaml"} <= held
