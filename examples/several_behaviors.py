"""Two behaviors in one run, each with an adapter of its own; what ablating each does to each.

python examples/several_behaviors.py [FOLDER] [STEPS]
"""

import sys
from pathlib import Path

from gradroute import load_config
from gradroute.config.run_config import find_config
from gradroute.evaluate.request import EvaluationRequest
from gradroute.run import evaluate_runs, train_run
from gradroute.runs.folder import RunFolder


def main(folder: Path, steps: int, *settings: str) -> RunFolder:
    """Train, and print the behavior rates with each adapter ablated."""
    config = load_config(
        find_config("two_behaviors"),
        [
            "run_name=two",
            # label: behavior; each label is routed to the adapter of its name
            "behavior={caps: caps, signature: signature}",
            f"train.max_steps={steps}",
            "train.warmup_steps=0",
            *settings,
        ],
    )
    run = train_run(config, folder / "runs", if_exists="resume", bar=False)
    evaluate_runs([run], EvaluationRequest(), folder)
    return run


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0] if given else "several"), int(given[1]) if len(given) > 1 else 300)
