"""How the command prints: JSON for programs, tables for people, plain lines without a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.cells import cell_len
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

BELOW = "intervals below"
"""Among what a table may leave out: first, intervals may stand below their figures."""

_FIGURES = re.compile(r"[-+<%.,\[\]\d\s–]*")
_WIDE = 200
"""Columns of characters, where no terminal tells how many there are."""

_WORD = 24
"""So many characters of a word stay together; ids are shorter, paths may be longer."""

stdout = Console(highlight=False, soft_wrap=True)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON value to standard output, and nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(
    rows: Sequence[Mapping[str, Any]],
    title: str = "",
    spare: Sequence[str] = ("genome",),
    whole: str = "--json has all",
) -> None:
    """Print rows of equal keys as a table; text from files cannot act as markup.

    Figures and ids are never cut, and none loses its interval: a terminal that is too narrow gets
    fewer columns, and a line that says which are missing. Without a terminal there are all of them.

    Args:
        rows: what to print.
        title: stands above it.
        spare: columns that may be left out, the first first, and `BELOW`.
        whole: says where all columns are.
    """
    if not rows:
        stdout.print(Text(f"{title}: nothing yet" if title else "nothing yet"))
        return
    columns = {str(name): _texts([row.get(name) for row in rows]) for name in rows[0]}
    room = stdout.width if stdout.is_terminal else _WIDE
    left_out = _leave_out(columns, spare, room) if stdout.is_terminal else []
    widths = _widths(columns, room)
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for name, cells in columns.items():
        figures = _are_figures(cells)
        justify: Literal["left", "right"] = "right" if figures else "left"
        width = widths[name]
        table.add_column(Text(name), justify=justify, width=width, no_wrap=figures, overflow="fold")
    for row_cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, row_cells))
    # What does not fit is for the terminal to break: rich would cut it.
    Console(highlight=False, width=max(room, _framed(widths))).print(table)
    if left_out:
        stdout.print(Text(f"left out for want of room: {', '.join(left_out)}; {whole}"))


def _leave_out(columns: dict[str, list[str]], spare: Sequence[str], room: int) -> list[str]:
    """Take spare columns away until a table has room; return their names."""
    left_out: list[str] = []
    for name in spare:
        if _framed({column: _least(column, cells) for column, cells in columns.items()}) <= room:
            break
        if name == BELOW:
            for column, cells in columns.items():
                columns[column] = [cell.replace(" [", "\n[") for cell in cells]
        elif columns.pop(name, None) is not None:
            left_out.append(name)
    return left_out


def _widths(columns: Mapping[str, list[str]], room: int) -> dict[str, int]:
    """Return each column's width: that of its content, but words are wrapped to find room."""
    widths = {
        name: max(cell_len(line) for text in (name, *cells) for line in [*text.splitlines(), ""])
        for name, cells in columns.items()
    }
    least = {name: _least(name, cells) for name, cells in columns.items()}
    while _framed(widths) > room:
        loose = [name for name in widths if widths[name] > least[name]]
        if not loose:
            break
        widths[max(loose, key=widths.__getitem__)] -= 1
    return widths


def _least(name: str, cells: Sequence[str]) -> int:
    """Return the width below which a column would be cut."""
    if _are_figures(cells):
        return max(cell_len(line) for text in (name, *cells) for line in text.splitlines())
    words = [word for text in (name, *cells) for word in text.split()]
    return min(_WORD, max(map(cell_len, words)))


def _framed(widths: Mapping[str, int]) -> int:
    """Return the width of a table: a blank on both sides of a column, lines between and around."""
    return sum(widths.values()) + 3 * len(widths) + 1


def _are_figures(cells: Sequence[str]) -> bool:
    return all(_FIGURES.fullmatch(cell) for cell in cells)


def _texts(values: Sequence[Any]) -> list[str]:
    """Return a column's cells; rates get the same number of digits, so that they line up."""
    cells = [_cell(value) for value in values]
    floats = [value for value in values if isinstance(value, float)]
    if any(abs(value) > 1 for value in floats):
        return cells
    pairs = list(zip(values, cells, strict=True))
    points = [cell.partition(".")[2] for value, cell in pairs if isinstance(value, float)]
    digits = max(map(len, points), default=0)
    return [f"{value:.{digits}f}" if isinstance(value, float) else cell for value, cell in pairs]


def give_rows(
    rows: Sequence[Mapping[str, Any]],
    shown: Sequence[Mapping[str, Any]],
    title: str,
    as_json: bool,
    csv: str | None,
    parquet: Path | None,
    spare: Sequence[str] = (),
) -> None:
    """Give rows out as `--json`, `--csv` and `--parquet` ask; else show some of them as a table.

    Args:
        rows: all of them, with all columns.
        shown: what a table of the terminal holds.
        title: its title.
        as_json: print the rows as JSON, and nothing else.
        csv: write them here; `-` prints them, and nothing else. A list becomes JSON in its cell.
        parquet: write them here; a file that is there is replaced.
        spare: as for `print_table`.

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
        print_table(shown, title, spare)


def ranged(row: Mapping[str, Any], name: str, sign: bool = False) -> str:
    """Return a rate or a mean as a cell, with its interval if any: `0.1060 [0.0960, 0.1170]`.

    Tokens have one digit after the point, so that figures of a column line up.
    """
    value, low, high = row[name], row.get(f"{name}_low"), row.get(f"{name}_high")
    if value is None:
        return "–"
    digits = 1 if "tokens" in name else 4
    text = f"{value:{'+' if sign and value > 0 else ''}.{digits}f}"
    return text if low is None or high is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def probability(p: float | None) -> str:
    """Return a p-value as a cell; none is 0."""
    if p is None:
        return "–"
    return f"{p:.4f}" if p >= 0.0001 else "<.0001"


def _frame(rows: Sequence[Mapping[str, Any]], flat: bool = False) -> pl.DataFrame:
    import polars as pl

    if flat:
        rows = [
            {k: json.dumps(v) if isinstance(v, list | tuple | dict) else v for k, v in row.items()}
            for row in rows
        ]
    return pl.DataFrame(rows, infer_schema_length=None)


def _write(path: Path, write: Callable[[Path], None]) -> None:
    from l2s_hpc.store.files import write_durably

    with writing(path):
        write_durably(path, write)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what keeps a file or folder from being written into a `UserError` that names it."""
    from l2s_hpc.errors import UserError

    try:
        yield
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
