"""`l2s compact`: few files where a run has many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2s_hpc.cli.cluster import JSON
from l2s_hpc.cli.output import print_json, stderr, stdout

if TYPE_CHECKING:
    from l2s_hpc.controller.compact import Compaction

_HELP = """Join the small files of closed generations, so that a few of each remain.

Score tables, outputs and grades become one Parquet file each per generation and evaluation.
Beside it lies a manifest: it maps each table, by its content_sha256, to its rows, and holds its
receipt and the sha256 of the joined file. That takes the place of the receipt's file_sha256, which
names the file as the node wrote it. A table is removed after the joined file was read again and
its content is the same.

What a flipped bit costs: up to 8 candidates of a generation, for their scores and grades share
pages of the joined file; in the few kB of its footer or in the manifest, all of the generation. Of
outputs it costs one candidate. `l2s verify --quarantine` saves the others. Before joining, a bit
costs one candidate.

Of what nodes wrote, logs, claims, tasks and failed attempts go whole into one archive per
generation, attempts/EVALUATION/GENERATION-1.tar.gz; what accepted attempts hold a second time goes.

Everything reads joined tables as it reads others, the search goes on, and what comes later is
joined by the next call. A generation under way stays as it is, and so does the journal. Ended at
any moment, the same command goes on. Exit code 3: something is damaged, and its generation stays.
"""


def register(app: typer.Typer) -> None:
    """Add this module's verb."""
    app.command(help=_HELP)(compact)


def compact(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Join the small files of closed generations."""
    from l2s_hpc.controller.compact import compact as run_compact
    from l2s_hpc.store.run import read_run
    from l2s_hpc.store.tables import MENDED_BY

    quiet = as_json or not stderr.is_terminal
    done = run_compact(folder, dry_run, lambda name: None if quiet else stderr.print(name))
    if as_json:
        print_json(_as_dict(done, dry_run))
    else:
        _print(done, dry_run, MENDED_BY[read_run(folder).purpose])
    if done.damage:
        raise typer.Exit(3)


def _as_dict(done: Compaction, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "generations": done.generations,
        "tables": done.tables,
        "files_before": done.files[0],
        "files_after": done.files[1],
        "bytes_before": done.sizes[0],
        "bytes_after": done.sizes[1],
        "files_to_remove": done.removed if dry_run else None,
        "waiting": done.waiting,
        "damage": [{"path": str(e.path), "message": e.message} for e in done.damage],
    }


def _print(done: Compaction, dry_run: bool, mended_by: str) -> None:
    what = f"{done.tables} tables of {done.generations} generations"
    if dry_run:
        stdout.print(f"would join {what}, and remove {done.removed} of {done.files[0]} files")
    else:
        stdout.print(
            f"joined {what}: {done.files[0]} files ({_size(done.sizes[0])}) are now "
            f"{done.files[1]} ({_size(done.sizes[1])})"
        )
    for name, reason in done.waiting.items():
        stdout.print(f"not yet: {name}: {reason}", markup=False)
    for error in done.damage:
        stderr.print(f"{error}", style="red", markup=False)
    if done.damage:
        hint = f"`l2s verify --quarantine`, {mended_by}, and this command again"
        stderr.print(f"  Hint: {hint}", markup=False)


def _size(count: int | None) -> str:
    return f"{(count or 0) / 2**20:.1f} MiB"
