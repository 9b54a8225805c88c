"""Rounds: when they end, what labels the next one, and what is trained last."""

import shutil
from typing import Any

import pytest
from tiny_runs import TWO, tiny_run

from gradroute.config.run_config import RunConfig, dump_config, load_config
from gradroute.experiments import refine
from gradroute.experiments.refine import refine_run
from gradroute.runs.folder import RunFolder

LABELS = ("data.good_labeled_fraction=0.3", "data.null_fraction=0.5")


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny_run(tmp_path_factory.mktemp("runs"), "routed", *TWO, *LABELS)


def summary(likely_rows: int, high: float):
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
    }


@pytest.fixture
def rounds_of(routed: RunFolder, monkeypatch: pytest.MonkeyPatch):
    """Refine with the summaries of `find` given; the configs trained by name, and the last one."""

    for other in routed.path.parent.glob("routed-*"):
        shutil.rmtree(other)

    def refined(summaries: list[dict[str, Any]], **options: Any):
        trained: dict[str, RunConfig] = {}
        left = iter(summaries)

        def train(config, root, **_):
            trained[config.run_name] = config
            made = RunFolder(root / config.run_name)
            made.path.mkdir(exist_ok=True)
            made.config.write_text(dump_config(config))
            return made

        monkeypatch.setattr(refine, "find_rows", lambda *_, **__: next(left))
        monkeypatch.setattr(refine, "train_run", train)
        monkeypatch.setattr(refine, "evaluate_run", lambda _: None)
        last = refine_run(routed, bar=False, **{"rounds": 3, "finish": "plain"} | options)
        assert next(left, None) is None
        return trained, last.name

    return refined


def file(run: RunFolder, name: str, which: str) -> str:
    return str(run.path.resolve().parent / name / "found" / f"adapter_{which}.jsonl")


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
    assert "routed-refined stands on another number of rounds" in capsys.readouterr().err
    assert trained["routed-refined-2"].data.found == file(routed, "routed-round-2", "suspects")
    for rounds, name in ((1, first), (2, second)):
        assert rounds_of([summary(9, 30.0)] * rounds, rounds=rounds)[1] == name


def test_a_round_keeps_the_table_and_the_training_of_the_run(routed, rounds_of):
    trained, _ = rounds_of([summary(9, 30.0)] * 2, rounds=2)
    first, second = load_config(routed.config), trained["routed-round-2"]
    assert (second.routing, second.train) == (first.routing, first.train)
    assert second.data.model_copy(update={"found": None}) == first.data
