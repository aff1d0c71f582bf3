"""How the command prints: JSON for programs, tables for people, plain lines without a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

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
