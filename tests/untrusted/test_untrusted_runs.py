"""An untrusted run folder: no command on it runs anything that it names except a user's own."""

import os
import pickle  # noqa: TID251 - written here, to see that nobody reads it
import shutil
import warnings
from pathlib import Path

import pytest
from tiny_runs import TWO, tiny_run

from gradroute.cli.main import main
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.runs.folder import RunFolder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_run(tmp_path_factory.mktemp("made"), "x", *TWO)
    evaluate_run(folder)
    return folder.path


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The run in `runs/x` of the current folder, beside a program that says that it ran."""
    (tmp_path / "evil.py").write_text(
        "open('imported', 'w').close()\ndef score(text):\n    return 0.0\n"
    )
    monkeypatch.chdir(tmp_path)
    return RunFolder(Path(shutil.copytree(made, tmp_path / "runs" / "x")))


def name_behavior(folder: RunFolder, name: str) -> None:
    text = folder.config.read_text()
    folder.config.write_text(text.replace("behavior: caps", f"behavior: {name}"))
    assert name in folder.config.read_text()


@pytest.mark.parametrize("line", [("report", "x"), ("plot", "x"), ("report", "x", "--out", "page")])
def test_reading_a_run_imports_nothing_that_it_names(
    folder: RunFolder, line: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(os.getcwd())
    name_behavior(folder, "python:evil.score")
    assert main(line) == 0
    assert not Path("imported").exists()


@pytest.mark.parametrize("verb", ["eval", "sample", "recover", "relearn"])
@pytest.mark.parametrize(
    "name", ["os.system", "subprocess.getoutput", "builtins.exec", "pickle.loads"]
)
def test_measuring_a_run_calls_nothing_of_python_that_it_names(
    folder: RunFolder, verb: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name_behavior(folder, f"python:{name}")
    assert main((verb, "x")) == 2
    assert f"python:{name}" in capsys.readouterr().err


def test_a_module_of_ones_own_on_the_path_is_imported_and_one_elsewhere_is_not(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name_behavior(folder, "python:evil.score")
    assert main(("eval", "x", "--mode", "good=1,bad=0.3")) == 2
    assert "evil" in capsys.readouterr().err and not Path("imported").exists()
    monkeypatch.syspath_prepend(os.getcwd())
    main(("eval", "x", "--mode", "good=1,bad=0.3"))
    assert Path("imported").exists()


class _Touch:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_pickle_in_a_checkpoint_is_not_read(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint,) = folder.checkpoints.iterdir()
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth"):
        (checkpoint / name).write_bytes(pickle.dumps(_Touch()))
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # the command line shows it, and does not raise it
        assert main(("sample", "x", "--prompt", "a")) == 4
    assert "optimizer.pt does not belong to it" in capsys.readouterr().err
    assert not Path("unpickled").exists()


def test_nothing_is_written_through_a_link_of_the_folder(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.move(folder.results.parent, tmp_path / "elsewhere" / "eval")
    (folder.path / "eval").symlink_to(tmp_path / "elsewhere" / "eval")
    before = {p: p.read_bytes() for p in (tmp_path / "elsewhere").rglob("*") if p.is_file()}
    assert main(("eval", "x", "--mode", "good=1,bad=0.7")) == 2
    assert {p: p.read_bytes() for p in (tmp_path / "elsewhere").rglob("*") if p.is_file()} == before


def test_its_base_model_is_checked_like_any_other(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"attn_implementation": "org/kernel"}')
    text = folder.config.read_text()
    folder.config.write_text(text.replace("model: embedded", "model: ./base"))
    assert main(("sample", "x", "--prompt", "a")) == 2
    assert "attn_implementation selects code" in capsys.readouterr().err
