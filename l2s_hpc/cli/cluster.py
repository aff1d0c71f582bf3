"""`l2s fetch` and `l2s doctor`: what must be there before a search."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from l2s_hpc.cli.output import plain, print_json, print_pairs, stderr, stdout

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
    site: SITE = "local",
    offline: Annotated[bool, typer.Option("--offline", help="Only check the cache.")] = False,
    record: Annotated[
        Path | None, typer.Option("--record", help="Write revisions and hashes here as JSON.")
    ] = None,
    settings: SETTINGS = None,
    as_json: JSON = False,
) -> None:
    """Bring parents and benchmarks into the hub's cache, on a node with network."""
    from l2s_hpc.controller.fetch import fetch as run_fetch
    from l2s_hpc.controller.resolve import load
    from l2s_hpc.store.files import write_json

    found = run_fetch(*load(job, site, settings or []), offline)
    if record is not None:
        write_json(record, found)
    if as_json:
        print_json(found)
        return
    for kind, entries in found.items():
        for name, entry in entries.items():
            if "note" in entry:
                where = ": ".join(filter(None, (entry["note"], entry.get("path"))))
                stdout.print(plain(f"{kind}: {name}: {where}"), markup=False)
            else:
                print_pairs(entry, f"{kind}: {name}")
    if all("note" in entry for entries in found.values() for entry in entries.values()):
        stdout.print("nothing to fetch: everything is shipped or local")


def doctor(
    job: Annotated[str | None, typer.Argument(help="A ready search, or a job file.")] = None,
    site: SITE = "local",
    folder: Annotated[Path, typer.Option("--run", help="Where runs are to be kept.")] = Path(
        "results"
    ),
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Send one small job too, and look at a node through it."),
    ] = False,
    node: Annotated[
        bool,
        typer.Option("--node", help="Look at this machine as a node, and send it two candidates."),
    ] = False,
    wait: Annotated[
        float, typer.Option("--wait", help="Seconds for the probe job, queue included, or --node.")
    ] = 600,
    settings: SETTINGS = None,
    as_json: JSON = False,
) -> None:
    """Check whether a job can run on a site; each failure comes with its remedy."""
    from l2s_hpc.config import load_site
    from l2s_hpc.controller.resolve import find_site, load
    from l2s_hpc.doctor import examine, node_checks
    from l2s_hpc.errors import IncompleteError, UserError

    if node and (probe or job is not None):
        raise UserError(
            "--node looks at this machine alone: it goes with no job and not with --probe",
            hint="l2s doctor --node --site SITE",
        )
    if job is None:
        of_site = [s.removeprefix("site.") for s in settings or ()]
        config, chosen = None, load_site(find_site(site), of_site)
    else:
        config, chosen = load(job, site, settings or [])
    if chosen.executor == "slurm" and not node:
        from l2s_hpc.controller.detach import enter_job

        enter_job()
    limit = wait if probe else None
    checks = (
        node_checks(chosen, wait, _say) if node else examine(config, chosen, folder, limit, _say)
    )
    # A closed terminal ends the probe job, or the self-test, as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        rows = [check.row() for check in checks]
    except KeyboardInterrupt:
        raise IncompleteError("interrupted; what was started is ended") from None
    if as_json:
        print_json(rows)
    else:
        _show(rows, f"site {chosen.name}")
    if any(row["result"] == "failure" for row in rows):
        raise typer.Exit(3)


def _say(line: str) -> None:
    """Say what is waited for: on a line of its own, beside what is printed in the end."""
    stderr.print(Text(line))


_COLOURS = {"ok": "green", "warning": "yellow", "failure": "red"}


def _show(rows: list[dict[str, Any]], title: str) -> None:
    """Print a line for each check, and below it what to do where there is something to do."""
    width = max(len(row["name"]) for row in rows)
    stdout.print(Text(title, style="bold"))
    for row in rows:
        mark = Text(f"{row['result']:8}", style=_COLOURS[row["result"]])
        stdout.print(Text(f"  {row['name']:{width}}  ") + mark + Text(plain(row["found"])))
        if row["remedy"]:
            stdout.print(Text(f"  {'':{width}}  -> {plain(row['remedy'])}"))
    results = [row["result"] for row in rows]
    stdout.print(
        f"{len(rows)} checks: {results.count('failure')} failures, "
        f"{results.count('warning')} warnings"
    )
