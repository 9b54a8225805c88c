"""Detectors of a user's own: a pattern, a list of words, a function of a module.

A configuration that somebody else wrote may name any pattern and any function, and what is
searched or handed over is the text of a model. So a pattern has a time limit, and of functions only
those serve that a module of the user's own defines: nothing of the standard library, of an
installed package or of gradroute, and nothing that a module of one's own merely imports.
"""

import importlib
import importlib.util
import inspect
import re
import sys
import types
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import regex

from gradroute.errors import ConfigError, DataError
from gradroute.system.terminal import printable

PATTERN_SECONDS = 5.0
"""A pattern that takes longer on one completion is refused; an ordinary one takes microseconds."""
MAX_WIDTH = 10_000
"""Characters of a pattern with every `{n}` written out; `regex` does so, and memory is finite."""

# What a pattern is made of, as far as braces are concerned: escapes, sets, groups, repetitions.
_PIECES = re.compile(
    r"\\N\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d+(?:,\d*)?\}|\{,\d*\}|.", re.DOTALL
)
_KEYWORD = re.compile(r"[\w'-]+")
# Folders of packages that were installed rather than written here.
_INSTALLED = {"site-packages", "dist-packages"}


def regex_share(name: str, pattern: str) -> Callable[[str, str], float | None]:
    r"""A score: the share of a completion's characters that matches of a pattern cover.

    The pattern is one of Python's `re`. It is searched by the `regex` package, which has a time
    limit and finds the same, but for rare characters: the two know other versions of Unicode, and
    its `\w` also matches an accent that is a character of its own. The score raises a DataError
    where a search takes longer than `PATTERN_SECONDS`.

    Raises:
        ConfigError: It is no regular expression, can be read in two ways, matches an empty text,
            or is too large when its repetitions are written out.
    """
    compiled = _compiled(name, pattern)

    def share(completion: str, prompt: str) -> float | None:
        if not completion.strip():
            return None
        try:
            found = compiled.finditer(completion, timeout=PATTERN_SECONDS)
            return sum(len(match[0]) for match in found) / len(completion)
        except TimeoutError:
            raise DataError(
                f"the pattern of the behavior {name!r:.200} took more than "
                f"{PATTERN_SECONDS:g} seconds on a completion of {len(completion)} characters; "
                "write one that has fewer ways to match (no repetition within a repetition)."
            ) from None

    return share


def regex_places(name: str, pattern: str) -> Callable[[str, str], list[tuple[int, int]]]:
    """Where the matches of a pattern stand that `regex_share` takes; none where it takes too long.

    Raises:
        ConfigError: See there.
    """
    compiled = _compiled(name, pattern)

    def places(completion: str, prompt: str) -> list[tuple[int, int]]:
        try:
            found = compiled.finditer(completion, timeout=PATTERN_SECONDS)
            return [match.span() for match in found]
        except TimeoutError:
            return []

    return places


def keyword_places(words: str) -> Callable[[str, str], list[tuple[int, int]]]:
    """Where the words stand that `keyword_share` counts."""
    known = frozenset(word.strip().casefold() for word in words.split(","))

    def places(completion: str, prompt: str) -> list[tuple[int, int]]:
        found = _KEYWORD.finditer(completion)
        return [match.span() for match in found if match[0].casefold() in known]

    return places


def keyword_share(name: str, words: str) -> Callable[[str, str], float | None]:
    """A score: the share of a completion's words that are one of some, whatever their case.

    Raises:
        ConfigError: One of them is no single word.
    """
    wanted = [word.strip().casefold() for word in words.split(",")]
    if not all(_KEYWORD.fullmatch(word) for word in wanted):
        raise ConfigError(
            f"behavior: {name!r} needs single words with commas between them; a phrase is a "
            "regex:PATTERN."
        )
    known = frozenset(wanted)

    def share(completion: str, prompt: str) -> float | None:
        found = _KEYWORD.findall(completion.casefold())
        return sum(word in known for word in found) / len(found) if found else None

    return share


def undetected(completion: str, prompt: str) -> float | None:
    """The score of no behavior.

    Raises:
        DataError: Always.
    """
    raise DataError(
        "the config names no behavior (behavior: none), so nothing can be detected in a "
        "completion; name one there, such as regex:PATTERN or keywords:a,b"
    )


