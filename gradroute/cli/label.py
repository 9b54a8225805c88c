"""`data label`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradroute.cli.arguments import Verbs, add_verb
from gradroute.errors import ConfigError

if TYPE_CHECKING:
    from gradroute.data.labeling import Scores

_SOURCES = ("regex", "keywords", "python", "score_column", "classifier", "sklearn")


def add(verbs: Verbs) -> None:
    """Add the verb that labels a file."""
    label = add_verb(
        verbs,
        "label",
        "label the rows of a JSONL or CSV file bad, good or unlabeled; report the quality of the "
        "labels",
        _label,
        [
            "gradroute data label rows.jsonl --out labeled.jsonl --regex '(?i)as an ai'",
            "gradroute data label rows.csv --out labeled.csv --score-column toxicity "
            "--bad-above 0.8 --good-below 0.2",
            "gradroute data label rows.jsonl --out labeled.jsonl --classifier path/to/classifier "
            "--bad-label toxic --bad-above 0.9",
        ],
        runs_folder=False,
    )
    label.add_argument("file", type=Path, metavar="FILE", help="a .jsonl or .csv file of rows")
    label.add_argument(
        "--out", type=Path, required=True, help="the labeled file; it must not exist yet"
    )
    _add_sources(label)
    _add_rule(label)
    label.add_argument(
        "--field",
        choices=("text", "prompt", "completion", "messages"),
        default="text",
        help="field of a row that is examined; in messages, the text of the assistant (text)",
    )
    label.add_argument("--overwrite-labels", action="store_true", help="replace existing labels")
    label.add_argument("--report", type=Path, help="also write the counts to this JSON file")


def _add_sources(label: argparse.ArgumentParser) -> None:
    of = label.add_argument_group("criterion for a bad row, one of").add_mutually_exclusive_group(
        required=True
    )
    of.add_argument("--regex", metavar="PATTERN", help="this pattern (Python's re) is found")
    of.add_argument("--keywords", metavar="A,B,C", help="one of these words is found, any case")
    of.add_argument(
        "--python",
        metavar="MODULE.FUNCTION",
        help="a function of the text, in a module of your own, gives 0.5 or more",
    )
    of.add_argument("--score-column", metavar="NAME", help="a column of numbers; see --bad-above")
    of.add_argument(
        "--classifier",
        metavar="FOLDER|NAME",
        help="a Hugging Face classifier, a folder or its name on the hub; see --bad-label",
    )
    of.add_argument(
        "--sklearn",
        type=Path,
        metavar="FILE.skops",
        help="a scikit-learn classifier of texts, saved with skops; see --bad-label",
    )


def _add_rule(label: argparse.ArgumentParser) -> None:
    label.add_argument(
        "--bad-label", metavar="LABEL", help="the classifier's label that counts as bad"
    )
    label.add_argument(
        "--bad-above",
        type=float,
        metavar="X",
        help="a score of X and more is bad (0.5 for classifiers)",
    )
    label.add_argument(
        "--good-below",
        type=float,
        metavar="Y",
        help="a score of Y and less is good; between the two, and without a score, a row is "
        "unlabeled",
    )
    label.add_argument(
        "--rest",
        choices=("unlabeled", "good"),
        default="unlabeled",
        help="label of all other rows (unlabeled). good: they count as known-good examples, which "
        "train the shipped adapter",
    )


def _label(options: argparse.Namespace) -> None:
    _check(options)
    from gradroute.data.labeling import Rule, label_file
    from gradroute.data.labeling_text import labeling_text
    from gradroute.system.terminal import printable, say

    rule = Rule(
        0.5 if options.bad_above is None else options.bad_above,
        options.good_below,
        options.rest == "good",
    )
    report = label_file(
        options.file,
        options.out,
        _scores(options),
        rule,
        source=_described(options),
        overwrite=options.overwrite_labels,
        report=options.report,
    )
    print("\n".join(printable(line) for line in labeling_text(report)))
    say(f"written: {options.out}" + (f", {options.report}" if options.report else ""))


def _check(options: argparse.Namespace) -> None:
    """Refuse options that say nothing about the source that was chosen."""
    for name, given in _source(options).items():
        if str(given) in ("", "."):
            raise ConfigError(f"--{name.replace('_', '-')} is empty; give what to look for.")
    classifies = options.classifier is not None or options.sklearn is not None
    scored = classifies or options.score_column is not None
    for name in ("bad_above", "good_below"):
        if getattr(options, name) is not None and not scored:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} needs a --score-column, --classifier or --sklearn.")
    if options.score_column is not None and options.bad_above is None:
        raise ConfigError(
            "--score-column needs --bad-above X: the score from which on a row is bad."
        )
    if classifies != (options.bad_label is not None):
        raise ConfigError(
            "--classifier and --sklearn need --bad-label LABEL, and --bad-label needs one of them: "
            "it is the classifier's label that counts as bad."
        )


def _scores(options: argparse.Namespace) -> "Scores":
    from gradroute.data.labeling import behavior_scores, column_scores, text_scores

    if options.score_column is not None:
        return column_scores(options.score_column)
    if options.classifier is not None:
        from gradroute.models.classifiers import classifier

        return text_scores(classifier(options.classifier, options.bad_label), options.field)
    if options.sklearn is not None:
        from gradroute.models.classifiers import sklearn_classifier

        return text_scores(sklearn_classifier(options.sklearn, options.bad_label), options.field)
    ((name, given),) = _source(options).items()
    return behavior_scores(f"--{name}", f"{name}:{given}", options.field)


def _source(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name in _SOURCES if (value := getattr(options, name)) is not None}


def _described(options: argparse.Namespace) -> dict[str, Any]:
    """The source for the report, without the folders that a file lies in."""
    described = {name: str(value) for name, value in _source(options).items()}
    if "sklearn" in described:
        described["sklearn"] = options.sklearn.name
    if "classifier" in described and Path(options.classifier).is_dir():
        described["classifier"] = Path(options.classifier).resolve().name
    if options.bad_label is not None:
        described["bad_label"] = options.bad_label
    return described if options.score_column is not None else described | {"field": options.field}
