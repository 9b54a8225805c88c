"""A self-contained page: its template, its own style and script by their hash, nothing else.

Whatever came from a run goes through the template's escaping or, as JSON, into an element that no
browser executes (`explorer.script_json`).
"""

import base64
import hashlib
from collections.abc import Mapping
from importlib import metadata, resources
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup, escape

from gradroute.report.render.explorer import HIDDEN, script_json
from gradroute.report.render.headline import tone

HEAD = "head.html"
"""The part that the templates of all pages include: policy, style, title."""


def self_contained_page(
    template: str,
    context: Mapping[str, Any],
    *,
    styles: tuple[str, ...],
    scripts: tuple[str, ...],
    data: Any,
) -> str:
    """A page that loads nothing and sends nothing.

    Args:
        template: Name of the template.
        context: What it shows, escaped.
        styles: Names of style sheets beside it, in order.
        scripts: Names of scripts likewise.
        data: What the scripts read, as plain values.

    Returns:
        HTML; the same arguments give the same text.
    """
    style, script = ("".join(map(_template, names)) for names in (styles, scripts))
    given = {
        "policy": _policy(style, script),
        "style": Markup(style),  # noqa: S704  (a file of this package)
        "script": Markup(script),  # noqa: S704
        "data": Markup(script_json(data)),
        "version": metadata.version("gradroute"),
    }
    return _environment(template).get_template(template).render({**given, **context})


def _template(name: str) -> str:
    folder = resources.files("gradroute.report.render") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing is allowed but this style, this script, and images from the page itself."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _environment(template: str) -> Environment:
    environment = Environment(
        loader=DictLoader({name: _template(name) for name in (template, HEAD)}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {"coded": with_code_tags, "tone": tone}
    return environment


def with_code_tags(text: str) -> Markup:
    """A sentence with what stands between backticks set as code, everything escaped."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one without a partner is a letter
        parts[-2:] = [f"{parts[-2]}`{parts[-1]}"]
    marked = [
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(map(_visible, parts))
    ]
    return Markup("").join(marked)


def _visible(value: Any) -> Any:
    """A text with what would steer the page or hide in it as escapes, as the page's script does."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return HIDDEN.sub(lambda found: repr(found[0])[1:-1], value)
