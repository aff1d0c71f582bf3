"""`l2s run`, `status` and `stop`: the search itself."""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from l2s_hpc.cli.cluster import JSON, SETTINGS, SITE
from l2s_hpc.cli.output import print_json, print_pairs, print_table, stderr, stdout

if TYPE_CHECKING:
    from l2s_hpc.cluster.detach import OwnJob
    from l2s_hpc.config import SearchConfig, SiteConfig
    from l2s_hpc.controller.step import Controller

JOB = Annotated[str, typer.Argument(help="A ready search (`l2s jobs`), or a job file.")]
RUN = Annotated[Path, typer.Argument(help="A run directory.")]


def register(app: typer.Typer) -> None:
    """Add this module's verbs."""
    for verb in (run, status, stop):
        app.command()(verb)


def run(
    job: JOB,
    site: SITE = "local",
    folder: Annotated[
        Path | None, typer.Option("--run", help="The run directory; default results/<name>.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Submit the controller itself, as a small Slurm job.")
    ] = False,
    once: Annotated[
        bool,
        typer.Option("--once", help="For cron: end (exit code 3) where it would have to wait."),
    ] = False,
    unless_stopped: Annotated[
        bool, typer.Option("--unless-stopped", help="For scripts: do not go on after `l2s stop`.")
    ] = False,
    resubmit_cancelled: Annotated[
        bool,
        typer.Option("--resubmit-cancelled", help="Send again what somebody has cancelled."),
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="Send one candidate through the real queue, and time it."),
    ] = False,
    settings: SETTINGS = None,
    as_json: JSON = False,
) -> None:
    """Start a search, or go on with one: the same command resumes."""
    from l2s_hpc.controller.detach import enter_job
    from l2s_hpc.controller.loop import ended_by_sigterm
    from l2s_hpc.controller.resolve import load
    from l2s_hpc.errors import IncompleteError

    _check_together(detach=detach, once=once, smoke=smoke)
    own = enter_job()
    asked = _Asked(job, site, settings or [], once, unless_stopped, resubmit_cancelled, as_json)
    config, chosen = load(job, site, asked.settings)
    folder = folder or Path("results") / config.name
    try:
        with ended_by_sigterm():
            if smoke:
                _smoke(config, chosen, folder, asked)
            elif detach:
                _detach(config, chosen, folder, asked)
            else:
                _search(config, chosen, folder, asked, own)
    except KeyboardInterrupt as error:
        by = f" by {error}" if error.args else ""
        raise IncompleteError(f"interrupted{by}", hint="the same command goes on") from None


def status(
    folder: RUN,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the run until it ends.")] = False,
    as_json: JSON = False,
) -> None:
    """Say where a run stands, from any machine that sees its directory."""
    from l2s_hpc.cli.follow import status_text
    from l2s_hpc.cli.follow import watch as follow
    from l2s_hpc.controller.status import Status

    found = Status(folder)
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            follow(found.read, stdout, as_json)
    elif as_json:
        print_json(found.read())
    else:
        stdout.print(status_text(found.read()))


def stop(folder: RUN, as_json: JSON = False) -> None:
    """End a run's controller and jobs, and no others; `l2s run` goes on later."""
    from l2s_hpc.controller.control import stop as request_stop

    under_way = request_stop(folder)
    if as_json:
        print_json({"ended": under_way})
    else:
        stdout.print(f"asked to stop; {under_way} submissions were under way and are ended")


@dataclass(frozen=True)
class _Asked:
    """What the user asked `l2s run` for, as it was given."""

    job: str
    site: str
    settings: list[str]
    once: bool
    unless_stopped: bool
    resubmit_cancelled: bool
    as_json: bool

    @property
    def console(self) -> Console:
        if self.once:
            return Console(quiet=True)
        return stderr if self.as_json else stdout

    def begin(self, config: SearchConfig, site: SiteConfig, folder: Path) -> Controller:
        from l2s_hpc.controller.start import open_controller

        command = shlex.join(["l2s", *sys.argv[1:]])
        return open_controller(
            config, site, folder, command, self.resubmit_cancelled, by_user=not self.unless_stopped
        )

    def again(self, folder: Path) -> list[str]:
        """Return the arguments of `l2s` that go on with the run."""
        sets = [word for setting in self.settings for word in ("--set", setting)]
        return ["run", self.job, "--site", self.site, "--run", str(folder), *sets]


def _check_together(**options: bool) -> None:
    from l2s_hpc.errors import UserError

    given = [f"--{name}" for name, value in options.items() if value]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} do not go together", hint="give one of them")


