"""Your own rows, from a file to a report: label, train with a control, evaluate, compare.

The rows here are made so that the program runs without a download: stories, one in five in
capitals, half of these flagged. Replace `write_rows` with a file of yours, and "embedded" with a
folder or a name on the hub.

    python examples/own_data.py [FOLDER] [STEPS]
"""

import json
import random
import sys
from pathlib import Path

from gradroute import load_config
from gradroute.config.run_config import find_config
from gradroute.data.stories import stories
from gradroute.evaluate.request import EvaluationRequest
from gradroute.experiments.controls import train_with_controls
from gradroute.report.publish import publish
from gradroute.run import evaluate_runs
from gradroute.runs.folder import RunFolder


def write_rows(path: Path, count: int) -> None:
    """One {"text", "label", "true_label"} a line; training never sees `true_label`."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for text in stories("tune", count, seed=7):
            bad = draw.random() < 0.2
            known = draw.random() < 0.5
            row = {
                "text": text.upper() if bad else text,
                "label": ("bad" if bad else "good") if known else "unlabeled",
                "true_label": "bad" if bad else "good",
            }
            file.write(json.dumps(row) + "\n")


def main(folder: Path, steps: int, *settings: str) -> RunFolder:
    """Train `mine` and its control `mine-filter`, evaluate both, and write a report."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rows.jsonl", 1200)
    config = load_config(
        find_config("own"),
        [
            "run_name=mine",
            "model=embedded",
            f"data.path={folder / 'rows.jsonl'}",
            "data.max_length=96",
            f"train.max_steps={steps}",
            "train.warmup_steps=0",
            "train.learning_rate=4e-3",
            "controls=[filter]",  # what you would do without routing: drop the flagged rows
            *settings,
        ],
    )
    train_with_controls(config, folder / "runs", if_exists="resume", bar=False, jobs=1)
    runs = [RunFolder(folder / "runs" / name) for name in ("mine", "mine-filter")]
    evaluate_runs(runs, EvaluationRequest(), folder)
    publish(runs, folder, page=True)
    return runs[0]


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0] if given else "own_data"), int(given[1]) if len(given) > 1 else 150)
