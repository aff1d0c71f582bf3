"""What the fault matrix shares: a mini search on the cluster, disturbed and undisturbed.

Whatever happens, the search ends as the undisturbed one: same genomes, same tables, same front;
no candidate counts under two attempts, and no job of the run is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l2s_hpc.store.journal import Journal
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import read_run
from l2s_hpc.store.state import AttemptState, RunState
from tests.mini import Mini, outcome, state_of, write_mini

from .cluster import Job, Process, SlurmCluster
from .machine import on_host

SITE = """
name = "test"
executor = "slurm"
engine = "scripted"
memory = "300M"
minutes = 5
candidates_per_task = 2
poll_seconds = 0.3
grace_seconds = 4
"""
NO_REQUEUE = "sbatch = { no-requeue = true }\n"
"""Appended to a site: Slurm starts no job again."""

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
CHUNKS = 4
"""Chunks of a candidate, where it has more than one: see `make_lab`."""


class Controller(subprocess.Popen[str]):
    """A command that drives a search; what it prints goes to a file, to be read at any time."""

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        number, name = tempfile.mkstemp(".log", "controller-", folder)
        self._log = Path(name)
        try:
            super().__init__(
                command, stdout=number, stderr=subprocess.STDOUT, text=True, env=dict(env)
            )
        finally:
            os.close(number)

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def communicate(self, input: str | None = None, timeout: float | None = None) -> Any:
        """As if what it prints came through a pipe."""
        self.wait(timeout)
        return self.said(), ""


@dataclass(frozen=True)
class Frozen:
    """A task that stands still between two chunks of a candidate's attempt.

    What is seen of a task that runs may be over when it is acted upon, the more so on a slow
    machine. Of this one it stays so. Slurm itself wakes up what it ends.
    """

    job: Job
    attempt: AttemptState
    processes: Sequence[Process]

    def go_on(self) -> None:
        for process in self.processes:
            process.send(signal.SIGCONT)


@dataclass(frozen=True)
class Lab:
    """A mini job, a cluster and a run directory.

    `env` is what the commands see; `expected` is what the undisturbed search came to.
    """

    mini: Mini
    slurm: SlurmCluster
    run: Path
    env: Mapping[str, str]
    expected: Mapping[str, object]

    def seeing(self, env: Mapping[str, str]) -> Lab:
        """The same lab, whose commands see another environment."""
        return replace(self, env=env)

    def begin(self, *settings: str, options: tuple[str, ...] = (), host: str = "") -> Controller:
        """Start the controller, maybe on another login node."""
        command = [*self.mini.command(self.run, *settings), *options]
        return self.start(on_host(host, command) if host else command)

    def start(self, command: Sequence[str], **variables: str) -> Controller:
        """Start a command as the controller, with some more environment variables."""
        return Controller(command, self.mini.site.parent, {**self.env, **variables})

    def set_nodes(self, **settings: Any) -> None:
        """Give other settings of the scripted engine to the tasks that begin from now on."""
        _nodes(self.mini.site.parent).write_text(json.dumps(settings), encoding="utf-8")

    def finish(self, *settings: str, options: tuple[str, ...] = (), host: str = "") -> str:
        """Run the controller to the end, which must be a good one; return what it printed."""
        return end(self.begin(*settings, options=options, host=host))

    def state(self) -> RunState:
        """Fold the journal; before there is one, an empty state."""
        return state_of(self.run) if self.run.exists() else RunState()

    def attempts(self) -> list[AttemptState]:
        return [a for tries in self.state().attempts.values() for a in tries]

    def failures(self) -> list[AttemptState]:
        return [a for a in self.attempts() if a.outcome == "failed"]

    def jobs(self) -> list[Job]:
        """The jobs of this run that Slurm knows."""
        if not (self.run / "run.json").exists():
            return []
        mine = f"l2s-{read_run(self.run).id}-"
        jobs = [job for job in self.slurm.jobs() if job.name.startswith(mine)]
        # A refused sbatch leaves lines that stand for no job.
        return [job for job in jobs if job.reason != "BadConstraints"]

    def wait(self, predicate: Callable[[], object], timeout: float = 120.0) -> None:
        self.slurm.wait(predicate, timeout)

    @contextlib.contextmanager
    def frozen(self, chunks: int = 1) -> Iterator[Frozen]:
        """Freeze a task that has made so many chunks and lacks two, until the end of the block.

        The lab must be made with a `chunk_delay`: a task that wakes up needs more than that. Of its
        last chunk it may not know yet itself.
        """
        found: list[Frozen] = []

        def look() -> bool:
            found[:] = self._freeze(chunks)
            return bool(found)

        self.wait(look)
        (task,) = found
        try:
            yield task
        finally:
            task.go_on()

    def _freeze(self, chunks: int) -> list[Frozen]:
        """Freeze tasks one after another, until one is as it should be; the others go on."""
        for job in self.running():
            processes = self.slurm.tasks(job.id)
            for process in processes:
                process.send(signal.SIGSTOP)
            # What a process has asked the kernel for is done before it stops.
            for process in processes:
                self.wait(lambda p=process: p.stopped() or not p.alive())
            for attempt in self.state().live_attempts():
                if not (processes and self.on(attempt, job) and self.owned(attempt)):
                    continue
                if chunks <= self.paths(attempt).chunks() <= CHUNKS - 2:
                    return [Frozen(job, attempt, processes)]
            for process in processes:
                process.send(signal.SIGCONT)
        return []

    def running(self, least: int = 1) -> list[Job]:
        """Wait until so many tasks of the run are at work on a candidate, and return them."""
        found: list[Job] = []

        def look() -> bool:
            live = [a for a in self.state().live_attempts() if self.owned(a)]
            tasks = {(a.batch, self.index(a)) for a in live}
            found[:] = [j for j in self.jobs() if j.state == "RUNNING" and _at(j) in tasks]
            return len(found) >= least

        self.wait(look)
        return list(found)

    def owned(self, attempt: AttemptState) -> bool:
        """Whether a node has begun an attempt."""
        return bool(self.paths(attempt).owners()) and not self.paths(attempt).receipt.exists()

    def paths(self, attempt: AttemptState) -> Any:
        where = (attempt.evaluation, attempt.generation, attempt.candidate, attempt.attempt)
        return RunPaths(self.run).attempt(*where)

    def logs(self, batch: str) -> str:
        """What the tasks of a batch said."""
        files = sorted((self.run / "logs" / batch).glob("*.err"))
        return "".join(file.read_text(encoding="utf-8") for file in files)

    def index(self, attempt: AttemptState) -> int:
        return int(attempt.task.rpartition("-")[2])

    def on(self, attempt: AttemptState, job: Job) -> bool:
        """Whether an attempt belongs to a job."""
        return (attempt.batch, self.index(attempt)) == _at(job)

    def check(self) -> None:
        """The search came to what the undisturbed one came to, and left nothing behind."""
        assert outcome(self.run) == self.expected
        self.check_once()
        self.check_no_jobs()

    def check_once(self) -> None:
        """No candidate counts twice, and the journal has no gap."""
        journal = Journal(RunPaths(self.run).journal)
        counted: set[tuple[str, str]] = set()
        for event in (event for entry in journal.refresh() for event in entry.events):
            key = (event.get("evaluation", ""), event.get("candidate", ""))
            if event["event"] == "accepted":
                assert key not in counted, f"{key} counts twice"
                counted.add(key)
            if event["event"] == "quarantined":
                counted.discard(key)
        assert len(list(RunPaths(self.run).journal.glob("*/*.json"))) == len(journal.entries)

    def check_no_jobs(self) -> None:
        left = [job for job in self.jobs() if job.state not in (*OVER, "COMPLETING")]
        assert not left, left


def _at(job: Job) -> tuple[str, int]:
    return job.name, job.index or 0


def end(
    controller: Controller,
    code: int = 0,
    timeout: float = 480,
    meanwhile: Callable[[], object] | None = None,
) -> str:
    """Wait for a controller and return what it printed; its exit code must be this one.

    `meanwhile` is called again and again.
    """
    deadline = time.monotonic() + timeout
    while controller.poll() is None:
        if time.monotonic() > deadline:
            kill(controller)
            raise AssertionError(f"the controller does not end:\n{controller.said()}")
        if meanwhile is not None:
            meanwhile()
        time.sleep(0.2)
    assert controller.returncode == code, controller.said()
    return controller.said()


def kill(controller: Controller) -> None:
    """kill -9, as a login node does that is restarted."""
    controller.kill()
    controller.wait()


def make_lab(
    slurm: SlurmCluster,
    folder: Path,
    site: str = SITE,
    node: Mapping[str, Any] | None = None,
    run: Path | None = None,
) -> Lab:
    """Write a mini job; `node` holds settings of the scripted engine that are the nodes' alone.

    With `chunk_delay` a candidate takes `CHUNKS` chunks of so many seconds.
    """
    folder.mkdir(exist_ok=True)
    if node:
        quoted = json.dumps(f'export L2S_SCRIPTED="$(cat {_nodes(folder)})"')
        site += f"setup = [{quoted}]\n"
    files = write_mini(folder, site=site)
    if node and "chunk_delay" in node:
        text = files.job.read_text(encoding="utf-8")
        chunked = text.replace("[protocol]\n", f"[protocol]\nchunk_items = {8 // CHUNKS}\n")
        files.job.write_text(chunked, encoding="utf-8")
    expected = expected_outcome(folder, files)
    lab = Lab(files, slurm, run or folder / "run", slurm.env, expected)
    lab.set_nodes(**(node or {}))
    return lab


def _nodes(folder: Path) -> Path:
    return folder / "nodes.json"


_EXPECTED: dict[str, Mapping[str, object]] = {}


def expected_outcome(folder: Path, mini: Mini) -> Mapping[str, object]:
    """Run the undisturbed search once for each job, on this machine alone."""
    job = mini.job.read_text(encoding="utf-8")
    if job not in _EXPECTED:
        place = folder / "undisturbed"
        place.mkdir()
        local = write_mini(place)
        local.job.write_text(job, encoding="utf-8")
        local.run(place / "run")
        _EXPECTED[job] = outcome(place / "run")
        assert _EXPECTED[job]["completed"]
    return _EXPECTED[job]


@contextlib.contextmanager
def ended(*controllers: Controller) -> Iterator[None]:
    """Whatever a test does: its controllers do not outlive it."""
    try:
        yield
    finally:
        for controller in controllers:
            if controller.poll() is None:
                controller.send_signal(signal.SIGCONT)
                kill(controller)


def put_first(folder: Path, command: str, script: str, env: Mapping[str, str]) -> dict[str, str]:
    """Put a shell script in place of a Slurm command; `$REAL` in it is the real one."""
    folder.mkdir(exist_ok=True)
    real = next(
        Path(place) / command
        for place in env["PATH"].split(os.pathsep)
        if (Path(place) / command).exists() and Path(place) != folder
    )
    path = folder / command
    path.write_text(f"#!/bin/sh\nREAL={real}\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return {**env, "PATH": f"{folder}{os.pathsep}{env['PATH']}"}


def l2s(*arguments: str, env: Mapping[str, str], code: int = 0) -> str:
    """Run another command of ours, which must end with this exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "l2s_hpc.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=env,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def refused(folder: Path, site: str, env: Mapping[str, str], words: str) -> None:
    """A new run with this site ends with exit code 2 and these words, and writes nothing."""
    mini = write_mini(folder, site=site)
    done = subprocess.run(
        mini.command(folder / "run"), capture_output=True, text=True, check=False, env=dict(env)
    )
    assert done.returncode == 2 and words in done.stderr, done.stdout + done.stderr
    assert not (folder / "run").exists()
