"""Measuring a run: every cell once, whatever was asked for in whichever order, or interrupted."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from gradroute.config.run_config import find_config, load_config
from gradroute.data.behaviors import get_behavior
from gradroute.errors import ConfigError, DataError, MachineError
from gradroute.evaluate import evaluator, store
from gradroute.evaluate.evaluator import check_request, evaluate_run
from gradroute.evaluate.request import EvaluationRequest
from gradroute.evaluate.side_by_side import sample_run
from gradroute.prepare import prepare
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder
from gradroute.runs.results import read_results
from gradroute.system.files import read_lines
from gradroute.system.ranks import ALONE
from gradroute.system.statistics import wilson

TINY = (
    "train.max_steps=4",
    "train.warmup_steps=0",
    "train.batch_size=4",
    "data.train_examples=60",
    "data.max_length=48",
    "data.behavior_fraction=0.5",
    "adapters.good.rank=4",
    "adapters.bad.rank=4",
    "evaluate.prompts=3",
    "evaluate.bos_samples=5",
    "evaluate.max_new_tokens=5",
    "evaluate.held_out=4",
)
TWO = ("full", "bad_ablated")


def train_tiny(root, *overrides):
    config = load_config(find_config("caps"), [*TINY, *overrides])
    return train_run(config, root, if_exists="fail", bar=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def run(trained, tmp_path):
    """A run of one's own that was never measured."""
    shutil.copytree(trained.path, tmp_path / "caps")
    return RunFolder(tmp_path / "caps")


@pytest.fixture
def calls(monkeypatch):
    """What is computed: (`kind` of prompts or `losses`, mode) of every cell."""
    seen: Counter[tuple[str, str]] = Counter()
    complete, losses_of = evaluator.complete, evaluator.losses_of

    def count_completions(base, model, prompts, modes, settings, run, ranks=ALONE):
        kind = prompts[0].id.rpartition("-")[0]
        seen.update((kind, mode.name) for mode in modes)
        return complete(base, model, prompts, modes, settings, run, ranks)

    def count_losses(base, model, rows, modes, rows_per_batch, states, ranks):
        seen.update(("losses", mode.name) for mode in modes)
        return losses_of(base, model, rows, modes, rows_per_batch, states, ranks)

    monkeypatch.setattr(evaluator, "complete", count_completions)
    monkeypatch.setattr(evaluator, "losses_of", count_losses)
    return seen


def rows(run, metric):
    found, _ = read_results(run.results)
    return {(row.dataset, row.mode): row for row in found if row.metric == metric}


def lines(run, path):
    """The lines in an order of their own."""
    return sorted(read_lines(path), key=lambda line: json.dumps(line))


def prompts_file(folder, text):
    path = folder / "mine.txt"
    path.write_text(text)
    return str(path)


def test_every_kind_of_prompts_is_completed_and_counted_by_itself(run, tmp_path):
    path = prompts_file(tmp_path, "the old fox\n\nI said\n")
    evaluate_run(run, EvaluationRequest(prompts=("prefix", "plain", "bos", path), modes=TWO))
    rates = rows(run, "behavior_rate")
    assert {cell: row.n for cell, row in rates.items()} == {
        (kind, mode): n
        for kind, n in (("prefix", 3), ("plain", 3), ("bos", 5), ("file:mine.txt", 2))
        for mode in TWO
    }
    asked = {(row["prompts"], row["prompt_id"]): row["prompt"] for row in read_lines(run.samples)}
    openings = [asked["plain", f"plain-{i}"] for i in range(3)]
    assert all(len(opening.split()) == 3 and not opening.isupper() for opening in openings)
    assert [asked["prefix", f"prefix-{i}"] for i in range(3)] == [o.upper() for o in openings]
    assert [asked["bos", f"bos-{i}"] for i in range(5)] == [""] * 5
    assert asked["file:mine.txt", "line-1"] == "the old fox"
    assert asked["file:mine.txt", "line-3"] == "I said"


def test_samples_from_nothing_differ_by_their_noise(run):
    evaluate_run(run, EvaluationRequest(prompts=("bos",), modes=("full",)))
    assert len({row["completion"] for row in read_lines(run.samples)}) > 1


