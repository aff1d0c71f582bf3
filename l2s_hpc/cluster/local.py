"""The executor of this machine: a pool of workers that lives for a batch.

On a machine with GPUs each worker has one for itself.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import IO

from l2s_hpc.cluster.jobs import NO_ROOM_JOB, JobState, python_command
from l2s_hpc.config import SiteConfig
from l2s_hpc.errors import NO_ROOM_EXIT, IncompleteError, UserError
from l2s_hpc.store.files import process_start
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import BatchState

_POLITE_SECONDS = 10.0
_LOOK_SECONDS = 0.1
_SMI_SECONDS = 30


def workers_of(site: SiteConfig) -> list[str]:
    """Return an entry for each worker: the GPU that it gets, empty where it works on the CPU.

    Raises:
        UserError: there is no GPU, or there are fewer than `site.parallel`.
    """
    if site.device != "cuda" or site.engine == "scripted":
        return [""] * (site.parallel or os.cpu_count() or 1)
    gpus = visible_gpus()
    if not gpus:
        raise UserError(
            f"the site '{site.name}' has device = \"cuda\", and no GPU is visible on this machine",
            hint="does `nvidia-smi -L` list one, and is CUDA_VISIBLE_DEVICES unset or right? "
            'Otherwise set device = "cpu"',
        )
    if site.parallel > len(gpus):
        raise UserError(
            f"site.parallel = {site.parallel}, and the GPUs visible on this machine are "
            f"{len(gpus)}: each worker needs one for itself",
            hint=f"set site.parallel to at most {len(gpus)}; 0 uses all",
        )
    return gpus[: site.parallel or len(gpus)]


def visible_gpus() -> list[str]:
    """Return the GPUs that a program of this machine may use, as CUDA_VISIBLE_DEVICES names them.

    torch, which may not be installed here, is not asked.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        gpus = [name.strip() for name in named.split(",")]
        # CUDA ignores all from the first that is none.
        end = next((n for n, gpu in enumerate(gpus) if gpu in ("", "-1")), len(gpus))
        return gpus[:end]
    try:
        return [str(number) for number in range(_count_gpus())]
    except (OSError, subprocess.SubprocessError):
        return []


@cache  # but for failures
def _count_gpus() -> int:
    """Return how many GPUs the driver of this machine lists."""
    listed = subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_SMI_SECONDS, check=True
    ).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())


class LocalExecutor:
    """Feeds tasks to workers (see `workers_of`), one at a time each."""

    def __init__(self, paths: RunPaths, site: SiteConfig) -> None:
        self._paths = paths
        self._site = site
        self._pools: dict[str, _Pool] = {}
        self._gpus: dict[str, threading.Lock] = {}

    @property
    def most_tasks(self) -> int:
        return sys.maxsize

    def submit(self, batch: str, tasks: Sequence[str], avoid: Sequence[str] = ()) -> str:
        places = [
            (gpu, self._gpus.setdefault(gpu, threading.Lock()) if gpu else threading.Lock())
            for gpu in workers_of(self._site)
        ]
        self._pools[batch] = _Pool(self._paths, self._site, batch, tasks, places)
        return _reference()

    def find(self, batch: BatchState) -> str | None:
        return _reference() if batch.name in self._pools else None

    def watch(self, batches: Mapping[str, BatchState]) -> dict[str, JobState]:
        states: dict[str, JobState] = {}
        for name, batch in batches.items():
            pool = self._pools.get(name)
            for task in batch.tasks:
                states[task] = pool.state(task) if pool else _foreign(batch.job)
        for name in [n for n, pool in self._pools.items() if pool.idle]:
            self._pools[name].end()
        return states

    def end(self, batch: str, jobs: Sequence[str]) -> None:
        """Workers of this machine leave nothing behind that could be ended."""

    def cancel(self, batches: Mapping[str, BatchState]) -> None:
        for name in batches:
            if name in self._pools:
                self._pools.pop(name).end()

    def close(self) -> None:
        with ExitStack() as every:  # also where one raises
            for pool in self._pools.values():
                every.callback(pool.end)
            self._pools.clear()


