"""A tiny run that is trained, cut back and gone on with."""

import shutil
from pathlib import Path
from typing import Any

from tiny_runs import TINY, TWO

from gradroute.config.run_config import find_config, load_config
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines

OWN = (*TINY, *TWO, "train.save_every=1", "run_name=x")


def go(root, *overrides, allow=(), if_exists="resume", **more) -> RunFolder:
    """Train, or go on, with settings of one's own; `allow` is what --override names."""
    config = load_config(find_config("caps"), [*OWN, *overrides])
    return train_run(config, root, if_exists=if_exists, bar=False, overrides=allow, **more)


def cut(folder: RunFolder) -> RunFolder:
    """Take a run back to its checkpoint before the last, as a kill would have left it."""
    shutil.rmtree(max(folder.checkpoints.iterdir()))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def sessions(folder: RunFolder) -> list[dict[str, Any]]:
    return list(read_lines(folder.sessions))
