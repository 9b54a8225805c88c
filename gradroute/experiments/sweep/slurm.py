"""Cells on a SLURM cluster: a job array, one task per cell, submitted and left to the cluster.

A task whose time is nearly over, or that is preempted, gets a signal, saves its step and ends with
75; then the script puts it into the queue again, and the cell goes on.
"""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gradroute.config.sweep_file import SlurmConfig
from gradroute.errors import MachineError
from gradroute.experiments.sweep.folder import SweepFolder
from gradroute.system.files import append_line, make_folder, read_lines, write_text
from gradroute.system.terminal import first_line

_BEFORE = 90  # seconds before its time is over in which a cell saves its step
_COMMAND = (sys.executable, "-m", "gradroute")
# Behind what is filled in: the names of the cells, the folder, how often a cell is tried.
_BODY = """\
for try in $(seq 0 "$retries"); do
    if [ -e "$folder/.sweep/stop" ]; then exit 75; fi
    srun "${command[@]}" sweep cell "$folder" "$cell" >> "$folder/.sweep/logs/$cell.log" 2>&1
    code=$?
    # 4: the machine refused; above 128: it was killed. Whatever else is no better the next time.
    if [ $code -ne 4 ] && [ $code -le 128 ]; then break; fi
done
# 75: it has saved its step. In the queue again, unless the whole sweep was asked to stop.
if [ $code -eq 75 ] && [ ! -e "$folder/.sweep/stop" ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit $code
"""


def array_script(
    folder: SweepFolder,
    cells: Sequence[str],
    slurm: SlurmConfig,
    *,
    jobs: int | None,
    retries: int,
) -> str:
    """The script of the array, for sbatch.

    Args:
        folder: Of the sweep.
        cells: Names of those to run, a task each.
        slurm: Resources of a task.
        jobs: Tasks at the same time; None for as many as the cluster has room for.
        retries: How often a cell is tried again that was killed or that the machine stopped.
    """
    place = folder.path.resolve()
    asked = {
        "job-name": f"gradroute-{place.name}",
        "array": f"0-{len(cells) - 1}{f'%{jobs}' if jobs else ''}",
        "output": f"{place}/.sweep/logs/slurm-%A_%a.log",
        "open-mode": "append",
        "ntasks": 1,
        "cpus-per-task": slurm.cpus,
        "gpus": slurm.gpus or None,
        "mem": slurm.mem,
        "time": slurm.time,
        "partition": slurm.partition,
        "signal": f"USR1@{_BEFORE}",
    }
    options = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in [*options, "--requeue", *slurm.lines]),
        "",
        f"cells=({' '.join(map(shlex.quote, cells))})",
        "cell=${cells[$SLURM_ARRAY_TASK_ID]}",
        f"folder={shlex.quote(str(place))}",
        f"command=({shlex.join(_COMMAND)})",
        f"retries={retries}",
        *slurm.setup,
        "",
        _BODY,
    ]
    return "\n".join(lines)


def submit(folder: SweepFolder, script: str) -> str:
    """Submit an array; the number of its job.

    Raises:
        MachineError: There is no sbatch, it refuses, or an array of this sweep is in the queue.
    """
    if shutil.which("sbatch") is None:
        raise MachineError(
            "--backend slurm needs sbatch, which is not on PATH: run it on a login node of the "
            "cluster (--dry-run shows the script here)."
        )
    if queued := _queued(folder):
        raise MachineError(
            f"{folder.path}: job {', '.join(queued)} of this sweep is in the queue; wait for it, "
            f"or stop it: gradroute sweep stop {folder.path}."
        )
    path = folder.own / "array.sh"
    write_text(path, script)
    make_folder(folder.own / "logs")
    job = _asked("sbatch", "--parsable", str(path)).partition(";")[0].strip()
    append_line(_jobs(folder), {"job": job, "submitted": time.time()}, durable=True)
    return job


def cancel(folder: SweepFolder) -> list[str]:
    """Take waiting tasks from the queue and have running ones save their step; their jobs.

    Raises:
        MachineError: scancel refuses.
    """
    queued = _queued(folder)
    for job in queued:
        _asked("scancel", "--state=PENDING", job)
        _asked("scancel", "--signal=USR1", job)
    return queued


def _queued(folder: SweepFolder) -> list[str]:
    """The sweep's jobs that wait or run."""
    jobs = [str(line["job"]) for line in read_lines(_jobs(folder))]
    if not jobs or shutil.which("squeue") is None:
        return []
    found = []
    for job in jobs:  # one that has long ended is an error to squeue
        done = subprocess.run(
            ["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, check=False
        )
        if done.returncode == 0 and done.stdout.strip():
            found.append(job)
    return found


def _jobs(folder: SweepFolder) -> Path:
    return folder.own / "slurm.jsonl"


def _asked(*command: str) -> str:
    """What a command of SLURM answers.

    Raises:
        MachineError: It refuses.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise MachineError(f"{command[0]} cannot be run: {first_line(error)}.") from error
    if done.returncode:
        told = done.stderr.strip().split("\n")[0] or "it says nothing"
        raise MachineError(f"{command[0]} ended with {done.returncode}: {told}.")
    return done.stdout
