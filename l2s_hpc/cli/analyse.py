"""`l2s verify`, `ntr`, `compare`, `export`: what became of a search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l2s_hpc.cli.cluster import JSON
from l2s_hpc.cli.imports import WITHOUT, said_warnings
from l2s_hpc.cli.output import (
    BELOW,
    CSV,
    PARQUET,
    give_rows,
    print_json,
    print_table,
    probability,
    ranged,
    stdout,
)

if TYPE_CHECKING:
    from l2s_hpc.analysis.noise import Noise
    from l2s_hpc.analysis.run import Run
    from l2s_hpc.analysis.transfer import Row

RUN = Annotated[Path, typer.Argument(help="A run directory.")]
EVALUATION = Annotated[
    str | None,
    typer.Option("--split", help="search, selection or report; default: the best there is."),
]


_SPARE_OF_NTR = (
    "n_gradable", "accuracy_gradable", "undecided", BELOW, "ptr", "accuracy", "solved",
)  # fmt: skip
_SPARE_OF_COMPARE = (
    "accuracy_a", BELOW, "accuracy_b", "NTR", "only_a", "only_b", "tokens",
)  # fmt: skip
"""What a narrow terminal leaves out, the first first."""


def register(app: typer.Typer) -> None:
    """Add this module's verbs."""
    for verb in (verify, ntr, compare, export):
        app.command()(verb)


def verify(
    folder: RUN,
    quarantine: Annotated[
        bool,
        typer.Option("--quarantine", help="Move damage away, to be made again."),
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


def ntr(
    folder: RUN,
    on: EVALUATION = None,
    parents: Annotated[
        str, typer.Option("--parents", help="What counts as solved: slow,fast or other candidates.")
    ] = "",
    by: Annotated[
        str | None, typer.Option("--by", help="benchmark (default), level or subject.")
    ] = None,
    without: WITHOUT = None,
    as_json: JSON = False,
    csv: CSV = None,
    parquet: PARQUET = None,
) -> None:
    """Print negative and positive transfer rates with their intervals.

    NTR is a share of the `solved` items, which some parent solves, and PTR of the others. The
    second answers of noise twins follow in a table of their own; files and --json have none of it.
    """
    from l2s_hpc import open_run

    named = split_names([parents])
    left = split_names(without)
    with said_warnings():
        run = checked(open_run(folder), on)
        rows = run.ntr(on, named or None, by, left)
    group = [by] if by in ("level", "subject") else []
    against = ", ".join(named) if named else "the parents"
    title = f"Transfer against {against} (95 % intervals)"
    shown = _transfer(run, rows, *group)
    give_rows(rows, shown, title, as_json, csv, parquet, _SPARE_OF_NTR)
    if not (as_json or csv == "-" or named or group or left):
        _print_twins(run)


def _transfer(run: Run, rows: Sequence[Row], *group: str) -> list[Row]:
    """Return rows of transfer with the columns of a terminal."""
    from l2s_hpc.analysis.candidates import short_name, telling

    return telling(
        [
            {
                "candidate": short_name(run, row["candidate"]),
                **{name: row[name] for name in ("benchmark", *group, "n")},
                "accuracy": ranged(row, "accuracy"),
                # Several samples solve shares of items.
                "solved": None if row["solved"] is None else f"{row['solved']:g}",
                **{name: ranged(row, name) for name in ("ntr", "ptr")},
                **{name: row[name] for name in ("n_gradable", "accuracy_gradable", "undecided")},
            }
            for row in rows
        ]
    )


def _print_twins(run: Run) -> None:
    """Print what the noise twins did the second time, if there are any."""
    twins = run.noise()
    if twins is None:
        return
    shown = [
        found | {"candidate": row["label"], "flips": row["flips"]}
        for row, found in zip(twins.rows, _transfer(run, twins.rows), strict=True)
    ]
    stdout.print()
    title = f"Noise twins: the same models once more, on the items of '{twins.evaluation}'"
    print_table(shown, title, _SPARE_OF_NTR, "a wider terminal has all")


def compare(
    folder: RUN,
    candidates: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A B…",
            help="Ids, picks (knee) or references (slow, average); the others against the first.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Compare all that are named (default: the front) with it."),
    ] = None,
    on: EVALUATION = None,
    without: WITHOUT = None,
    as_json: JSON = False,
    csv: CSV = None,
    parquet: PARQUET = None,
) -> None:
    """Print how candidates differ on the same items: paired intervals, exact tests, noise."""
    from l2s_hpc import open_run
    from l2s_hpc.analysis.candidates import short_name

    with said_warnings():
        run = checked(open_run(folder), on)
        left = split_names(without)
        a, b = _compared(run, candidates or [], against, on, left)
        rows = run.compare(a, b, on, left)
    shown = [
        {
            "b": short_name(run, row["b"]),
            **{name: row[name] for name in ("benchmark", "n")},
            **{name: ranged(row, name) for name in ("accuracy_a", "accuracy_b")},
            "difference": ranged(row, "difference", sign=True),
            "tokens": ranged(row, "tokens_difference", sign=True),
            "NTR": ranged(row, "ntr_difference", sign=True),
            **{name: row[name] for name in ("only_a", "only_b")},
            "p_holm": probability(row["p_holm"]),
        }
        for row in rows
    ]
    a = short_name(run, rows[0]["a"])
    title = f"b less a = {a} (paired 95 % intervals; McNemar's exact p, Holm-adjusted)"
    if rows[0]["samples"] > 1:
        title += f"; only_a, only_b and p are of the first of {rows[0]['samples']} samples"
    give_rows(rows, shown, title, as_json, csv, parquet, _SPARE_OF_COMPARE)
    if not as_json and csv != "-" and (twins := run.noise()) is not None:
        stdout.print(_noise(twins, rows[0]), markup=False)


