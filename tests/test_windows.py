"""What Windows lacks is not needed to import gradroute, nor to say how it is used.

There is no Windows here. What Python lacks there is taken away after the libraries are loaded,
which have builds of their own for Windows.
"""

import subprocess
import sys

WITHOUT = """
import importlib, os, pkgutil, signal, subprocess, sys
import accelerate, filelock, huggingface_hub, jinja2, matplotlib.pyplot, peft, torch, transformers
import trl.trainer.dpo_trainer, trl.trainer.grpo_trainer, trl.trainer.sft_trainer
from transformers import BloomPreTrainedModel, PreTrainedModel, PreTrainedTokenizerFast, Trainer

for name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None  # from now on an import of it is an ImportError
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "ITIMER_REAL", "setitimer"):
    delattr(signal, name)
for name in (
    "O_NOFOLLOW", "fork", "geteuid", "getuid", "killpg", "pread", "pwrite", "sched_getaffinity",
    "statvfs", "sysconf", "uname",
):
    delattr(os, name)
"""
IMPORT = """
import gradroute
names = [one.name for one in pkgutil.walk_packages(gradroute.__path__, "gradroute.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""
SAY = """
from gradroute.cli.main import main
for words in (["--help"], ["train", "--help"], ["data", "label", "--help"], ["schema"]):
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    assert not code, (words, code)
"""
WORK = """
from pathlib import Path
from gradroute.data.chat_templates import time_limit
from gradroute.runs.lock import write_lock
from gradroute.system.files import append_line
from gradroute.system.signals import interruptible, stop_requests, without_signals

with write_lock(Path(sys.argv[1]) / "x", "training"), time_limit(1), interruptible():
    with stop_requests() as stop, without_signals():
        signal.raise_signal(signal.SIGTERM)
    assert not stop.requested
    for number in range(3):
        append_line(Path(sys.argv[1]) / "lines.jsonl", {"number": number})
assert len((Path(sys.argv[1]) / "lines.jsonl").read_text().splitlines()) == 3
try:
    with interruptible():
        signal.raise_signal(signal.SIGTERM)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_every_module_loads_and_help_is_printed_without_what_windows_lacks(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + IMPORT + SAY + WORK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[0]) > 100
    assert "usage: gradroute" in done.stdout and '"max_steps"' in done.stdout
    assert done.stdout.endswith("interrupted\n")
