"""Data sets on the hub, read as the files that they are.

A repository is data: of it only files of examples are fetched (.parquet, .jsonl, .csv), of one
commit, and they are read as files on this machine are. Its scripts are never run, its card is not
followed, and no library guesses types. Which files make a split is told by their names alone.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from gradroute.data.formats import FORMATS
from gradroute.data.jsonl import show
from gradroute.errors import ConfigError, DataError, GradrouteError, MachineError
from gradroute.system.secrets import hub_token, redact, token_places

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SPLIT = re.compile(r"((?:[\w-][\w.-]*/)*)([\w-][\w.-]*?)(?:\[:([1-9][0-9]{0,11})\])?", re.ASCII)
_PART = re.compile(r"-of-([0-9]{1,6})$", re.ASCII)
_NAME = re.compile(r"[\w. =+-]+(/[\w. =+-]+)*", re.ASCII)


@dataclass(frozen=True)
class HubFile(PathLike[str]):
    """A file in the local cache that messages call by its name on the hub."""

    place: Path
    name: str

    def __fspath__(self) -> str:
        return fspath(self.place)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class HubSplit:
    """A split of a data set at one commit.

    Attributes:
        name: Id of the data set.
        commit: What its revision stands for.
        split: As it was asked for.
        most: How many rows were asked for; None for all.
        parts: The names of its files, in order.
    """

    name: str
    commit: str
    split: str
    most: int | None
    parts: tuple[str, ...]

    @property
    def identity(self) -> str:
        """What tells the split from others."""
        return f"{self.name}, revision {self.commit}, split {self.split}"

    def files(self) -> Iterator[HubFile]:
        """Its files, each fetched when it is asked for, and kept in the hub's cache.

        Raises:
            MachineError: One is not to be had.
        """
        from huggingface_hub import hf_hub_download

        for part in self.parts:
            fetch = partial(
                hf_hub_download,
                self.name,
                part,
                repo_type="dataset",
                revision=self.commit,
                token=hub_token(),
            )
            yield HubFile(Path(_from_hub(self.name, fetch)), f"{self.name}/{part}")


def is_hub_id(path: str) -> bool:
    """Whether a `data.path` names a data set on the hub: `owner/name`, and no file here."""
    if not _ID.fullmatch(path) or path.lower().endswith(FORMATS):
        return False
    return not Path(path).exists()


def find_split(name: str, split: str, revision: str | None) -> HubSplit:
    """Find the files of a split of a data set.

    A split is a name, such as `train`, with a folder before it where several have one
    (`en/train`), and perhaps the number of rows that are read from its beginning
    (`train[:20000]`), so that of a large data set only the first files are fetched.

    Its files are `train.parquet`, `train-00000-of-00007.parquet`, `train_0.csv` and the like, or
    all files in a folder `train`.

    Args:
        name: Id of the data set.
        split: The split.
        revision: Commit, tag or branch; None for the main branch.

    Raises:
        ConfigError: The split is not of that form.
        DataError: There are no such files, or it is not clear which are meant.
        MachineError: The data set is gated, unknown or out of reach.
    """
    form = _SPLIT.fullmatch(split)
    if form is None:
        raise ConfigError(
            f"data.split: {show(split)} is not a split; a name is needed, such as train, "
            f"en/train, "
            "or train[:20000] for its first rows."
        )
    folder, wanted, most = form.groups()
    commit, files = _listing(name, revision)
    found: dict[tuple[str, str], list[str]] = {}
    splits: set[str] = set()
    for file in (file for file in files if file.lower().endswith(FORMATS)):
        names = list(_splits_of(file))
        splits.update(f"{where}{called}" for where, called in names)
        fits = [where for where, called in names if called == wanted and folder in ("", where)]
        if fits:
            found.setdefault((fits[0], Path(file).suffix.lower()), []).append(file)
    if not found:
        raise DataError(_no_split_text(name, split, files, splits))
    if len(found) > 1:
        listed = ", ".join(f"{where}{wanted} ({kind})" for where, kind in sorted(found))
        raise DataError(
            f"{name}: several sets of files are called {show(wanted)}: {listed}. Name the folder "
            "in data.split, or fetch the files and give one as data.path."
        )
    [parts] = found.values()
    _check_whole(name, split, parts)
    return HubSplit(name, commit, split, int(most) if most else None, tuple(sorted(parts)))


def _splits_of(file: str) -> Iterator[tuple[str, str]]:
    """(folder before it, name of the split) for every split that a file may belong to."""
    *folders, last = file.split("/")
    stem = Path(last).stem
    called = re.sub(r"[-_.][0-9][0-9-]*(of-[0-9]+)?$", "", stem)
    if called:
        yield "".join(f"{one}/" for one in folders), called
    if folders:
        yield "".join(f"{one}/" for one in folders[:-1]), folders[-1]


def _no_split_text(name: str, split: str, files: Sequence[str], splits: set[str]) -> str:
    if not splits:
        return (
            f"{name} has no file that ends in {', '.join(FORMATS)} (it has {len(files)} others; "
            "scripts are never run). The hub may have made Parquet files of it: try "
            "data.revision=refs/convert/parquet with data.split=default/train."
        )
    listed = ", ".join(sorted(splits)[:8])
    return f"{name} has no split {show(split)}; its file names give {listed}."


def _check_whole(name: str, split: str, parts: Sequence[str]) -> None:
    """Of a cache without its hub, some parts may be missing."""
    said = {int(found[1]) for part in parts if (found := _PART.search(Path(part).stem))}
    if said and said != {len(parts)}:
        raise MachineError(
            f"{name}: {len(parts)} files of the split {show(split)} are available, but their "
            f"names count {', '.join(map(str, sorted(said)))}. Fetch it again with a network."
        )


def _listing(name: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit of a data set, and its files; without a network, those that the cache has."""
    from huggingface_hub import HfApi, snapshot_download

    token = hub_token()
    fetch = partial(
        snapshot_download,
        name,
        repo_type="dataset",
        revision=revision,
        token=token,
        allow_patterns=[".gitattributes", "README.md"],  # small, and one is always there
    )
    folder = Path(_from_hub(name, fetch))
    try:
        files = HfApi(token=token).list_repo_files(name, repo_type="dataset", revision=folder.name)
    except Exception:  # of the hub or the network
        files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    safe = [file for file in files if _NAME.fullmatch(file) and ".." not in file.split("/")]
    return folder.name, safe


def _from_hub(name: str, fetch: Any) -> str:
    try:
        return fetch()
    except GradrouteError:
        raise
    except Exception as error:  # of the hub, the network or the cache
        first = redact(" ".join(str(error).split()))[:200]
        found = "one was found" if hub_token() else "none was found"
        raise MachineError(
            f"the data set {name} cannot be read from the hub ({first}). If it is gated, accept "
            f"its terms at https://huggingface.co/datasets/{name} and give a token; one was looked "
            f"for in {token_places()}, and {found}. (A file on this machine is named with its "
            "ending, or with ./ before it.)"
        ) from error
