"""`l2s fetch` and `l2s doctor`: what must be there before a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2s_hpc.cli.output import print_json, print_pairs, print_table, stdout

JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SITE = Annotated[
    str, typer.Option("--site", "-s", help="A site: a name from hpc/sites, or a file.")
]
SETTINGS = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: key.name=value.")
]


def register(app: typer.Typer) -> None:
    """Add this module's verbs."""
    app.command()(fetch)
    app.command()(doctor)


def fetch(
    job: Annotated[str, typer.Argument(help="A ready search, or a job file.")],
    offline: Annotated[bool, typer.Option("--offline", help="Only check the cache.")] = False,
    record: Annotated[
        Path | None, typer.Option("--record", help="Write revisions and hashes here as JSON.")
    ] = None,
    settings: SETTINGS = None,
    as_json: JSON = False,
) -> None:
    """Bring parents and benchmarks into the hub's cache, on a node with network."""
    from l2s_hpc.config import load_job
    from l2s_hpc.controller.fetch import fetch as run_fetch
    from l2s_hpc.controller.resolve import find_job
    from l2s_hpc.store.files import write_json

    found = run_fetch(load_job(find_job(job), settings or ()), offline)
    if record is not None:
        write_json(record, found)
    if as_json:
        print_json(found)
        return
    for kind, entries in found.items():
        for name, entry in entries.items():
            print_pairs(entry, f"{kind}: {name}")
    if not any(found.values()):
        stdout.print("nothing to fetch: everything is shipped or local")


def doctor(
    job: Annotated[str | None, typer.Argument(help="A ready search, or a job file.")] = None,
    site: SITE = "local",
    folder: Annotated[Path, typer.Option("--run", help="Where runs are to be kept.")] = Path(
        "results"
    ),
    settings: SETTINGS = None,
    as_json: JSON = False,
) -> None:
    """Check whether a job can run on a site; each failure comes with its remedy."""
    from l2s_hpc.config import load_site
    from l2s_hpc.controller.resolve import find_site, load
    from l2s_hpc.doctor import examine

    if job is None:
        of_site = [s.removeprefix("site.") for s in settings or ()]
        config, chosen = None, load_site(find_site(site), of_site)
    else:
        config, chosen = load(job, site, settings or [])
    rows = [check.row() for check in examine(config, chosen, folder)]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, f"site {chosen.name}")
    if any(row["result"] == "failure" for row in rows):
        raise typer.Exit(3)
