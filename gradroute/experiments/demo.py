"""The reference experiment: six runs that differ in a few settings."""

from collections.abc import Mapping
from pathlib import Path

from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.experiments.parallel import run_in_parallel

UNROUTED = ("routing=none", "data.labeled_fraction=0", "data.good_labeled_fraction=0")

_ONE_ADAPTER = (  # of the routed runs' total rank and scale
    "adapters.good.rank=64",
    "adapters.good.alpha=128",
    "adapters.bad=null",
)
# What each run changes in the recipe `caps`: the share of stories in capitals and of those
# labeled are in the names, as in the description this experiment comes from.
CELLS: Mapping[str, tuple[str, ...]] = {
    "baseline": (*UNROUTED, "data.behavior_fraction=0"),
    "0.1_0.0": UNROUTED,
    "0.1_0.5": ("data.labeled_fraction=0.5",),
    "0.1_1.0": ("data.labeled_fraction=1.0",),
    "filter_0.5": (
        "routing=none",
        "data.labeled_fraction=0.5",
        "data.good_labeled_fraction=0",
        "data.drop=labeled_bad",
        *_ONE_ADAPTER,
    ),
    "known_good": (
        "routing=none",
        "data.labeled_fraction=0.5",
        "data.drop=all_but_good",
        *_ONE_ADAPTER,
    ),
}
# As many steps as fit into two minutes on one core.
QUICK = {"quick_0.5": ("data.labeled_fraction=0.5", "train.max_steps=300", "evaluate.held_out=128")}


def demo_configs(seed: int, quick: bool) -> list[RunConfig]:
    """The configurations of the demo's runs, in the order in which they are reported."""
    recipe = find_config("caps")
    return [
        load_config(recipe, [f"run_name={name}", f"seed={seed}", *changes])
        for name, changes in (QUICK if quick else CELLS).items()
    ]


def demo(root: Path, *, seed: int, quick: bool, jobs: int | None) -> None:
    """The whole reference experiment, from stories to figure and verdicts.

    Args:
        root: folder of the runs; a seed other than 0 gets a folder `seed-<seed>` in it.
        seed: of data, labels, adapters and order.
        quick: one shorter routed run without its controls, in a folder `quick`.
        jobs: runs at the same time; None for the number of cores.
    """
    place = root if seed == 0 else root / f"seed-{seed}"
    place = place / "quick" if quick else place
    configs = demo_configs(seed, quick)
    folders = run_in_parallel(configs, place, jobs, if_exists="resume", evaluate=True)
    from gradroute.report.publish import publish

    publish(folders, place, page=False)
