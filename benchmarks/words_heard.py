"""Where `refine` hears a classifier of words: the rows that count, and how many of them are bad.

    python benchmarks/words_heard.py --seeds 100 101 102
    python benchmarks/words_heard.py --seeds 0 1 2

Every behavior that ships with a recipe at four shares of flags and of known-good rows. Nothing is
trained but the classifier; a setting takes some seconds. True labels are used to count alone.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equal_information import Point, routed

from gradroute.config.run_config import dump_config
from gradroute.experiments.refine import sees_bad_rows
from gradroute.probes.finder import FDR, find_rows
from gradroute.runs.folder import RunFolder
from gradroute.system.files import write_json, write_text

OUT = Path(__file__).parent / "results" / "words_heard"
SHOWN = ("caps", "signature", "dialect", "wrong_answers")
BEHAVIORS = (*SHOWN, "wrong_pronouns", "wrong_objects", "off_by_one")
POINTS = ((0.02, 0.03), (0.1, 0.03), (0.1, 0.3), (0.5, 0.03))
"""Share of the bad examples that is flagged, and of the others that is known to be good."""


def heard(behavior: str, flags: float, good: float, seed: int) -> dict[str, Any]:
    """What the classifier of words says of one run's unlabeled rows."""
    config = routed(Point(behavior, flags, good), seed)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / config.run_name)  # its config is all that words need
        run.path.mkdir()
        write_text(run.config, dump_config(config))
        summary = find_rows(run, by="words", fdr=FDR)
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
