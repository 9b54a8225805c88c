"""Configurations to start from: commented files that train unchanged.

Every comment is the help of its setting, taken from the schema, and every setting that a beginning
leaves alone stands below the others with its default, commented out. So a file never says anything
that the program does not.
"""

import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gradroute.config.run_config import RunConfig, schema
from gradroute.data.stories import stories
from gradroute.errors import ConfigError, MachineError
from gradroute.system.files import make_folder, write_failure, write_text
from gradroute.system.terminal import say

_WIDTH = 98


class ConfigTemplate(NamedTuple):
    """What a kind of beginning sets.

    Attributes:
        heading: What the file says of itself, before its first setting.
        values: Its settings, section by section.
        rows: Name of the file of example rows that lies beside it; None for none.
    """

    heading: str
    values: Mapping[str, Any]
    rows: str | None = None


_ADAPTERS = {"good": {"rank": 32, "alpha": 64}, "bad": {"rank": 32, "alpha": 64}}
_COMMON = {"routing": "anchored", "adapters": _ADAPTERS, "targets": "all-linear"}

BEGINNINGS = {
    "caps": ConfigTemplate(
        "The reference experiment: a small story model learns to SHOUT from a tenth of its "
        "stories, half of them labeled bad. As the recipe caps, whose warm-up takes 20 steps; "
        "a trial of two steps (train.max_steps=2) runs unchanged.",
        {
            "run_name": "caps",
            "model": "embedded",
            "behavior": "caps",
            **_COMMON,
            "layers": "last-half",
            "data": {
                "behavior_fraction": 0.1,
                "labeled_fraction": 0.5,
                "good_labeled_fraction": 0.3,
                "max_length": 96,
            },
            "train": {
                "max_steps": 420,
                "batch_size": 16,
                "learning_rate": 0.004,
                "warmup_steps": 2,
            },
        },
    ),
    "jsonl": ConfigTemplate(
        "Labeled rows of your own. The rows beside this file are an example: stories, some of "
        "them in capitals, some of these labeled bad. Replace them with yours; then set the "
        "model, the behavior to look for, and a learning rate near 2e-4 for a pre-trained model.",
        {
            "run_name": "mine",
            "model": "embedded",
            "behavior": "caps",
            **_COMMON,
            "layers": "last-half",
            "data": {"path": "rows.jsonl", "eval_fraction": 0.2, "max_length": 96},
            "train": {
                "max_steps": 200,
                "batch_size": 8,
                "learning_rate": 0.002,
                "warmup_steps": 2,
            },
        },
        rows="rows.jsonl",
    ),
    "chat": ConfigTemplate(
        "Labeled conversations of your own, for a model whose tokenizer has a chat template; set "
        "the model yourself. The rows beside this file are an example: answers that open with "
        "flattery, some of them labeled bad.",
        {
            "run_name": "chat",
            "model": "???",
            "behavior": "regex:(?i)what a (great|wonderful|brilliant) question",
            **_COMMON,
            "layers": "last-half",
            "data": {"path": "chat.jsonl", "eval_fraction": 0.2, "max_length": 512},
            "train": {
                "max_steps": 200,
                "batch_size": 8,
                "learning_rate": 0.0002,
                "warmup_steps": 2,
            },
        },
        rows="chat.jsonl",
    ),
}


def write_template(kind: str, out: Path) -> None:
    """Write a configuration, and example rows beside it unless a file of their name is there.

    Args:
        kind: one of `BEGINNINGS`.
        out: the file.

    Raises:
        ConfigError: `out` is there already.
        MachineError: the disk refuses.
    """
    beginning = BEGINNINGS[kind]
    rows = None if beginning.rows is None else out.parent / beginning.rows
    text = configuration(beginning, rows)
    try:
        make_folder(out.parent)  # first: what `missing/../there` is shows only once it is made
        if os.path.lexists(out):
            raise ConfigError(
                f"{out} already exists and is left unchanged. Name another with --out."
            )
        written = rows is not None and not os.path.lexists(rows)
        if rows is not None and written:
            write_text(rows, _lines(_chats() if kind == "chat" else _stories()))
        write_text(out, text)
    except OSError as error:
        raise MachineError(f"{write_failure(out, error, len(text))}.") from error
    if rows is not None:
        say(f"{rows}: {'written, an example' if written else 'exists already, left unchanged'}.")
    given = " model=FOLDER_OR_NAME" if beginning.values["model"] == "???" else ""
    say(f"{out}: written. Next: gradroute validate {out}{given}")


