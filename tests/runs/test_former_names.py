"""Names of an earlier version are read as those that replaced them, and said once."""

from pathlib import Path

import pytest
from tiny_runs import TINY

from gradroute.cli.main import main
from gradroute.config.run_config import RunConfig, dump_config, load_config
from gradroute.runs.folder import RunFolder
from gradroute.runs.former_names import current_manifest, current_overrides
from gradroute.runs.resume import read_manifest
from gradroute.system.files import write_json

OFF = ["quantize=nothing", "data.relabel=nothing", "data.drop=nothing"]


def test_the_former_word_for_none_is_said_once_and_gives_the_same_configuration(capsys):
    assert load_config(None, OFF) == load_config(None) == RunConfig()
    assert capsys.readouterr().err == (
        f"defaults: {', '.join(OFF)}: `nothing` is now called `none`.\n"
    )


def test_a_file_of_ones_own_is_named_and_one_that_a_run_wrote_is_read_silently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    own = tmp_path / "own.yaml"
    own.write_text("quantize: nothing\ndata: {drop: true_bad}\n")
    assert load_config(own).quantize == "none"
    assert capsys.readouterr().err == (
        f"{own}: quantize=nothing: `nothing` is now called `none`.\n"
    )
    written = tmp_path / "config.yaml"
    written.write_text(dump_config(RunConfig()).replace("quantize: none", "quantize: nothing"))
    assert "quantize: nothing" in written.read_text()
    assert load_config(written) == RunConfig()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("override", ["run_name=nothing", "data.template=none", "data.drop=none"])
def test_nothing_is_said_of_a_text_or_of_the_present_word(override: str, capsys):
    load_config(None, [override])
    assert capsys.readouterr().err == ""


def test_the_former_word_is_not_dumped():
    assert "nothing" not in dump_config(load_config(None, OFF))


def test_keys_of_a_manifest_have_their_present_names(tmp_path: Path):
    former = {
        "data": "x labelled y",
        "examples": {"bad labelled unlabeled": 3, "good labeled good": 2},
        "labels": {"labelled_bad": 4, "precision": None},
    }
    current = {
        "data": "x labelled y",
        "examples": {"bad labeled unlabeled": 3, "good labeled good": 2},
        "labels": {"labeled_bad": 4, "precision": None},
    }
    folder = RunFolder(tmp_path)
    write_json(folder.manifest, former)
    assert read_manifest(folder) == current == current_manifest(current)
    assert current_manifest({"labels": None}) == {"labels": None}


def test_only_the_first_part_of_an_override_is_replaced():
    given = ["ground", "ground.data", "background.data", "data.ground", "seed"]
    assert current_overrides(given) == [
        "identity",
        "identity.data",
        "background.data",
        "data.ground",
        "seed",
    ]


def test_the_former_name_of_an_override_is_said_once(tmp_path: Path, capsys):
    command = ["train", "caps", *TINY, "train.max_steps=1", "--runs", str(tmp_path)]
    assert main([*command, "--override", "ground.data", "--override", "ground.base"]) == 0
    assert capsys.readouterr().err.count("`ground` is now called `identity`") == 1
    assert main([*command, "--override", "identity.data"]) == 0
    assert "is now called" not in capsys.readouterr().err
