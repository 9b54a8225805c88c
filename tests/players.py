"""Runs for the playground that need no training, and what waits for its page in a browser."""

import copy
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from report.visits import Opened
from tiny_writers import TOKENIZER, writer
from transformers import PreTrainedModel

from gradroute.config.run_config import dump_config, find_config, load_config
from gradroute.data.behaviors import get_behaviors
from gradroute.models.base import Base
from gradroute.playground.asked import Asked, read_asked
from gradroute.playground.loaded import Played
from gradroute.playground.pins import Pins
from gradroute.playground.rows import row_reader
from gradroute.playground.worker import Jobs, run_jobs
from gradroute.runs.folder import RunFolder
from gradroute.system.files import write_text

SETTINGS = (
    "evaluate.max_new_tokens=6",
    "evaluate.prompts=3",
    "data.train_examples=60",
    "data.labeled_fraction=0.5",
)


TURNS = (
    "<s>{% for m in messages %}{{ m.role }}, {{ m.content }}. {% endfor %}"
    "{% if add_generation_prompt %}assistant, {% endif %}"
)


def player(root: Path, name: str = "one", kind: str = "llama", *overrides: str) -> Played:
    """A run whose model writes letters; its folder has a configuration and nothing else."""
    config = load_config(find_config("caps"), [*SETTINGS, f"run_name={name}", *overrides])
    folder = RunFolder(root / name)
    write_text(folder.config, dump_config(config))
    model = writer(kind)
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    behaviors = get_behaviors(config.behaviors)
    return Played(name, folder, config, 3, Base(base, TOKENIZER, kind), model, behaviors)


def chatty(played: Played, template: str | None = TURNS) -> Played:
    """The same run with a tokenizer that has this chat template."""
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    return replace(played, base=replace(played.base, tokenizer=tokenizer))


def asked_of(text: str, played: Mapping[str, Played]) -> Asked:
    """What an address asks of these runs."""
    first = next(iter(played.values()))
    adapters = {name: one.adapters for name, one in played.items()}
    labels = tuple(first.behaviors)
    return read_asked(text, adapters, first.config.evaluate, labels, row_reader(played))


@contextmanager
def open_playground(
    played: Mapping[str, Played], pins: Path, jobs: Jobs | None = None
) -> Iterator[str]:
    """The address of a playground of these runs, with its worker in a thread."""
    from gradroute.playground.serving import listening, serving

    jobs = jobs or Jobs()
    worker = threading.Thread(target=run_jobs, args=(jobs, played), daemon=True)
    worker.start()
    try:
        with listening(0) as listener, serving(listener, played, jobs, Pins(pins)) as url:
            yield url
    finally:
        jobs.end()
        worker.join(30)


def answer(
    url: str,
    path: str = "",
    *,
    method: str = "GET",
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Status and text of an answer; the origin is that of the page unless told otherwise."""
    parts = urlsplit(url)
    own = {"Origin": f"http://{parts.netloc}"} if method != "GET" else {}
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        connection.request(method, f"{parts.path}{path}", body, {**own, **(headers or {})})
        found = connection.getresponse()
        return found.status, found.read().decode("utf-8")
    finally:
        connection.close()


def events_in(text: str) -> list[tuple[str, Any]]:
    """Name and data of server-sent events."""
    pairs = (part.split("\ndata: ") for part in text.split("\n\n") if part)
    return [(name.removeprefix("event: "), json.loads(data)) for name, data in pairs]


def settled(page: Any, start: str = "written in") -> None:
    """Wait until the status begins so; the page's policy lets no test evaluate a text there."""
    for _ in range(600):
        if page.inner_text("#status").startswith(start):
            return
        page.wait_for_timeout(50)
    raise AssertionError((page.inner_text("#status"), page.inner_text("#alert")))


@contextmanager
def written_anew(opened: Opened, asked: str) -> Iterator[None]:
    """What is done in here asks for texts; wait until those are written whose request says so.

    A status of "writing" may be gone before a test sees it.
    """
    ended: list[str] = []
    for event in ("requestfinished", "requestfailed"):  # Chromium may call an answer cut short
        opened.page.on(event, lambda request: ended.append(request.post_data or ""))
    yield
    for _ in range(600):
        if any(asked in one for one in ended):
            return settled(opened.page)
        opened.page.wait_for_timeout(50)
    raise AssertionError((asked, ended))
