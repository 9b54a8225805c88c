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
        "import sys\nfrom gradroute.cli.main import main\n"
        f"for line in {lines!r}:\n    if code := main(line):\n        sys.exit(code)\n"
    )


# Imported by Python before anything else: whoever asks for a place in the network is noted, and is
# refused, or asks on in vain where there is no network.
NOTE = """
import socket

def noted(ask):
    def asked(*given, **more):
        with open("asked", "a") as file:
            file.write(f"{{given[1:]}}\\n")
        if {refused}:
            raise OSError(101, "Network is unreachable")
        return ask(*given, **more)
    return asked

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, noted(getattr(socket.socket, name)))
socket.getaddrinfo = noted(socket.getaddrinfo)
socket.create_connection = noted(socket.create_connection)
"""


def run(folder: Path, code: str, *before: str) -> subprocess.CompletedProcess[str]:
    """Run a program with gradroute in a folder; nothing in the environment says offline."""
    (folder / "sitecustomize.py").write_text(NOTE.format(refused=not before))
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


Done = tuple[Path, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One program in a folder: all verbs, then a model of the hub; with no network if it can be."""
    folder = tmp_path_factory.mktemp("work")
    between = "import os\nopen('worked', 'w').write(str(os.path.exists('asked')))\n"
    before = ("unshare", "-rn") if isolating() else ()
    return folder, run(folder, program(*WORK) + between + program(HUB), *before)


@pytest.mark.slow
def test_no_verb_asks_for_a_place_in_the_network(done: Done) -> None:
    folder, told = done
    assert (folder / "worked").is_file(), told.stderr
    assert (folder / "worked").read_text() == "False"
    assert (folder / "runs" / "report.html").is_file()


def test_a_program_that_asks_is_noted(tmp_path: Path) -> None:
    told = run(tmp_path, "import urllib.request as u\nu.urlopen('http://127.0.0.1:9/')")
    assert told.returncode == 1 and "unreachable" in told.stderr
    assert (tmp_path / "asked").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not isolating(), reason="this machine gives no network namespaces to users")
def test_where_there_is_no_network_verbs_work_and_a_hub_model_is_missed_in_one_line(
    done: Done,
) -> None:
    folder, told = done
    assert told.returncode == 4, told.stderr
    assert (folder / "runs" / "eval_multi_results.json").is_file()
    assert told.stderr.count("error: ") == 1 and "Traceback" not in told.stderr
    assert "org/absent" in told.stderr and "HF_TOKEN" in told.stderr
