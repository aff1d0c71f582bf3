"""`l2s plan`, `run`, `status` and `stop`: the search itself."""

from __future__ import annotations

import shlex
import sys
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2s_hpc.cli.cluster import JSON, SETTINGS, SITE
from l2s_hpc.cli.output import print_json, print_pairs, print_table, stderr, stdout

if TYPE_CHECKING:
    from rich.console import Console

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
    as_json: JSON = False,
) -> None:
    """Start a search, or go on with one: the same command resumes."""
    from l2s_hpc.controller.resolve import load
    from l2s_hpc.controller.start import open_controller
    from l2s_hpc.errors import IncompleteError

    console = stderr if as_json else stdout
    config, chosen = load(job, site, settings or [])
    folder = folder or Path("results") / config.name
    if smoke:
        folder = _next_smoke(folder)
    command = shlex.join(["l2s", *sys.argv[1:]])
    try:
        controller = open_controller(config, chosen, folder, command)
        if smoke:
            _smoke(controller, config, chosen, folder, as_json)
            return
        if controller.finished:
            console.print(f"The run is complete: {folder}")
        else:
            _drive(controller, config, chosen, console)
        _finish(folder, as_json)
    except KeyboardInterrupt:
        raise IncompleteError("interrupted", hint="the same command goes on") from None


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


def stop(folder: RUN, as_json: JSON = False) -> None:
    """End a run's controller and jobs, and no others; `l2s run` goes on later."""
    from l2s_hpc.controller.control import stop as request_stop

    under_way = request_stop(folder)
    if as_json:
        print_json({"ended": under_way})
    else:
        stdout.print(f"asked to stop; {under_way} submissions were under way and are ended")


def _drive(
    controller: Controller, config: SearchConfig, site: SiteConfig, console: Console
) -> None:
    from l2s_hpc.cli.progress import Progress
    from l2s_hpc.controller.loop import run as run_loop

    try:
        with Progress(config, console) as progress:
            run_loop(controller, site.poll_seconds, progress.show)
    finally:
        controller.close()


def _finish(folder: Path, as_json: bool) -> None:
    """Write the report, and print the front beside the references."""
    from l2s_hpc import open_run
    from l2s_hpc.analysis.report import write_report
    from l2s_hpc.cli.analyse import front_rows, reference_rows
    from l2s_hpc.store.layout import RunPaths

    opened = open_run(folder)
    report = write_report(opened, RunPaths(folder).report)
    if as_json:
        print_json({"run": str(folder), "front": opened.front(), "report": str(report)})
        return
    evaluation = opened.best_evaluation()
    rows = front_rows(opened.front()) + reference_rows(opened, evaluation)
    print_table(rows, f"Final front, shortest first, and references, on the {evaluation} split")
    reached = opened.hypervolume(evaluation)
    if reached.generations and reached.sweep is not None:
        stdout.print(
            f"hypervolume (1 is ideal): front {reached.generations[-1]:.3f}, one-parameter sweep "
            f"{reached.sweep:.3f}, parents and plain average {reached.average or 0:.3f}"
        )
    stdout.print(f"report: {report}")


def _next_smoke(folder: Path) -> Path:
    """Return a new folder: every smoke test goes through the queue anew."""
    parent = folder.with_name(folder.name + ".smoke")
    return next(place for n in count(1) if not (place := parent / str(n)).exists())


def _smoke(
    controller: Controller, config: SearchConfig, site: SiteConfig, folder: Path, as_json: bool
) -> None:
    """Evaluate the plain average alone, and say what it cost."""
    from l2s_hpc.controller.plan import count_candidates
    from l2s_hpc.errors import IncompleteError
    from l2s_hpc.store.files import read_json

    key = ("search", controller.policy.references["average"])
    controller.restrict(key[0], [key[1]])
    _drive(controller, config, site, stderr if as_json else stdout)
    if key not in controller.state.accepted:
        raise IncompleteError(
            f"the candidate failed: {controller.state.penalised[key]}", path=folder
        )
    accepted = controller.state.accepted[key]
    receipt = read_json(controller.paths.receipt("search", accepted.generation, key[1]))
    seconds = receipt["seconds"]
    repeated = sum(value for phase, value in seconds.items() if phase != "start")
    candidates = count_candidates(config)
    found = {
        "node": receipt["host"],
        "device": receipt["device"],
        "seconds": seconds,
        "candidates": candidates,
        "device_hours": candidates * repeated / 3600,
        "kept in": str(folder),
    }
    if as_json:
        print_json(found)
        return
    print_pairs(found, "One candidate went through (device-hours of the search without starts):")


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
