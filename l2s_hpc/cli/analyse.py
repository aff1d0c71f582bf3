"""`l2s verify`, `front`, `ntr`, `report`, `export`: what became of a search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2s_hpc.cli.cluster import JSON
from l2s_hpc.cli.imports import WITHOUT, said_warnings
from l2s_hpc.cli.output import print_json, print_table, stdout

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run

RUN = Annotated[Path, typer.Argument(help="A run directory.")]
EVALUATION = Annotated[
    str | None,
    typer.Option("--on", help="search, selection or report; default: the best there is."),
]

_COLUMNS = (
    "n", "n_gradable", "accuracy", "accuracy_gradable", "undecided", "tokens", "tokens_right",
    "truncation", "ntr",
)  # fmt: skip
"""The measures in a table of the front; `telling` drops what tells nothing."""


def register(app: typer.Typer) -> None:
    """Add this module's verbs."""
    for verb in (verify, front, ntr, report, export):
        app.command()(verb)


def verify(
    folder: RUN,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Move damage away; `l2s run` evaluates it again.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Re-hash and re-check everything that a run's numbers rest on."""
    from l2s_hpc.controller import verify as verifier

    tables, damage = verifier.verify(folder)
    rows = [{"file": str(d.path), "damage": d.message} for d in damage]
    reopened = verifier.quarantine(folder, damage) if quarantine and damage else 0
    if as_json:
        print_json({"tables": tables, "damage": rows, "reopened": reopened})
    else:
        if rows:
            print_table(rows, "Damage")
        stdout.print(f"{tables} accepted tables checked, {len(rows)} damaged, {reopened} reopened")
    if rows:
        raise typer.Exit(3)


def front(
    folder: RUN, on: EVALUATION = None, without: WITHOUT = None, as_json: JSON = False
) -> None:
    """Print the final front; with `--on search` the one that is not dominated so far."""
    from l2s_hpc import open_run
    from l2s_hpc.analysis.candidates import telling

    with said_warnings():
        rows = _checked(open_run(folder), on).front(on, without or ())
    if as_json:
        print_json(rows)
    else:
        print_table(telling(front_rows(rows)), "Front")


def ntr(folder: RUN, on: EVALUATION = None, without: WITHOUT = None, as_json: JSON = False) -> None:
    """Print negative and positive transfer rates with their intervals."""
    from l2s_hpc import open_run
    from l2s_hpc.analysis.candidates import telling

    with said_warnings():
        rows = _checked(open_run(folder), on).ntr(on, without or ())
    if as_json:
        print_json(rows)
    else:
        print_table(telling(rows), "Transfer against the parents (95 % intervals)")


def report(
    folder: RUN,
    svg: Annotated[
        Path | None, typer.Option("--svg", help="Also write the front's picture here.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Write the one-file HTML report."""
    from l2s_hpc import open_run
    from l2s_hpc.analysis.nodes import differences, node_rows
    from l2s_hpc.analysis.report import save_front_svg, write_report
    from l2s_hpc.store.layout import RunPaths

    opened = open_run(folder)
    with said_warnings():
        path = write_report(opened, RunPaths(folder).report)
        if svg is not None:
            save_front_svg(opened, svg)
    if as_json:
        nodes = opened.nodes()
        notes = differences(nodes)
        print_json({"report": str(path), "nodes": node_rows(nodes), "notes": notes})
    else:
        stdout.print(f"report: {path}")


def export(
    folder: RUN,
    candidate: Annotated[
        str, typer.Argument(help="An id, a pick (knee) or a reference (average).")
    ],
    target: Annotated[Path, typer.Argument(help="The folder to make.")],
    as_json: JSON = False,
) -> None:
    """Write a candidate as a checkpoint, with its recipe and model card."""
    from l2s_hpc.export import export as run_export

    made = run_export(folder, candidate, target)
    if as_json:
        print_json({"folder": str(made)})
    else:
        stdout.print(str(made))


def _checked(run: Run, evaluation: str | None) -> Run:
    from l2s_hpc.errors import UserError, did_you_mean

    if evaluation is not None and evaluation not in run.evaluations:
        known = run.evaluations or ["(none yet)"]
        raise UserError(f"no evaluation '{evaluation}'", hint=did_you_mean(evaluation, known))
    return run


def reference_rows(run: Run, evaluation: str) -> list[dict[str, Any]]:
    """Return the references' rows, with the columns of `front_rows`."""
    measured = run.measures(evaluation)
    return [
        {
            "candidate": candidate,
            "label": label,
            **{name: measured[candidate][name] for name in _COLUMNS},
            "genome": None,
        }
        for candidate, label in run.labels.items()
        if candidate in measured
    ]


def front_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return front rows with the columns that fit a terminal."""
    return [
        {
            "candidate": row["candidate"],
            "label": ", ".join(row["picks"]) or row["label"],
            **{name: row[name] for name in _COLUMNS},
            "genome": row["genome"],
        }
        for row in rows
    ]
