"""Makes docs/reference/ from the docstrings, the schema and the parser: `make reference`.

    api.md     the names that `gradroute` and `gradroute.integrations` give, from their source
    config.md  every setting of a configuration, from its schema
    cli.md     every verb and its options, from the parser

Nothing heavy is imported. A test holds the committed pages to what this makes.
"""

import argparse
import ast
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gradroute.cli.parser import build_parser
from gradroute.config.run_config import schema

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "reference"
NOTE = "<!-- Made by `make reference`: change a docstring, a field or a verb, not this page. -->"
SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Yields")


def pages() -> dict[str, str]:
    """File name -> text of every page."""
    made = {"api.md": _api(), "config.md": _config(), "cli.md": _cli()}
    return {name: f"{NOTE}\n\n{_joined(lines)}" for name, lines in made.items()}


def _joined(lines: Iterable[str]) -> str:
    """The lines as a text, never with two empty ones in a row."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"written: docs/reference/{name}")


# --- the Python interface


def _api() -> Iterator[str]:
    yield "# Python interface\n"
    yield "What `import gradroute` gives. Names are loaded when they are first used.\n"
    yield from (f"- [{name}](#{_anchor(name)})" for name in sorted(_homes(), key=str.lower))
    within = _homes("gradroute.integrations")
    yield "\n[`gradroute.integrations`](../howto/trl.md), trainers of other libraries:\n"
    yield from (f"- [{name}](#{_anchor(name)})" for name in sorted(within))
    for name, module in sorted({**_homes(), **within}.items(), key=lambda item: item[0].lower()):
        yield f"\n## {name}\n"
        yield from _described(_source(module), name)


def _homes(package: str = "gradroute") -> Mapping[str, str]:
    """Public name -> the module that its docstring stands in."""
    tree = ast.parse(_source(package))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    found = {
        alias.asname or alias.name: str(node.module)
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return {name: _definition_of(name, module) for name, module in found.items()}


def _definition_of(name: str, module: str) -> str:
    """The module in which a name is defined, through those that only hand it on."""
    for node in ast.walk(ast.parse(_source(module))):
        if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith("gradroute"):
            continue
        if any(name == (alias.asname or alias.name) for alias in node.names):
            return _definition_of(name, str(node.module))
    return module


def _source(module: str) -> str:
    path = ROOT / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.read_text(encoding="utf-8")


def _described(source: str, name: str) -> Iterator[str]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            yield from _function(node, name)
        elif isinstance(node, ast.ClassDef) and node.name == name:
            yield from _class(node, name)
        elif _assigned(node) == name:  # its comments are what there is to say
            yield f"```py\n{ast.get_source_segment(source, node)}\n```\n"


def _assigned(node: ast.stmt) -> str | None:
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return target.id if isinstance(target, ast.Name) else None


def _function(node: ast.FunctionDef, name: str) -> Iterator[str]:
    decorators = {ast.unparse(one) for one in node.decorator_list}
    if "property" in decorators:
        returned = f": {ast.unparse(node.returns)}" if node.returns else ""
        yield f"```py\n{name}{returned}\n```\n"
    else:
        if "contextmanager" in decorators:
            yield "A context manager.\n"
        yield f"```py\n{_signature(node, name, bound=bool(decorators & {'classmethod'}))}\n```\n"
    yield from _prose(ast.get_docstring(node) or "")


def _signature(node: ast.FunctionDef, name: str, *, bound: bool) -> str:
    arguments = node.args
    if bound or (arguments.args and arguments.args[0].arg == "self"):
        arguments.args = arguments.args[1:]
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    parts = [re.sub(r"^(\w+: [^=]*)=", r"\1 = ", part) for part in _split(ast.unparse(arguments))]
    return _call(name, parts, returned)


def _call(name: str, parts: list[str], returned: str) -> str:
    """What is called and with what: on one line where that is short, else on a line for each."""
    whole = f"{name}({', '.join(parts)}){returned}"
    if len(whole) <= 96:
        return whole
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returned}"


def _split(text: str) -> list[str]:
    """The arguments of a signature, at the commas that stand in no bracket and no text."""
    parts, depth, quoted = [""], 0, ""
    for character in text:
        quoted = "" if character == quoted else quoted or (character if character in "'\"" else "")
        depth += 0 if quoted else (character in "([{") - (character in ")]}")
        if character == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _class(node: ast.ClassDef, name: str) -> Iterator[str]:
    bases = [ast.unparse(base) for base in node.bases]
    decorated = any("dataclass" in ast.unparse(one) for one in node.decorator_list)
    fields = [ast.unparse(o) for o in node.body if isinstance(o, ast.AnnAssign) and decorated]
    yield f"```py\n{_call(f'class {name}', fields or bases, '')}\n```\n"
    yield from _prose(ast.get_docstring(node) or "")
    if name == "RunConfig":
        yield "Every setting: [configuration](config.md).\n"
    for one in node.body:
        if _assigned(one) == "exit_code" and isinstance(one, ast.Assign):
            yield f"Exit code of the command line: {ast.unparse(one.value)}.\n"
        if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
            yield f"### {name}.{one.name}\n"
            yield from _function(one, one.name)


def _prose(docstring: str) -> Iterator[str]:
    """A docstring as Markdown: its sections become lists, drawings stay drawings."""
    lines = docstring.expandtabs().splitlines()
    at = 0
    while at < len(lines):
        title = re.fullmatch(rf"({'|'.join(SECTIONS)}):", lines[at])
        at += 1
        if title is None:
            yield lines[at - 1]
            continue
        body: list[str] = []
        while at < len(lines) and (not lines[at] or lines[at].startswith(" ")):
            body.append(lines[at])
            at += 1
        yield f"**{title[1]}**\n"
        yield from _entries(textwrap.dedent("\n".join(body)).strip().splitlines())
        yield ""
    yield ""


def _entries(lines: list[str]) -> Iterator[str]:
    """A list entry for every `name: what it is`; the rest as it stands."""
    for line in lines:
        entry = re.match(r"(\w+): (.*)", line)
        if entry:
            yield f"- `{entry[1]}`: {entry[2]}"
        else:
            yield f"  {line.strip()}" if line.startswith(" ") else line


def _anchor(name: str) -> str:
    return re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-")


# --- the configuration


def _config() -> Iterator[str]:
    whole = schema()
    yield "# Configuration\n"
    yield (
        "Every setting of a configuration file. On the command line a setting of a section is "
        "`section.key=value`. `gradroute schema` prints the same as a JSON schema, for editors.\n"
    )
    top = {k: v for k, v in whole["properties"].items() if "$ref" not in v}
    yield "## The run\n"
    yield from _settings(top, "")
    yield "\n## adapters.NAME\n"
    yield from _settings(whole["$defs"]["AdapterConfig"]["properties"], "")
    for name, of in whole["properties"].items():
        if "$ref" in of:
            section = whole["$defs"][of["$ref"].rsplit("/", 1)[-1]]
            yield f"\n## {name}\n\n{of['description']}\n"
            yield from _settings(section["properties"], f"{name}.")


def _settings(properties: Mapping[str, Any], prefix: str) -> Iterator[str]:
    yield "| key | value | default | |\n|---|---|---|---|"
    for name, of in properties.items():
        default = "" if "default" not in of else f"`{_plain(of['default'])}`"
        cells = (f"`{prefix}{name}`", _kind(of), default, of.get("description", ""))
        yield f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


def _plain(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _kind(of: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if "anyOf" in of:
        return " or ".join(dict.fromkeys(_kind(one) for one in of["anyOf"]))
    if "enum" in of:
        return ", ".join(f"`{one}`" for one in of["enum"])
    if "const" in of:
        return f"`{of['const']}`"
    names = {"string": "text", "integer": "whole number", "number": "number", "null": "null",
             "boolean": "`true`, `false`", "array": "list", "object": "mapping"}  # fmt: skip
    kind = names.get(of.get("type", ""), "value")
    bounds = (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"),
              ("exclusiveMaximum", "below"))  # fmt: skip
    said = [f"{word} {of[key]:g}" for key, word in bounds if key in of]
    return f"{kind}, {' and '.join(said)}" if said else kind


# --- the command line


def _cli() -> Iterator[str]:
    parser = build_parser()
    yield "# Command line\n"
    yield f"{parser.description} {parser.epilog}\n"
    verbs = list(_verbs(parser, ()))
    titles = [" ".join(("gradroute", *name)) for name, _ in verbs]
    yield from (f"- [{title}](#{_anchor(title)})" for title in titles)
    for title, (_, verb) in zip(titles, verbs, strict=True):
        yield f"\n## {title}\n\n{verb.description}\n"
        yield from _options(verb)
        examples = [line for line in (verb.epilog or "").splitlines() if line.startswith("  ")]
        if examples:
            yield "\n" + "\n".join(f"    {line.strip()}" for line in examples)


def _verbs(
    parser: argparse.ArgumentParser, name: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    inner = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not inner and name:
        yield name, parser
    for action in inner:
        for word, verb in action.choices.items():
            yield from _verbs(verb, (*name, word))


def _options(verb: argparse.ArgumentParser) -> Iterator[str]:
    yield "| argument | |\n|---|---|"
    for action in verb._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        value = "" if action.nargs == 0 else f" {action.metavar or _value_of(action)}"
        word = ", ".join(f"{flag}{value}" for flag in action.option_strings) or value.strip()
        told = (action.help or "").replace("%%", "%")
        yield f"| `{_cell(word)}` | {_cell(told)} |"


def _value_of(action: argparse.Action) -> str:
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


if __name__ == "__main__":
    main()
