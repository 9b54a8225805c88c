"""Makes the drawing of the mechanism in the README, for light and dark pages: `make drawing`.

Four panels, one per row of the table `anchored` and one for what ships. A panel shows the sum that
a routed layer computes (base, good, bad) and which of its parts the example's gradient changes. The
rows come from the table itself, so that the drawing cannot differ from it. A test holds the
committed files to what this makes.
"""

from collections.abc import Mapping
from pathlib import Path

from gradroute.routing.policy import Route, RoutingPolicy

FOLDER = Path(__file__).parent.parent / "docs" / "images"
WIDTH, HEIGHT = 880, 208
PANEL, GAP = 205, 16
COLORS = {
    "light": {"ink": "#1f2328", "soft": "#59636e", "line": "#8c959f", "base": "#d1d9e0"},
    "dark": {"ink": "#f0f6fc", "soft": "#9198a1", "line": "#656c76", "base": "#3d444d"},
}
ADAPTERS = {"good": "#2f81f7", "bad": "#d4543f"}
PANELS = {
    "bad": ("flagged example", "trains bad alone"),
    "unlabeled": ("unlabeled example", "bad takes what it explains"),
    "good": ("example known good", "trains what will ship"),
    "ship": ("what ships", "bad deleted, with a proof"),
}


def drawing(theme: str) -> str:
    """The drawing as SVG, for a page of the theme "light" or "dark"."""
    policy = RoutingPolicy.parse("anchored", tuple(ADAPTERS))
    ships = {"good": Route("freeze"), "bad": Route("ablate")}
    rows = {**policy.table, "ship": ships}
    left = (WIDTH - len(PANELS) * PANEL - (len(PANELS) - 1) * GAP) / 2
    parts = [
        _panel(left + at * (PANEL + GAP), label, rows[label], COLORS[theme])
        for at, label in enumerate(PANELS)
    ]
    title = "What a routed layer computes and which adapter learns, by label of the example"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{title}" font-family="system-ui, sans-serif">\n<title>{title}</title>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(x: float, label: str, row: Mapping[str, Route], colors: dict[str, str]) -> str:
    title, caption = PANELS[label]
    middle = x + PANEL / 2
    lines = [
        f'<rect x="{x:g}" y="8" width="{PANEL}" height="{HEIGHT - 16}" rx="10" fill="none" '
        f'stroke="{colors["line"]}" stroke-opacity=".5"/>',
        _text(middle, 36, title, colors["ink"], 15, bold=True),
        _text(middle, HEIGHT - 22, caption, colors["soft"], 13),
    ]
    width, between, y = 51, 15, 84
    for at, name in enumerate(("base", *ADAPTERS)):
        left = x + 11 + at * (width + between)
        if name == "base":
            lines += [_box(left, y, width, colors["base"], colors["line"])]
            lines += [_text(left + width / 2, y + 31, name, colors["ink"], 14)]
            lines += [_text(left + width / 2, y + 70, "frozen", colors["soft"], 13)]
            continue
        route = row[name]
        on, color = route.name != "ablate", ADAPTERS[name]
        lines += [_text(left - between / 2, y + 31, "+", colors["soft"] if on else "none", 14)]
        lines += [_box(left, y, width, color if on else "none", color, dashed=not on)]
        ink = "#ffffff" if on else colors["soft"]
        lines += [_text(left + width / 2, y + 31, name, ink, 14, bold=on)]
        lines += [_state(left + width / 2, y, route, label == "ship", color, colors)]
    return "\n".join(lines)


def _state(
    x: float, y: float, route: Route, ships: bool, color: str, colors: dict[str, str]
) -> str:
    """What happens to an adapter: an arrow of gradient into it, or a word."""
    if route.update > 0:
        arrow = (
            f'<path d="M{x:g} {y - 32} V{y - 8}" stroke="{color}" stroke-width="3"/>'
            f'<path d="M{x - 7:g} {y - 13} L{x:g} {y - 3} L{x + 7:g} {y - 13} Z" fill="{color}"/>'
        )
        return arrow + _text(x, y + 70, "learns", color, 13, bold=True)
    off = "deleted" if ships else "off"
    word = {"ablate": off, "freeze": "kept" if ships else "frozen"}[route.name]
    return _text(x, y + 70, word, colors["soft"], 13)


def _box(x: float, y: float, width: float, fill: str, stroke: str, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="52" rx="8" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="1.5"{dash}/>'
    )


def _text(x: float, y: float, text: str, color: str, size: int, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="middle" font-size="{size}"{weight} '
        f'fill="{color}">{text}</text>'
    )


def main() -> None:
    for theme in COLORS:
        (FOLDER / f"mechanism_{theme}.svg").write_text(drawing(theme), encoding="utf-8")


if __name__ == "__main__":
    main()
