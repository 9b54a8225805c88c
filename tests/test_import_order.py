"""What loads with what; the levels themselves are a contract of `make check` (lint-imports)."""

import subprocess
import sys

from report.fabricated import REFERENCE, write_run

from torture.forks import serving

HEAVY = ("torch", "transformers", "peft", "accelerate", "numpy", "matplotlib")


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    return set(done.stdout.split())


LIGHT = (
    "gradroute",
    "gradroute.preflight.config_templates",
    "gradroute.cli.main",
    "gradroute.config.run_config",
    "gradroute.preflight.diagnostics",
    "gradroute.system.secrets",
    "gradroute.system.files",
    "gradroute.runs.folder",
    "gradroute.report",
    "gradroute.runs.results",
    "gradroute.routing.policy",
    "gradroute.system.statistics",
)


def test_light_modules_load_nothing_heavy() -> None:
    """All of them together load all that each of them does."""
    assert loaded_by(f"import {', '.join(LIGHT)}").isdisjoint(HEAVY)


def test_the_command_line_starts_without_pydantic_and_yaml() -> None:
    assert loaded_by("import gradroute.cli.main").isdisjoint({"pydantic", "yaml"})


def test_reading_a_configuration_loads_nothing_heavy() -> None:
    statement = (
        "from gradroute.config.run_config import load_config, find_config, schema\n"
        "load_config(find_config('caps'), ['evaluate.modes=[full]'])\n"
        "schema()"
    )
    assert loaded_by(statement).isdisjoint(HEAVY)


def test_only_training_loads_torch(tmp_path) -> None:
    """One process does what needs no torch."""
    for name in ("baseline", "0.1_0.5"):
        write_run(tmp_path / "runs" / name, REFERENCE[name])
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("run_name: a\ntrian: {max_steps: 3}\n", encoding="utf-8")
    asked = [
        (["--help"], 0),
        (["--version"], 0),
        (["eval", "--help"], 0),
        (["schema"], 0),
        (["validate", str(wrong)], 2),
        (["report", "--runs", str(tmp_path / "runs"), "baseline", "0.1_0.5"], 0),
    ]
    statement = f"""
import contextlib, io, sys
from gradroute.cli.main import main
for arguments, expected in {asked!r}:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    assert (code or 0) == expected, (arguments, code)
    heavy = {{"torch", "transformers", "peft", "accelerate"}} & set(sys.modules)
    if arguments[0] != "report":  # which draws
        heavy |= {{"matplotlib"}} & set(sys.modules)
    assert not heavy, (arguments, heavy)
print()
"""
    assert loaded_by(statement).isdisjoint({"torch"})
    assert (tmp_path / "runs" / "report.html").is_file()


def test_training_loads_torch_and_nothing_loads_a_trainer_of_others(tmp_path) -> None:
    """The process that is forked here has everything imported that a run imports, and more."""
    with serving() as server:
        child = server.start("torture.preloaded:print_loaded", {}, tmp_path / "x")
        assert child.wait() == 0, child.said
    loaded = set(child.out.read_text().split())
    assert {"torch", "gradroute.run", "gradroute.cli.train"} <= loaded
    assert loaded.isdisjoint({"trl", "transformers.trainer"})
