"""Several workers of one task, each with a GPU of its own: for sites that give whole nodes only."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from types import FrameType

from l2s_hpc.task.node import TEAM_VARIABLE, job


def run_team(command: Sequence[str], workers: int) -> int:
    """Run a command once per worker, with its number as last argument, and wait for all.

    Signals are passed on. A worker that dies takes one candidate with it; the others go on.

    Returns:
        The highest exit code; a worker that a signal killed counts as 128 + its number.
    """
    devices = _devices(workers)
    ours = os.environ | {TEAM_VARIABLE: job().key}
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, pass_on)
    for n, device in enumerate(devices):
        env = ours | {"CUDA_VISIBLE_DEVICES": device}
        processes.append(subprocess.Popen([*command, str(n)], env=env))
    codes = [process.wait() for process in processes]
    return max(code if code >= 0 else 128 - code for code in codes)


def _devices(workers: int) -> list[str]:
    """Return the GPU of each worker: of those that Slurm gave this task, in turn."""
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = given or [str(n) for n in range(workers)]
    return [names[n % len(names)] for n in range(workers)]