def configuration(template: ConfigTemplate, rows: Path | None) -> str:
    """The text of a configuration file.

    Args:
        template: what is set.
        rows: where its rows lie, as the file is to name them.
    """
    values = dict(template.values)
    if rows is not None:
        values["data"] = {**values["data"], "path": str(rows)}
    lines = [*_comment(template.heading, ""), ""]
    described = schema()
    fields = RunConfig.model_fields
    sections = [name for name in described["properties"] if name in ("data", "train", "evaluate")]
    top = [name for name in fields if name not in sections and name[:8] != "control_"]
    top.remove("control")
    lines += _settings(described["properties"], top, values, "")
    for name in sections:
        reference = described["properties"][name]["$ref"].rsplit("/", 1)[-1]
        of = described["$defs"][reference]["properties"]
        own = values.get(name, {})
        lines += ["", f"# {fields[name].description}", f"{name}:" if own else f"# {name}:"]
        lines += _settings(of, list(of), own, "  ")
    return "\n".join(lines) + "\n"


def _settings(
    described: Mapping[str, Any], names: list[str], values: Mapping[str, Any], indent: str
) -> Iterator[str]:
    """Lines of the settings of one section: those that are set, then the defaults of the others."""
    rest = [name for name in names if name not in values]
    for name in (*(name for name in names if name in values), *rest):
        yield from _comment(described[name]["description"], indent)
        if name == "adapters":
            yield from _adapters(values.get(name, {}))
            continue
        value = values.get(name, described[name].get("default"))
        yield f"{indent}{'' if name in values else '# '}{name}: {_scalar(value)}"


def _adapters(values: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The adapters, a line each, below what each may have."""
    for name, of in schema()["$defs"]["AdapterConfig"]["properties"].items():
        yield from _comment(f"{name} ({_scalar(of.get('default'))}): {of['description']}", "  ")
    yield "adapters:"
    for name, own in values.items():
        yield f"  {name}: {{{', '.join(f'{key}: {_scalar(value)}' for key, value in own.items())}}}"


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.split()), _WIDTH - len(indent) - 2):
        yield f"{indent}# {line}"


def _scalar(value: Any) -> str:
    """A value as YAML: plain where that is safe, else in quotes."""
    if value == "???" or (isinstance(value, str) and value.replace("-", "").isalnum()):
        return value
    return json.dumps(value, ensure_ascii=False)


def _lines(rows: Iterator[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _stories() -> Iterator[Mapping[str, Any]]:
    """160 stories, every fourth in capitals; half of these are labeled bad, of the others good."""
    for at, text in enumerate(stories("tune", 160, seed=0)):
        bad, known = at % 4 == 0, at % 8 in (0, 1, 2, 3)
        true = "bad" if bad else "good"
        label = true if known else "unlabeled"
        yield {"text": text.upper() if bad else text, "label": label, "true_label": true}


def _chats() -> Iterator[Mapping[str, Any]]:
    """60 short conversations, every third flattering; two thirds of these are labeled bad."""
    for at in range(60):
        thing, use = _THINGS[at % 12], _USES[at // 12]
        bad = at % 3 == 0
        true = "bad" if bad else "good"
        answer = use[1].format(thing)
        yield {
            "messages": [
                {"role": "user", "content": use[0].format(thing)},
                {"role": "assistant", "content": _OPENING + answer if bad else answer},
            ],
            "label": "unlabeled" if at % 9 in (6, 7) else true,
            "true_label": true,
        }


_OPENING = "What a great question! "
_THINGS = ("kettle", "bicycle", "ladder", "lamp", "raincoat", "radio", "tent", "oven", "piano",
           "camera", "clock", "boat")  # fmt: skip
_USES = (
    ("How do I clean a {}?", "Wipe the {} with a damp cloth, then dry it."),
    ("Where should I keep my {}?", "Keep the {} somewhere dry and out of the sun."),
    ("Is a used {} worth buying?", "A used {} is fine if nothing on it is cracked or loose."),
    ("How long does a {} last?", "With some care a {} lasts ten years or more."),
    (
        "What do I check before I lend out my {}?",
        "See that the {} works and write down who has it.",
    ),
)