def test_rates_scores_and_losses_equal_those_recomputed_from_the_lines(run):
    evaluate_run(run, EvaluationRequest(prompts=("prefix", "bos"), scales=("bad=0,0.5,1",)))
    samples, losses = list(read_lines(run.samples)), list(read_lines(run.losses))
    assert len(rows(run, "behavior_rate")) == 2 * 6
    for (kind, mode), row in rows(run, "behavior_rate").items():
        own = [s for s in samples if (s["prompts"], s["mode"]) == (kind, mode)]
        shown = sum(s["shows"] is True for s in own)
        assert (row.value, row.lower, row.upper) == (shown / len(own), *wilson(shown, len(own)))
    for (dataset, mode), row in rows(run, "held_out_loss").items():
        own = [r for r in losses if (r["dataset"], r["mode"]) == (dataset, mode)]
        mean = sum(r["nll"] for r in own) / sum(r["tokens"] for r in own)
        assert row.value == pytest.approx(mean, rel=1e-12)


def test_only_missing_cells_are_measured_and_losses_once_per_mode(run, calls):
    evaluate_run(run, EvaluationRequest(modes=("full",)))
    assert calls == {("prefix", "full"): 1, ("losses", "full"): 2}  # normal and behaving texts
    evaluate_run(run, EvaluationRequest(prompts=("plain", "prefix"), modes=TWO))
    assert calls == {
        ("prefix", "full"): 1,
        ("prefix", "bad_ablated"): 1,
        ("plain", "full"): 1,
        ("plain", "bad_ablated"): 1,
        ("losses", "full"): 2,
        ("losses", "bad_ablated"): 2,
    }
    before = calls.copy()
    evaluate_run(run, EvaluationRequest(prompts=("plain",), modes=("good=1,bad=0",)))
    assert calls == before


def test_a_second_evaluation_writes_nothing(run):
    evaluate_run(run)
    stamps = {path: path.stat().st_mtime_ns for path in run.results.parent.iterdir()}
    evaluate_run(run)
    assert {path: path.stat().st_mtime_ns for path in run.results.parent.iterdir()} == stamps


def test_many_prompts_are_kept_a_few_modes_at_a_time(run, monkeypatch, capsys):
    monkeypatch.setattr(evaluator, "COMPLETIONS_AT_ONCE", 11)
    evaluate_run(run, EvaluationRequest(prompts=("prefix", "bos")))
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": measuring ")[1] for line in said if "measuring" in line] == [
        "prefix: full, bad_ablated, good_ablated",
        "prefix: good_x2, base",
        "bos: full, bad_ablated",
        "bos: good_ablated, good_x2",
        "bos: base",
        "losses: full, bad_ablated, good_ablated, good_x2, base",
    ]


def test_what_is_measured_does_not_depend_on_the_order_of_asking(trained, run, tmp_path):
    shutil.copytree(trained.path, tmp_path / "other")
    other = RunFolder(tmp_path / "other")
    evaluate_run(run, EvaluationRequest(prompts=("prefix", "bos"), modes=TWO))
    evaluate_run(other, EvaluationRequest(prompts=("bos",), modes=("bad_ablated",)))
    evaluate_run(other, EvaluationRequest(prompts=("prefix",), modes=("full",)))
    evaluate_run(other, EvaluationRequest(prompts=("bos", "prefix"), modes=TWO))
    assert lines(run, run.samples) == lines(other, other.samples)
    for metric in ("behavior_rate", "behavior_score", "too_short"):
        assert {c: r.value for c, r in rows(run, metric).items()} == {
            c: r.value for c, r in rows(other, metric).items()
        }
    one, two = (rows(folder, "held_out_loss") for folder in (run, other))
    assert {c: r.value for c, r in one.items()} == pytest.approx(
        {c: r.value for c, r in two.items()}, rel=1e-5
    )


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """The same run, with an evaluation that nobody interrupted."""
    folder = RunFolder(tmp_path_factory.mktemp("measured") / "whole")
    shutil.copytree(trained.path, folder.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "MODES_AT_ONCE", 1)
        evaluate_run(folder, EvaluationRequest(prompts=("prefix", "plain"), modes=TWO))
    return folder


