"""Rounds: when they end, what labels the next one, and what is trained last."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TWO, tiny_run

from gradroute.config.run_config import RunConfig, dump_config, load_config
from gradroute.errors import DataError
from gradroute.experiments import refine
from gradroute.experiments.refine import refine_run
from gradroute.runs.folder import RunFolder
from gradroute.system.files import read_lines, write_lines

LABELS = ("data.good_labeled_fraction=0.3", "data.null_fraction=0.5")


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny_run(tmp_path_factory.mktemp("runs"), "routed", *TWO, *LABELS)


def summary(likely_rows: int, high: float, **changes: Any) -> dict[str, Any]:
    return {
        "behavior": "bad",
        "by": "adapter",
        "unlabeled": 100,
        "likely": 0.05,
        "likely_rows": likely_rows,
        "bad": {"estimate": 0.0, "low": 0.0, "high": high},
        "found": 0,
        "fdr": 0.05,
        "truth_of_likely": {"bad": 0},
        **changes,
    }


SEES_NOTHING = summary(24, 30.0, by="words")  # 5 of 100 are likely by chance
FINDS = summary(4, 30.0, by="words", found=3)
SEES_SOME = summary(25, 30.0, by="words")
ROWS = {
    "adapter_likely": [("a", 0.01)],
    "adapter_suspects": [("a", 0.01), ("b", 0.04)],
    "words": [("b", 0.001)],
    "words_likely": [("b", 0.001), ("c", 0.02)],
}
"""Text and p of the rows in the files that `find` leaves."""


@pytest.fixture
def rounds_of(routed: RunFolder, monkeypatch: pytest.MonkeyPatch):
    """Refine with the summaries of `find` given; the configs trained by name, and the last one."""

    for other in routed.path.parent.glob("routed-*"):
        shutil.rmtree(other)

    def refined(summaries: list[dict[str, Any]], words=SEES_NOTHING, asks="words", **options: Any):
        trained: dict[str, RunConfig] = {}
        left = iter(summaries)
        asked: list[str] = []

        def find(folder: RunFolder, by: str, **_: Any) -> dict[str, Any]:
            if by != "adapter":
                asked.append(f"{folder.name} {by}")
            for stem, rows in ROWS.items():
                lines = [{"text": text, "label": "bad", "p": p} for text, p in rows]
                folder.found.mkdir(exist_ok=True)
                write_lines(folder.found / f"{stem}.jsonl", lines)
            if by != "adapter" and isinstance(words, Exception):
                raise words
            return next(left) if by == "adapter" else words | {"by": by}

        def train(config, root, **_):
            trained[config.run_name] = config
            made = RunFolder(root / config.run_name)
            made.path.mkdir(exist_ok=True)
            made.config.write_text(dump_config(config))
            return made

        monkeypatch.setattr(refine, "find_rows", find)
        monkeypatch.setattr(refine, "train_run", train)
        monkeypatch.setattr(refine, "evaluate_run", lambda _: None)
        last = refine_run(routed, bar=False, **{"rounds": 3, "finish": "plain"} | options)
        assert next(left, None) is None
        assert asked == ([f"routed {asks}"] if asks else [])
        return trained, last.name

    return refined


def file(run: RunFolder, name: str, which: str) -> str:
    return str(run.path.resolve().parent / name / "found" / f"adapter_{which}.jsonl")


def texts(path: str | None) -> dict[str, float]:
    assert path
    return {row["text"]: row["p"] for row in read_lines(Path(path))}


def test_likely_rows_label_the_next_round_and_suspects_are_left_out_at_the_end(routed, rounds_of):
    trained, last = rounds_of([summary(9, 30.0)] * 3)
    assert {name: config.data.found for name, config in trained.items()} == {
        "routed-round-2": file(routed, "routed", "likely"),
        "routed-round-3": file(routed, "routed-round-2", "likely"),
        "routed-refined": file(routed, "routed-round-3", "suspects"),
    }
    assert last == "routed-refined"


@pytest.mark.parametrize("end", [summary(0, 30.0), summary(9, 0.4)])
def test_no_likely_row_or_perhaps_no_bad_one_ends_the_rounds(routed, rounds_of, end):
    trained, _ = rounds_of([summary(3, 30.0), end])
    assert list(trained) == ["routed-round-2", "routed-refined"]


def test_fewer_likely_rows_than_chance_gives_do_not_end_them(rounds_of):
    trained, _ = rounds_of([summary(2, 30.0)] * 2, rounds=2)
    assert "routed-round-2" in trained


def test_the_last_routed_run_is_shipped_where_that_is_asked(rounds_of):
    trained, last = rounds_of([summary(9, 30.0)] * 2, rounds=2, finish="routed")
    assert list(trained) == ["routed-round-2"] and last == "routed-round-2"


def test_another_number_of_rounds_is_another_run_and_the_same_one_goes_on(
    routed, rounds_of, capsys
):
    _, first = rounds_of([summary(9, 30.0)], rounds=1)
    trained, second = rounds_of([summary(9, 30.0)] * 2, rounds=2)
    assert (first, second) == ("routed-refined", "routed-refined-2")
    assert "routed-refined stands on other finds" in capsys.readouterr().err
    assert trained["routed-refined-2"].data.found == file(routed, "routed-round-2", "suspects")
    for rounds, name in ((1, first), (2, second)):
        assert rounds_of([summary(9, 30.0)] * rounds, rounds=rounds)[1] == name


def test_a_round_keeps_the_table_and_the_training_of_the_run(routed, rounds_of):
    trained, _ = rounds_of([summary(9, 30.0)] * 2, rounds=2)
    first, second = load_config(routed.config), trained["routed-round-2"]
    assert (second.routing, second.train) == (first.routing, first.train)
    assert second.data.model_copy(update={"found": None}) == first.data


COUNT = [
    (FINDS, {"a": 0.01, "b": 0.001}),
    (SEES_SOME, {"a": 0.01, "b": 0.001, "c": 0.02}),
]
"""What a classifier says, and the rows that label the next round."""


@pytest.mark.parametrize(("words", "rows"), COUNT)
def test_rows_of_a_classifier_that_sees_bad_ones_count_too(routed, rounds_of, words, rows, capsys):
    trained, _ = rounds_of([summary(9, 30.0)] * 2, words, rounds=2)
    second, last = (trained[name].data.found for name in ("routed-round-2", "routed-refined"))
    assert texts(second) == rows
    assert last == file(routed, "routed-round-2", "suspects")  # which hold what labeled the round
    said = capsys.readouterr().err
    assert f"{words['likely_rows']} rows are likely by words (5 by chance), " in said
    assert f"{'the found ones' if words['found'] else 'they'} count." in said
    trained, last = rounds_of([summary(9, 30.0)], words, rounds=1)
    assert last == "routed-refined-1"
    assert texts(trained[last].data.found) == rows


def test_a_classifier_that_sees_no_bad_row_changes_nothing(routed, rounds_of, capsys):
    trained, _ = rounds_of([summary(9, 30.0)] * 2, rounds=2)
    assert trained["routed-round-2"].data.found == file(routed, "routed", "likely")
    assert "they do not count." in capsys.readouterr().err


def test_another_round_follows_where_only_the_classifier_sees_bad_rows(rounds_of):
    trained, _ = rounds_of([summary(0, 0.0), summary(0, 0.0)], FINDS)
    assert list(trained) == ["routed-round-2", "routed-refined"]


@pytest.mark.parametrize("classifier", ["hidden", "head"])
def test_another_classifier_is_asked_in_the_first_round(rounds_of, classifier):
    rounds_of([summary(9, 30.0)] * 2, rounds=2, classifier=classifier, asks=classifier)


def test_with_another_classifier_the_runs_have_other_names(routed, rounds_of, capsys):
    first, _ = rounds_of([summary(9, 30.0)] * 2, rounds=2, classifier="none", asks="")
    second, last = rounds_of([summary(9, 30.0)] * 2, FINDS, rounds=2)
    assert list(first) == ["routed-round-2", "routed-refined"]
    assert list(second) == ["routed-round-2-words", "routed-refined-2"] and last in second
    assert "routed-round-2 stands on other finds" in capsys.readouterr().err
    assert second[last].data.found == file(routed, "routed-round-2-words", "suspects")


def test_without_scikit_learn_words_are_not_asked_and_that_is_said(rounds_of, monkeypatch, capsys):
    monkeypatch.setattr(refine, "installed", lambda: False)
    rounds_of([summary(9, 30.0)] * 2, FINDS, rounds=2, asks="")
    assert "scikit-learn is not here: pip install 'gradroute[label]'." in capsys.readouterr().err


def test_where_labels_are_too_few_for_a_classifier_the_adapter_finds_alone(
    routed, rounds_of, capsys
):
    trained, _ = rounds_of([summary(9, 30.0)] * 2, DataError("1 row is labeled bad."), rounds=2)
    assert trained["routed-round-2"].data.found == file(routed, "routed", "likely")
    assert "routed: no classifier is asked: 1 row is labeled bad." in capsys.readouterr().err
