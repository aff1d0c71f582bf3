"""`l2s report`: a run, or several beside each other, as one HTML file and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l2s_hpc.cli.analyse import split_names
from l2s_hpc.cli.cluster import JSON
from l2s_hpc.cli.imports import WITHOUT, said_warnings
from l2s_hpc.cli.output import print_json, stdout, writing
from l2s_hpc.errors import UserError

if TYPE_CHECKING:
    from l2s_hpc.analysis.figures import Figure
    from l2s_hpc.analysis.pictures import Format
    from l2s_hpc.analysis.report import Report
    from l2s_hpc.analysis.report_runs import RunsReport

RUNS = Annotated[list[Path], typer.Argument(help="A run directory, or several to compare.")]


def register(app: typer.Typer) -> None:
    """Add this module's verb."""
    app.command()(report)


def report(
    folders: RUNS,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The file or folder; default: report.html of the one run."),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", help="Also the first chart as this .svg file, or all in a folder."),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option("--png", help="Also the first chart as this .png file, or all in a folder."),
    ] = None,
    without: WITHOUT = None,
    as_json: JSON = False,
) -> None:
    """Write the one-file HTML report: of one run, or of several beside each other."""
    from l2s_hpc import open_run
    from l2s_hpc.analysis.nodes import differences, node_rows
    from l2s_hpc.analysis.report import Report

    left = split_names(without)
    if len(folders) > 1:
        if left:
            raise UserError("--without goes with the report of one run")
        _several(folders, out, svg, png, as_json)
        return
    with said_warnings():
        opened = open_run(folders[0], without=left)
        if left and opened.info.purpose == "evaluate":
            raise UserError("--without goes with searches and imports: this report compares nobody")
        made = Report(opened)
        path = _page(made, out or folders[0])
        pictures = _pictures(made.figures, svg, png)
    if as_json:
        nodes = opened.nodes()
        found = {"nodes": node_rows(nodes), "notes": differences(nodes)}
        print_json({"report": str(path), "pictures": pictures, **found})
    else:
        stdout.print(f"report: {path}", markup=False)


def _several(
    folders: Sequence[Path], out: Path | None, svg: Path | None, png: Path | None, as_json: bool
) -> None:
    from l2s_hpc.analysis.report_runs import RunsReport
    from l2s_hpc.analysis.runs import open_runs

    if out is None:
        raise UserError(
            f"where shall the report of {len(folders)} runs go?", hint="--out FILE says it"
        )
    with said_warnings():
        runs = open_runs(folders)
        made = RunsReport(runs)
        path = _page(made, out)
        pictures = _pictures(made.figures, svg, png)
    if as_json:
        print_json({"report": str(path), "pictures": pictures, "runs": runs.table()})
    else:
        stdout.print(f"report: {path}", markup=False)


def _page(made: Report | RunsReport, out: Path) -> Path:
    """Write the page as a file, or into a folder that is there; return its path."""
    from l2s_hpc.store.layout import RunPaths

    path = RunPaths(out).report if out.is_dir() else out
    with writing(path):
        return made.write(path)


def _pictures(figures: Sequence[Figure], svg: Path | None, png: Path | None) -> list[str]:
    """Write the pictures that were asked for; return their paths."""
    kinds: list[tuple[Format, Path | None]] = [("svg", svg), ("png", png)]
    found: list[str] = []
    for kind, where in kinds:
        if where:
            with writing(where):
                found += map(str, _written(figures, kind, where))
    return found


def _written(figures: Sequence[Figure], kind: Format, where: Path) -> list[Path]:
    from l2s_hpc.analysis.pictures import save_picture, save_pictures

    if not figures:
        raise UserError(
            "no picture to write: the report has no chart",
            hint="a search has charts once it has score tables, "
            "a run of `l2s evaluate` once two models differ on an item",
            path=where,
        )
    if not where.suffix or where.is_dir():
        return save_pictures(figures, where, kind)
    if where.suffix != f".{kind}":
        raise UserError(
            f"'{where.name}' is no name of a picture in {kind.upper()}",
            hint=f"a name that ends in .{kind} gets the first chart, a folder gets all",
        )
    return [save_picture(figures[0], where, kind)]