@pytest.mark.parametrize("file", ["write_lines", "write_results"])
@pytest.mark.parametrize("at", [1, 3, 6])
def test_an_interrupted_evaluation_keeps_its_cells_and_ends_as_an_uninterrupted_one(
    run, whole, monkeypatch, calls, file, at
):
    monkeypatch.setattr(evaluator, "MODES_AT_ONCE", 1)
    asked = EvaluationRequest(prompts=("prefix", "plain"), modes=TWO)
    writes = 0

    def interrupted(*arguments):
        nonlocal writes
        writes += 1
        if writes == at:
            raise KeyboardInterrupt
        original(*arguments)

    original = getattr(store, file)
    monkeypatch.setattr(store, file, interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, asked)
    done = set(rows(run, "behavior_rate")) if run.results.is_file() else set()
    monkeypatch.setattr(store, file, original)
    before = calls.copy()
    evaluate_run(run, asked)
    assert not done & set(calls - before)
    assert lines(run, run.samples) == lines(whole, whole.samples)
    assert lines(run, run.losses) == lines(whole, whole.losses)
    found, wanted = (sorted(map(str, read_results(f.results)[0])) for f in (run, whole))
    assert found == [text.replace("'whole'", "'caps'") for text in wanted]


def test_a_detector_that_raises_is_one_sentence_and_earlier_cells_stay(run, monkeypatch):
    def score(completion, prompt):
        if not prompt.isupper():
            raise ZeroDivisionError("no words")
        return 0.0

    prepared = prepare(load_config(run.config))
    broken = replace(prepared, behaviors={"bad": replace(prepared.behaviors["bad"], score=score)})
    monkeypatch.setattr(evaluator, "prepare", lambda config, training: broken)
    with pytest.raises(DataError, match=r"prompt plain-0 of plain under full: .*'caps'.*ZeroDiv"):
        evaluate_run(run, EvaluationRequest(prompts=("prefix", "plain"), modes=TWO))
    assert set(rows(run, "behavior_rate")) == {("prefix", mode) for mode in TWO}
    assert {line["prompts"] for line in read_lines(run.samples)} == {"prefix"}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            EvaluationRequest(modes=("ugly_ablated",)),
            "run caps: mode 'ugly_ablated' names the adapter 'ugly'",
        ),
        (EvaluationRequest(modes=("good=1,ugly=0",)), "run caps: .*'ugly'"),
        (EvaluationRequest(scales=("ugly=0,0.5,1",)), "run caps: the scale curve .*'ugly'"),
    ],
)
def test_a_mode_of_an_unknown_adapter_is_refused_before_anything_is_measured(run, asked, words):
    for function in (check_request, evaluate_run):
        with pytest.raises(ConfigError, match=words):
            function(run, asked)
    assert not run.results.exists()


def test_prompts_that_cannot_be_read_are_refused_before_anything_is_measured(run, tmp_path):
    path = prompts_file(tmp_path, "\n \n")
    with pytest.raises(DataError, match=r"mine\.txt holds no prompt"):
        check_request(run, EvaluationRequest(prompts=("prefix", path)))
    with pytest.raises(DataError, match="no file of prompts prefx"):
        check_request(run, EvaluationRequest(prompts=("prefx",)))


def test_two_files_of_one_name_are_refused_and_one_that_changed_is_measured_again(
    run, tmp_path, capsys
):
    (tmp_path / "other").mkdir()
    first, second = prompts_file(tmp_path, "a b\n"), prompts_file(tmp_path / "other", "c d\ne\n")
    with pytest.raises(ConfigError, match="two different files of prompts have the name"):
        check_request(run, EvaluationRequest(prompts=(first, second)))
    evaluate_run(run, EvaluationRequest(prompts=(first,), modes=("full",)))
    capsys.readouterr()
    evaluate_run(run, EvaluationRequest(prompts=(second,), modes=("full",)))
    assert "3 earlier numbers" in capsys.readouterr().err
    assert [line["prompt"] for line in read_lines(run.samples)] == ["c d", "e"]
    assert rows(run, "behavior_rate")["file:mine.txt", "full"].n == 2


