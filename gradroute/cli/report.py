"""`report`, `plot` and `geometry`."""

import argparse

from gradroute.cli.arguments import Verbs, add_verb, libraries, pair, run_folders
from gradroute.system.terminal import printable


def add(verbs: Verbs) -> None:
    """Add the verbs that show what was measured."""
    add_verb(
        verbs,
        "report",
        "write a report on measured runs: one page that opens offline, tables, figures",
        _report,
        ["gradroute report baseline 0.1_0.0 0.1_0.5 --out comparison"],
        runs="+",
        out=True,
    )
    add_verb(
        verbs,
        "plot",
        "plot one run's training: loss, gradient shares, learning rate, behavior over steps",
        _plot,
        ["gradroute plot 0.1_0.5"],
        runs=1,
    )
    geometry = add_verb(
        verbs,
        "geometry",
        "compare the subspaces and updates of good and bad, module by module",
        _geometry,
        ["gradroute geometry 0.1_0.0 0.1_0.5"],
        runs="+",
        out=True,
    )
    geometry.add_argument(
        "--adapters", type=pair, metavar="A,B", help="compare these two (good,bad, or the only two)"
    )


def _report(options: argparse.Namespace) -> None:
    folders = run_folders(options)
    from gradroute.report.publish import publish

    publish(folders, options.out or options.runs, page=True)


def _plot(options: argparse.Namespace) -> None:
    (folder,) = run_folders(options)
    from gradroute.report.render.training_plot import plot_run

    print(printable(str(plot_run(folder))))


def _geometry(options: argparse.Namespace) -> None:
    folders = run_folders(options)
    with libraries(folders):
        from gradroute.probes.geometry import geometry_runs

    geometry_runs(folders, options.out or options.runs, options.adapters)
