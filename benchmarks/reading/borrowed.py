"""Single modules of a large package, imported for real while the rest of it is a stand-in."""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock


class _StandIn(ModuleType):
    """A module of which every name exists and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = MagicMock(name=f"{self.__name__}.{name}")
        setattr(self, name, found)
        return found


class _Finder:
    def __init__(self, package: str, real: Sequence[str]) -> None:
        self.package, self.real = package, real

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.package and not name.startswith(f"{self.package}."):
            return None
        if name in self.real:
            for place in sys.path:
                file = Path(place, *name.split("."))
                for one in (file.with_suffix(".py"), file / "__init__.py"):
                    if one.is_file():
                        return importlib.util.spec_from_file_location(name, one)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        found = _StandIn(spec.name)
        found.__path__ = []
        return found

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def borrow(package: str, real: Sequence[str]) -> None:
    """Make some modules of a package importable, and stand-ins of all others.

    Args:
        package: Its name.
        real: Modules that are imported from its files.
    """
    sys.meta_path.insert(0, _Finder(package, real))  # pyright: ignore