class _Pool:
    """The workers of one batch. A worker that died takes its task with it; another goes on.

    A worker waits for its place, a GPU, until the worker of another batch has left it; whichever
    place is free first gets the next task.
    """

    def __init__(
        self,
        paths: RunPaths,
        site: SiteConfig,
        batch: str,
        tasks: Sequence[str],
        places: Sequence[tuple[str, threading.Lock]],
    ) -> None:
        self._paths = paths
        self._site = site
        self._log = paths.logs / f"{batch}.log"
        self._waiting = deque(tasks)
        self._running: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()
        self._ended = False
        self._processes: list[subprocess.Popen[str]] = []
        self._threads = [
            threading.Thread(target=self._feed, args=place, daemon=True) for place in places
        ]
        paths.logs.mkdir(parents=True, exist_ok=True)
        for thread in self._threads:
            thread.start()

    @property
    def idle(self) -> bool:
        with self._lock:
            return not self._waiting and not self._running

    def state(self, task: str) -> JobState:
        with self._lock:
            if task in self._running:
                return JobState("running", node=socket.gethostname())
            if task in self._waiting:
                return JobState("pending")
            return JobState("ended", self._reasons.get(task, ""))

    def end(self) -> None:
        """Ask every worker to end, wait for its last receipt, then insist.

        Raises:
            IncompleteError: one does not end even so.
        """
        with self._lock:
            self._ended = True
            self._waiting.clear()
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            if not _ends(process):
                process.kill()
        stuck = [str(process.pid) for process in self._processes if not _ends(process)]
        for thread in self._threads:
            thread.join(_POLITE_SECONDS)
        if stuck:
            raise IncompleteError(
                f"a worker does not end, {_POLITE_SECONDS:g} s after it was killed: process "
                f"{', '.join(stuck)} of this machine",
                hint="does a disk or a GPU hang? Once it is gone, the same command goes on",
            )

    def _feed(self, gpu: str, free: threading.Lock) -> None:
        while not free.acquire(timeout=_LOOK_SECONDS):
            if not self._waiting:
                return
        try:
            self._feed_one(gpu)
        finally:
            free.release()

    def _feed_one(self, gpu: str) -> None:
        """Give one worker task after task; start another worker when it has died."""
        worker: subprocess.Popen[str] | None = None
        while (task := self._take()) is not None:
            reason = ""
            try:
                if worker is None or worker.poll() is not None:
                    worker = self._start(gpu)
                if worker is not None and not _hand_over(worker, task):
                    reason, worker = _ending(worker), None
            except OSError as error:
                reason = f"no worker could be started: {error}"
            with self._lock:
                self._reasons[task] = reason
                self._running.discard(task)
        if worker is not None and worker.stdin is not None:
            worker.stdin.close()
            if gpu:  # its memory goes with it
                worker.wait()

    def _take(self) -> str | None:
        with self._lock:
            if self._ended or not self._waiting:
                return None
            task = self._waiting.popleft()
            self._running.add(task)
            return task

    def _start(self, gpu: str) -> subprocess.Popen[str] | None:
        environment = os.environ | {"OMP_NUM_THREADS": str(self._site.threads)}
        if gpu:
            environment |= {"CUDA_VISIBLE_DEVICES": gpu}
        with self._log.open("a", encoding="utf-8") as log:
            # A session of its own: Ctrl-C on the terminal is for the controller alone.
            process = subprocess.Popen(
                [
                    *python_command(self._site),
                    "-m",
                    "l2s_hpc.task.worker",
                    str(self._paths.folder),
                    "-",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,
            )
        with self._lock:
            self._processes.append(process)
            if self._ended:
                process.terminate()
                return None
        return process


def _ending(worker: subprocess.Popen[str]) -> str:
    """Wait for a worker that answers no more, and return what its end means."""
    if _ends(worker):
        return NO_ROOM_JOB if worker.returncode == NO_ROOM_EXIT else ""
    worker.kill()
    return "" if _ends(worker) else f"its worker, process {worker.pid}, was killed and does not end"


def _ends(worker: subprocess.Popen[str]) -> bool:
    """Whether a worker has ended, or does so soon."""
    try:
        worker.wait(_POLITE_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _hand_over(worker: subprocess.Popen[str], task: str) -> bool:
    """Give a worker a task and wait until it is done; False if the worker died."""
    try:
        _pipe(worker.stdin).write(f"{task}\n")
        _pipe(worker.stdin).flush()
        for line in _pipe(worker.stdout):
            if line.strip() == f"done {task}":
                return True
    except OSError:
        pass
    return False


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise OSError("the worker has no pipe")
    return stream


def _reference() -> str:
    """Return what a batch of this process is known by."""
    return f"{socket.gethostname()}:{os.getpid()}:{process_start(os.getpid())}"


def _foreign(job: str | None) -> JobState:
    """Judge a batch that another controller started: its workers live as long as it does."""
    if job is None:
        return JobState("unknown")
    host, pid, start = job.rsplit(":", 2)
    if host != socket.gethostname():
        return JobState(
            "unknown", reason=f"its controller ran on {host}; if that is gone: l2s stop"
        )
    if process_start(int(pid)) == start:
        return JobState("running", node=host)
    return JobState("orphaned", reason="its controller has died")