def _noise(twins: Noise, row: Row) -> str:
    """Say how far such differences go by noise alone, on the items of a pooled row."""
    n, count = row["n"], len(twins.candidates)
    models = "a model" if count == 1 else f"{count} models"
    flips = f"{twins.flips:.1%} [{twins.flips_low:.1%}, {twins.flips_high:.1%}]"
    sds = [f"accuracy {row['noise']:.4f} (at most {twins.most(n):.4f} by that interval)"]
    others = (("tokens", "tokens_noise", 2), ("NTR", "ntr_noise", 4))
    sds += [f"{name} {row[key]:.{digits}f}" for name, key, digits in others if row[key]]
    return (
        f"noise twins: {flips} of the verdicts of {models} on {twins.n} items changed; sd "
        f"of a difference on {n} items: {', '.join(sds)}. Up to about two sd may be noise."
    )


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


def split_names(texts: Sequence[str] | None) -> list[str]:
    """Return the names in texts that commas divide."""
    return [name.strip() for text in texts or () for name in text.split(",") if name.strip()]


def checked(run: Run, evaluation: str | None) -> Run:
    """Return the run, if it has the evaluation that is named; `UserError` if not."""
    from l2s_hpc.errors import UserError, did_you_mean

    if evaluation is not None and evaluation not in run.evaluations:
        known = run.evaluations or ["(none yet)"]
        raise UserError(f"no evaluation '{evaluation}'", hint=did_you_mean(evaluation, known))
    return run


def _compared(
    run: Run, named: Sequence[str], against: str | None, on: str | None, without: Sequence[str]
) -> tuple[str, list[str]]:
    """Return the candidate that others are compared with, and the others."""
    from l2s_hpc.analysis.names import resolve
    from l2s_hpc.errors import UserError

    if against is None:
        if len(named) < 2:
            raise UserError(
                "compare needs two candidates or more",
                hint="for instance `l2s compare RUN slow knee`, or `--against slow` for the front",
            )
        return named[0], list(named[1:])
    others = list(named) or [row["candidate"] for row in run.front(on, None, without)]
    return against, [one for one in others if resolve(run, one) != resolve(run, against)]
