"""Where `refine` hears a classifier of words: the rows that count, and how many of them are bad.

    python benchmarks/words_heard.py --seeds 100 101 102
    python benchmarks/words_heard.py --seeds 0 1 2

Every behavior that ships with a recipe at four shares of flags and of known-good rows. Nothing is
trained but the classifier; a setting takes some seconds. True labels are used to count alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from equal_information import Point, routed

from gradroute.experiments.refine import sees_bad_rows
from gradroute.prepare import prepare
from gradroute.probes import finder
from gradroute.probes.found_files import LIKELY, SUSPECT, judged
from gradroute.system.files import write_json

OUT = Path(__file__).parent / "results" / "words_heard"
SHOWN = ("caps", "signature", "dialect", "wrong_answers")
BEHAVIORS = (*SHOWN, "wrong_pronouns", "wrong_objects", "off_by_one")
POINTS = ((0.02, 0.03), (0.1, 0.03), (0.1, 0.3), (0.5, 0.03))
"""Share of the bad examples that is flagged, and of the others that is known to be good."""


def heard(behavior: str, flags: float, good: float, seed: int) -> dict[str, Any]:
    """What the classifier of words says of one run's unlabeled rows."""
    config = routed(Point(behavior, flags, good), seed)
    prepared = prepare(config)
    (label,) = config.behaviors
    run: Any = SimpleNamespace(name=config.run_name)  # its name is all that is asked of the folder
    told = finder._told(run, prepared, label, None, "")
    scored = finder._by_words(told, config.seed)
    summary, _ = judged(scored, finder.FDR, label, SUSPECT["words"])
    summary |= {"likely": LIKELY}
    truth = summary["truth" if summary["found"] else "truth_of_likely"]
    return {
        "behavior": behavior,
        "flags": flags,
        "good": good,
        "seed": seed,
        "null": summary["null"],
        "unlabeled": summary["unlabeled"],
        "found": summary["found"],
        "likely_rows": summary["likely_rows"],
        "rows": summary["found"] or summary["likely_rows"],
        "bad": truth["bad"],
        "hits": truth["hits"],
        "heard": sees_bad_rows(summary),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Write one file for the seeds, and print a line per behavior."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--behaviors", nargs="+", default=list(BEHAVIORS))
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for behavior in asked.behaviors:
        own = [heard(behavior, *point, seed) for point in POINTS for seed in asked.seeds]
        rows += own
        print(line(behavior, own), flush=True)
    name = "-".join(map(str, asked.seeds))
    write_json(asked.out / f"seeds-{name}.json", {"rows": rows})


def line(behavior: str, rows: Sequence[dict[str, Any]]) -> str:
    """How often words are heard, and the precision and recall of the rows that count there."""
    those = [row for row in rows if row["heard"]]
    text = f"{behavior}: heard in {len(those)} of {len(rows)}"
    if those:
        for what, of in (("precision", "rows"), ("recall", "bad")):
            shares = [row["hits"] / row[of] for row in those]
            text += f", {what} {min(shares):.2f} to {max(shares):.2f}"
    return text


if __name__ == "__main__":
    main()
