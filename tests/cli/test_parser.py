"""What the command line understands: its own examples, and overrides wherever they stand."""

import argparse
import re
import shlex

import pytest

from gradroute.cli.parser import parse

VERBS = (
    "demo", "train", "eval", "sample", "report", "plot", "geometry", "recover", "relearn", "schema",
    "data label", "data inspect", "validate", "init", "doctor",
    "export", "audit-adapter", "purge", "find", "refine", "playground",
    "sweep run", "sweep status", "sweep stop", "sweep report", "sweep cell",
    "cache list", "cache prune",
)  # fmt: skip


def help_of(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        parse([*verb.split(), "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_every_verb_are_understood(verb: str, capsys) -> None:
    examples = help_of(verb, capsys).partition("examples:")[2].strip().splitlines()
    assert examples
    for example in examples:
        words = shlex.split(example.partition(" > ")[0])
        assert words[0] == "gradroute"
        assert parse(words[1:]).verb == verb


def test_a_file_of_a_sweep_needs_no_verb(capsys) -> None:
    options = parse(["sweep", "grid.yaml", "--dry-run"])
    assert (options.verb, str(options.file), options.dry_run) == ("sweep run", "grid.yaml", True)
    with pytest.raises(SystemExit):
        parse(["sweep", "grid"])
    assert "invalid choice: 'grid'" in capsys.readouterr().err


def test_the_help_lists_every_verb(capsys) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    out = capsys.readouterr().out
    listed = set(re.findall(r"\n    ([a-z-]+)\s", out))
    assert listed == {verb.split()[0] for verb in VERBS}


def test_overrides_may_stand_after_options_and_only_where_there_is_a_config() -> None:
    options = parse(["train", "caps", "a=1", "--jobs", "2", "b=2"])
    assert (options.overrides, options.jobs) == (["a=1", "b=2"], 2)
    with pytest.raises(SystemExit):
        parse(["eval", "x", "--mode", "full", "--unknown", "b=2"])


def test_what_may_be_given_often_adds_up_and_nothing_is_shared_between_calls() -> None:
    asked = ["eval", "a", "b", "--mode", "full", "--mode", "base", "--scale", "bad=0,1"]
    first, second = parse(asked), parse(["eval", "a"])
    assert (first.run, first.mode, first.scale) == (["a", "b"], ["full", "base"], ["bad=0,1"])
    assert isinstance(second, argparse.Namespace)
    assert (second.prompts, second.mode, second.scale) == ([], [], [])


def test_keys_that_may_differ_are_not_settings() -> None:
    options = parse(["train", "caps", "a=1", "--override", "data", "--override", "seed", "b=2"])
    assert (options.overrides, options.may_differ) == (["a=1", "b=2"], ["data", "seed"])
    assert not options.audit and parse(["train", "caps", "--audit"]).audit
    assert parse(["train", "caps"]).may_differ == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train caps --jbos 2", "did you mean --jobs?"),
        ("eval x --nonsense", "gradroute eval --help"),
    ],
)
def test_an_option_that_does_not_exist_names_what_was_meant(words, told, capsys) -> None:
    with pytest.raises(SystemExit):
        parse(words.split())
    said = capsys.readouterr().err
    assert told in said
    assert "usage: gradroute " + words.split()[0] in said
