"""The output folder of a routed trainer as a run: what `gradroute eval`, `export`, `report` read.

    output_dir/  checkpoint-20/ …                         the trainer's own
                 config.yaml manifest.json sessions.jsonl  what `gradroute train` writes, too
                 checkpoints/step-000020/                  the adapters, without moments
                 data/train.jsonl data/held_out.jsonl      the rows that the trainer was given; of
                                                          GRPO the last completions, prompts.txt

It is written when training ends. Whatever keeps it from being written or measured is said, never
raised: the trained weights come first.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from transformers import PreTrainedModel

from gradroute import __version__
from gradroute.config.errors import Origin, validate_config
from gradroute.config.run_config import RunConfig, dump_config
from gradroute.data.batches import tokenize
from gradroute.data.behaviors import UNNAMED, get_behaviors
from gradroute.errors import ConfigError, DataError, GradrouteError
from gradroute.evaluate.manifest import manifest_of
from gradroute.integrations.optimizers import group_settings
from gradroute.integrations.output_rows import RowReader, logged_steps, prompt_lines
from gradroute.models.base import EMBEDDED, embedded_model, packed_bits
from gradroute.models.checkpoint import save_checkpoint
from gradroute.models.files import identity_of
from gradroute.models.sizes import positions_of
from gradroute.prepare import Prepared, prepare
from gradroute.routing.policy import RoutingPolicy
from gradroute.runs.folder import RunFolder
from gradroute.runs.lock import write_lock
from gradroute.runs.provenance import provenance
from gradroute.runs.resume import read_manifest, record_session
from gradroute.system.files import make_folder, write_json, write_lines, write_text
from gradroute.system.terminal import first_line, say

if TYPE_CHECKING:
    from gradroute.integrations.routing import RoutedTraining

IN_MEMORY = "made in memory"
"""The identity of a base that no folder holds."""
_TRAINER = "trainer"  # key of a manifest that a trainer wrote
_COMPARED = 64  # rows whose tokens are compared with the trainer's


@dataclass(frozen=True)
class Given:
    """What a trainer was given for the run that its output folder becomes.

    Attributes:
        behavior: `behavior` of the run's config.
        train: The training data set, before the trainer prepared it.
        held_out: The evaluation data set; None for none.
        formatted: The trainer's `formatting_func`.
    """

    behavior: str | dict[str, str]
    train: object
    held_out: object
    formatted: Callable[[Any], str] | None


def given(
    behavior: str | Mapping[str, str] | None, policy: RoutingPolicy, arguments: Mapping[str, Any]
) -> Given:
    """Read what concerns the run among a trainer's arguments.

    Args:
        behavior: A behavior as a config names one, or label -> behavior; None for none.
        policy: The routing table.
        arguments: Those of the trainer, by name.

    Raises:
        ConfigError: There is no such behavior, or the table has no row for a label.
    """
    if behavior is None:
        own = [label for label in policy.labels if label in policy.adapters and label != "good"]
        behavior = UNNAMED if own in ([], ["bad"]) else dict.fromkeys(own, UNNAMED)
    named = {"bad": behavior} if isinstance(behavior, str) else dict(behavior)
    for label in named:
        if label not in policy.labels and not isinstance(behavior, str):
            raise ConfigError(
                f"behavior= names the label {label!r}, but the routing table has rows for "
                f"{', '.join(policy.labels)}. Give it a row, or name one of these."
            )
    get_behaviors(named)
    return Given(
        behavior if isinstance(behavior, str) else named,
        arguments.get("train_dataset"),
        arguments.get("eval_dataset"),
        arguments.get("formatting_func"),
    )


def write_run(trainer: "RoutedTraining", own: Given) -> None:
    """Make the output folder a run, and say what of it cannot be measured."""
    folder = RunFolder(Path(str(trainer.args.output_dir)).resolve())
    if not trainer.args.should_save or not trainer.state.global_step:
        return
    try:
        _refuse(folder, trainer)
        with write_lock(folder.path, "training"):
            notes = _write(folder, trainer, own)
    except Exception as error:  # whatever it is, the weights of a long training are not lost to it
        told = isinstance(error, GradrouteError)
        why = str(error) if told else f"{type(error).__name__}: {first_line(error)}"
        say(f"{folder.name}: its output folder is no run of gradroute: {why}")
        return
    for note in notes:
        say(f"{folder.name}: {note}")


def _refuse(folder: RunFolder, trainer: "RoutedTraining") -> None:
    if folder.config.exists() and _TRAINER not in read_manifest(folder):
        raise ConfigError(
            f"{folder.config} is there and was not written by a trainer. Name another output_dir."
        )
    if trainer.args.push_to_hub:
        raise ConfigError(
            "push_to_hub uploads all of it, and a run holds the training rows. Push by hand "
            "afterwards to have both."
        )


def _write(folder: RunFolder, trainer: "RoutedTraining", own: Given) -> list[str]:
    """Write all files; `config.yaml`, which makes a folder a run, comes last."""
    make_folder(folder.path)
    model = trainer.model.get_base_model()
    assert isinstance(model, PreTrainedModel)
    place, identity, why = base_of(model, folder.path / "base")
    notes = [why] if why else []
    unread = _write_rows(folder, trainer, own)
    config = _config(folder, trainer, own, place)
    text = dump_config(config)
    prepared = None
    try:
        if unread:
            raise DataError(unread)
        prepared = prepare(config)
    except GradrouteError as error:
        notes.append(
            f"`gradroute eval` has nothing to measure on, and export needs --no-eval: {error}"
        )
    else:
        notes += _notes(trainer, prepared, config)
    facts = {"base": identity, "gradroute": __version__}
    whose = (
        f"trained by {type(trainer).__name__}: its loss, optimizer and schedule are those of its "
        "own arguments, of which the config holds steps, batch and learning rate."
    )
    stated: dict[str, Any] = {**facts, "notes": [whose, *notes]}
    if prepared is not None:
        facts = {"data": prepared.identity, **facts}
        stated = manifest_of(prepared, facts, [whose, *prepared.notes, *notes])
    now = provenance()
    stated[_TRAINER] = type(trainer).__name__
    folder.config.unlink(missing_ok=True)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)  # of an earlier training in this folder
    save_checkpoint(
        folder.checkpoints,
        config.train.max_steps,
        trainer.model,
        {},
        config_text=text,
        policy=config.policy.to_plain(),
    )
    groups: Any = [] if trainer.optimizer is None else trainer.optimizer.param_groups
    write_lines(folder.metrics, logged_steps(trainer.state.log_history, groups))
    write_json(folder.manifest, {**stated, "provenance": now})
    record_session(folder, 0, changed={}, overridden=(), provenance=now)
    write_text(folder.config, text)
    return notes


def _write_rows(folder: RunFolder, trainer: "RoutedTraining", own: Given) -> str:
    """Write the rows; return why there are none, if so."""
    rows = RowReader(
        trainer.routing.columns,
        getattr(trainer.args, "dataset_text_field", "text"),
        own.formatted,
        trainer.processing_class,
    )
    data, held_out, prompts = _data_files(folder)
    for path in (data, held_out, prompts):
        path.unlink(missing_ok=True)
    make_folder(data.parent)
    try:
        if trainer.rollouts:
            write_lines(data, trainer.rollouts)
            if own.held_out is not None:
                write_text(prompts, "".join(f"{line}\n" for line in prompt_lines(own.held_out)))
            return ""
        write_lines(data, rows.rows(own.train, "training"))
        if own.held_out is None:
            raise DataError("no eval_dataset was given, so that no row is held out")
        write_lines(held_out, rows.rows(own.held_out, "evaluation"))
    except DataError as error:
        return f"{error}."
    return ""


def _data_files(folder: RunFolder) -> tuple[Path, Path, Path]:
    data = folder.path / "data"
    return data / "train.jsonl", data / "held_out.jsonl", data / "prompts.txt"


def _config(folder: RunFolder, trainer: "RoutedTraining", own: Given, base: str) -> RunConfig:
    """What was trained, as the config of a run.

    Raises:
        ConfigError: A config cannot say it.
    """
    args, routing = trainer.args, trainer.routing
    data, held_out, _ = _data_files(folder)
    base_model = trainer.model.get_base_model()
    assert isinstance(base_model, PreTrainedModel)
    steps = trainer.state.global_step
    longest = getattr(args, "max_length", None) or positions_of(base_model) or 2**20
    names = {"lr": "learning_rate"}  # of a group -> of a config
    values: dict[str, Any] = {
        "run_name": re.sub(r"[^A-Za-z0-9._-]+|^[._-]+|\.+$", "-", folder.name).lstrip("-")[:64],
        "seed": args.seed,
        "model": base,
        "quantize": {"8 bits": "8bit", "4 bits": "4bit"}.get(packed_bits(base_model), "none"),
        "behavior": own.behavior,
        "routing": routing.policy.to_plain(),
        "adapters": {
            name: {
                **{key: getattr(shape, key) for key in ("rank", "alpha", "dropout", "rslora")},
                **{
                    names.get(key, key): value for key, value in group_settings(shape, args).items()
                },
            }
            for name, shape in routing.adapters.items()
        },
        "targets": _plain(routing.targets),
        "layers": _plain(routing.layers),
        "data": {
            "path": str(data),
            "eval_path": None if trainer.rollouts else str(held_out),
            "eval_fraction": 0.5,  # of rollouts
            "on_conflict": "unlabeled" if trainer.rollouts else "refuse",
            "max_length": longest,
        },
        "train": {
            "max_steps": steps,
            "learning_rate": args.learning_rate,
            "batch_size": args.train_batch_size * trainer.ranks.size,
            "gradient_accumulation": args.gradient_accumulation_steps,
            "warmup_steps": args.get_warmup_steps(steps),
            "packing": bool(getattr(args, "packing", False)),
            "save_every": 0,
            "log_gradients_every": 0,
        },
    }
    config, problems = validate_config(RunConfig, values, Origin("the trainer"))
    if config is None or problems:
        raise ConfigError(f"a config cannot say how it was trained: {' '.join(problems)}")
    named = config.model_copy(update={"routing": routing.policy.name})
    if routing.policy.name != "custom" and named.policy.to_plain() == config.routing:
        return named
    return config


def _plain(value: str | Sequence[Any]) -> str | list[Any]:
    return value if isinstance(value, str) else list(value)


def _notes(trainer: "RoutedTraining", prepared: Prepared, config: RunConfig) -> Iterator[str]:
    """What a reader of the run's numbers must know."""
    if trainer.rollouts:
        yield (
            f"its rows are the last {len(trainer.rollouts)} completions that training sampled, "
            "labeled as in training; half of their prompts are measured on, and training has seen "
            "them. Prompts of eval_dataset that are one line are in data/prompts.txt, for "
            "`gradroute eval --prompts`."
        )
    if UNNAMED in config.behaviors.values():
        yield (
            "no behavior was named (behavior=), so that `gradroute eval` measures losses alone; "
            "name one in config.yaml to measure its rate."
        )
    if other := _other_tokens(trainer, prepared, config):
        yield (
            f"in {other} its rows are other tokens or targets than the trainer's, so that the "
            "losses of `gradroute eval` are not those of the trainer."
        )


