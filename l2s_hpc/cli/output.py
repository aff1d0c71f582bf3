"""How the command prints: JSON for programs, tables for people, plain lines without a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import polars as pl

CSV = Annotated[
    str | None,
    typer.Option("--csv", metavar="FILE", help="Write the rows as CSV; - is standard output."),
]
PARQUET = Annotated[
    Path | None, typer.Option("--parquet", metavar="FILE", help="Write the rows as Parquet.")
]

stdout = Console(highlight=False, soft_wrap=True)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON value to standard output, and nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Print rows of equal keys as a table; text from files cannot act as markup."""
    if not rows:
        stdout.print(Text(f"{title}: nothing yet" if title else "nothing yet"))
        return
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for name in rows[0]:
        numeric = isinstance(rows[0][name], int | float)
        table.add_column(Text(str(name)), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    # A table must be read whole, also where no terminal tells its width.
    width = None if stdout.is_terminal else 200
    Console(highlight=False, width=width).print(table)


def give_rows(
    rows: Sequence[Mapping[str, Any]],
    shown: Sequence[Mapping[str, Any]],
    title: str,
    as_json: bool,
    csv: str | None,
    parquet: Path | None,
) -> None:
    """Give rows out as `--json`, `--csv` and `--parquet` ask; else show some of them as a table.

    Args:
        rows: all of them, with all columns.
        shown: what a table of the terminal holds.
        title: its title.
        as_json: print the rows as JSON, and nothing else.
        csv: write them here; `-` prints them, and nothing else. A list becomes JSON in its cell.
        parquet: write them here; a file that is there is replaced.

    Raises:
        UserError: JSON and CSV both want standard output, or a file cannot be written.
    """
    from l2s_hpc.errors import UserError

    if as_json and csv == "-":
        raise UserError("--json and --csv - both want standard output", hint="give --csv a file")
    if parquet is not None:
        _write(parquet, lambda path: _frame(rows).write_parquet(path))
    if csv == "-":
        print(_frame(rows, flat=True).write_csv(), end="")
    elif csv is not None:
        _write(Path(csv), lambda path: _frame(rows, flat=True).write_csv(path))
    if as_json:
        print_json(rows)
    elif csv != "-":
        print_table(shown, title)


def ranged(row: Mapping[str, Any], name: str, sign: bool = False) -> str:
    """Return a rate or a mean with its interval as one cell: `0.106 [0.096, 0.117]`."""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    text = _number(value)
    text = f"+{text}" if sign and value > 0 else text
    return text if low is None else f"{text} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}"


def _frame(rows: Sequence[Mapping[str, Any]], flat: bool = False) -> pl.DataFrame:
    import polars as pl

    if flat:
        rows = [
            {k: json.dumps(v) if isinstance(v, list | tuple | dict) else v for k, v in row.items()}
            for row in rows
        ]
    return pl.DataFrame(rows, infer_schema_length=None)


def _write(path: Path, write: Callable[[Path], None]) -> None:
    from l2s_hpc.errors import UserError
    from l2s_hpc.store.files import write_durably

    try:
        write_durably(path, write)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", path=path) from None


def print_pairs(pairs: Mapping[str, Any], title: str = "") -> None:
    """Print names and values, a line each."""
    if title:
        stdout.print(Text(title, style="bold"))
    stdout.print(pairs_text(pairs))


def pairs_text(pairs: Mapping[str, Any]) -> Text:
    """Return names and values as text, a line each."""
    width = max(len(name) for name in pairs)
    return Text(
        "\n".join(f"  {name.ljust(width)}  {_cell(value)}" for name, value in pairs.items())
    )


def plain(text: str) -> str:
    """Return text without control characters: a reason may hold what a model wrote."""
    return "".join(c for c in text if c.isprintable() or c == "\n")


def now() -> str:
    """Return the local date and time, to begin a line with."""
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}".rstrip("0").rstrip(".") if abs(value) < 10 else f"{value:.1f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_cell(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_cell(inner) for inner in value)
    return plain(str(value))
