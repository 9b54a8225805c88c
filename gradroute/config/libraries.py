"""Importing the libraries that models are run with: fast, and none that no run asks for."""

import gc
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from gradroute.config.run_config import RunConfig
from gradroute.config.yaml import read_yaml_file
from gradroute.errors import ConfigError
from gradroute.runs.folder import RunFolder

NEEDS = "GRADROUTE_NEEDS"
"""Variable that tells a process that others are forked from what these load or draw alike."""
_BASE = ("model", "gguf_file", "quantize")


class Libraries:
    """Within it torch, transformers, PEFT and what uses them are imported.

    Importing them makes some million objects that stay. Python's garbage collector would visit
    them again and again, so it waits until they are there, and leaves them out from then on.

    PEFT imports bitsandbytes wherever it is installed, which takes as long as PEFT itself. Where no
    base holds its weights in few bits it counts as not installed in this process.
    """

    def __init__(self, bases: Iterable[Mapping[str, Any]]) -> None:
        """Say for which bases.

        Args:
            bases: Per run its settings `model`, `gguf_file` and `quantize`; the others are ignored.
        """
        self._plain = all(_plain(base) for base in bases)

    @classmethod
    def of(cls, config: RunConfig) -> "Libraries":
        """Those that a configuration needs."""
        return cls([_base_of(config)])

    @classmethod
    def of_runs(cls, folders: Iterable[RunFolder]) -> "Libraries":
        """Those that runs need; the settings of one that cannot be read may ask for anything."""
        return cls([_settings(folder.config) for folder in folders])

    def __enter__(self) -> None:
        """Begin."""
        if self._plain:
            sys.modules.setdefault("bitsandbytes", None)  # pyright: ignore[reportArgumentType]
        gc.disable()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Let the garbage collector run again."""
        gc.freeze()
        gc.enable()


def holds_plain_numbers(config: RunConfig) -> bool:
    """Whether the base of a run certainly does not hold its weights in few bits."""
    return _plain(_base_of(config))


def _base_of(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(include={*_BASE})


def _settings(path: Path) -> dict[str, Any]:
    try:
        value = read_yaml_file(path, str(path)).value
    except ConfigError:  # whoever reads it whole says so
        return {}
    return value if isinstance(value, dict) else {}


def _plain(base: Mapping[str, Any]) -> bool:
    if base.get("quantize") != "none":
        return False
    if base.get("model") == "embedded" or base.get("gguf_file") not in (None, "null"):
        return True
    try:  # a folder; of a name on the hub nothing is known yet
        config = json.loads((Path(str(base["model"])) / "config.json").read_text("utf-8"))
    except (KeyError, OSError, ValueError):
        return False
    return isinstance(config, dict) and "quantization_config" not in config
