"""The playground on the embedded model: how soon a moved slider shows, and what a column costs.

    python benchmarks/playground.py

Three tables: from the last move of a slider to the first token on the page, in a real Chromium (the
goal is 150 ms); 64 tokens in three columns against three generations as `sample` makes them; and
the memory of the server while a slider is moved 1,000 times in a minute.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measuring
from measuring import Bound, Seconds

from gradroute.config.run_config import find_config, load_config
from gradroute.evaluate.generation import generate_modes
from gradroute.playground.asked import Asked, read_asked
from gradroute.playground.loaded import Played, load_runs
from gradroute.playground.rows import row_reader
from gradroute.playground.writing import write
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from report.visits import launched

STATE = "prompt=Once+upon+a+time&c=full&c=bad_ablated&c=good%3D1%2Cbad%3D0.5"
GOAL = 0.150  # seconds to the first token
MOVES, MINUTE = 1000, 60
NEW = 64
LATE = "the first token after the last move"
LIMIT = "150 ms"
THREE = "three generations of one mode"
COLUMNS, WHOLE = "three columns, their tokens", "three columns, with scores and differences"
EARLY, END = "after 200 moves", "after 1,000 moves"
MAIN = "import sys; from gradroute.cli.main import main; sys.exit(main(sys.argv[1:]))"
# Moves a slider some times and waits for the first token that is written after the last one.
LATENCY = """async ([moves, target]) => {
  const slider = document.querySelectorAll('.column')[2].querySelectorAll('input')[1];
  const text = document.querySelectorAll('.column')[0].querySelector('.text');
  const tick = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  let last = 0;
  for (let at = 1; at <= moves; at++) {
    slider.value = target * at / moves;
    last = performance.now();
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    if (at < moves) await tick(16);
  }
  return new Promise((resolve) => {
    const seen = new MutationObserver(() => {
      if (!document.querySelector('.stale') && text.textContent.trim()) {
        seen.disconnect();
        resolve(performance.now() - last);
      }
    });
    seen.observe(text, { childList: true, characterData: true, subtree: true });
  });
}"""
# Moves a slider so many times, one every `ms`.
MANY = """async ([moves, ms]) => {
  const slider = document.querySelectorAll('.column')[2].querySelectorAll('input')[1];
  const tick = (until) => new Promise(
    (go) => setTimeout(go, Math.max(0, until - performance.now())));
  const began = performance.now();
  for (let at = 1; at <= moves; at++) {
    slider.value = (at % 61) / 20 - 1;
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    await tick(began + at * ms);
  }
  return performance.now() - began;
}"""


def small_run(place: Path, seed: int) -> RunFolder:
    """A short run of the recipe caps."""
    overrides = [
        f"seed={seed}", "run_name=small", "train.max_steps=30", "train.warmup_steps=3",
        "data.train_examples=600", "data.labeled_fraction=0.5", "controls=null",
    ]  # fmt: skip
    return train_run(load_config(find_config("caps"), overrides), place, if_exists="new", bar=False)


@contextmanager
def opened(folder: RunFolder) -> Iterator[tuple[str, int]]:
    """The address of a playground in a process of its own, and its process id."""
    command = [sys.executable, "-c", MAIN, "playground", str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found is not None
            yield found[0], process.pid
        finally:
            process.terminate()


def settled(page: Any) -> None:
    """Wait until the page has written what it was asked."""
    while not page.inner_text("#status").startswith("written in"):
        page.wait_for_timeout(20)


def latency(page: Any, rounds: int, seed: int) -> dict[str, Any]:
    """The table of the first token."""
    took = []
    for at in range(rounds + 2):  # the first two are not counted
        took.append(page.evaluate(LATENCY, [12, 0.1 + 0.05 * (at % 30)]) / 1e3)
        settled(page)
    took = took[2:]
    times = {LIMIT: Seconds([GOAL] * rounds, [GOAL] * rounds), LATE: Seconds(took, took)}
    title = "first token on the page after a slider stops, three columns"
    note = "Wall clock in Chromium, with the 30 ms that the page waits for a further move."
    bounds = [Bound(LATE, LIMIT, 1.0)]
    return measuring.table(title, times, LIMIT, seed=seed, bounds=bounds, note=note)


def many_moves(page: Any, process: int, seed: int) -> dict[str, Any]:
    """The table of memory; what still runs afterwards is looked at too."""
    early, asked = 200, list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate(MANY, [early, 1e3 * MINUTE / MOVES])
    before = [resident(process) for _ in range(10)]
    began = time.perf_counter()
    page.evaluate(MANY, [MOVES - early, 1e3 * MINUTE / MOVES])
    took = time.perf_counter() - began
    after = [resident(process) for _ in range(10)]
    began = time.perf_counter()
    settled(page)
    last = time.perf_counter() - began
    idle = cpu_seconds(process)
    time.sleep(2)
    idle = cpu_seconds(process) - idle
    times = {EARLY: Seconds(before, before), END: Seconds(after, after)}
    note = (
        f"The last {MOVES - early} moves took {took:.0f} s; the page made {len(asked)} requests in "
        f"all. The one generation that was left then was written {last:.2f} s later; in the 2 s "
        f"after that the server used {idle:.2f} s of CPU time."
    )
    return measuring.table(
        f"memory of the server, {MOVES:,} moves of a slider in {MINUTE} s",
        times,
        EARLY,
        seed=seed,
        bounds=[Bound(END, EARLY, 1.05)],
        unit="MB",
        scale=1.0,
        note=note,
    )


def resident(process: int) -> float:
    """Resident memory of a process in MB."""
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def cpu_seconds(process: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def columns(folder: RunFolder, rounds: int, seed: int) -> dict[str, Any]:
    """The table of three columns against three generations."""
    played = load_runs([folder])
    [one] = played.values()
    asked = full_length(one, played)
    modes = [column.mode for column in asked.columns]

    def alone() -> list[str]:
        found = [
            generate_modes(
                one.model,
                one.base.tokenizer,
                [asked.prompt],
                [mode],
                max_new_tokens=NEW,
                temperature=asked.temperature,
                top_p=asked.top_p,
                seed=asked.seed,
                rows_per_batch=one.config.evaluate.batch_rows,
            )
            for mode in modes
        ]
        return [completions[0].text for made in found for completions in made.values()]

    def together(last: str) -> Callable[[], list[str]]:
        def run() -> list[str]:
            for event in write(asked, played):
                texts = event.data if event.name == "written" else ()
                if event.name == last:
                    return [own["completion"] for own in texts]
            return []

        return run

    same = alone() == together("written")()
    variants = {THREE: alone, COLUMNS: together("written"), WHOLE: together("differences")}
    times = measuring.interleaved(variants, rounds, seed)
    title = f"{NEW} tokens under three modes, one prompt"
    bounds = [Bound(COLUMNS, THREE, 0.5)]
    return measuring.table(title, times, THREE, seed=seed, bounds=bounds, same_tokens=same)


def full_length(one: Played, played: dict[str, Played]) -> Asked:
    """A request whose columns all write as many tokens as they may."""
    for seed in range(100):
        text = f"{STATE}&tokens={NEW}&seed={seed}"
        row_of = row_reader({one.name: one})
        asked = read_asked(text, {one.name: one.adapters}, one.config.evaluate, ("bad",), row_of)
        for event in write(asked, played):
            if event.name == "written" and all(own["tokens"] == NEW for own in event.data):
                return asked
    raise SystemExit("error: no noise was found under which all columns write on.")


def tables(place: Path, rounds: int, seed: int) -> list[dict[str, Any]]:
    """All three."""
    folder = small_run(place, seed)
    found = [columns(folder, rounds, seed)]
    with opened(folder) as (url, process), launched() as browser:
        page = browser.new_page()
        page.goto(f"{url}#{STATE}&tokens={NEW}")
        settled(page)
        found.insert(0, latency(page, rounds, seed))
        found.append(many_moves(page, process, seed))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure it."""
    asked = measuring.options(__doc__, argv, rounds=30)
    question = "How soon does the playground show what a slider does?"
    with tempfile.TemporaryDirectory() as place:
        measuring.answer(
            "playground", question, asked, lambda: tables(Path(place), asked.rounds, asked.seed)
        )


if __name__ == "__main__":
    main()
