"""Training, measuring and reporting ask nobody for anything: they work without a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = (
    *("run_name=x", "train.max_steps=2", "train.warmup_steps=0", "train.batch_size=4"),
    *("data.train_examples=40", "data.max_length=32", "data.behavior_fraction=0.5"),
    *("evaluate.prompts=2", "evaluate.max_new_tokens=4", "evaluate.held_out=4"),
)
WORK = (
    ("train", "caps", *TINY),
    ("eval", "x"),
    ("sample", "x", "--prompt", "THE FOX"),
    ("report", "x"),
    ("plot", "x"),
)
HUB = ("train", "caps", "model=org/absent", "data.train_examples=40")


def program(*lines: tuple[str, ...]) -> str:
    """One that runs command lines until one does not end well."""
    return (
        "import sys\nfrom gradroute.cli import main\n"
        f"for line in {lines!r}:\n    if code := main(line):\n        sys.exit(code)\n"
    )


# Imported by Python before anything else: whoever asks for a place in the network is noted.
BAN = """
import socket

def refuse(*given, **more):
    with open("asked", "a") as file:
        file.write(f"{given[1:]}\\n")
    raise OSError(101, "Network is unreachable")

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse
"""


def run(folder: Path, code: str, *before: str) -> subprocess.CompletedProcess[str]:
    """Run a program with gradroute in a folder; nothing in the environment says offline."""
    (folder / "sitecustomize.py").write_text(BAN if not before else "")
    online = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    return subprocess.run(
        [*before, sys.executable, "-c", code],
        cwd=folder,
        env=online | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "HF_HOME": "hf"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def isolating() -> bool:
    """Whether this machine lets a user have a network of his own, without a way out."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0


@pytest.mark.slow
def test_no_verb_asks_for_a_place_in_the_network(tmp_path: Path) -> None:
    told = run(tmp_path, program(*WORK))
    assert told.returncode == 0, told.stderr
    assert not (tmp_path / "asked").exists()
    assert (tmp_path / "runs" / "report.html").is_file()


def test_a_program_that_asks_is_noted(tmp_path: Path) -> None:
    told = run(tmp_path, "import urllib.request as u\nu.urlopen('http://127.0.0.1:9/')")
    assert told.returncode == 1 and "unreachable" in told.stderr
    assert (tmp_path / "asked").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not isolating(), reason="this machine gives no network namespaces to users")
def test_where_there_is_no_network_verbs_work_and_a_hub_model_is_missed_in_one_line(
    tmp_path: Path,
) -> None:
    told = run(tmp_path, program(*WORK[:2], HUB), "unshare", "-rn")
    assert told.returncode == 4, told.stderr
    assert (tmp_path / "runs" / "eval_multi_results.json").is_file()
    assert told.stderr.count("error: ") == 1 and "Traceback" not in told.stderr
    assert "org/absent" in told.stderr and "HF_TOKEN" in told.stderr
