"""`l2s plan`: what a run would do, without doing it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from l2s_hpc.cli.cluster import JSON, SETTINGS, SITE
from l2s_hpc.cli.output import plain, print_json, print_pairs, print_table, stderr, stdout

if TYPE_CHECKING:
    from l2s_hpc.config import SearchConfig, SiteConfig

JOB = Annotated[str, typer.Argument(help="A ready search (`l2s jobs`), or a job file.")]

_UNKNOWN = "unknown (`l2s plan --probe` or `l2s run --smoke` measures it)"


def register(app: typer.Typer) -> None:
    """Add this module's verbs."""
    app.command()(plan)


def plan(
    job: JOB,
    site: SITE = "local",
    folder: Annotated[
        Path | None,
        typer.Option("--run", help="The run directory; what it has measured tells the cost."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse dead genes.")] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="First send one candidate through the queue: `l2s run --smoke`."
        ),
    ] = False,
    settings: SETTINGS = None,
    as_json: JSON = False,
) -> None:
    """Say what a run would do and cost, and do nothing."""
    from l2s_hpc.controller.plan import plan as make_plan
    from l2s_hpc.controller.resolve import load, resolve
    from l2s_hpc.errors import UserError
    from l2s_hpc.store.layout import RunPaths, safe_name

    config, chosen = load(job, site, settings or [])
    paths = RunPaths(folder or Path("results") / safe_name(config.name))
    resolved = resolve(config, chosen)
    if strict and resolved.space.frozen:
        raise UserError(f"these genes change nothing: {', '.join(resolved.space.frozen)}")
    found = make_plan(resolved, paths)
    if probe:
        from l2s_hpc.controller.detach import enter_job

        enter_job()
        _probe(config, chosen, paths.folder)
        found = make_plan(resolved, paths)
    if as_json:
        print_json(found)
    else:
        _show_plan(found)


def _probe(config: SearchConfig, site: SiteConfig, folder: Path) -> None:
    """Measure the cost of one candidate, in a run of its own beside the folder."""
    from l2s_hpc.cli.progress import Progress
    from l2s_hpc.controller.smoke import next_folder, smoke
    from l2s_hpc.controller.start import open_controller
    from l2s_hpc.errors import IncompleteError

    command = shlex.join(["l2s", *sys.argv[1:]])
    try:
        controller = open_controller(config, site, next_folder(folder), command)
        with Progress(config, stderr) as progress:
            smoke(controller, site.poll_seconds, progress.show)
    except KeyboardInterrupt:
        raise IncompleteError("interrupted; the probe's job is ended") from None


def _show_plan(found: dict[str, Any]) -> None:
    print_table(found.pop("models"), "Models")
    print_table(found.pop("genes"), f"Genes (liveness: {found.pop('liveness')})")
    first = found.pop("first_generation")
    shown = [{"candidate": row["candidate"], "genome": row["genome"]} for row in first[:5]]
    print_table(shown, f"First generation: {len(first)} candidates, of them")
    sbatch, notes, budget = found.pop("sbatch"), found.pop("notes"), found.pop("budget")
    found["tasks"] = found["tasks"].pop("meaning")
    packing = found.pop("candidates_per_task")
    found["candidates_per_task"] = packing["meaning"]
    found |= _engine_lines(found.pop("engine"), found.pop("protocol"))
    found["gpu_hours"] = found["gpu_hours"] or _UNKNOWN
    print_pairs({name: value for name, value in found.items() if value is not None})
    if packing["compared"]:
        print_table(packing["compared"], "Candidates per task: what a generation takes")
    if budget:
        print_table(budget, "Budget: how many generations fit")
    for note in notes:
        stdout.print(Text(f"note: {plain(note)}"))
    for part in sbatch:
        stdout.print(Text(f"\n{_heading(part)}\n\n{plain(part['text'])}"))


def _engine_lines(engine: dict[str, Any], protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the engine and the rest of the protocol, each thing once."""
    shown = ("engine", "engine_settings")
    rest = {n: v for n, v in protocol.items() if n not in shown and v != {}}
    engine_line = f"{engine['name']} ({engine['why']})"
    return {"engine": engine_line, "engine_fixed": engine["fixed"] or None, "protocol": rest}


def _heading(part: dict[str, Any]) -> str:
    """Return what one sbatch text is: the first generation goes in one array or in several."""
    number = "one array" if part["arrays"] == 1 else f"{part['arrays']} arrays"
    tasks = f"{part['tasks']} task{'' if part['tasks'] == 1 else 's'}"
    largest = part["largest_array_of_cluster"]
    limit = f"the cluster takes arrays of {largest}" if largest else "no cluster was asked"
    return f"The first generation, {number} of {tasks} ({limit}), as sbatch gets it:"
