"""What `l2s grade RUN` prints: our verdicts beside those that were there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from l2s_hpc.cli.output import plain, print_json, print_table, stderr, stdout

if TYPE_CHECKING:
    from l2s_hpc.controller.regrade import Regrade

_SHOWN = 40
"""Characters of an answer that fit beside others; `--json` has it whole."""


def show(folder: Path, as_json: bool) -> None:
    """Grade the stored outputs of a run again, and print where and why the verdicts differ.

    Exit code 3: some outputs are missing or damaged and could not be graded.

    Raises:
        IncompleteError: none could be graded, and no JSON says so.
    """
    from l2s_hpc.controller.regrade import regrade
    from l2s_hpc.errors import IncompleteError

    def tell(candidate: str) -> None:
        if stderr.is_terminal:
            stderr.print(plain(f"grading {candidate}"), markup=False)

    found = regrade(folder, tell)
    if as_json:
        print_json(as_dict(found))
    elif not found.judged:
        first = found.damage[0]
        raise IncompleteError(
            f"none of {found.judged + found.left} score tables was judged; the first: "
            f"{first.message}",
            hint="full texts lie in outputs/, which may be left out of a copy: copy it anew",
            path=first.path,
        )
    else:
        _print(found)
    if found.damage:
        raise typer.Exit(3)


def as_dict(found: Regrade) -> dict[str, Any]:
    """Return all that a regrade found, for `--json`."""
    return {
        "grader": found.grader,
        "graded": found.graded,
        "reused": found.reused,
        "table": found.table,
        "disagreements": found.disagreements,
        "without_texts": found.silent,
        "damage": [{"file": str(error.path), "damage": error.message} for error in found.damage],
    }


def _print(found: Regrade) -> None:
    print_table(
        _varied(found.table, "evaluation"), f"Accuracy by earlier verdicts, and by {found.grader}"
    )
    if found.disagreements:
        rows = _varied(found.disagreements, "evaluation", "sample", "grader")
        shown = [{name: _short(value) for name, value in row.items()} for row in rows]
        print_table(shown, f"{len(rows)} verdicts differ")
    else:
        stdout.print("no verdict differs")
    stdout.print(f"{found.judged} of {found.judged + found.left} score tables judged")
    for candidate in found.silent:
        stdout.print(plain(f"no texts of {candidate}: its verdicts stand alone"), markup=False)
    for error in found.damage:
        stderr.print(plain(f"not graded: {error}"), markup=False)


def _varied(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """Return rows without those of the named columns that say the same in all of them."""
    same = {name for name in names if len({str(row[name]) for row in rows}) < 2}
    return [{k: v for k, v in row.items() if k not in same} for row in rows]


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _SHOWN:
        return value[: _SHOWN - 1] + "…"
    return value
