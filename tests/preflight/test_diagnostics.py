"""`gradroute doctor`: what a bug report needs, and nothing that should stay private."""

import json
from importlib import metadata
from pathlib import Path

import pytest

from gradroute.cli.main import main
from gradroute.preflight import diagnostics
from gradroute.preflight.diagnostics import diagnose, find_problems, text_of

TOKEN = "hf_" + "q" * 30


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return diagnose(tmp_path_factory.mktemp("doctor") / "runs")


def test_it_names_versions_device_and_extras(facts):
    assert facts["versions"]["torch"] == metadata.version("torch")
    assert facts["device"] and facts["dtype"] and facts["self_test"] == "passed"
    assert set(facts["extras"]) == {
        "data",
        "eval",
        "gguf",
        "inspect",
        "label",
        "playground",
        "quant",
        "ray",
        "tensorboard",
        "trl",
        "wandb",
    }
    assert facts["runs"]["writable"] and facts["locale"]["encoding"]
    assert find_problems(facts) == []


def test_every_fact_has_a_line(facts):
    text = text_of(facts)
    for word in ("torch ", "[data]", "hub token", "self-test", "locale", "runs", "commit"):
        assert f"\n{word}" in text, word
    assert len(text.splitlines()) == len(facts["versions"]) + len(facts["extras"]) + 10


def test_secrets_and_the_home_folder_are_not_in_it(tmp_path: Path, monkeypatch, capsys):
    home = tmp_path / "home" / "somebody"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "cache"))
    for flags in ([], ["--json"]):
        assert main(["doctor", "--runs", str(home / "runs"), *flags]) == 0
        out = capsys.readouterr().out
        assert TOKEN not in out and str(home) not in out
        assert "~/cache" in out and "~/runs" in out
    assert json.loads(out)["hub"]["token_found"] is True
    assert list(home.iterdir()) == []


def test_what_is_missing_is_named_with_the_line_that_installs_it(monkeypatch):
    def version(name: str) -> str:
        if name in ("wandb", "gguf"):
            raise metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "peft" else metadata.version(name)

    monkeypatch.setattr(diagnostics, "_version", lambda name: _or_none(version, name))
    facts = diagnose(Path("runs"))
    assert facts["extras"]["wandb"]["missing"] == ["wandb"]
    assert "missing gguf: pip install 'gradroute[gguf]'" in text_of(facts)
    assert set(facts["too_old"]) == {"peft"}
    (trouble,) = find_problems(facts)
    assert trouble.startswith("peft 0.0.1; peft 0.21 or later is needed: pip install")


def _or_none(version, name: str) -> str | None:
    try:
        return version(name)
    except metadata.PackageNotFoundError:
        return None


def test_a_model_that_computes_nonsense_fails_the_self_test(monkeypatch, capsys, tmp_path):
    def broken(name: str) -> None:
        raise OSError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr("gradroute.models.base.load_base", broken)
    assert main(["doctor", "--runs", str(tmp_path)]) == 4
    out, err = capsys.readouterr()
    assert "libtorch_cpu.so" in out and "self-test failed" in err and "Traceback" not in err


def test_a_library_whose_kernels_pass_adapters_by_is_named_with_the_cure(facts, monkeypatch):
    assert facts["patching"] == {}
    monkeypatch.setattr(diagnostics, "_version", {"axolotl": "0.19"}.get)
    found = diagnostics._patching()
    assert list(found) == ["axolotl"] and "lora_mlp_kernel" in found["axolotl"]
    assert "\naxolotl       there; " in text_of({**facts, "patching": found})
