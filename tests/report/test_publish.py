from pathlib import Path

import pytest
from report.page_runs import write_runs

from gradroute.errors import ConfigError, DataError
from gradroute.report import publish as publishing
from gradroute.report.publish import publish
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_json, write_json


def files(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def test_without_the_page_there_are_two_files_and_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = write_runs(tmp_path / "runs", prompts=4, names=("baseline", "routed"), sides=False)
    publish(folders, tmp_path / "out", page=False)
    assert files(tmp_path / "out") == ["eval_multi_plot.png", "eval_multi_results.json"]
    told = capsys.readouterr()
    assert "routed" in told.out and "bad_ablated" in told.out
    assert told.err.startswith("written: ")
    assert "report.html" not in told.err


def test_with_the_page_all_forms_lie_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = write_runs(tmp_path / "runs", prompts=4, names=("routed",), sides=False)
    every = publishing.pictures
    monkeypatch.setattr(publishing, "pictures", lambda comparison: every(comparison)[:1])
    for out in ("one", "two"):
        publish(folders, tmp_path / out, page=True)
    found = files(tmp_path / "one")
    assert found[:4] == [
        "eval_multi_plot.png",
        "eval_multi_results.json",
        "figures/eval_multi_plot.pdf",
        "figures/eval_multi_plot.png",
    ]
    assert {"report.html", "report.md", "tables/modes.csv", "tables/seeds.csv"} <= set(found)
    for name in found:  # the same runs give the same bytes
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "report.html" in capsys.readouterr().err


def test_runs_of_two_behaviors_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    folders = [
        write_runs(tmp_path / behavior, prompts=4, names=(name,), behavior=behavior)[0]
        for behavior, name in (("caps", "routed"), ("signature", "filter"))
    ]
    with pytest.raises(ConfigError, match=r"'caps'.*'signature'"):
        publish(folders, tmp_path / "out", page=True)
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_not_measured_is_sent_to_eval(tmp_path: Path) -> None:
    (folder,) = write_runs(tmp_path, prompts=4, names=("routed",))
    folder.results.unlink()
    with pytest.raises(DataError, match="gradroute eval"):
        publish([folder], tmp_path / "out", page=True)


@pytest.mark.parametrize("name", ["results", "geometry", "relearn"])
def test_a_file_of_a_newer_schema_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (folder,) = write_runs(tmp_path, prompts=4, names=("routed",))
    path = {
        "results": folder.results,
        "geometry": folder.geometry,
        "relearn": folder.relearn,
    }[name]
    write_json(path, read_json(path) | {"schema_version": 99})
    with pytest.raises(DataError, match=r"newer gradroute \(schema 99"):
        publish([RunFolder(folder.path)], tmp_path / "out", page=True)
    assert not (tmp_path / "out").exists()
