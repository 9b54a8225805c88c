"""A process alone, and what it says when it is one of several."""

import pytest

from gradroute.errors import MachineError
from gradroute.system.launcher import launched, local_rank, own_rank
from gradroute.system.ranks import ALONE, join_ranks, lost_rank_told
from gradroute.system.terminal import say


def test_without_a_launcher_a_process_is_alone_and_needs_no_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert join_ranks() is ALONE
    assert ALONE.numbers([1.5, 2.0]) == [1.5, 2.0]
    assert ALONE.texts("only") == ["only"]
    assert ALONE.on_main(lambda: 3) == ALONE.main_first(lambda: 3) == 3


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, (1, 0, 0)),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, (4, 3, 1)),
        ({"RANK": "3"}, (1, 0, 0)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, (1, 0, 0)),
        ({"WORLD_SIZE": "two", "RANK": "x"}, (1, 0, 0)),
        ({"WORLD_SIZE": "-2", "RANK": "-1"}, (1, 0, 0)),
    ],
)
def test_a_launcher_says_which_process_this_is(monkeypatch, variables, wanted):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (launched(), own_rank(), local_rank()) == wanted


def test_of_several_processes_the_first_speaks_and_the_others_say_what_ends_them(
    monkeypatch, capsys
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    say("x: step 1/2")
    say("error: it is so.")
    assert capsys.readouterr().err == "rank 1: error: it is so.\n"
    monkeypatch.setenv("RANK", "0")
    say("x: step 1/2")
    assert capsys.readouterr().err == "x: step 1/2\n"


def test_an_error_of_the_process_group_is_a_sentence_and_any_other_stays_what_it_is():
    with (
        pytest.raises(MachineError, match="another process of this run has ended"),
        lost_rank_told(),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), lost_rank_told():
        raise RuntimeError("shapes differ")