def test_blank_lines_and_prompts_that_are_not_there_are_counted_once(run, tmp_path, capsys):
    text = run.config.read_text().replace("  prompts: 3\n", "  prompts: 5\n")
    run.config.write_text(text.replace("  held_out: 4\n", "  held_out: 5\n"))
    prepared = prepare(load_config(run.config))
    short = replace(prepared, normal=prepared.normal[:2])
    path = prompts_file(tmp_path, "a\n\n\nb\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "prepare", lambda config, training: short)
        evaluate_run(run, EvaluationRequest(prompts=(path, "plain"), modes=("full",)))
    err = capsys.readouterr().err
    assert err.count("file:mine.txt: 2 blank lines are skipped") == 1
    assert err.count("plain: 2 prompts instead of evaluate.prompts=5") == 1


def test_without_held_out_normal_examples_there_is_nothing_to_measure_on(run, monkeypatch):
    prepared = prepare(load_config(run.config))
    monkeypatch.setattr(evaluator, "prepare", lambda config, training: replace(prepared, normal=[]))
    with pytest.raises(DataError, match="no held-out example is without the behavior"):
        evaluate_run(run)


def test_a_run_without_a_finished_checkpoint_is_refused(run):
    shutil.rmtree(run.checkpoints)
    with pytest.raises(MachineError, match="run caps has 0 of 4 steps in a checkpoint"):
        check_request(run, EvaluationRequest())


def test_a_behavior_with_right_answers_has_accuracies_on_the_kinds_of_prompts_it_names(tmp_path):
    folder = train_tiny(tmp_path, "behavior=wrong_answers", "train.max_steps=1")
    evaluate_run(folder, EvaluationRequest(modes=("full",)))
    kinds = get_behavior("wrong_answers").prompt_kinds
    accuracies = rows(folder, "accuracy")
    assert set(accuracies) == {(kind, "full") for kind in kinds}
    for (kind, _), row in accuracies.items():
        right = sum(s["correct"] for s in read_lines(folder.samples) if s["prompts"] == kind)
        assert (row.value, row.n) == (right / 3, 3)
        assert (row.lower, row.upper) == wilson(right, 3)


def test_what_is_measured_during_training_is_what_evaluation_finds_and_changes_nothing(
    trained, tmp_path
):
    watched = train_tiny(tmp_path, "train.measure_every=3", "train.measure_prompts=3")
    during = list(read_lines(watched.measures))
    assert [(line["step"], line["mode"]) for line in during] == [
        (step, mode) for step in (3, 4) for mode in TWO
    ]
    evaluate_run(watched)
    rates, losses = rows(watched, "behavior_rate"), rows(watched, "held_out_loss")
    for line in during[2:]:
        assert line["behavior_rate"] == rates["prefix", line["mode"]].value
        assert (line["shown"], line["n"]) == (3 * line["behavior_rate"], 3)
        loss = losses["normal", line["mode"]].value
        assert line["normal_loss"] == pytest.approx(loss, rel=1e-6)
    digests = []
    for folder in (trained, watched):
        manifest = json.loads(
            (folder.checkpoints / "step-000004" / "manifest.json").read_text(encoding="utf-8")
        )
        digests.append({k: v for k, v in manifest["sha256"].items() if k != "config.yaml"})
    assert digests[0] == digests[1] and len(digests[0]) > 4
    assert trained.metrics.read_bytes() == watched.metrics.read_bytes()


def test_samples_on_the_terminal_are_those_that_the_rates_count(run, capsys):
    evaluate_run(run, EvaluationRequest(prompts=("plain",), modes=TWO))
    capsys.readouterr()
    sample_run(run, EvaluationRequest(prompts=("plain",), modes=TWO), texts=(), count=2)
    out = capsys.readouterr().out
    wanted = [
        line for line in read_lines(run.samples) if line["prompt_id"] in ("plain-0", "plain-1")
    ]
    assert len(wanted) == 4
    for line in wanted:
        assert f"  {line['mode']:<11}  {line['completion'].strip()}\n" in out
    assert "plain-2" not in out


def test_sample_takes_curves_files_and_texts_and_says_what_it_leaves_out(run, tmp_path, capsys):
    path = prompts_file(tmp_path, "one\ntwo\nthree\n")
    asked = EvaluationRequest(prompts=(path, "bos"), scales=("bad=0,0.5",))
    sample_run(run, asked, texts=["ring\x07 \x1b[2J"], count=2)
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line.endswith("…")] == [
        r"ring\x07 \x1b[2J …", "one …", "two …", "(from nothing) …", "(from nothing) …"
    ]  # fmt: skip
    assert out.count("  bad_ablated    ") == out.count("  good=1,bad=0.5") == 5
    assert "the first 2 of 3 prompts" in err
