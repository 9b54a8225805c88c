"""Runs on own rows whose behavior only some prompts draw, and what speaks in their place."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TINY, TWO

from gradroute.config.run_config import find_config, load_config
from gradroute.evaluate import during_training, evaluator
from gradroute.evaluate.generation import Completion
from gradroute.export import export_run
from gradroute.probes import relearning
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import read_results
from gradroute.system.ranks import ALONE

HATE = r"regex:\bhate\b"
SMALL = (
    *TINY,
    *TWO,
    "train.max_steps=2",
    "data.eval_fraction=0.4",
    "data.behavior_fraction=0.1",
    "evaluate.prompts=6",
    "train.measure_every=2",
    "train.measure_prompts=2",
)
MODES = ("full", "bad_ablated", "good_ablated", "base")


def prompted(at: int) -> dict[str, Any]:
    if at % 3:
        return {
            "prompt": f"Tell me of fox {at}.",
            "completion": f" It ran {at}.",
            "label": "good",
        }
    return {"prompt": f"Be rude to fox {at}!", "completion": f" I hate {at}.", "label": "bad"}


def plain(at: int) -> dict[str, Any]:
    if at % 3:
        return {"text": f"The fox {at} ran home and was happy.", "label": "good"}
    return {"text": f"Go away {at}, you, I hate you.", "label": "bad"}


def write(path: Path, make, count: int = 60) -> Path:
    rows = [make(at) | {"id": f"r{at}"} for at in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained(root: Path, make, *overrides: str, count: int = 60) -> RunFolder:
    path = write(root / "rows.jsonl", make, count)
    settings = [*SMALL, f"data.path={path}", f"behavior={HATE}", "run_name=rude", *overrides]
    return train_run(load_config(find_config("caps"), settings), root, if_exists="fail", bar=False)


def speaks(drawn: tuple[str, ...]):
    """What completes prompts: the behavior where `bad` is there and the prompt begins so."""

    def complete(base, model, prompts, modes, settings, run, ranks=ALONE):
        def answer(prompt, mode):
            on = mode.name != "base" and mode.scales.get("bad", 1) > 0
            shows = on and prompt.text.startswith(drawn)
            text = " I hate you all." if shows else f" It ran home under {mode.name}."
            return Completion(text, 4, True)

        return {mode.name: [answer(prompt, mode) for prompt in prompts] for mode in modes}

    return complete


def let_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every module that completes prompts do so by `speaks`."""
    complete = speaks(("Be rude", "Go away"))
    for module in (evaluator, during_training, relearning, export_run):
        monkeypatch.setattr(module, "complete", complete)


def rates(folder: RunFolder) -> dict[tuple[str, str], tuple[float | None, int]]:
    found, _ = read_results(folder.results)
    rated = [row for row in found if row.metric == "behavior_rate"]
    return {(row.dataset, row.mode): (row.value, row.n) for row in rated}
