"""Settings of one section that do not fit together, or not with those of another."""

from collections.abc import Sequence

from gradroute.config.errors import Disagreement
from gradroute.config.sections import DataConfig, TrainConfig
from gradroute.errors import ConfigError
from gradroute.routing.policy import AblationMode


def modes_disagree(modes: Sequence[str], adapters: Sequence[str]) -> list[Disagreement]:
    """Modes that are given twice, or that do not fit the adapters."""
    found: list[Disagreement] = []
    for position, mode in enumerate(modes):
        keys = ("evaluate", "modes", position)
        if mode in modes[:position]:
            found.append(Disagreement((keys,), f"the mode {mode} is given twice."))
        try:
            AblationMode.parse(mode, adapters)
        except ConfigError as error:
            found.append(Disagreement((keys, ("adapters",)), str(error)))
    return found


def data_disagrees(data: DataConfig) -> list[Disagreement]:
    """Shares of labels that do not fit together, and held-out examples that cannot be had."""
    found: list[Disagreement] = []
    if data.good_labeled_fraction + data.false_positive_rate > 1:
        keys = (("data", "good_labeled_fraction"), ("data", "false_positive_rate"))
        found.append(Disagreement(keys, "together with data.false_positive_rate at most 1."))
    for key in ("eval_path", "eval_split"):
        if getattr(data, key) and not data.path:
            keys = (("data", key), ("data", "path"))
            found.append(Disagreement(keys, "held-out examples need a data.path to train on."))
    own = data.eval_path or data.eval_split
    if data.path and not own and not 0 < data.eval_fraction < 1:
        found.append(
            Disagreement(
                (("data", "eval_fraction"), ("data", "path"), ("data", "eval_path")),
                f"more than 0 and less than 1 is needed, got {data.eval_fraction:g}; "
                "or give held-out examples of their own as data.eval_path.",
            )
        )
    return found


def training_disagrees(train: TrainConfig, front_load: float) -> list[Disagreement]:
    """A warm-up beyond the last step, two orders of the examples, or two losses at once."""
    found: list[Disagreement] = []
    if train.warmup_steps > train.max_steps:
        found.append(
            Disagreement(
                (("train", "warmup_steps"), ("train", "max_steps")),
                f"at most train.max_steps ({train.max_steps}) is needed, got {train.warmup_steps}.",
            )
        )
    if train.teacher and not all(train.teacher.rpartition("@")):
        told = f"FOLDER@MODE is needed, as in runs/caps@bad_ablated, got {train.teacher}."
        found.append(Disagreement((("train", "teacher"),), told))
    if train.teacher and train.kl_good:
        found.append(
            Disagreement(
                (("train", "teacher"), ("train", "kl_good")),
                "the loss is the divergence from the teacher alone, so that train.kl_good has no "
                "place in it; set train.kl_good=0.",
            )
        )
    if train.length_window and front_load:
        found.append(
            Disagreement(
                (("train", "length_window"), ("data", "front_load")),
                "sorting by length would move examples that data.front_load puts first; "
                "set one of the two to 0.",
            )
        )
    return found
