"""Run the long forms, and write what they found.

    python -m torture                    # all, about half an hour on two cores
    python -m torture kills damage       # some
    python -m torture --share 0.1        # a tenth of the trials of each

One JSON file per kind of fault, and a table of all that are there, under
`benchmarks/results/torture/<date>/`. Ends with 1 where anything failed.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from gradroute.runs.provenance import provenance

# Kind of fault -> trials of the long form. The slow ones come first, so that two workers end
# at about the same time.
LONG: Mapping[str, int] = {
    "kills": 200,
    "rank_kills": 40,
    "signals": 100,
    "usual": 200,
    "files": 20_000,
    "leaks": 1_000,
    "layouts": 500,
    "disks": 64,
    "starters": 25,
    "settings": 100,
    "damage": 1_000,
    "nans": 50,
    "memory_limits": 4,
    "labels": 8,
    "strings": 5_000,
    "secrets": 1,
    "durability": 1,
    "orphans": 4,
    "sweeps": 12,
}
RESULTS = Path("benchmarks/results/torture")


def main() -> int:
    """Run what the command line names, each in a process of its own."""
    options = _options()
    out = options.out or RESULTS / date.today().isoformat()
    if options.here:
        (name,) = options.names
        _one(name, _count(name, options.share), options.seed, out)
        return 0
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        names = [name for name in LONG if name in options.names]
        done = list(pool.map(lambda name: _in_a_process(name, options, out), names))
    (out / "README.md").write_text("\n".join(_table(out)) + "\n", encoding="utf-8")
    print(f"written: {out}/")
    return 0 if all(done) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", default=list(LONG), help=", ".join(LONG))
    parser.add_argument("--share", type=float, default=1.0, help="of the long form's trials (1)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other trials (0)")
    parser.add_argument("--jobs", type=int, default=2, help="kinds at the same time (2)")
    parser.add_argument("--out", type=Path, help=f"folder of the results ({RESULTS}/<date>)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in LONG]
    if unknown:
        parser.error(f"no such kind of fault: {', '.join(unknown)}; there are {', '.join(LONG)}")
    return options


def _count(name: str, share: float) -> int:
    return max(1, round(LONG[name] * share))


def _in_a_process(name: str, options: argparse.Namespace, out: Path) -> bool:
    command = [sys.executable, "-m", "torture", "--here", name, "--out", str(out)]
    command += ["--share", str(options.share), "--seed", str(options.seed)]
    log = out / f"{name}.log"
    with log.open("wb") as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT).returncode
    if code:
        print(f"{name}: ended with {code}, see {log}", flush=True)
        return False
    log.unlink()
    found = _read(out / f"{name}.json")
    failures = found["outcome"]["failures"]
    print(f"{name}: {_counts(found)}, {found['seconds']:.0f} s", flush=True)
    for failure in failures[:5]:
        print(f"  {failure}", flush=True)
    return not failures


def _one(name: str, count: int, seed: int, out: Path) -> None:
    trials = importlib.import_module(f"torture.{name}").trials
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"torture-{name}-") as folder:
        outcome = trials(count, seed, Path(folder))
    document = {
        "name": name,
        "command": f"python -m torture {name} --seed {seed}",
        "asked": count,
        "outcome": outcome,
        "seconds": round(time.perf_counter() - began, 1),
        "date": date.today().isoformat(),
        "provenance": provenance(),
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _table(out: Path) -> Iterator[str]:
    """What all result files of a folder hold, as Markdown."""
    yield "# What the faults did\n"
    yield "| fault | found | failures | seconds | commit |"
    yield "|---|---|---|---|---|"
    for name in LONG:
        if (out / f"{name}.json").is_file():
            found = _read(out / f"{name}.json")
            commit = (found["provenance"]["commit"] or "none")[:9]
            failures = len(found["outcome"]["failures"])
            counts = _counts(found)
            yield f"| `{name}` | {counts} | {failures} | {found['seconds']:.0f} | {commit} |"


def _counts(found: Mapping[str, Any]) -> str:
    """The outcome's numbers, one after the other."""
    return ", ".join(
        f"{key.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{key} {value:.3g}"
        for key, value in found["outcome"].items()
        if isinstance(value, int | float)
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
