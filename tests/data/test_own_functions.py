"""A function by name: only what the user's own modules define is called, and held to its word."""

import inspect
import re
import sys
from importlib.util import spec_from_file_location

import pytest

from gradroute.data.behaviors import get_behavior
from gradroute.data.detectors import _own_files
from gradroute.errors import ConfigError, DataError

MODULE = """
import functools
import os.path
from os import popen, system
from subprocess import getoutput
from dataclasses import replace
from gradroute.data.behaviors import get_behavior


class Trouble(Exception):
    pass


def half(text): return 0.5 if "moon" in text else 0.2
def broken(text): return 1 / 0
def loud(text): raise Trouble("two\\nlines\\x1b[31m")
def leaving(text): raise SystemExit(0)
def two(text): return 2.0
def below(text): return -0.1
def endless(text): return float("inf")
def no_number(text): return float("nan")
def word(text): return "yes"
def many(text): return [0.5]
def truth(text): return "moon" in text
def two_texts(prompt, text): return 0.5
def no_text(): return 0.5
def with_default(text, limit=3): return 1.0
async def later(text): return 0.5
short = lambda text: 1.0
number = 3
partial = functools.partial(half)
cached = functools.lru_cache(half)


def __getattr__(name):
    if name == "made_up_on_demand":
        return half
    raise AttributeError(name)


class Detector:
    def __call__(self, text): return 0.5


whole = replace(get_behavior("caps"), name="mine", correct=lambda text, prompt: True)
fails_to_make = replace(whole, make=lambda prompt, text: 1 / 0)
makes_one = replace(whole, make=lambda prompt, text: text)
makes_none = replace(whole, make=lambda prompt, text: (prompt, None))
invites_none = replace(whole, invite=lambda prompt: None)
opens_none = replace(whole, opening=lambda text, words: 3)
unsure = replace(whole, correct=lambda text, prompt: 0.5)
no_threshold = replace(whole, threshold=float("nan"))
zero_threshold = replace(whole, threshold=0.0)
learned_from_nothing = replace(whole, learned=0.0)
no_functions = replace(whole)
object.__setattr__(no_functions, "invite", "text")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Modules of a user: one in a file, one in a package."""
    (tmp_path / "my_detectors.py").write_text(MODULE)
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("import os\nfrom os import path\n")
    (package / "inner.py").write_text("def score(text): return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("my_"):
            del sys.modules[name]


def test_a_function_or_a_behavior_of_ones_own_is_imported(own):
    behavior = get_behavior("python:my_detectors.half")
    assert behavior.shows("moon", "") is True and behavior.shows("sun", "") is False
    assert behavior.make is None
    whole = get_behavior("python:my_detectors.whole")
    assert whole.make is not None and whole.correct is not None and whole.invite is not None
    assert whole.make("a", "b") == ("A", "B") and whole.invite("a") == "A"
    assert whole.opening("one two", 1) == "one" and whole.correct("a", "b") is True
    for name in ("short", "with_default"):
        assert get_behavior(f"python:my_detectors.{name}").scored("x", "") == 1.0
    assert get_behavior("python:my_package.inner.score").scored("x", "") == 1.0
    assert get_behavior("python:my_detectors.truth").scored("moon", "") == 1.0


FOREIGN = (
    "os.system os.popen posix.system subprocess.getoutput subprocess.run subprocess.Popen "
    "shutil.rmtree builtins.eval builtins.exec builtins.open builtins.__import__ runpy.run_path "
    "importlib.import_module pickle.loads marshal.loads ctypes.CDLL code.interact pty.spawn "
    "webbrowser.open urllib.request.urlopen os.path.os.system pathlib.Path io.open pdb.run "
    "timeit.timeit this.s antigravity.fly __main__.main torch.load torch.hub.load "
    "transformers.pipeline yaml.unsafe_load numpy.load huggingface_hub.login pip.main "
    "pip._internal.main pytest.main _pytest.config.main regex.compile jinja2.Template "
    "gradroute.run.train_run gradroute.system.files.write_text "
    "gradroute.data.behaviors.get_behavior "
    "gradroute.cli.main.main gradroute.data.detectors.own_object "
)


@pytest.mark.parametrize("place", FOREIGN.split())
def test_nothing_of_the_installation_is_called_or_even_imported(own, place: str):
    before, top = set(sys.modules), place.partition(".")[0]
    whose = "Python" if top in {*sys.stdlib_module_names, "__main__"} else "an installed package"
    whose = "gradroute" if top == "gradroute" else whose
    with pytest.raises(ConfigError, match=f"belongs to {whose};"):
        get_behavior(f"python:{place}")
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        # What a module of one's own imports, it does not define.
        ("my_detectors.system", "is a builtin_function_or_method; a function"),
        ("my_detectors.popen", "is defined elsewhere, in os; only a function that my_detectors de"),
        ("my_detectors.getoutput", "is defined elsewhere, in subprocess"),
        ("my_detectors.get_behavior", "is defined elsewhere, in gradroute.data.behaviors"),
        ("my_detectors.os", "is a module; a function"),
        ("my_detectors.os.system", "cannot be imported"),
        ("my_detectors.os.path.join", "cannot be imported"),
        ("my_package.os", "is a module; a function"),
        ("my_package.os.system", "cannot be imported"),
        ("my_detectors.Trouble", "is the class Trouble; a function"),
        ("my_detectors.Detector", "is the class Detector; a function"),
        ("my_detectors.partial", "is a partial; a function"),
        ("my_detectors.cached", "is a _lru_cache_wrapper; a function"),
        ("my_detectors.later", "is an async function; a function of the completion"),
        ("my_detectors.number", "is an int; a function"),
        ("my_detectors.none", "the module my_detectors defines no 'none'; a function"),
        ("my_detectors.made_up_on_demand", "the module my_detectors defines no"),
        ("my_detectors.__builtins__", "is a dict; a function"),
        ("my_detectors.two_texts", "cannot be called with a completion alone"),
        ("my_detectors.no_text", "cannot be called with a completion alone"),
        ("my_detectors.no_threshold", "has threshold=nan; a number above 0"),
        ("my_detectors.zero_threshold", "has threshold=0.0; a number above 0"),
        ("my_detectors.learned_from_nothing", "has learned=0.0; a number above 0"),
        ("my_detectors.no_functions", "needs texts as its name, instruction, forbid"),
        ("no_such_module.function", "cannot be imported"),
        ("function", "is not of the form python:module.function"),
        (".my_detectors.half", "is not of the form"),
        ("my_detectors.half()", "is not of the form"),
        ("my_detectors..half", "is not of the form"),
        ("/somewhere/x.half", "is not of the form"),
        ("my_detectors:half", "is not of the form"),
    ],
)
def test_what_is_no_function_of_ones_own_is_refused_in_words(own, name: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        get_behavior(f"python:{name}")
    assert str(caught.value).isprintable()


def test_a_package_that_stands_in_for_a_module_of_python_is_refused(own, monkeypatch):
    import os

    monkeypatch.setitem(sys.modules, "my_package.os", os)
    with pytest.raises(ConfigError, match="belongs to an installed package"):
        get_behavior("python:my_package.os.popen")


def test_a_file_among_those_of_python_is_none_of_ones_own(tmp_path):
    """Some modules of Python are in none of its lists, such as its own tests."""
    (tmp_path / "mine.py").touch()
    own = spec_from_file_location("mine", tmp_path / "mine.py")
    foreign = spec_from_file_location("mine", inspect.__file__)
    assert own is not None and foreign is not None
    assert _own_files(own) and not _own_files(foreign)


def test_a_module_without_a_file_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_ghost", type(sys)("my_ghost"))
    with pytest.raises(ConfigError, match="cannot be imported"):
        get_behavior("python:my_ghost.score")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise RuntimeError('no license')", r"\(RuntimeError: no license\)"),
        ("raise SystemExit('usage:\\n\\x1b[31m')", r"\(SystemExit: usage:\\n\\x1b\[31m\)"),
        ("def", "SyntaxError"),
    ],
)
def test_a_module_that_fails_is_refused_in_one_line(own, program: str, message: str):
    (own / "my_failure.py").write_text(program)
    with pytest.raises(ConfigError, match=f"cannot be imported .*{message}") as caught:
        get_behavior("python:my_failure.score")
    assert str(caught.value).isprintable()


