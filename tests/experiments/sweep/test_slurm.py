"""The script of a job array: what sbatch reads, and what a task of it does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_sweeps import started

from gradroute.config.sweep_file import SlurmConfig
from gradroute.errors import MachineError
from gradroute.experiments.sweep import slurm
from gradroute.experiments.sweep.slurm import array_script, cancel, submit
from gradroute.experiments.sweep.state import finished

GRID = "axes: {data.labeled_fraction: [0.1, 0.5]}\nevaluate: false\n"
CELLS = ["labeled_fraction_0.1", "labeled_fraction_0.5"]


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that stand in for SLURM's and write down how they are called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "sbatch", f'echo "sbatch $*" >> {tmp_path}/called; echo "77;cluster"')
    program(folder, "squeue", f"cat {tmp_path}/queue 2> /dev/null")
    program(folder, "scancel", f'echo "scancel $*" >> {tmp_path}/called')
    program(folder, "scontrol", f'echo "scontrol $*" >> {tmp_path}/called')
    program(folder, "srun", 'exec "$@"')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def called(place: Path) -> list[str]:
    path = place / "called"
    return path.read_text().splitlines() if path.exists() else []


def task(place: Path, script: str, number: int = 0) -> int:
    """Run one task of an array with bash, as a node would."""
    path = place / "array.sh"
    path.write_text(script, encoding="utf-8")
    more = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_JOB_ID": "77"}
    return subprocess.run(["bash", str(path)], env=os.environ | more, check=False).returncode


def test_the_script_asks_for_what_the_file_and_the_command_line_say(tmp_path: Path) -> None:
    folder, _, _ = started(tmp_path, GRID)
    plain = array_script(folder, CELLS, SlurmConfig(), jobs=None, retries=0)
    asked = [line for line in plain.splitlines() if line.startswith("#SBATCH")]
    assert asked == [
        "#SBATCH --job-name=gradroute-tiny",
        "#SBATCH --array=0-1",
        f"#SBATCH --output={folder.path}/.sweep/logs/slurm-%A_%a.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --ntasks=1",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --signal=USR1@90",
        "#SBATCH --requeue",
    ]
    given = SlurmConfig(
        partition="gpu", time="4:00:00", gpus=1, cpus=4, mem="16G",
        lines=["--account=lab", "--exclude=n[1-3]"], setup=["module load cuda"],
    )  # fmt: skip
    whole = array_script(folder, CELLS, given, jobs=4, retries=2)
    for line in (
        "#SBATCH --array=0-1%4", "#SBATCH --gpus=1", "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=16G", "#SBATCH --time=4:00:00", "#SBATCH --partition=gpu",
        "#SBATCH --account=lab", "#SBATCH --exclude=n[1-3]", "module load cuda",
        "retries=2",
    ):  # fmt: skip
        assert line in whole.splitlines(), line
    # sbatch reads no further than the first command.
    lines = whole.splitlines()
    first = next(at for at, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_a_task_runs_its_cell_and_no_other(cluster: Path) -> None:
    folder, record, _ = started(cluster, GRID)
    script = array_script(folder, CELLS, SlurmConfig(), jobs=None, retries=0)
    (folder.own / "logs").mkdir()
    assert task(cluster, script, number=1) == 0
    assert [finished(folder, cell, evaluate=False) for cell in record.cells] == [False, True]
    assert "step 2/2" in folder.log(CELLS[1]).read_text()
    assert called(cluster) == []


@pytest.fixture
def scripted(cluster: Path, monkeypatch: pytest.MonkeyPatch):
    """A task whose cell ends with codes that are given, one after another."""

    def run(codes: list[int], retries: int = 0, stop_at: int = 0) -> tuple[int, int]:
        folder, _, _ = started(cluster, GRID)
        (folder.own / "logs").mkdir(exist_ok=True)
        (cluster / "codes").write_text("\n".join(map(str, codes)) + "\n")
        (cluster / "tried").write_text("")
        stop = f'[ $(wc -l < {cluster}/tried) -eq {stop_at} ] && touch "{folder.stop}"'
        program(
            cluster / "bin",
            "cell",
            f"echo x >> {cluster}/tried\n{stop}\n"
            f"exit $(sed -n $(wc -l < {cluster}/tried)p {cluster}/codes)",
        )
        monkeypatch.setattr(slurm, "_COMMAND", ("cell",))
        script = array_script(folder, CELLS, SlurmConfig(), jobs=None, retries=retries)
        code = task(cluster, script)
        return code, len((cluster / "tried").read_text().splitlines())

    return run


def test_a_cell_that_saved_its_step_is_put_into_the_queue_again(cluster, scripted) -> None:
    assert scripted([75]) == (75, 1)
    assert called(cluster) == ["scontrol requeue 77_0"]


def test_a_cell_that_was_stopped_with_its_sweep_is_not(cluster, scripted) -> None:
    assert scripted([75], stop_at=1) == (75, 1)
    assert called(cluster) == []


@pytest.mark.parametrize(
    ("codes", "retries", "ends"),
    [
        ([4, 0], 1, (0, 2)),  # the machine refused once
        ([137, 4, 137], 2, (137, 3)),  # killed for memory, again and again
        ([2, 0], 3, (2, 1)),  # a configuration is no better the next time
        ([4, 75], 1, (75, 2)),
    ],
)
def test_only_what_may_pass_is_tried_again(scripted, codes, retries, ends) -> None:
    assert scripted(codes, retries=retries) == ends


def test_an_array_is_submitted_once_and_can_be_canceled(cluster: Path) -> None:
    folder, _, _ = started(cluster, GRID)
    assert submit(folder, "#!/bin/bash\n") == "77"
    assert called(cluster) == [f"sbatch --parsable {folder.own}/array.sh"]
    assert cancel(folder) == []  # it has ended
    (cluster / "queue").write_text("77 waits\n")
    with pytest.raises(MachineError, match="job 77 of this sweep is in the queue"):
        submit(folder, "#!/bin/bash\n")
    assert cancel(folder) == ["77"]
    assert called(cluster)[1:] == ["scancel --state=PENDING 77", "scancel --signal=USR1 77"]


def test_without_sbatch_one_line_says_what_is_missing(tmp_path: Path, monkeypatch) -> None:
    folder, _, _ = started(tmp_path, GRID)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"needs sbatch, which is not on PATH"):
        submit(folder, "#!/bin/bash\n")


def test_a_refusal_of_sbatch_is_quoted(cluster: Path) -> None:
    folder, _, _ = started(cluster, GRID)
    program(cluster / "bin", "sbatch", "echo 'invalid partition' >&2; exit 1")
    with pytest.raises(MachineError, match=r"^sbatch ended with 1: invalid partition\.$"):
        submit(folder, "#!/bin/bash\n")


def test_bash_takes_the_script_whatever_the_folder_is_called(tmp_path: Path) -> None:
    place = tmp_path / "it's $HOME here"
    place.mkdir()
    folder, _, _ = started(place, GRID)
    script = array_script(folder, CELLS, SlurmConfig(), jobs=None, retries=0)
    bash = shutil.which("bash")
    assert bash is not None
    cut = script.partition("for try")[0] + 'printf %s "$folder:$cell"\n'
    env = {"SLURM_ARRAY_TASK_ID": "1"}
    told = subprocess.run([bash, "-c", cut], env=env, capture_output=True, text=True, check=True)
    assert told.stdout == f"{folder.path}:{CELLS[1]}"
    assert sys.executable in script
