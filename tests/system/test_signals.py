"""Signals: training stops at a step boundary, everything else at once, and handlers come back."""

import os
import signal
import subprocess
import sys
import threading
from argparse import Namespace

import pytest
from train.test_trainer import final_manifest, training

from gradroute.errors import Interrupted
from gradroute.system.signals import interruptible, stop_requests
from gradroute.train.trainer import train

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SCHEDULER = (signal.SIGTERM, signal.SIGUSR1)


def handlers():
    return {number: signal.getsignal(number) for number in (*ALL, signal.SIGALRM)}


@pytest.mark.parametrize("number", ALL)
def test_a_stop_is_asked_for_and_the_handlers_come_back(number):
    before = handlers()
    with stop_requests() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        for again in SCHEDULER:
            signal.raise_signal(again)
    assert handlers() == before


@pytest.mark.parametrize("first", ALL)
def test_a_ctrl_c_after_another_request_leaves_at_once(first):
    before = handlers()
    with pytest.raises(KeyboardInterrupt), stop_requests():
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)
    assert handlers() == before


@pytest.mark.parametrize("number", ALL)
def test_outside_of_training_every_signal_interrupts(number):
    before = handlers()
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)
    assert handlers() == before


def test_what_is_put_in_order_on_the_way_out_is_not_cut_short():
    order = []
    with pytest.raises(KeyboardInterrupt), interruptible():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            for number in SCHEDULER:
                signal.raise_signal(number)
            order.append("done")
    assert order == ["done"]


def test_training_takes_the_signals_over_and_puts_them_back():
    with pytest.raises(KeyboardInterrupt), interruptible():
        outside = handlers()
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGTERM)
        assert stop.requested and handlers() == outside
        signal.raise_signal(signal.SIGTERM)


class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def test_an_interruption_that_a_destructor_swallows_comes_again():
    before, hook = handlers(), sys.unraisablehook
    waited = threading.Event()
    with pytest.raises(KeyboardInterrupt), interruptible():
        thing = Finalized()
        del thing  # Python swallows the exception here
        waited.wait(20)
    assert handlers() == before and sys.unraisablehook is hook
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("number", ALL)
def test_an_interruption_inside_of_generated_code_does_not_spoil_the_exit_code(tmp_path, number):
    """Of an import, say: dataclasses are made by executing a text."""
    (tmp_path / "told.py").write_text(
        "import signal, sys\n"
        "from gradroute.system.signals import interruptible\n"
        "try:\n"
        "    with interruptible():\n"
        f"        exec('signal.raise_signal({int(number)})')\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(75)\n"
    )
    ended = subprocess.run([sys.executable, "-m", "told"], check=False, cwd=tmp_path)
    assert ended.returncode == 75


def test_a_ctrl_c_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_of_the_main_thread_nothing_is_touched():
    before, found = handlers(), []

    def elsewhere():
        with interruptible(), stop_requests() as stop:
            found.append((stop.requested, handlers() == before))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [(False, True)]


def interrupted(run, step, number):
    """Send a signal in the middle of a step."""
    done = []

    def send(module, args):
        done.append(1)
        if len(done) == 2 * step:  # the second of two micro-batches
            os.kill(os.getpid(), number)

    return run.model.register_forward_pre_hook(send)


QUIET = ("train.log_gradients_every=0",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupts."""
    run, _ = training(tmp_path_factory.mktemp("whole"), *QUIET)
    train(run)
    return run


@pytest.mark.parametrize("number", ALL)
@pytest.mark.parametrize("step", [1, 6, 8])
def test_a_signal_inside_of_a_step_finishes_and_saves_it_and_nothing_is_lost(
    tmp_path, whole, number, step
):
    cut, _ = training(tmp_path / "cut", *QUIET)
    interrupted(cut, step, number)
    with pytest.raises(Interrupted, match=f"stopped after step {step} of 12 and saved"):
        train(cut)
    again, said = training(tmp_path / "cut", *QUIET)
    train(again)
    assert f"x: goes on after step {step}." in said
    assert final_manifest(again) == final_manifest(whole)
    assert again.folder.metrics.read_bytes() == whole.folder.metrics.read_bytes()


def test_a_signal_in_the_last_step_is_not_forgotten(tmp_path):
    """What comes after training, an evaluation say, is not wanted either."""
    run, _ = training(tmp_path, *QUIET)
    interrupted(run, 12, signal.SIGTERM)
    with pytest.raises(Interrupted, match="after step 12 of 12 and saved"):
        train(run)
    assert final_manifest(run)
    again, _ = training(tmp_path, *QUIET)
    train(again)


def test_a_second_ctrl_c_inside_of_a_step_leaves_it_and_damages_nothing(tmp_path, whole):
    cut, _ = training(tmp_path / "cut", *QUIET)
    interrupted(cut, 6, signal.SIGINT)
    interrupted(cut, 6, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(cut)
    assert [path.name for path in cut.folder.checkpoints.iterdir()] == ["step-000004"]
    again, _ = training(tmp_path / "cut", *QUIET)
    train(again)
    assert final_manifest(again) == final_manifest(whole)


def answering(monkeypatch, action):
    """Let every command line be answered by this."""
    options = Namespace(debug=False, action=action)
    monkeypatch.setattr("gradroute.cli.main.parse", lambda arguments: options)


def test_a_ctrl_c_while_the_last_words_are_said_is_not_heard(monkeypatch, capsys):
    from gradroute.cli import main

    told = []

    def say(line):
        told.append(line)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(main, "say", say)
    answering(monkeypatch, lambda options: signal.raise_signal(2))
    before = handlers()
    assert main.main(["schema"]) == 75
    assert len(told) == 2 and told[0] == told[1]  # the first was cut short
    assert handlers() == before


@pytest.mark.parametrize("number", ALL)
def test_an_interruption_that_comes_out_as_another_error_is_one_all_the_same(number):
    """As from compiled code, which may know one kind of error only."""
    before = handlers()
    with pytest.raises(KeyboardInterrupt) as caught, interruptible():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None
    assert isinstance(caught.value.__cause__, ValueError) and handlers() == before


def test_an_error_without_a_signal_stays_what_it_is():
    with pytest.raises(ValueError, match="of its own"), interruptible():
        raise ValueError("of its own")


def test_a_verb_that_makes_an_error_of_ours_out_of_a_signal_ends_in_75(monkeypatch, capsys):
    from gradroute.cli import main
    from gradroute.errors import ConfigError

    def load(options):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ConfigError("the folder holds no usable model.") from None

    answering(monkeypatch, load)
    assert main.main(["schema"]) == 75
    assert capsys.readouterr().err.startswith("error: interrupted.")
