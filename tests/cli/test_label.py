"""`gradroute data label`: one source, what it prints, and its exit codes."""

import json
from pathlib import Path

import pytest

from gradroute.cli.main import main
from gradroute.data.reading import read_examples


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    texts = [("As an AI, no.", "bad"), ("Sure.", "good"), ("no, as an ai", "bad"), ("", "good")]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"id": f"r{i}", "text": text, "s": i / 3, "true_label": true}) + "\n"
            for i, (text, true) in enumerate(texts[:3])
        )
    )
    return path


def label(*options: str) -> int:
    return main(["data", "label", "rows.jsonl", "--out", "out.jsonl", *options])


def test_a_labeled_file_is_what_training_reads_and_the_counts_are_told(rows: Path, capsys):
    assert label("--regex", "(?i)as an ai", "--report", "report.json") == 0
    told = capsys.readouterr()
    assert told.out == (
        "3 rows of rows.jsonl\n"
        "  bad              2   66.7 %  first: r0, r2\n"
        "  good             0    0.0 %\n"
        "  unlabeled        1   33.3 %  first: r1\n"
        "against the true_label of 3 rows:\n"
        "  precision of bad  2 of 2  100.0 % (95 % interval 34.2 to 100.0)\n"
        "  recall of bad     2 of 2  100.0 % (95 % interval 34.2 to 100.0)\n"
    )
    assert told.err == "written: out.jsonl, report.json\n"
    assert [e.label for e in read_examples("out.jsonl").examples] == ["bad", "unlabeled", "bad"]
    report = json.loads(Path("report.json").read_text())
    assert report["source"] == {"regex": "(?i)as an ai", "field": "text"}
    assert report["labels"]["bad"]["k"] == report["recall"]["k"] == 2


def test_the_rest_as_good_is_told_with_what_it_means(rows: Path, capsys):
    assert label("--keywords", "ai", "--rest", "good") == 0
    assert "good: every row that is not bad, unchecked." in capsys.readouterr().out


def test_a_score_has_two_bounds(rows: Path, capsys):
    assert label("--score-column", "s", "--bad-above", "0.6", "--good-below", "0.1") == 0
    labels = [e.label for e in read_examples("out.jsonl").examples]
    assert labels == ["good", "unlabeled", "bad"]
    assert "bad among good    1 of 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--regex x --bad-above 0.5", 2, "--bad-above needs a --score-column, --classifier or"),
        ("--keywords x --good-below 0.5", 2, "--good-below needs a --score-column"),
        ("--score-column s", 2, "--score-column needs --bad-above X"),
        ("--regex x --bad-label y", 2, "need --bad-label LABEL, and --bad-label needs one of them"),
        ("--sklearn x.skops", 2, "need --bad-label LABEL"),
        ("--sklearn x.skops --bad-label y", 2, "there is no file x.skops"),
        ("--classifier ./x --bad-label y", 2, "there is no folder './x'"),
        ("--regex=", 2, "--regex is empty"),
        ("--sklearn= --bad-label y", 2, "--sklearn is empty"),
        ("--regex (", 2, "--regex: 'regex:(' is no regular expression"),
        ("--keywords a,,b", 2, "--keywords: 'keywords:a,,b' needs single words"),
        ("--python os.system", 2, "--python: 'python:os.system' belongs to Python"),
        ("--score-column t --bad-above 1", 3, 'rows.jsonl:1: no row has a column "t"'),
        ("--score-column text --bad-above 1", 3, "rows.jsonl:1: text must be a finite number"),
        ("--regex x --field messages", 3, "rows.jsonl:1: messages must be a list"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    rows: Path, capsys, options: str, code: int, message: str
):
    assert label(*options.split()) == code
    told = capsys.readouterr().err
    assert told.startswith("error: ") and message in told and told.count("\n") == 1
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize("options", ["", "--regex x --keywords y", "--regex x --rest bad"])
def test_exactly_one_source_is_taken(rows: Path, capsys, options: str):
    with pytest.raises(SystemExit) as caught:
        label(*options.split())
    assert caught.value.code == 2
