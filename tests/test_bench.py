"""The benchmarks do what they say they compare, and their page says what their files say."""

import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
DOCS = BENCHMARKS.parent / "docs"
TINY = "tiny-4x8"

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(autouse=True)
def beside_the_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for name in ("page", "memory", "evaluation", "scoring", "training_step", "scaling"):
        sys.modules.pop(name, None)  # names that others may have


def test_every_way_to_do_a_step_takes_the_same_loss_and_the_result_is_written(tmp_path):
    import shapes
    import steps
    import training_step

    of = shapes.shape(TINY)
    base = shapes.base(of.size)
    batch = shapes.batch(of, steps.label_ids("anchored"))
    losses = {way: make(base, batch)() for way, make in training_step.WAYS.items()}
    # An example after another, the model has moved in between.
    apart = 1e-3 if training_step.SEED in losses else 1e-5
    first = losses[training_step.PLAIN]
    assert losses == pytest.approx(dict.fromkeys(losses, first), rel=apart)
    training_step.main(["--rounds", "2", "--shapes", TINY, "--out", str(tmp_path)])
    training_step.main(["--rounds", "2", "--shapes", TINY, "--out", str(tmp_path)])
    assert len(list(tmp_path.glob("*.json"))) == 2  # one beside the other
    record = json.loads(next(tmp_path.glob("*training_step.json")).read_text())
    [table] = record["tables"]
    assert set(table["variants"]) == set(training_step.WAYS)
    assert all(len(row["rounds"]) == 2 for row in table["variants"].values())


def test_ways_that_route_alike_move_the_weights_alike():
    import shapes
    import steps

    of = shapes.shape(TINY)
    base = shapes.base(of.size)
    batch = shapes.batch(of, steps.label_ids("absorb"))
    after = []
    for make in (steps.pure_batches, steps.two_backwards):
        torch.manual_seed(0)  # PEFT draws A
        step = make(base, batch)
        after.append([step() for _ in range(3)])
    assert after[0] == pytest.approx(after[1], rel=1e-5)


def test_completions_and_losses_of_the_compared_ways_are_the_same():
    import evaluation
    import scoring

    for modes, prompts in ((evaluation.MODES, 4), (evaluation.FIVE, 3)):
        assert evaluation.measure("tiny", modes, prompts, 4, 1, 0)["same_tokens"]
    assert scoring.measure("tiny", "last-half", 1, 0)["same_losses"]


def test_states_that_are_kept_and_logits_at_once_leave_the_loss_as_it_is(tmp_path):
    import frozen_half
    import shapes
    import steps

    of = shapes.shape(TINY)
    rows = shapes.rows(of, steps.label_ids("anchored"))
    losses = [step() for step in frozen_half.ways(shapes.base(of.size), rows, tmp_path).values()]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)


def test_a_bound_is_met_only_where_the_whole_interval_is_under_it():
    import measuring
    from measuring import Bound, Seconds

    def verdict(values: list[float], at_most: float) -> str:
        times = {"a": Seconds(values, values), "b": Seconds([1.0] * len(values), values)}
        table = measuring.table("t", times, "b", seed=0, bounds=[Bound("a", "b", at_most)])
        return table["bounds"][0]["verdict"]

    assert verdict([0.8, 0.81, 0.82, 0.8], 0.9) == "met"
    assert verdict([0.8, 0.8, 0.95, 0.95], 0.9) == "not shown"
    assert verdict([1.0, 1.1, 1.0, 1.1], 0.9) == "not met"


def test_the_page_is_what_the_result_files_say(tmp_path):
    import page

    records = page.newest(page.RESULTS)
    if not records:
        assert not (DOCS / "benchmarks.md").exists()
        return
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == page.page(records)
    for record in records:
        if record["name"] in page.DRAWN:
            drawn = tmp_path / "drawn.svg"
            page.draw(record, drawn)
            committed = DOCS / "images" / f"bench_{record['name']}.svg"
            assert committed.read_bytes() == drawn.read_bytes()


def test_the_time_of_a_process_that_outlives_its_command_counts():
    import measuring

    busy = "import time; t = time.process_time()\nwhile time.process_time() < t + 0.5: pass"
    leaves = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {busy!r}])"
    commands = {"leaves one": ["-c", leaves], "works": ["-c", busy], "idles": ["-c", "pass"]}
    found = measuring.in_processes(commands, 1, 0, {})
    assert found["idles"].clock[0] < 0.4 < min(found[n].clock[0] for n in ("leaves one", "works"))
