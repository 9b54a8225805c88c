"""The file of a sweep is read strictly: what is wrong is named with its line and the way out."""

from pathlib import Path

import pytest

from gradroute.config.sweep_file import read_sweep_file
from gradroute.errors import ConfigError


def read(folder: Path, text: str):
    path = folder / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    return read_sweep_file(path)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value).replace(f"{folder}/", "")


def test_values_stay_as_they_are_written_and_lines_are_known(tmp_path: Path) -> None:
    found = read(tmp_path, "recipe: caps\naxes:\n  train.learning_rate: [1e-3, 1e-4]\nseeds: 3\n")
    assert found.file.axes == {"train.learning_rate": ["1e-3", "1e-4"]}
    assert found.file.seeds == [3] and found.file.evaluate
    assert found.place("axes", "train.learning_rate", 1) == f"{tmp_path}/grid.yaml:3"


def test_everything_that_is_wrong_is_named_at_once_with_its_line(tmp_path: Path) -> None:
    told = refused(
        tmp_path,
        "recip: caps\naxis: {}\nseeds: [0, 0]\nslurm: {gpu: 1}\ncontrols: [filtr]\nevaluate: 2\n"
        "axes: {a: 1, b: [], c: {d: 3}}\nslurm: {}\n",
    )
    assert told.splitlines()[:2] == [
        "11 problems:",
        "  grid.yaml:8: slurm is given twice, first on line 4; keep one.",
    ]
    for sentence in (
        "grid.yaml: recipe: this key is needed and is not there.",
        "grid.yaml:1: recip: there is no such key; did you mean recipe?",
        "grid.yaml:2: axis: there is no such key; did you mean axes?",
        "grid.yaml:3: seeds: a seed is given twice.",
        "grid.yaml:4: slurm.gpu: there is no such key; did you mean slurm.gpus?",
        "grid.yaml:5: controls: one of none, ",
        "grid.yaml:6: evaluate: true or false is needed, got '2'.",
        "grid.yaml:7: axes.a: a list of values, or names with the keys that each sets",
        "grid.yaml:7: axes.b: a list of values",
        "grid.yaml:7: axes.c: below each name, keys with values are needed",
    ):
        assert sentence in told, sentence


@pytest.mark.parametrize("line", ["account=lab", "-A lab"])
def test_a_line_for_sbatch_must_be_a_long_option(tmp_path: Path, line: str) -> None:
    told = refused(tmp_path, f"recipe: caps\nslurm: {{lines: ['{line}']}}\n")
    assert "an option of sbatch, as in --account=lab, is needed" in told


def test_a_line_for_sbatch_cannot_hold_a_second_line(tmp_path: Path) -> None:
    told = refused(tmp_path, 'recipe: caps\nslurm: {lines: ["--account=lab\\nrm -rf x"]}\n')
    assert "control characters and line breaks are refused" in told


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, "- caps\n") == (
        "grid.yaml: lines `key: value` are needed, got a list."
    )
