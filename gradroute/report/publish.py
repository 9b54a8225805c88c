"""Every file of a report on measured runs; reads run folders only and never imports torch."""

from collections.abc import Sequence
from pathlib import Path

from gradroute.report.judge.comparison import compare
from gradroute.report.render.figure_style import LIGHT, draw_forms, png
from gradroute.report.render.figures import eval_multi_picture, pictures
from gradroute.report.render.json_document import eval_multi
from gradroute.report.render.markdown import csv_text, markdown
from gradroute.report.render.page import page_html
from gradroute.report.render.sweep_figure import sweep_pictures, sweep_table
from gradroute.report.render.tables import tables
from gradroute.report.render.terminal_text import render
from gradroute.report.results.grid import GridCell, grid_points
from gradroute.runs.folder import RunFolder
from gradroute.system.files import write_bytes, write_json, write_text
from gradroute.system.terminal import safe_text, say


def publish(
    folders: Sequence[RunFolder], out: Path, *, page: bool, grid: Sequence[GridCell] = ()
) -> None:
    """Compare measured runs, write what came of it, and print the comparison.

    Always `eval_multi_results.json` and `eval_multi_plot.png`. With the page also `report.html`,
    `report.md`, a CSV file per table in `tables/`, and every figure as PNG and PDF in `figures/`.
    The page stands alone; the Markdown names the figures beside it.

    Args:
        folders: runs that are measured.
        out: folder of the files.
        page: whether the page and what belongs to it are wanted.
        grid: the cells of a sweep that the runs are of; the page then shows them over its axes.

    Raises:
        ConfigError: the runs cannot be compared.
        DataError: a run is not measured, or a file of it is damaged or of a newer schema.
        MachineError: a file cannot be written.
    """
    comparison = compare(folders)
    write_json(out / "eval_multi_results.json", eval_multi(comparison))
    plot = eval_multi_picture(comparison)
    write_bytes(out / "eval_multi_plot.png", png(plot.draw, LIGHT))
    print(safe_text(render(comparison)))
    written = [out / "eval_multi_results.json", out / "eval_multi_plot.png"]
    if page:
        points = grid_points(grid, comparison.runs)
        found = tables(comparison)
        found += [sweep_table(points, comparison.behavior)] if points else []
        drawn = [*sweep_pictures(points, comparison.behavior), *pictures(comparison)]
        figures = [(picture, draw_forms(picture.draw)) for picture in drawn]
        for picture, image in figures:
            write_bytes(out / "figures" / f"{picture.name}.png", image.light)
            write_bytes(out / "figures" / f"{picture.name}.pdf", image.pdf)
        for table in found:
            write_text(out / "tables" / f"{table.name}.csv", csv_text(table))
        write_text(
            out / "report.md", markdown(comparison, found, [picture for picture, _ in figures])
        )
        write_text(out / "report.html", page_html(comparison, found, figures))
        written += [out / "report.html", out / "report.md", out / "figures", out / "tables"]
    say(f"written: {', '.join(map(str, written))}")