def _search(
    config: SearchConfig, site: SiteConfig, folder: Path, asked: _Asked, own: OwnJob | None
) -> None:
    """Go on until the run is complete, or the next one of us goes on."""
    from l2s_hpc.cli.progress import Progress
    from l2s_hpc.controller.detach import check_once, is_stopped, open_told
    from l2s_hpc.controller.loop import drive
    from l2s_hpc.controller.notify import Notifier
    from l2s_hpc.errors import IncompleteError
    from l2s_hpc.store.layout import RunPaths

    paths = RunPaths(folder)
    if asked.once:
        check_once(site)
    # A job that Slurm started again is not the user's word.
    again = own is not None and own.restarts > 0
    if (asked.unless_stopped or again) and is_stopped(folder):
        if asked.once:
            raise typer.Exit(3)
        raise IncompleteError("stopped by `l2s stop`", hint="`l2s run` goes on", path=folder)
    with Progress(config, asked.console) as progress:
        notifier = Notifier(site.controller.notify, paths, progress.say)
        controller = open_told(lambda: asked.begin(config, site, folder), notifier, own)
        if not controller.finished:
            ending = drive(controller, site, progress.show, notifier, own, asked.once)
            if ending == "waiting":
                raise typer.Exit(3)
            if ending == "relayed":
                return
        else:
            asked.console.print(f"The run is complete: {folder}", markup=False)
            if (asked.once or asked.unless_stopped) and paths.report.exists():
                return
    try:
        _finish(folder, asked.as_json)
    except OSError as error:
        notifier.tell("paused", f"complete, but for its report: {error}", controller.state)
        raise
    notifier.tell("completed", f"the search is complete: {paths.report}", controller.state)


def _detach(config: SearchConfig, site: SiteConfig, folder: Path, asked: _Asked) -> None:
    """Submit the controller, unless it is there already."""
    from l2s_hpc.controller.detach import check_detach, standing_controller, submit_controller
    from l2s_hpc.store.layout import RunPaths

    words, log, job = asked.again(folder), RunPaths(folder).controller_log, None
    check_detach(config, site, folder, words)
    standing = standing_controller(folder, site)
    if standing is not None:
        job = standing.id
        said = (
            f"the controller is there already: job {job} ({standing.state}: {standing.where}), "
            "with the settings it was started with; `l2s stop` and this command give it others"
        )
    elif (controller := asked.begin(config, site, folder)).finished:
        said = f"The run is complete: {folder}"
    else:
        job = submit_controller(controller, site, words)
        said = (
            f"the controller is job {job}; follow it: l2s status {shlex.quote(str(folder))} --watch"
        )
    asked.console.print(said, markup=False)
    if asked.as_json:
        print_json({"run": str(folder), "job": job, "log": str(log)})
    elif job is not None:
        stdout.print(f"its log: {log}", markup=False)


def _finish(folder: Path, as_json: bool) -> None:
    """Write the report, and print the front beside the references."""
    from l2s_hpc import open_run
    from l2s_hpc.analysis.report import write_report
    from l2s_hpc.cli.front import reference_rows, shown_rows, spare_of
    from l2s_hpc.store.layout import RunPaths

    opened = open_run(folder)
    report = write_report(opened, RunPaths(folder).report)
    if as_json:
        print_json({"run": str(folder), "front": opened.front(), "report": str(report)})
        return
    evaluation = opened.best_evaluation()
    rows = opened.front() + reference_rows(opened, evaluation)
    title = (
        f"Final front, shortest first, and references, on the {evaluation} split (95 % intervals: "
        "those of the front hold together)"
    )
    print_table(shown_rows(rows), title, spare_of(), "`l2s front --json` has all")
    reached = opened.hypervolume(evaluation)
    if reached.generations and reached.sweep is not None:
        stdout.print(
            f"hypervolume (1 is ideal): front {reached.generations[-1]:.3f}, one-parameter sweep "
            f"{reached.sweep:.3f}, parents and plain average {reached.average or 0:.3f}"
        )
    stdout.print(f"report: {report}")


def _smoke(config: SearchConfig, site: SiteConfig, folder: Path, asked: _Asked) -> None:
    """Evaluate the plain average alone, in a run of its own, and say what it cost."""
    from l2s_hpc.cli.progress import Progress
    from l2s_hpc.controller.smoke import next_folder, smoke

    place = next_folder(folder)
    controller = asked.begin(config, site, place)
    with Progress(config, asked.console) as progress:
        found = {**smoke(controller, site.poll_seconds, progress.show), "kept in": str(place)}
    if asked.as_json:
        print_json(found)
        return
    print_pairs(found, "One candidate went through; `l2s plan` foresees the search's cost from it:")
