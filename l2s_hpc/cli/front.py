"""`l2s front`: the trade-off that a run reached, and the model that meets a bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2s_hpc.cli.analyse import checked, split_names
from l2s_hpc.cli.cluster import JSON
from l2s_hpc.cli.imports import WITHOUT, said_warnings
from l2s_hpc.cli.output import (
    BELOW,
    CSV,
    PARQUET,
    give_rows,
    plain,
    print_table,
    ranged,
    stdout,
)
from l2s_hpc.errors import UserError

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run

POINTS = Annotated[
    float | None,
    typer.Option(
        "--shortest-within",
        metavar="POINTS",
        help="Instead: the shortest model that loses at most so many points of accuracy.",
    ),
]
TOKENS = Annotated[
    float | None,
    typer.Option(
        "--at-most",
        metavar="TOKENS",
        help="Instead: the most accurate model of at most so many tokens on average.",
    ),
]

_COLUMNS = (
    "n", "n_gradable", "accuracy", "accuracy_gradable", "undecided", "tokens", "tokens_right",
    "truncation", "ntr",
)  # fmt: skip
"""The measures in a table of the front; `telling` drops what tells nothing."""

_SPARE = (
    "genome", "n_gradable", "accuracy_gradable", "undecided", "tokens_right", BELOW, "truncation",
    "ntr", "n",
)  # fmt: skip
"""What a narrow terminal leaves out, the first first."""

_HOLDS = {
    "interval": "yes, over the whole 95 % interval",
    "estimate": "only on the estimate: the 95 % interval goes beyond it",
    "no": "no, not on these items",
}


def register(app: typer.Typer) -> None:
    """Add this module's verb."""
    app.command()(front)