def are_places(text: str) -> Callable[[Any], bool]:
    """What says whether a value is a list of places [start, end) of a text."""

    def fits(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(
            isinstance(one, tuple)
            and len(one) == 2
            and all(isinstance(place, int) for place in one)
            and 0 <= one[0] <= one[1] <= len(text)
            for one in value
        )

    return fits


def own_object(name: str, place: str, kind: type) -> Any:
    """What `module.name` names in a module of the user's own: a function of one text, or a `kind`.

    Trusted are the modules that the user has on Python's path outside of its installation: naming
    one imports it, which runs it. Of it only what it defines itself serves; where it is, is looked
    up before anything is imported.

    Raises:
        ConfigError: There is no such thing, or it is not the user's own.
    """
    module_name, _, attribute = place.rpartition(".")
    if not all(part.isidentifier() for part in place.split(".")) or not module_name:
        raise ConfigError(
            f"behavior: {name!r} is not of the form python:module.function, with the module on "
            "PYTHONPATH."
        )
    top = module_name.partition(".")[0]
    _refuse_foreign(name, top, _spec(name, top))
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # also whatever the module itself raises
        raise _not_imported(name, error) from error
    _refuse_foreign(name, module_name, module.__spec__)
    if attribute not in vars(module):
        raise ConfigError(
            f"behavior: {name!r}: the module {module_name} defines no {attribute!r}; a function of "
            "the completion or a gradroute Behavior is needed."
        )
    found = vars(module)[attribute]
    if isinstance(found, kind):
        return found
    if not isinstance(found, types.FunctionType) or inspect.iscoroutinefunction(found):
        raise ConfigError(
            f"behavior: {name!r} is {_kind_of(found)}; a function of the completion (written with "
            "def) or a gradroute Behavior is needed."
        )
    if found.__module__ != module_name:
        raise ConfigError(
            f"behavior: {name!r} is defined elsewhere, in {found.__module__}; only a function that "
            f"{module_name} defines itself is taken. Write one there that calls it."
        )
    try:
        inspect.signature(found).bind("")
    except TypeError as error:
        raise ConfigError(
            f"behavior: {name!r} cannot be called with a completion alone ({error}); a function of "
            "one text is needed."
        ) from error
    return found


def _compiled(name: str, pattern: str) -> "regex.Pattern[str]":
    problem = "is no regular expression"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as FutureWarning: reads differently elsewhere
            re.compile(pattern)
            escaped, width = _literal_braces(pattern)
            if width > MAX_WIDTH:
                raise ConfigError(
                    f"behavior: {name!r:.200} is too large: with its repetitions written out it "
                    f"has {width} characters, and at most {MAX_WIDTH} are taken."
                )
            compiled = regex.compile(escaped, cache_pattern=False)
        if compiled.search("", timeout=PATTERN_SECONDS) is None:
            return compiled
    except (re.error, regex.error, OverflowError, RecursionError, TimeoutError) as error:
        reason = printable(str(error))
    except Warning as error:
        problem, reason = "can be read in two ways", f"{error}; put a backslash before it"
    else:
        raise ConfigError(
            f"behavior: {name!r} matches an empty text, so it would be found everywhere."
        )
    raise ConfigError(f"behavior: {name!r:.200} {problem}: {reason}.")


def _literal_braces(pattern: str) -> tuple[str, int]:
    """The pattern with a backslash before each brace that stands for itself, and how large it is.

    To `regex`, though not to `re`, such a brace may begin a fuzzy match.
    """
    pieces: list[str] = []
    widths, last = [0], 0  # of the groups that are open, and of the last atom
    for piece in _PIECES.findall(pattern):
        if piece == "{":
            piece = r"\{"
        pieces.append(piece)
        if piece == "(":
            widths.append(0)
            last = 0
        elif piece == ")" and len(widths) > 1:
            last = widths.pop()
            widths[-1] += last
        elif piece[0] == "{":
            times = int(re.match(r"\{(\d*)", piece)[1] or 0)  # pyright: ignore
            widths[-1] += last * max(0, times - 1)
            last *= max(1, times)
        else:
            last = 1
            widths[-1] += last
    return "".join(pieces), sum(widths)


def _spec(name: str, top: str) -> ModuleSpec | None:
    if top == "__main__":  # nobody's module by name, and without a spec in some programs
        return None
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError) as error:
        raise _not_imported(name, error) from error


def _refuse_foreign(name: str, module: str, spec: ModuleSpec | None) -> None:
    """Refuse a module that is not in a file of the user's own."""
    top = module.partition(".")[0]
    whose = None
    if top in sys.stdlib_module_names or top in ("gradroute", "__main__"):
        whose = "gradroute" if top == "gradroute" else "Python"
    elif spec is None:
        raise _not_imported(name, ModuleNotFoundError(f"No module named {module!r}"))
    elif not _own_files(spec):
        whose = "an installed package"
    if whose:
        raise ConfigError(
            f"behavior: {name!r} belongs to {whose}; a configuration may name a function only of a "
            "module of your own, in a file outside of the Python installation. Write one there."
        )


def _own_files(spec: ModuleSpec) -> bool:
    places = list(spec.submodule_search_locations or ())
    if spec.has_location and spec.origin:
        places.append(spec.origin)
    library = Path(importlib.__file__).resolve().parents[1]
    for place in (Path(place).resolve() for place in places):
        if not place.exists() or place.is_relative_to(library) or set(place.parts) & _INSTALLED:
            return False
    return bool(places)


def _not_imported(name: str, error: BaseException) -> ConfigError:
    reason = f"{type(error).__name__}: {printable(str(error)[:200])}"
    return ConfigError(
        f"behavior: {name!r} cannot be imported ({reason}); python:module.function is needed, with "
        "the module on PYTHONPATH."
    )


def _kind_of(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.iscoroutinefunction(value):
        return "an async function"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
