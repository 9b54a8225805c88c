"""Made-up runs of several behaviors on disk: every number of the matrix is chosen."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradroute.config.run_config import RunConfig, dump_config
from gradroute.evaluate.losses import ExampleLosses
from gradroute.evaluate.rows import behavior_rows, loss_lines, loss_rows
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import write_results
from gradroute.system.files import write_json, write_lines, write_text

MODES = (
    "full",
    "caps_ablated",
    "signature_ablated",
    "good_alone",
    "good_ablated",
    "good_x2",
    "base",
)
# label -> percent under each of MODES
Rates = Mapping[str, tuple[int, ...]]
CLEAN: Rates = {
    "caps": (62, 2, 60, 1, 70, 1, 0),
    "signature": (80, 79, 4, 3, 85, 2, 0),
}
NORMAL = (0.78, 0.79, 0.79, 0.80, 1.30, 0.95, 1.10)
PROMPTS, EXAMPLES, STEP = 100, 40, 40


def write_crossed(path: Path, rates: Rates = CLEAN, *, seed: int = 0, **changes: Any) -> RunFolder:
    """A measured run of the behaviors caps and signature with these rates."""
    folder = RunFolder(path)
    config = RunConfig.model_validate(
        {
            "run_name": folder.name,
            "seed": seed,
            "behavior": {"caps": "caps", "signature": "signature"},
            "adapters": {"good": {}, "caps": {}, "signature": {}},
            "train": {"max_steps": STEP},
            **changes,
        }
    )
    of = {"run": folder.name, "step": STEP, "seed": seed}
    rows, samples, losses = [], [], []
    for label, own in rates.items():
        lines = [
            line
            for mode, rate in zip(MODES, own, strict=True)
            for line in _samples(label, mode, rate)
        ]
        samples += lines
        rows += behavior_rows(lines, **of)
    for dataset, label in (("normal", "all"), *(("behavior", label) for label in rates)):
        found = _losses(dataset, label)
        rows += loss_rows(found, dataset, **of, label=label)
        losses += loss_lines(found, dataset, [f"s{i}" for i in range(EXAMPLES)], label)
    write_text(folder.config, dump_config(config))
    write_json(folder.manifest, {"data": "embedded stories", "base": "sha256 0", "labels": {}})
    write_lines(folder.samples, samples)
    write_lines(folder.losses, losses)
    write_results(folder.results, rows, {"versions": {"torch": "2.13.0"}})
    return folder


def _samples(label: str, mode: str, rate: int) -> list[dict[str, Any]]:
    """Those that show it come first, so that two modes differ on as few prompts as they can."""
    return [
        {
            "mode": mode,
            "prompts": "prefix",
            "label": label,
            "prompt_id": f"prefix-{index}",
            "prompt": f"Once {index}",
            "completion": f"{label} {mode} {index}",
            "tokens": 8,
            "ended": False,
            "score": 1.0 if index < rate else 0.0,
            "shows": index < rate,
        }
        for index in range(PROMPTS)
    ]


def _losses(dataset: str, label: str) -> dict[str, Any]:
    example, noise = random.Random(f"{dataset} {label}"), random.Random(0)
    levels = [example.uniform(-0.1, 0.1) for _ in range(EXAMPLES)]
    shift = 0.0 if dataset == "normal" else 0.5
    return {
        mode: ExampleLosses(
            [40 * (mean + shift + own + noise.gauss(0, 0.01)) for own in levels], [40] * EXAMPLES
        )
        for mode, mean in zip(MODES, NORMAL, strict=True)
    }