def front(
    folder: Annotated[Path, typer.Argument(help="A run directory.")],
    on: Annotated[
        list[str] | None,
        typer.Option(
            "--on",
            help="Take the front by these measures, such as ntr,tokens or accuracy.gsm8k; "
            "default: the search's own objectives.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="search, selection or report; default: the best there is."),
    ] = None,
    without: WITHOUT = None,
    shortest_within: POINTS = None,
    at_most: TOKENS = None,
    of: Annotated[
        str | None,
        typer.Option("--of", help="Compare these with another model than the slow parent."),
    ] = None,
    as_json: JSON = False,
    csv: CSV = None,
    parquet: PARQUET = None,
) -> None:
    """Print the front with intervals that hold for all of it at once."""
    from l2s_hpc import open_run

    names = [name.strip() for text in on or () for name in text.split(",")]
    left = split_names(without)
    bounded = shortest_within is not None or at_most is not None
    if (shortest_within is not None and at_most is not None) or (bounded and names):
        raise UserError("give one of --on, --shortest-within and --at-most")
    if of is not None and not bounded:
        raise UserError("--of goes with --shortest-within or --at-most")
    with said_warnings():
        run = checked(open_run(folder), split)
        _refuse_evaluations(run, names)
        if bounded:
            row = _bounded(run, shortest_within, at_most, of, split, left)
            give_rows([row], _told(row), row["bound"], as_json, csv, parquet)
            return
        rows = run.front(split, names or None, left)
        shown = shown_rows(rows, *names)
        title = f"Front by {', '.join(names)}" if names else "Front"
        give_rows(rows, shown, title, as_json, csv, parquet, spare_of(names))
        if rows and not as_json and csv != "-":
            _print_more(run, rows, split or run.best_evaluation(), names, left)


def shown_rows(rows: Sequence[dict[str, Any]], *more: str) -> list[dict[str, Any]]:
    """Return rows of a front, or of references, with the columns of a terminal, and more measures.

    The interval of each measure that has one stands beside it.
    """
    from l2s_hpc.analysis.candidates import known_as, telling

    brief = telling(
        [
            {
                "candidate": row["candidate"],
                "label": known_as(row["picks"], row["label"]),
                **{name: row[name] for name in dict.fromkeys([*_COLUMNS, *more])},
                "genome": row["genome"],
            }
            for row in rows
        ]
    )
    return [
        {
            name: ranged(row, name) if isinstance(value, float) else value
            for name, value in columns.items()
        }
        for columns, row in zip(brief, rows, strict=True)
    ]


def reference_rows(run: Run, evaluation: str) -> list[dict[str, Any]]:
    """Return the references' rows, each with intervals of its own, as those of a front."""
    known = [row for row in run.table(evaluation, run.labels) if row["benchmark"] == "all"]
    return [row | {"picks": (), "genome": None} for row in known]


def _refuse_evaluations(run: Run, names: Sequence[str]) -> None:
    for name in names:
        if name in run.evaluations:
            raise UserError(
                f"--on names measures, and '{name}' is an evaluation", hint=f"--split {name}"
            )


def _bounded(
    run: Run,
    points: float | None,
    tokens: float | None,
    of: str | None,
    split: str | None,
    without: Sequence[str],
) -> dict[str, Any]:
    from l2s_hpc.analysis.bounded import most_accurate, shortest

    if points is not None:
        if not 0 <= points <= 100:
            raise UserError(f"--shortest-within takes points from 0 to 100, not {points:g}")
        return shortest(run, points / 100, of, split, without)
    return most_accurate(run, tokens or 0.0, of, split, without)


def _print_more(
    run: Run,
    rows: Sequence[dict[str, Any]],
    split: str,
    names: Sequence[str],
    without: Sequence[str],
) -> None:
    """Print what the intervals mean, and the front beside the references."""
    from l2s_hpc.analysis.tradeoff import attainment

    stdout.print(plain(_caption(run, rows, split)), markup=False)
    reached = [] if names else attainment(run, split, without)
    if reached:
        stdout.print()
        title = "What the front needs to be as accurate, and reaches at that length"
        print_table([_attained(row) for row in reached], title)
        stdout.print(
            "Estimates on these items; `l2s compare` gives the interval of a difference. –: no "
            "point of the front is as accurate, or as short, or it saves nothing."
        )


def _attained(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of `attainment` with columns that fit a terminal."""
    from l2s_hpc.analysis.tradeoff import saving

    saved, gained = saving(row), row["accuracy_gained"]
    return {
        "reference": row["label"],
        "accuracy": ranged(row, "accuracy"),
        "tokens": ranged(row, "tokens"),
        "needs": ranged(row, "front_tokens"),
        "saved": None if saved is None else f"{saved:.1%}",
        "reaches": ranged(row, "front_accuracy"),
        "gained": None if gained is None else f"{gained:+.4f}",
    }


def spare_of(names: Sequence[str] = ()) -> list[str]:
    """Return what may be left out; no measure that was asked for."""
    by_others = ["accuracy"] if names and "accuracy" not in names else []
    return [name for name in (*_SPARE, *by_others) if name not in names]


def _caption(run: Run, rows: Sequence[dict[str, Any]], split: str) -> str:
    """Say what the intervals mean and which items chose the front."""
    text = (
        f"The intervals hold for all {len(rows)} rows and their measures at once, by resampling "
        f"the {rows[0]['n']} items of '{split}' within benchmarks. "
    )
    measures = ("accuracy", "tokens", "ntr")
    if any(
        row[name] is not None and row[f"{name}_low"] is None for row in rows for name in measures
    ):
        text += "A figure without one rests on too few items that vary. "
    if rows[0]["optimistic"]:
        return text + "Optimistic: the same items chose the front."
    looks = "once" if run.state.looks == 1 else f"{run.state.looks} times"
    return text + f"Other items chose the front; the report split was looked at {looks}."


def _told(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a chosen model as lines of two cells."""
    from l2s_hpc.analysis.candidates import known_as

    same = ", the same: optimistic" if row["optimistic"] else ""
    lines = {
        "candidate": row["candidate"],
        "known as": known_as(row["picks"], row["label"]),
        "genome": row["genome"],
        "chosen on": f"the items of '{row['chosen_on']}'{same}",
        "measured on": f"{row['n']} items of '{row['evaluation']}'",
        "accuracy": ranged(row, "accuracy"),
        "tokens": ranged(row, "tokens"),
        "compared with": row["of_label"] or row["of"],
        "its accuracy": ranged(row, "of_accuracy"),
        "its tokens": ranged(row, "of_tokens"),
        "accuracy difference": ranged(row, "difference", sign=True),
        "tokens saved a problem": ranged(row, "tokens_saved", sign=True),
        "the bound holds": _HOLDS[row["holds"]],
    }
    return [{"what": name, "value": value} for name, value in lines.items()]
