"""A worker begins anew in a new process image: only that frees what a broken engine holds."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from l2s_hpc.task.node import TEAM_VARIABLE, job, let_go_of_logs, say

MOST_RENEWALS = 3
"""How often within one task because the engine broke."""

BROKEN = "the engine broke"

_VARIABLE = "L2S_RENEWED"
"""The task under way, and how often the engine broke in it, as `KEY:TIMES`."""

_PARENTS_VARIABLE = "L2S_PARENTS"
"""`away` once the GPU had no room for the parents: a process that is begun anew inherits it."""

_AT_START = dict(os.environ)
"""The environment before vLLM and others have set theirs, perhaps for a disk that is full now."""


def begin_anew(task: str, reason: str = BROKEN) -> None:
    """Become a new worker with the same process id, arguments and claims, for the same task.

    Its environment is the one that this one started with, and what renewals tell each other.
    What was claimed and has a receipt is left alone by it, and what was not is its own. Returns
    only if the engine broke too often in this task.

    Args:
        task: its key.
        reason: why, for the log; any other than `BROKEN` is no fault and is not counted.
    """
    before, _, times = os.environ.get(_VARIABLE, "").rpartition(":")
    renewals = int(times) if before == task else 0
    if reason == BROKEN:
        renewals += 1
    if renewals > MOST_RENEWALS:
        say(
            f"{reason} {renewals} times in task {task}: what is left of it is for another "
            "attempt, perhaps on another node"
        )
        return
    os.environ[_VARIABLE] = f"{task}:{renewals}"
    os.environ[TEAM_VARIABLE] = job().key
    say(f"{reason}: task {task} goes on in a new process")
    let_go_of_logs()
    for file in Path("/proc/self/fd").iterdir():
        # What a driver holds open would live on with its memory.
        with suppress(OSError):
            if int(file.name) > 2:
                os.set_inheritable(int(file.name), False)
    told = (_VARIABLE, TEAM_VARIABLE, _PARENTS_VARIABLE)
    environment = _AT_START | {name: os.environ[name] for name in told if name in os.environ}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def unfinished() -> str:
    """Return the task that this process goes on with; empty if it is a first one."""
    return os.environ.get(_VARIABLE, "").rpartition(":")[0]


def keep_parents_away() -> None:
    """Let no later engine of this worker keep the parents on the GPU."""
    os.environ[_PARENTS_VARIABLE] = "away"
    say("the GPU is out of memory: from now on the parents come from the page cache")


def parents_may_stay() -> bool:
    """Whether an engine may keep the parents on the GPU, if they fit."""
    return os.environ.get(_PARENTS_VARIABLE) != "away"
