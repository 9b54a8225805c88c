"""The verbs that ship a run or list files with its bad adapter: `export` and its kin."""

import argparse
from pathlib import Path

from gradroute.cli.arguments import Verbs, add_verb, libraries, run_folders


def add(verbs: Verbs) -> None:
    """Add the verbs that ship a run."""
    _add_export(verbs)
    _add_audit(verbs)
    _add_purge(verbs)


def _add_export(verbs: Verbs) -> None:
    export = add_verb(
        verbs,
        "export",
        "write a run without its bad adapter, for PEFT, as a whole model or for llama.cpp, and "
        "prove it",
        _export,
        [
            "gradroute export 0.1_0.5 --keep good --format peft --out shipped",
            "gradroute export 0.1_0.5 --keep good --format merged --dtype bfloat16 --out model",
            "gradroute export 0.1_0.5 --format gguf-lora --out lora",
            "gradroute export 0.1_0.5 --keep good --format peft --out shipped --push me/stories",
        ],
        runs=1,
    )
    export.add_argument(
        "--keep",
        type=_names,
        metavar="NAME[,NAME]",
        help="the adapters to keep (those that no behavior was routed to)",
    )
    export.add_argument(
        "--format",
        dest="form",
        choices=("peft", "merged", "gguf-lora"),
        required=True,
        help="peft: one adapter for PEFT and servers; merged: a whole model for transformers; "
        "gguf-lora: a file per adapter for llama.cpp",
    )
    export.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the weights (an adapter: float32; a model: the dtype in which the base is "
        "loaded)",
    )
    export.add_argument(
        "--no-eval",
        dest="evaluate",
        action="store_false",
        help="do not repeat the behavior evaluation on the exported files",
    )
    export.add_argument("--push", metavar="REPO", help="also upload to a new hub repository")
    export.add_argument(
        "--public", action="store_true", help="with --push: a public repository (private)"
    )


def _add_audit(verbs: Verbs) -> None:
    audit = add_verb(
        verbs,
        "audit-adapter",
        "write all adapters of a run, including the bad one, as one adapter; for auditors, not for "
        "shipping",
        _audit,
        ["gradroute audit-adapter 0.1_0.5 --out audit"],
        runs=1,
    )
    audit.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")


def _add_purge(verbs: Verbs) -> None:
    purge = add_verb(
        verbs,
        "purge",
        "list every file of a run that still contains its bad adapter, and delete these on request",
        _purge,
        ["gradroute purge 0.1_0.5", "gradroute purge 0.1_0.5 --delete --yes"],
        runs=1,
    )
    purge.add_argument(
        "--keep",
        type=_names,
        metavar="NAME[,NAME]",
        help="the adapters that may stay (those that no behavior was routed to)",
    )
    purge.add_argument("--delete", action="store_true", help="delete the files; needs --yes")
    purge.add_argument(
        "--yes", action="store_true", help="confirm the deletion, which cannot be undone"
    )


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"names with commas between them are needed, got {text!r}")
    return names


def _export(options: argparse.Namespace) -> None:
    (folder,) = run_folders(options)
    with libraries([folder]):
        from gradroute.export.export_run import ExportRequest, export_run

    wanted = ExportRequest(
        keep=options.keep,
        form=options.form,
        out=options.out,
        dtype=options.dtype,
        evaluate=options.evaluate,
    )
    export_run(folder, wanted, repo=options.push, public=options.public)


def _audit(options: argparse.Namespace) -> None:
    (folder,) = run_folders(options)
    with libraries([folder]):
        from gradroute.export.audit_adapter import audit_adapter

    audit_adapter(folder, options.out)


def _purge(options: argparse.Namespace) -> None:
    (folder,) = run_folders(options)
    with libraries([folder]):
        from gradroute.export.purge import purge_run

    purge_run(folder, keep=options.keep, delete=options.delete, confirmed=options.yes)
