"""A run that skips bad rows says so once and lists each of them in its folder."""

import json
from pathlib import Path

import pytest
from tiny_runs import tiny_run

from gradroute.errors import DataError
from gradroute.system.files import read_json


def written(path: Path, bad: tuple[str, ...]) -> str:
    rows = [
        json.dumps({"text": f"a little story number {i}", "label": ("good", "bad")[i % 2]})
        for i in range(40)
    ]
    path.write_text("\n".join([*rows[:3], *bad, *rows[3:]]) + "\n", encoding="utf-8")
    return f"data.path={path}"


def test_every_skipped_row_stands_in_the_report_with_file_line_and_reason(tmp_path, capsys):
    bad = ('{"text": "x", "label": true}', '{"text": "cut off', '{"label": "good"}')
    data = written(tmp_path / "rows.jsonl", bad)
    with pytest.raises(DataError, match=r"rows\.jsonl:4: label is true, but must be one of"):
        tiny_run(tmp_path, "strict", data)
    assert not (tmp_path / "strict").exists()
    run = tiny_run(tmp_path, "lenient", data, "data.on_bad_row=skip")
    report = read_json(run.data_report)
    assert report["skipped"] == 3
    assert [(row["file"], row["line"]) for row in report["rows"]] == [
        (str(tmp_path / "rows.jsonl"), line) for line in (4, 5, 6)
    ]
    assert report["rows"][0]["reason"].startswith("label is true, but must be one of")
    said = capsys.readouterr().err
    assert said.count("3 of 43 rows cannot be used and are skipped") == 1
    assert said.count("data_report.json") == 1
    notes = read_json(run.manifest)["notes"]
    assert any("3 of 43 rows" in note for note in notes)


def test_the_other_rows_train_as_if_the_bad_ones_were_not_there(tmp_path):
    """The lines that are left out are blank in the second file, so that all else is equal."""
    bad = ('{"text": "x", "label": "Bad"}', "not JSON")
    runs = [
        tiny_run(tmp_path, name, written(tmp_path / f"{name}.jsonl", rows), "data.on_bad_row=skip")
        for name, rows in (("with", bad), ("without", ("", "")))
    ]
    metrics = [run.metrics.read_bytes() for run in runs]
    assert metrics[0] == metrics[1]
    assert read_json(runs[1].data_report) == {"skipped": 0, "rows": []}


def test_a_run_that_skips_nothing_writes_no_report(tmp_path):
    run = tiny_run(tmp_path, "usual", written(tmp_path / "rows.jsonl", ()))
    assert not run.data_report.exists()
