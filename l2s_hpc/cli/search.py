"""`l2s plan`, `run`, `status` and `stop`: the search itself."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2s_hpc.cli.cluster import JSON, SETTINGS, SITE
from l2s_hpc.cli.output import print_json, print_pairs, print_table, stdout

if TYPE_CHECKING:
    from l2s_hpc.config import SearchConfig, SiteConfig
    from l2s_hpc.controller.step import Controller

JOB = Annotated[str, typer.Argument(help="A ready search (`l2s jobs`), or a job file.")]
RUN = Annotated[Path, typer.Argument(help="A run directory.")]


def register(app: typer.Typer) -> None:
    """Add this module's verbs."""
    for verb in (plan, run, status, stop):
        app.command()(verb)


def plan(
    job: JOB,
    site: SITE = "local",
    strict: Annotated[bool, typer.Option("--strict", help="Refuse dead genes.")] = False,
    settings: SETTINGS = None,
    as_json: JSON = False,
) -> None:
    """Say what a run would do, and do nothing."""
    from l2s_hpc.controller.plan import plan as make_plan
    from l2s_hpc.controller.resolve import load, resolve
    from l2s_hpc.errors import UserError
    from l2s_hpc.store.layout import RunPaths

    config, chosen = load(job, site, settings or [])
    resolved = resolve(config, chosen)
    if strict and resolved.space.frozen:
        raise UserError(f"these genes change nothing: {', '.join(resolved.space.frozen)}")
    found = make_plan(resolved, RunPaths(Path("results") / config.name))
    if as_json:
        print_json(found)
    else:
        _show_plan(found)


def run(
    job: JOB,
    site: SITE = "local",
    folder: Annotated[
        Path | None, typer.Option("--run", help="The run directory; default results/<name>.")
    ] = None,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="Send one candidate through the real queue, and time it."),
    ] = False,
    settings: SETTINGS = None,
) -> None:
    """Start a search, or go on with one: the same command resumes."""
    from l2s_hpc.controller.resolve import load
    from l2s_hpc.controller.start import open_controller

    config, chosen = load(job, site, settings or [])
    folder = folder or Path("results") / config.name
    if smoke:
        folder = folder.with_name(folder.name + ".smoke")
    command = shlex.join(["l2s", *sys.argv[1:]])
    controller = open_controller(config, chosen, folder, command)
    if smoke:
        _smoke(controller, config, chosen, folder)
        return
    if controller.finished:
        stdout.print(f"The run is complete: {folder}")
    else:
        _drive(controller, config, chosen)
    _finish(folder)


def status(
    folder: RUN,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every two seconds.")] = False,
    as_json: JSON = False,
) -> None:
    """Say where a run stands."""
    from l2s_hpc.controller.control import status as read_status

    while True:
        found = read_status(folder)
        if as_json:
            print_json(found)
        else:
            print_pairs(found)
        if not watch or found["phase"] == "complete":
            return
        time.sleep(2)


def stop(folder: RUN) -> None:
    """End a run's controller and jobs, and no others; `l2s run` goes on later."""
    from l2s_hpc.controller.control import stop as request_stop

    under_way = request_stop(folder)
    stdout.print(f"asked to stop; {under_way} submissions were under way and are ended")


def _drive(controller: Controller, config: SearchConfig, site: SiteConfig) -> None:
    from l2s_hpc.cli.progress import Progress
    from l2s_hpc.controller.loop import run as run_loop
    from l2s_hpc.errors import IncompleteError

    try:
        with Progress(config) as progress:
            run_loop(controller, site.poll_seconds, progress.show)
    except KeyboardInterrupt:
        raise IncompleteError("interrupted", hint="the same command goes on") from None
    finally:
        controller.close()


def _finish(folder: Path) -> None:
    """Print the front, and leave the report where it is missing or old."""
    from l2s_hpc import open_run
    from l2s_hpc.analysis.report import write_report
    from l2s_hpc.cli.analyse import front_rows, reference_rows
    from l2s_hpc.store.layout import RunPaths

    opened = open_run(folder)
    report = write_report(opened, RunPaths(folder).report)
    evaluation = opened.best_evaluation()
    rows = front_rows(opened.front()) + reference_rows(opened, evaluation)
    print_table(rows, f"Front, shortest first, and references, on the {evaluation} split")
    reached = opened.hypervolume(evaluation)
    if reached.generations and reached.sweep is not None:
        stdout.print(
            f"hypervolume (1 is ideal): front {reached.generations[-1]:.3f}, one-parameter sweep "
            f"{reached.sweep:.3f}, parents and plain average {reached.average or 0:.3f}"
        )
    stdout.print(f"report: {report}")


def _smoke(controller: Controller, config: SearchConfig, site: SiteConfig, folder: Path) -> None:
    """Evaluate the plain average alone, and say what it cost."""
    from l2s_hpc.controller.plan import count_candidates
    from l2s_hpc.store.files import read_json

    candidate = controller.policy.references["average"]
    controller.restrict("search", [candidate])
    _drive(controller, config, site)
    accepted = controller.state.accepted["search", candidate]
    receipt = read_json(controller.paths.receipt("search", accepted.generation, candidate))
    seconds = receipt["seconds"]
    repeated = sum(value for phase, value in seconds.items() if phase != "start")
    candidates = count_candidates(config)
    print_pairs(
        {
            "node": receipt["host"],
            "device": receipt["device"],
            "seconds": seconds,
            "search": f"{candidates} candidates need about "
            f"{candidates * repeated / 3600:.2g} device-hours, starts not counted",
            "kept in": str(folder),
        },
        "One candidate went through:",
    )


def _show_plan(found: dict[str, Any]) -> None:
    print_table(found.pop("models"), "Models")
    print_table(found.pop("genes"), f"Genes (liveness: {found.pop('liveness')})")
    first = found.pop("first_generation")
    shown = [{"candidate": row["candidate"], "genome": row["genome"]} for row in first[:5]]
    print_table(shown, f"First generation: {len(first)} candidates, of them")
    sbatch, notes = found.pop("sbatch"), found.pop("notes")
    found["gpu_hours"] = found["gpu_hours"] or "unknown (try `l2s run --smoke`)"
    print_pairs(found)
    for note in notes:
        stdout.print(f"note: {note}")
    if sbatch:
        stdout.print(f"\nThe first generation's array, as sbatch gets it:\n\n{sbatch}")