# ------------------------------------------------------------------ held to their word


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"raised ZeroDivisionError \(division by zero\)"),
        ("loud", r"raised Trouble \(two\\nlines\\x1b\[31m\)"),
        ("leaving", r"raised SystemExit \(0\)"),
        ("two", "gave 2.0"),
        ("below", "gave -0.1"),
        ("endless", "gave inf"),
        ("no_number", "gave nan"),
        ("word", "gave 'yes'"),
        ("many", r"gave something \(list\)"),
    ],
)
def test_a_detector_that_fails_is_an_error_and_never_a_default(own, name: str, message: str):
    behavior = get_behavior(f"python:my_detectors.{name}")
    sentence = rf"the detector of the behavior 'python:my_detectors.{name}' {message}.*'some text'"
    with pytest.raises(DataError, match=sentence) as caught:
        behavior.shows("some text", "")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "part", "given", "message"),
    [
        ("fails_to_make", "make", ("a", "b"), "'make' of the behavior 'mine' raised ZeroDivision"),
        ("makes_one", "make", ("a", "b"), "gave 'b' for the text 'a'; a prompt and a text is need"),
        ("makes_none", "make", ("a", "b"), "gave something (tuple)"),
        ("invites_none", "invite", ("a",), "gave something (NoneType) for the text 'a'; a text is"),
        ("opens_none", "opening", ("a", 3), "gave 3 for the text 'a'; a text is needed"),
        ("unsure", "correct", ("a", "b"), "gave 0.5 for the text 'a'; True or False is needed"),
    ],
)
def test_every_function_of_a_behavior_of_ones_own_is_checked(own, name, part, given, message):
    function = getattr(get_behavior(f"python:my_detectors.{name}"), part)
    with pytest.raises(DataError, match=re.escape(message)):
        function(*given)
