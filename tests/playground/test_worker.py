"""One generation at a time: a page's new request ends its old one, and the queue has an end."""

import threading
from pathlib import Path
from typing import Any

import pytest
from players import asked_of, player

from gradroute.errors import MachineError
from gradroute.playground.worker import MOST_KEPT, MOST_WAITING, Job, Jobs, run_jobs
from gradroute.playground.writing import Result

TEXT = "prompt=I&c=full&c=bad_ablated"


class Heard:
    """The events of a request; `until` waits for one."""

    def __init__(self, block: threading.Event | None = None) -> None:
        self.events: list[Any] = []
        self.changed = threading.Condition()
        self.block = block

    def __call__(self, event: Any) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()
        if self.block is not None and event is not None and event.name == "tokens":
            assert self.block.wait(30)

    @property
    def names(self) -> list[str]:
        return [event.name if event else "end" for event in self.events]

    def until(self, name: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: name in self.names, 30), self.names


@pytest.fixture
def work(tmp_path: Path):
    played = {"one": player(tmp_path)}
    jobs = Jobs()
    thread = threading.Thread(target=run_jobs, args=(jobs, played), daemon=True)
    thread.start()
    yield played, jobs
    jobs.end()
    thread.join(30)
    assert not thread.is_alive()


def test_a_request_is_begun_written_and_done_and_can_be_pinned(work: Any) -> None:
    played, jobs = work
    heard = Heard()
    job = jobs.submit("p", asked_of(TEXT, played), heard)
    heard.until("end")
    assert [name for name in heard.names if name != "tokens"] == [
        "begun", "written", "differences", "done", "end",
    ]  # fmt: skip
    result = jobs.result(job.number)
    assert result is not None and result.columns == heard.events[-4].data
    assert jobs.result(job.number + 1) is None


def test_a_new_request_of_a_page_ends_its_old_one_within_a_token(work: Any) -> None:
    played, jobs = work
    going = threading.Event()
    old, new = Heard(going), Heard()
    jobs.submit("p", asked_of(f"{TEXT}&tokens=200", played), old)
    old.until("tokens")
    jobs.submit("p", asked_of(TEXT, played), new)
    going.set()
    new.until("done")
    old.until("end")
    assert old.names == ["begun", "tokens", "end"]


def test_the_requests_of_another_page_wait_and_are_done(work: Any) -> None:
    played, jobs = work
    going = threading.Event()
    first, others = Heard(going), [Heard() for _ in range(MOST_WAITING)]
    jobs.submit("a", asked_of(TEXT, played), first)
    first.until("tokens")
    waiting = [
        jobs.submit(f"p{at}", asked_of(TEXT, played), heard) for at, heard in enumerate(others)
    ]
    with pytest.raises(MachineError, match=f"{MOST_WAITING} generations wait"):
        jobs.submit("late", asked_of(TEXT, played), Heard())
    assert all(heard.events == [] for heard in others)
    jobs.cancel(waiting[0])  # who left is not served
    replaced = Heard()
    jobs.submit("p1", asked_of(TEXT, played), replaced)
    assert others[1].names == ["end"]
    going.set()
    replaced.until("done")
    first.until("done")
    assert others[0].events == [] and all(heard.names[-2] == "done" for heard in others[2:])


def test_requests_of_no_named_page_do_not_end_each_other(work: Any) -> None:
    played, jobs = work
    heard = [Heard() for _ in range(3)]
    for one in heard:
        jobs.submit("", asked_of(TEXT, played), one)
    for one in heard:
        one.until("done")


def test_at_the_end_whoever_waits_is_told(work: Any) -> None:
    played, jobs = work
    going = threading.Event()
    first, second = Heard(going), Heard()
    jobs.submit("a", asked_of(f"{TEXT}&tokens=200", played), first)
    first.until("tokens")
    jobs.submit("b", asked_of(TEXT, played), second)
    jobs.end()
    assert second.names == ["end"]
    going.set()
    first.until("end")
    assert "done" not in first.names


def test_what_fails_is_told_and_the_next_request_is_done(work: Any) -> None:
    played, jobs = work
    broken, good = Heard(), Heard()
    jobs.submit("a", _unknown(played), broken)
    jobs.submit("b", asked_of(TEXT, played), good)
    good.until("done")
    assert broken.names == ["begun", "failed", "end"]
    assert "belongs to another model" in broken.events[1].data


def _unknown(played: Any) -> Any:
    """A prompt with a token that the model does not know."""
    played["one"].base.tokenizer.add_tokens(["@"])
    return asked_of("prompt=%40&c=full&c=base", played)


def test_only_the_last_results_are_kept(tmp_path: Path) -> None:
    jobs = Jobs()
    asked = asked_of(TEXT, {"one": player(tmp_path)})
    for number in range(MOST_KEPT + 3):
        jobs.keep(Job(number, "p", asked, lambda event: None), Result(asked, []))
    assert sorted(jobs.results) == list(range(3, MOST_KEPT + 3))
