"""The verbs before training: `validate`, `init`, `doctor`, `schema`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradroute.cli.arguments import Verbs, add_verb, positive

if TYPE_CHECKING:
    from gradroute.errors import GradrouteError

KINDS = ("caps", "jsonl", "chat")
"""Kinds of configuration that `init` writes; see `gradroute.preflight.config_templates`."""


def add(verbs: Verbs) -> None:
    """Add the verbs that come before training."""
    validate = add_verb(
        verbs,
        "validate",
        "check everything a run needs, without writing anything: data, labels, tokens, routes, "
        "memory, time, disk",
        _validate,
        ["gradroute validate caps", "gradroute validate my.yaml train.batch_size=4"],
    )
    validate.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a recipe")
    validate.add_argument("overrides", nargs="*", metavar="key=value", help="last wins")
    validate.add_argument(
        "--ranks", type=positive, metavar="N", help="also what each of N processes would take"
    )
    _takes_json(validate)
    init = add_verb(
        verbs,
        "init",
        "write a commented configuration to start from",
        _init,
        ["gradroute init caps", "gradroute init jsonl --out mine.yaml"],
        runs_folder=False,
    )
    init.add_argument(
        "kind",
        choices=KINDS,
        help="caps: the reference experiment; jsonl: labeled rows of your own; chat: labeled "
        "conversations and a model with a chat template",
    )
    init.add_argument(
        "--out", type=Path, help="the file (KIND.yaml); example rows are written beside it"
    )
    doctor = add_verb(
        verbs,
        "doctor",
        "print the facts for a bug report: versions, device, extras, paths; no secrets",
        _doctor,
        ["gradroute doctor", "gradroute doctor --json"],
    )
    _takes_json(doctor)
    add_verb(
        verbs,
        "schema",
        "print the JSON schema of the configuration",
        _schema,
        ["gradroute schema", "gradroute schema > gradroute.schema.json"],
        runs_folder=False,
    )


def _takes_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _validate(options: argparse.Namespace) -> None:
    from gradroute.config.libraries import Libraries
    from gradroute.config.run_config import find_config, load_config
    from gradroute.errors import ConfigError

    try:
        config = load_config(find_config(options.config), options.overrides)
    except ConfigError as error:  # nothing else can be looked at
        if options.json:
            _print_json({"problems": [_plain(error)]})
        raise
    with Libraries.of(config):
        from gradroute.preflight.validation import validate

    found = validate(config, options.runs, ranks=options.ranks)
    if options.json:
        _print_json({**found.facts, "problems": [_plain(p) for p in found.problems]})
    else:
        from gradroute.preflight.validation_text import text_of

        print(text_of(found))
    if found.problems:
        first, *others = found.problems
        if not others:
            raise first
        count = len(found.problems)
        raise type(first)("\n  ".join([f"{count} problems:", *map(str, found.problems)]))
    if not options.json:
        print("no problems found; nothing was written.")


def _plain(problem: "GradrouteError") -> dict[str, Any]:
    return {"exit_code": problem.exit_code, "message": str(problem)}


def _init(options: argparse.Namespace) -> None:
    from gradroute.preflight.config_templates import write_template

    write_template(options.kind, options.out or Path(f"{options.kind}.yaml"))


def _doctor(options: argparse.Namespace) -> None:
    from gradroute.preflight.diagnostics import diagnose, find_problems, text_of

    facts = diagnose(options.runs)
    if options.json:
        _print_json(facts)
    else:
        print(text_of(facts))
    if found := find_problems(facts):
        from gradroute.errors import MachineError

        raise MachineError(" ".join(found))


def _print_json(value: dict[str, Any]) -> None:
    import json

    from gradroute.system.secrets import redact_tree

    print(json.dumps(redact_tree(value), indent=2))


def _schema(options: argparse.Namespace) -> None:
    import json

    from gradroute.config.run_config import schema

    print(json.dumps(schema(), indent=2))
