"""One generation at a time, the next ones in a bounded queue; a page's new request ends its old.

The models are run by the one thread that calls `run_jobs`. Requests come from other threads.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gradroute.errors import GradrouteError, MachineError
from gradroute.playground.asked import Asked, plain_asked
from gradroute.playground.loaded import Played
from gradroute.playground.writing import Event, Result, write
from gradroute.system.memory import is_out_of_memory, release

MOST_WAITING = 8
"""Requests that wait; one more is refused."""
MOST_KEPT = 32
"""Results that can still be pinned; the oldest go first."""
_LOOK = 0.5  # seconds after which an idle worker looks whether it is to end

Deliver = Callable[[Event | None], None]
"""Takes each event, and None after the last one; called from the worker's thread."""


@dataclass
class Job:
    """A request on its way.

    Attributes:
        number: Its name, for a pin.
        page: Whose it is; a page has one at a time, what has no name as many as it likes.
        asked: What is asked.
        deliver: Takes its events.
        cancelled: Whether nobody wants it any more.
    """

    number: int
    page: str
    asked: Asked
    deliver: Deliver
    cancelled: bool = False


@dataclass
class Jobs:
    """What waits, what runs, and what came of the last ones; shared by threads."""

    waiting: deque[Job] = field(default_factory=deque)
    running: Job | None = None
    results: OrderedDict[int, Result] = field(default_factory=OrderedDict)
    ended: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)
    _last: int = 0

    def submit(self, page: str, asked: Asked, deliver: Deliver) -> Job:
        """Put a request into the queue; an earlier one of the same page ends.

        Raises:
            MachineError: Too many wait.
        """
        with self.changed:
            if page:
                self._cancel(lambda job: job.page == page)
            if len(self.waiting) >= MOST_WAITING:
                raise MachineError(
                    f"{MOST_WAITING} generations wait already; try again when one has ended."
                )
            self._last += 1
            job = Job(self._last, page, asked, deliver)
            self.waiting.append(job)
            self.changed.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """Nobody wants a request any more."""
        with self.changed:
            job.cancelled = True
            if job in self.waiting:
                self.waiting.remove(job)

    def end(self) -> None:
        """`run_jobs` returns soon; what runs or waits is ended."""
        with self.changed:
            self.ended = True
            self._cancel(lambda job: True)
            self.changed.notify_all()

    def _cancel(self, ends: Callable[[Job], bool]) -> None:
        if self.running is not None and ends(self.running):
            self.running.cancelled = True
        for job in [one for one in self.waiting if ends(one)]:
            self.waiting.remove(job)
            job.cancelled = True
            job.deliver(None)

    def next(self) -> Job | None:
        """The next request, once there is one; None at the end."""
        with self.changed:
            self.running = None
            while not self.waiting and not self.ended:
                self.changed.wait(_LOOK)
            self.running = None if self.ended else self.waiting.popleft()
            return self.running

    def keep(self, job: Job, result: Result) -> None:
        """Keep a result for a pin."""
        with self.changed:
            self.results[job.number] = result
            while len(self.results) > MOST_KEPT:
                self.results.popitem(last=False)

    def result(self, number: int) -> Result | None:
        """A result that is still kept."""
        with self.changed:
            return self.results.get(number)


def run_jobs(jobs: Jobs, played: Mapping[str, Played]) -> None:
    """Do one request after another until the end."""
    while (job := jobs.next()) is not None:
        _run(job, jobs, played)


def _run(job: Job, jobs: Jobs, played: Mapping[str, Played]) -> None:
    """Do a request; what goes wrong is told to the page, and the next one is done."""
    began, told = time.perf_counter(), None
    events = write(job.asked, played)
    try:
        job.deliver(Event("begun", {"job": job.number, **plain_asked(job.asked)}))
        while not job.cancelled:
            try:
                event = next(events)
            except StopIteration as done:
                jobs.keep(job, done.value)
                job.deliver(Event("done", {"seconds": time.perf_counter() - began}))
                return
            job.deliver(event)
    except GradrouteError as error:
        told = str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        told = "memory ran out; ask for fewer tokens, or fewer columns."
    finally:
        events.close()
        if told is not None:
            job.deliver(Event("failed", told))
            release()
        job.deliver(None)
