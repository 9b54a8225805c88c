"""The libraries are imported fast, and none that no run asks for."""

import gc
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from gradroute.config.libraries import Libraries
from gradroute.config.run_config import RunConfig, load_config
from gradroute.runs.folder import RunFolder

FEW_BITS = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
NAMED = ("model={folder}",)
GGUF = (*NAMED, "gguf_file=base.gguf")


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch):
    """Whether bitsandbytes counts as not installed; in other tests it is as it was."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", sys)
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    return lambda: find_spec("bitsandbytes") is None and "bitsandbytes" in sys.modules


@pytest.mark.parametrize(
    ("settings", "config", "left_out"),
    [
        ((), {}, True),
        (NAMED, {}, True),
        (NAMED, FEW_BITS, False),
        (GGUF, FEW_BITS, True),
        (("model=someone/some-model",), {}, False),
        (("quantize=4bit",), {}, False),
    ],
    ids=["embedded", "plain folder", "packed folder", "gguf", "hub", "quantize"],
)
def test_bitsandbytes_is_left_out_where_no_base_can_hold_few_bits(
    tmp_path: Path, hidden, settings: tuple[str, ...], config: dict, left_out: bool
):
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    asked = load_config(None, [one.format(folder=tmp_path) for one in settings])
    with Libraries.of(asked):
        assert hidden() is left_out


def test_a_run_is_asked_for_its_base_and_an_unreadable_one_may_need_anything(
    tmp_path: Path, hidden
):
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    (places[0] / "config.yaml").write_text("model: embedded\nquantize: none\n", encoding="utf-8")
    (places[1] / "config.yaml").write_text("model: [\n", encoding="utf-8")
    folders = [RunFolder(place) for place in places]
    with Libraries.of_runs(folders):
        assert not hidden()
    with Libraries.of_runs(folders[:1]):
        assert hidden()


def test_the_garbage_collector_waits_and_runs_again_after_an_import_that_fails(hidden):
    with pytest.raises(ModuleNotFoundError), Libraries.of(RunConfig()):
        assert not gc.isenabled()
        import no_such_module  # pyright: ignore[reportMissingImports]  # noqa: F401
    assert gc.isenabled()


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_command_on_the_embedded_model_imports_peft_without_bitsandbytes():
    code = (
        "import sys; from gradroute.cli.main import main; "
        "code = main(['data', 'inspect', 'caps', 'data.train_examples=200']); "
        "print(code, 'peft' in sys.modules, sys.modules.get('bitsandbytes'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0 True None"
    assert "kernels" not in done.stderr
