"""The tutorials run from the first line to the last, in small."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gradroute.cli.main import main
from gradroute.runs.folder import RunFolder

FOLDER = Path(__file__).parent.parent / "docs" / "tutorials"

IN_SMALL = (
    "train.max_steps=2",
    "train.batch_size=4",
    "adapters.good.rank=2",
    "adapters.bad.rank=2",
    "evaluate.prompts=3",
    "evaluate.max_new_tokens=5",
    "evaluate.held_out=6",
)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and content of every fenced block, in order."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.M)


def run_python(code: str, page: Path, names: dict[str, object]) -> None:
    exec(compile(code, page.name, "exec"), names)


# Plain PEFT asks a model by a name that newer releases of transformers call deprecated.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_file_of_ones_own_becomes_a_shipped_adapter(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = FOLDER / "your-own-jsonl.md"
    done = []
    for language, code in blocks(page):
        if language == "python":
            run_python(
                code.replace("rows(3000, 7)", "rows(300, 7)"), page, {"__name__": "__main__"}
            )
        for line in code.splitlines() if language == "sh" else ():
            words = shlex.split(line)
            assert words[0] == "gradroute"
            small = IN_SMALL if words[1] == "train" else ()
            assert main([*words[1:], *small]) == 0, (line, capsys.readouterr().err)
            done.append(words[1])
    flow = "data init data validate train eval sample report export purge"
    assert done == flow.split()
    assert RunFolder(tmp_path / "runs" / "mine-filter").results.is_file()
    assert (tmp_path / "comparison" / "report.html").is_file()
    assert (tmp_path / "shipped" / "proof.json").is_file()


def test_a_loop_of_ones_own_trains_and_leaves_alone_what_nobody_updates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = FOLDER / "your-own-loop.md"
    names: dict[str, object] = {"__name__": "__main__"}
    for language, code in blocks(page):
        assert language == "python"
        run_python(code, page, names)
    losses = names["losses"]
    assert isinstance(losses, list) and losses[-1] < losses[0]
    assert names["untouched"] is True
    with_bad, without_bad = names["with_bad"], names["without_bad"]
    assert isinstance(with_bad, torch.Tensor) and isinstance(without_bad, torch.Tensor)
    assert with_bad.isfinite().all() and not torch.equal(with_bad, without_bad)
    saved = {path.name for path in (tmp_path / "adapters" / "good").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert [path.name for path in (tmp_path / "adapters").iterdir() if path.is_dir()] == ["good"]


# TRL 1.16 and plain PEFT ask transformers for names that it calls deprecated.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("trainer", ["sft", "dpo", "grpo"])
def test_a_script_with_a_trainer_of_trl_trains_20_steps_and_measures_with_and_without_bad(
    trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for language, code in blocks(FOLDER / f"trl-{trainer}.md"):
        if language == "python":
            run_python(code, FOLDER / f"trl-{trainer}.md", names)
        for line in code.splitlines() if language == "sh" else ():
            assert main(shlex.split(line)[1:]) == 0, line
    metrics = names["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["eval_loss_full"] != metrics["eval_loss_bad_ablated"]
    assert list(tmp_path.glob(f"**/{trainer}/checkpoint-20/gradroute"))
    assert (tmp_path / "shipped").is_dir() == (trainer == "sft")
