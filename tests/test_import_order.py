"""What loads with what; the levels themselves are a contract of `make check` (lint-imports)."""

import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "accelerate", "numpy", "matplotlib")


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    return set(done.stdout.split())


LIGHT = (
    "gradroute",
    "gradroute.beginnings",
    "gradroute.cli",
    "gradroute.config",
    "gradroute.diagnosis",
    "gradroute.environment",
    "gradroute.files",
    "gradroute.folders",
    "gradroute.report",
    "gradroute.results",
    "gradroute.routing.policy",
    "gradroute.statistics",
)


def test_light_modules_load_nothing_heavy() -> None:
    """All of them together load all that each of them does."""
    assert loaded_by(f"import {', '.join(LIGHT)}").isdisjoint(HEAVY)


def test_the_command_line_starts_without_pydantic_and_yaml() -> None:
    assert loaded_by("import gradroute.cli").isdisjoint({"pydantic", "yaml"})


def test_reading_a_configuration_loads_nothing_heavy() -> None:
    statement = (
        "from gradroute.config import load_config, find_config, schema\n"
        "load_config(find_config('caps'), ['evaluate.modes=[full]'])\n"
        "schema()"
    )
    assert loaded_by(statement).isdisjoint(HEAVY)