def _other_tokens(trainer: "RoutedTraining", prepared: Prepared, config: RunConfig) -> str:
    """In how many of the first rows a run learns other tokens than the trainer; empty for none."""
    theirs, tokenizer = trainer.train_dataset, trainer.processing_class
    args = trainer.args
    if not isinstance(theirs, Dataset) or "input_ids" not in theirs.column_names:
        return ""
    if getattr(args, "packing", False) or getattr(args, "shuffle_dataset", False):
        return ""
    known = set[tuple[tuple[int, ...], tuple[int, ...]]]()
    row: Any
    for row in islice(theirs, 4 * _COMPARED):
        known.add((tuple(row["input_ids"]), tuple((row.get("labels") or row["input_ids"])[1:])))
    first = prepared.train[:_COMPARED]
    rows, _ = tokenize(first, tokenizer, [0] * len(first), config.data.max_length)  # pyright: ignore
    other = sum((row.input_ids, tuple(row.targets[:-1])) not in known for row in rows)
    return f"{other} of the first {len(rows)} rows" if other else ""


def base_of(model: PreTrainedModel, missing: Path) -> tuple[str, str, str]:
    """Where a base is read from, its identity, and why it cannot be read, if so.

    Args:
        model: The base, whatever adapters are on it.
        missing: The place that is named where there is none; nothing is there.
    """
    name = str(model.config._name_or_path or "")
    commit = getattr(model.config, "_commit_hash", None)
    if name and Path(name).is_dir():
        folder = Path(name).resolve()
        place, identity = str(folder), identity_of(folder, None)
        if folder == Path(embedded_model()).resolve():
            place = EMBEDDED
    elif name and commit:
        place, identity = name, f"hub revision {commit}"
        try:
            folder = Path(snapshot_download(name, revision=commit, local_files_only=True))
        except (LocalEntryNotFoundError, OSError):
            folder = None
    else:
        why = "its base was made in memory"
        return str(missing), IN_MEMORY, _needs_folder(why)
    if folder and not packed_bits(model) and (weight := _changed_weight(model, folder)):
        why = f"its base differs from the files of {name}, first in {weight}"
        return str(missing), IN_MEMORY, _needs_folder(why)
    return place, identity, ""


def _needs_folder(why: str) -> str:
    return (
        f"{why}, and `gradroute eval`, `export` need a base in a folder: save it with its "
        "tokenizer by save_pretrained, load it from there and train on that."
    )


def _changed_weight(model: PreTrainedModel, folder: Path) -> str:
    """The first weight whose shape or first row is not that of the files; empty for none.

    Names that transformers changes when it reads files are passed over.
    """
    held = {name.replace(".base_layer", ""): own for name, own in model.named_parameters()}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (no mapping)
                if (weight := held.get(name)) is None:
                    continue
                part = stored.get_slice(name)
                if part.get_shape() != list(weight.shape):
                    return name
                if not _same(part[:1], weight[:1].detach().cpu()):
                    return name
    return ""


def _same(stored: torch.Tensor, held: torch.Tensor) -> bool:
    """Whether numbers are the same in the dtype of one of them, or in a 16-bit one between."""
    kinds = (held.dtype, stored.dtype, torch.bfloat16, torch.float16)
    return any(torch.equal(stored.to(kind), held.to(kind)) for kind in kinds)
