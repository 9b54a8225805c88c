"""What inoculation controls start from: an adapter trained on the rows labeled bad alone.

    <run>-inoculation/   a run of its own: `bad` alone, on the rows labeled bad
    ├── checkpoints/step-.../bad   what `inoculation_adapter` and `inoculation_absorb` start from
    └── random/                    as large in random directions, for `random_adapter`

Inoculation adapters are due to arXiv 2606.30252: an adapter that has the trait already is there,
frozen, while another learns the task, and is dropped afterwards.
"""

from pathlib import Path

from gradroute.config.run_config import RunConfig
from gradroute.models.random_adapters import write_random_twin
from gradroute.runs.folder import RunFolder
from gradroute.runs.lock import write_lock

STARTS = ("inoculation", "random")
"""What `bad` may start from: trained on the rows labeled bad alone, or random and as large."""
SHARE = 1 / 3
"""Steps of the run before, as a share of the run's own: the loss on a few labeled rows (34 of
`wrong_pronouns`) no longer falls from a fifth on."""


def inoculation_config(config: RunConfig) -> RunConfig:
    """The run that a run's inoculation controls share: `bad` alone, on the rows labeled bad.

    Raises:
        ValueError: Its name is too long for a folder.
    """
    steps = max(1, round(SHARE * config.train.max_steps))
    rows = {
        label: {"bad": "update" if label == "bad" else "freeze"} for label in config.policy.labels
    }
    changes = {
        "run_name": f"{config.run_name}-inoculation",
        "controls": None,
        "control": "inoculation",
        "control_of": config.run_name,
        "routing": rows,
        "adapters": {"bad": config.adapters["bad"].model_dump()},
        "data": config.data.model_dump() | {"drop": "all_but_bad", "null_fraction": 0.0},
        "train": config.train.model_dump()
        | {"max_steps": steps, "warmup_steps": min(config.train.warmup_steps, steps)},
        "evaluate": config.evaluate.model_dump() | {"modes": None},
    }
    return RunConfig.model_validate(config.model_dump() | changes)


def start_place(config: RunConfig, start: str, root: Path) -> Path:
    """The folder of the adapter that a control of a run starts from, there or not.

    Args:
        config: Of the run.
        start: One of `STARTS`.
        root: The folder of the runs.
    """
    one = inoculation_config(config)
    folder = RunFolder(root / one.run_name)
    if start == "random":
        return folder.path / "random"
    return folder.checkpoints / f"step-{one.train.max_steps:06d}" / "bad"


def make_random_start(config: RunConfig, root: Path) -> None:
    """Write the random adapter, once the run before is finished.

    Raises:
        ConfigError: It is not finished, so that there is no adapter to be as large as.
        MachineError: The disk refuses, or another process writes to that run.
    """
    out = start_place(config, "random", root)
    with write_lock(out.parent, "drawing a random adapter"):
        write_random_twin(start_place(config, "inoculation", root), out, config.seed)
