"""`l2s import`: foreign results, read like any other run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2s_hpc.cli.cluster import JSON
from l2s_hpc.cli.output import plain, print_json, print_table, stderr, stdout

if TYPE_CHECKING:
    from l2s_hpc.controller.import_run import Import

WITHOUT = Annotated[
    list[str] | None,
    typer.Option("--without", help="Leave a benchmark out, for all; may be repeated."),
]


def register(app: typer.Typer) -> None:
    """Add this module's verb."""
    app.command("import")(import_)


def import_(
    source: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder of *.jsonl outputs or *_scores.pt.")
    ],
    run: Annotated[Path, typer.Option("--run", help="The run directory to make.")],
    parents: Annotated[
        str, typer.Option("--parents", help="slow=PATH,fast=PATH below the folder, for NTR.")
    ] = "",
    benchmarks: Annotated[
        Path | None,
        typer.Option("--benchmarks", help="A folder of NAME.jsonl in the order of the files."),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="The name of this evaluation.")] = "imported",
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="FOLDER",
            help="Count the tokens of each text anew with this folder's tokenizer.json, without "
            "special tokens: approximately those that were generated.",
        ),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Make a run of Qwen2.5-Math outputs and of score files; exit code 3: some were unusable."""
    from l2s_hpc.controller.import_run import import_run

    command = "l2s " + " ".join(sys.argv[1:])
    done = import_run(source, run, _parents(parents), benchmarks, name, command, tokenizer)
    grading = _grade(run) if done.aligned.texts else "nothing to grade: no file holds texts"
    if as_json:
        print_json(_as_dict(done, run, grading))
    else:
        _print(done, run, grading)
    if done.aligned.faults:
        raise typer.Exit(3)


@contextmanager
def said_warnings() -> Iterator[None]:
    """Print what Python warns of as plain lines, to standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for text in dict.fromkeys(str(warning.message) for warning in caught):
                stderr.print(plain(f"l2s: {text}"), markup=False)


def _parents(text: str) -> dict[str, str]:
    """Return `slow=PATH,fast=PATH` as names and paths."""
    from l2s_hpc.errors import UserError

    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, equals, path = part.partition("=")
        if not equals or not name.strip() or not path.strip() or name.strip() in found:
            raise UserError(
                f"--parents: '{part}' is not a new NAME=PATH",
                hint="for instance --parents slow=DEEPSEEK-R1/1.5B,fast=QWEN25-MATH/1.5B",
            )
        found[name.strip()] = path.strip().strip("/")
    return found


def _grade(run: Path) -> str:
    """Put our verdicts beside the imported ones, and say in a line how they compare."""
    from l2s_hpc.controller.regrade import regrade
    from l2s_hpc.errors import L2SError

    try:
        found = regrade(run)
    except (L2SError, ImportError) as error:
        return f"not graded by ours: {error}"
    n = sum(row["n"] for row in found.table)
    return f"{len(found.disagreements)} of {n} verdicts differ from {found.grader}'s"


def _as_dict(done: Import, run: Path, grading: str) -> dict[str, Any]:
    aligned = done.aligned
    return {
        "run": str(run),
        "candidates": aligned.candidates,
        "benchmarks": {name: len(items) for name, items in aligned.items.items()},
        "files": len(aligned.sheets),
        "faults": [vars(fault) for fault in aligned.faults],
        "lacks": {candidate: list(names) for candidate, names in aligned.lacks().items()},
        "notes": list(done.notes),
        "grades": grading,
    }


def _print(done: Import, run: Path, grading: str) -> None:
    aligned = done.aligned
    if aligned.faults:
        rows = [{"file": fault.file, "why": fault.message} for fault in aligned.faults]
        print_table(rows, "Not imported")
    for note in done.notes:
        stdout.print(plain(note), markup=False)
    counts = ", ".join(f"{name} {len(items)}" for name, items in aligned.items.items())
    stdout.print(
        plain(f"{len(aligned.candidates)} candidates from {len(aligned.sheets)} files ({counts})"),
        markup=False,
    )
    stdout.print(plain(grading), markup=False)
    stdout.print(plain(f"run: {run}"), markup=False)
