"""A sweep before it is started: cells, what is there, what they take; nothing is written."""

from pathlib import Path

import pytest
from tiny_sweeps import sweep_file

from gradroute.cli.main import main
from gradroute.errors import DataError
from gradroute.preflight import sweep_plan
from gradroute.preflight.sweep_plan import plan_text
from gradroute.preflight.validation import Validation

ROOT = Path(__file__).parent.parent.parent
COST = {
    "runs": 1,
    "hours": 0.5,
    "disk": 2_000_000,
    "states": 0,
    "shared": 2**20,
    "memory": 3_000_000,
}


def plan(file: Path, **given) -> str:
    options = {"backend": "local", "jobs": None, "retries": 0, "resources": {}}
    return plan_text(file, file.parent / "runs", **{**options, **given})


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that were looked at, in place of looking."""
    names: list[str] = []

    def validate(config, root):
        names.append(config.run_name)
        cost = {**COST, "hours": 0.1 * sum(a.rank for a in config.adapters.values())}
        return Validation({"estimate": cost}, ())

    monkeypatch.setattr(sweep_plan, "validate", validate)
    return names


def test_cells_that_take_the_same_are_looked_at_once(tmp_path: Path, looked: list[str]) -> None:
    file = sweep_file(
        tmp_path,
        "axes:\n  data.labeled_fraction: [0.1, 0.5]\n"
        "  width: {thin: {adapters.bad.alpha: 3}, wide: {adapters.good.dropout: 0.5}}\n"
        "seeds: [0, 1]\n",
    )
    lines = plan(file, jobs=2).splitlines()
    assert looked == ["labeled_fraction_0.1-thin-s0", "labeled_fraction_0.1-wide-s0"]
    assert lines[1].split() == [
        "labeled_fraction_0.1-thin-s0", "absent", "2", "1", "0:24:00", "2.0", "MB",
    ]  # fmt: skip
    assert lines[9].startswith("8 cells, 8 to run: about 3:12:00 of training")
    assert "1:36:00 with --jobs 2" in lines[9]
    assert lines[10].startswith("disk: at most 16.0 MB")
    assert lines[11].startswith("besides, about 8.4 MB of hidden states that the cells share")
    assert lines[12] == "memory: at most 3.0 MB for each cell that runs."
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "backend", "told"),
    [
        ("seeds: [0, 1]\n", "local", "besides, about 2.1 MB of hidden states"),
        ("set: {train.reuse_gib: 0.001}\nseeds: [0, 1]\n", "local", "besides, about 1.1 MB of"),
        ("seeds: [0]\n", "local", ""),
        ("seeds: [0, 1]\n", "slurm", ""),
    ],
)
def test_hidden_states_are_told_of_where_several_runs_share_them(
    tmp_path: Path, looked: list[str], more: str, backend: str, told: str
) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text(f"recipe: caps\n{more}", encoding="utf-8")
    text = plan(path, backend=backend)
    assert told in text if told else "hidden states" not in text


def test_with_slurm_the_script_is_shown(tmp_path: Path, looked: list[str]) -> None:
    file = sweep_file(tmp_path, "seeds: [0, 1]\n")
    text = plan(file, backend="slurm", resources={"gpus": "1"})
    assert "#SBATCH --array=0-1\n" in text and "#SBATCH --gpus=1\n" in text and looked


def test_what_would_stop_a_cell_is_said_of_all_at_once(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, "axes: {data.path: [nowhere.jsonl, neither.jsonl]}\n")
    with pytest.raises(DataError, match=r"^2 problems:\n  path_nowhere.jsonl: .*\n  path_neither"):
        plan(file)


def test_an_estimate_is_that_of_the_cell(tmp_path: Path) -> None:
    text = plan(sweep_file(tmp_path, "controls: [filter]\n")).splitlines()
    assert text[1].split()[:4] == ["caps", "absent", "4", "2"]
    assert text[2].startswith("1 cell, 1 to run")


@pytest.mark.parametrize(("block", "more"), [(0, []), (1, ["--backend", "slurm", "--gpus", "2"])])
def test_the_files_of_the_page_on_sweeps_can_be_planned(tmp_path, monkeypatch, capsys, block, more):
    page = (ROOT / "docs" / "howto" / "sweeps.md").read_text(encoding="utf-8")
    (tmp_path / "labels.yaml").write_text(page.split("```yaml\n")[block + 1].partition("```")[0])
    monkeypatch.chdir(tmp_path)
    looked_at = []

    def instead(config, *_):  # what `validate` finds in a recipe is held by its own tests
        looked_at.append(config)
        return Validation(
            {"estimate": {"runs": 1, "hours": 0.1, "disk": 1, "shared": 0, "memory": 1}}, ()
        )

    monkeypatch.setattr(sweep_plan, "validate", instead)
    assert main(["sweep", "labels.yaml", "--dry-run", *more]) == 0
    assert looked_at
    told = capsys.readouterr().out
    assert f"\n{9 if more else 18} cells, {9 if more else 18} to run: about " in told
    assert "labeled_fraction_0.1-small-s0 " in told or "labeled_fraction_0.1-s0 " in told
    assert not more or ("#SBATCH --gpus=2\n" in told and "#SBATCH --account=lab\n" in told)
    assert not (tmp_path / "runs").exists()
