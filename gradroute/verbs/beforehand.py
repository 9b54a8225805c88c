"""What is asked before training: `schema`."""

import argparse
from typing import TYPE_CHECKING

from gradroute.verbs.arguments import (
    add_verb,
)

if TYPE_CHECKING:
    from gradroute.verbs.arguments import Verbs


def add(verbs: "Verbs") -> None:
    """Add the verbs that come before training."""
    add_verb(
        verbs,
        "schema",
        "print the JSON schema of the configuration",
        _schema,
        ["gradroute schema", "gradroute schema > gradroute.schema.json"],
        runs_folder=False,
    )


def _schema(options: argparse.Namespace) -> None:
    import json

    from gradroute.config import schema

    print(json.dumps(schema(), indent=2))
