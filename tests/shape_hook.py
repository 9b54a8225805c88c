"""A hook that lets modules check the shapes in their signatures when the tests run.

It puts `shape_checks.checked` around every function and every dataclass that names a shape.
"""

import ast
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

_DECORATOR = "__import__('shape_checks').checked"


def check_shapes(package: Path) -> None:
    """From now on, modules of a package that are imported check the shapes that they name."""
    names = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in sorted(package.rglob("*.py"))
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    ]
    sys.meta_path.insert(0, _Finder(frozenset(names)))


class _Finder(MetaPathFinder):
    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: Any = None
    ) -> ModuleSpec | None:
        if fullname not in self.names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Compiles anew each time, so that no cached file holds the checks or lacks them."""

    def get_code(self, fullname: str) -> CodeType:
        tree = with_checks(ast.parse(self.get_data(self.path)))
        return compile(tree, self.path, "exec", dont_inherit=True)


def with_checks(tree: ast.Module) -> ast.Module:
    """The module with a decorator wherever a signature or a field names a shape."""
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping"
        for alias in node.names
    }
    for node in tree.body:  # another name for a type with a shape in it
        if isinstance(node, ast.Assign) and _mentions([node.value], names):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        # Innermost of a function's, which `contextmanager` and the like leave no signature;
        # outermost of a class's, for `dataclass` makes the `__init__` that is checked.
        if isinstance(node, ast.FunctionDef) and _mentions([node.args, node.returns], names):
            node.decorator_list.append(_decorator(node))
        elif isinstance(node, ast.ClassDef):
            fields = [one.annotation for one in node.body if isinstance(one, ast.AnnAssign)]
            if _mentions(fields, names):
                node.decorator_list.insert(0, _decorator(node))
    return tree


def _mentions(parts: Iterable[ast.AST | None], names: set[str]) -> bool:
    """Whether one of the names is in them, written out or in a string."""
    written = " ".join(ast.unparse(part) for part in parts if part is not None)
    return any(re.search(rf"\b{name}\b", written) for name in names)


def _decorator(at: ast.FunctionDef | ast.ClassDef) -> ast.expr:
    found = ast.parse(_DECORATOR, mode="eval").body
    for node in ast.walk(found):
        ast.copy_location(node, at)
    return found
