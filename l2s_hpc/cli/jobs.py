"""`l2s jobs`: the ready searches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from l2s_hpc.cli.output import print_json, print_table, stdout

jobs = typer.Typer(help="The ready searches: list them, copy one and edit it.")


def register(app: typer.Typer) -> None:
    """Add this module's verbs."""
    app.add_typer(jobs, name="jobs")


@jobs.callback(invoke_without_command=True)
def _default(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        _list(as_json)


@jobs.command("list")
def list_jobs(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the ready searches."""
    _list(as_json)


@jobs.command()
def copy(
    name: Annotated[str, typer.Argument(help="Name of a ready search.")],
    folder: Annotated[Path, typer.Argument(help="Folder to copy it into.")],
) -> None:
    """Copy a ready search, to be edited."""
    from l2s_hpc.controller.resolve import find_job
    from l2s_hpc.errors import UserError

    source = find_job(name)
    target = folder / source.name
    if target.exists():
        raise UserError("there is a file of that name already", path=target)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    stdout.print(str(target))


@jobs.command()
def keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Explain every key of a job file and of a site file."""
    from l2s_hpc.config import SearchConfig, SiteConfig, documented

    rows = [
        {"file": file, "key": key, "default": default, "meaning": meaning}
        for file, kind in (("job", SearchConfig), ("site", SiteConfig))
        for key, default, meaning in documented(kind)
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(rows)


def _list(as_json: bool) -> None:
    from l2s_hpc.config import load_job
    from l2s_hpc.controller.resolve import shipped_files
    from l2s_hpc.store.layout import shipped

    rows: list[dict[str, Any]] = []
    for name, path in shipped_files(shipped("jobs")).items():
        config = load_job(path)
        rows.append(
            {
                "name": name,
                "method": config.merge.method,
                "search": f"{config.search.algorithm} {config.search.population} x "
                f"{config.search.generations}",
                "objectives": ", ".join(config.objectives),
                "description": config.description,
            }
        )
    if as_json:
        print_json(rows)
    else:
        print_table(rows)
