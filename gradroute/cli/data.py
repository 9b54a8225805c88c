"""The verb `data` and its subcommands on rows before training."""

from gradroute.cli import inspect, label
from gradroute.cli.arguments import Verbs


def add(verbs: Verbs) -> None:
    """Add the verb `data` with verbs of its own."""
    parser = verbs.add_parser("data", help="show rows as training sees them; label a file")
    own = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for group in (inspect, label):
        group.add(own)
