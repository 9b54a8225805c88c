"""Controls: the runs that a claim is compared with, made from the config of the run itself.

    control_config         run's config -> a control's
    train_control          a control, and before it what it is made of
    train_with_controls    a run and its controls

What each one changes is in `config.controls`. A control has the run's seed, steps, data and order
of data; examples that it leaves out do not move the others. Some are made of what another run
gives: rows that the run finds, an adapter that is trained before (`inoculation`), or what the run
teaches.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradroute.config.controls import BY_NAME, Control
from gradroute.config.run_config import RunConfig
from gradroute.config.sections import AdapterConfig, DataConfig
from gradroute.data.behaviors import get_behaviors
from gradroute.data.inoculation import instruction
from gradroute.errors import ConfigError
from gradroute.experiments.inoculation import (
    inoculation_config,
    make_random_start,
    start_place,
)
from gradroute.experiments.parallel import run_in_parallel
from gradroute.probes.finder import FDR, find_rows
from gradroute.probes.found_files import found_place, join_suspects
from gradroute.routing.policy import shipped_mode
from gradroute.runs.folder import RunFolder
from gradroute.runs.states import begin_sharing
from gradroute.system.launcher import launched

RUNS = Path("runs")
"""The folder of the runs, unless another is named."""


def control_configs(config: RunConfig, root: Path = RUNS) -> list[RunConfig]:
    """The configs of a run's controls, in the order in which they are named, each trained once.

    Args:
        config: Of the run.
        root: The folder of the runs; what `find` writes for a control is in the run's folder there.

    Raises:
        ConfigError: a control would be the run itself, or its name is too long for a folder.
    """
    wanted = [BY_NAME[name].trains for name in config.controls or ()]
    return [control_config(config, name, root) for name in dict.fromkeys(wanted)]


def train_with_controls(
    config: RunConfig,
    root: Path,
    *,
    if_exists: str,
    bar: bool,
    jobs: int,
    overrides: Sequence[str] = (),
    audit: bool = False,
) -> list[RunFolder]:
    """Train a run and the controls that its config names.

    Args:
        config: the resolved configuration.
        root: the folder of the runs.
        if_exists: see `train_run`; it holds for the controls too.
        bar: show a progress bar rather than a line now and then.
        jobs: runs at the same time, each in a process of its own with one thread; 1 trains them
            one after another here.
        overrides: what may have changed, see `train_run`; it holds for the controls too.
        audit: see `train_run`; it holds for the controls too.

    Returns:
        The run folders, the run itself first, and last the controls that are made of another run.

    Raises:
        GradrouteError: whatever stops preparing or training.
    """
    controls = control_configs(config, root)
    made = [one for one in controls if _is_made(BY_NAME[str(one.control)])]
    _check_launched(made, jobs)
    before = any(BY_NAME[str(one.control)].start for one in made)
    first = [config, *([inoculation_config(config)] if before else ())]
    first += [control for control in controls if control not in made]

    from gradroute.run import train_run

    if controls:
        begin_sharing(root)
    folders: list[RunFolder] = []
    for group in (first, made):
        for control in group if group is made else ():
            _make(config, BY_NAME[str(control.control)], root)
        if jobs > 1 and len(group) > 1:
            folders += run_in_parallel(
                group,
                root,
                jobs,
                if_exists=if_exists,
                evaluate=False,
                overrides=overrides,
                audit=audit,
            )
            continue
        folders += [
            train_run(one, root, if_exists=if_exists, bar=bar, overrides=overrides, audit=audit)
            for one in group
        ]
    return [folders[0], *folders[2 if before else 1 :]]


def _check_launched(made: Sequence[RunConfig], jobs: int) -> None:
    """See that processes that train each run together need nothing that one alone does.

    Raises:
        ConfigError: Runs at the same time, or controls that are made of another run.
    """
    if launched() == 1:
        return
    if jobs > 1:
        raise ConfigError(
            f"--jobs {jobs} trains runs at the same time, and {launched()} processes were launched "
            "to train each run together. Leave one of the two out; `gradroute sweep` runs a grid."
        )
    if made:
        names = ", ".join(str(one.control) for one in made)
        raise ConfigError(
            f"controls: {names} {'is' if len(made) == 1 else 'are'} made of what the run gives, "
            f"which one process does, and {launched()} were launched. Train the run first without "
            f"{'it' if len(made) == 1 else 'them'}, then all without a launcher."
        )


def train_control(config: RunConfig, name: str, root: Path, *, bar: bool) -> RunFolder:
    """Train one control of a run that is finished, or go on with it.

    What it is made of is made before it, where it is not there.

    Raises:
        GradrouteError: Whatever stops preparing or training.
    """
    control, one = BY_NAME[name], control_config(config, name, root)
    from gradroute.run import train_run

    if control.start:
        train_run(inoculation_config(config), root, if_exists="resume", bar=bar)
    _make(config, control, root)
    return train_run(one, root, if_exists="resume", bar=bar)


def _is_made(control: Control) -> bool:
    """Whether a control is made of what another run gives."""
    return bool(control.finder or control.start) or control.taught


def _make(config: RunConfig, control: Control, root: Path) -> None:
    """Make what a control is made of, once the runs that it takes are finished."""
    if by := control.finder:
        folder, labels = RunFolder(root / config.run_name), tuple(config.behaviors)
        told = [find_rows(folder, by=by, fdr=FDR, label=label) for label in labels]
        if len(labels) > 1:
            join_suspects(folder, by, [found_place(folder, summary) for summary in told])
    if control.start == "random":
        make_random_start(config, root)


def control_config(config: RunConfig, name: str, root: Path = RUNS) -> RunConfig:
    """The config of one control of a run.

    Raises:
        ConfigError: It would be the run itself, its name is too long for a folder, it needs
            labels that the data will not have, or it does not fit the run's behaviors or adapters.
    """
    data = config.data.model_dump()
    changes: dict[str, Any] = {
        "run_name": f"{config.run_name}-{name}",
        "controls": None,
        "control": name,
        "control_of": config.run_name,
    }
    control = BY_NAME[name]
    _check_labels(config.data, control)
    _check_fits(config, control)
    if isinstance(control.routing, str):
        changes["routing"] = control.routing
    elif control.routing is not None:
        changes["routing"] = {label: dict(control.routing) for label in config.policy.labels}
    if control.one_adapter:
        changes["adapters"] = _one_adapter(config.adapters)
    data |= control.data
    if control.routing is not None:  # nothing is looked for in it, so that it may use every label
        data["null_fraction"] = 0.0
    if "inoculation" in control.data:
        data["inoculation_text"] = _instruction(config, control)
    if control.finder:
        found = RunFolder(root / config.run_name).found
        data["found"] = str(found / f"{control.finder}_suspects.jsonl")
    train = config.train.model_dump()
    if control.routing is not None:  # a plain run, unless its row says otherwise
        train |= {"kl_good": 0.0, "teacher": None} | dict(control.train)
    if control.taught:
        train["teacher"] = f"{root / config.run_name}@{_shipped(config, name)}"
    same = data == config.data.model_dump() and train == config.train.model_dump()
    if same and changes.get("routing") == config.routing and not control.start:
        raise ConfigError(
            f"controls: the control '{name}' of {config.run_name} would be the run itself; remove "
            f"it from controls."
        )
    try:
        if control.start:
            place = str(start_place(config, control.start, root))
            bad = config.adapters["bad"].model_dump() | {"start": place}
            changes["adapters"] = config.model_dump()["adapters"] | {"bad": bad}
        made = config.model_dump() | {"data": data, "train": train} | changes
        return RunConfig.model_validate(made)
    except ValueError as error:
        raise ConfigError(
            f"controls: the control '{name}' of {config.run_name} cannot be made: {error}"
        ) from error


def _check_labels(data: DataConfig, control: Control) -> None:
    """Refuse a control before anything is trained, where labels that it needs cannot be there.

    What a file of rows has is seen when it is read.

    Raises:
        ConfigError: No example will be labeled good, or none of these trained as unlabeled.
    """
    if data.path is not None:
        return
    needed = []
    flags = control.start or control.data.get("inoculation") == "labeled_bad"
    if flags and not (data.labeled_fraction or data.false_positive_rate):
        needed.append("examples labeled bad (data.labeled_fraction)")
    of_good = control.finder or "kl_good" in control.train
    if (of_good or control.data.get("drop") == "all_but_good") and not data.good_labeled_fraction:
        needed.append("examples labeled good (data.good_labeled_fraction)")
    if control.finder and not data.null_fraction:
        needed.append("some of these trained as unlabeled (data.null_fraction=0.2)")
    if needed:
        raise ConfigError(f"controls: '{control.name}' needs {' and '.join(needed)}.")


def _check_fits(config: RunConfig, control: Control) -> None:
    """Refuse a control that is made for one behavior, or for the adapters `good` and `bad`.

    Raises:
        ConfigError: The run has others.
    """
    if len(config.behaviors) > 1 and (control.start or "inoculation" in control.data):
        raise ConfigError(
            f"controls: '{control.name}' is made for one behavior, and this run has "
            f"{', '.join(config.behaviors)}; leave it out."
        )
    fits = set(config.adapters) == {"good", "bad"} and config.policy.routes_anything
    if control.start and not fits:
        raise ConfigError(
            f"controls: '{control.name}' needs a run that routes, with the adapters good and bad; "
            f"this one has the table {config.policy.name} and the adapters "
            f"{', '.join(config.adapters)}."
        )


def _instruction(config: RunConfig, control: Control) -> str:
    """The instruction of an inoculation prompt, so that the control's config says what it was."""
    try:
        return instruction(config.data.inoculation_text, get_behaviors(config.behaviors))
    except ConfigError as error:
        raise ConfigError(f"controls: '{control.name}': {error}") from error


def _shipped(config: RunConfig, name: str) -> str:
    """The mode in which the run ships, in which it teaches.

    Raises:
        ConfigError: It has no adapter to leave out.
    """
    shipped = shipped_mode(tuple(config.adapters), tuple(config.behaviors))
    if shipped is None:
        raise ConfigError(
            f"controls: '{name}' is taught by {config.run_name} without the adapter of its "
            f"behavior, but its adapters are {', '.join(config.adapters)}; give it an adapter "
            f"{' or '.join(config.behaviors)} and another one."
        )
    return shipped.name


def _one_adapter(adapters: Mapping[str, AdapterConfig]) -> dict[str, Any]:
    """One adapter of the total rank and the first one's settings, its scale too."""
    name, first = next(iter(adapters.items()))
    rank = sum(adapter.rank for adapter in adapters.values())
    alpha, wider = first.alpha, rank / first.rank
    if first.rslora:
        alpha = (2 * first.rank if alpha is None else alpha) * wider**0.5
    elif alpha is not None:
        alpha *= wider
    return {name: first.model_dump() | {"rank": rank, "alpha": alpha}}
