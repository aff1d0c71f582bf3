"""Where a worker runs: the Slurm job that it belongs to, its folders, disks that may be full."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import secrets
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from l2s_hpc.errors import NO_ROOM, DamageError

T = TypeVar("T")

TEAM_VARIABLE = "L2S_TEAM"
"""What the workers of one task know each other by."""

_LOOK_AGAIN_SECONDS = 5.0
_MOST_LOG = 1_000_000
_OTHERS, _OTHERS_WRITE = 0o077, 0o022
"""Bits of a folder's mode: what the group and all others may."""


class NoRoom(OSError):
    """The run directory has no room for what is to be written: no fault of candidate or node."""


@dataclass(frozen=True)
class Job:
    """What Slurm calls this process.

    Attributes:
        key: unique to one start of one job; the workers of a team share it.
        id: such as `123_4`; empty outside Slurm.
        restart: how often Slurm had started it again.
        host: the node, by Slurm's name for it.
    """

    key: str
    id: str
    restart: int
    host: str


@cache
def job() -> Job:
    """Return the job of this process."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    identity = f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", "")
    return Job(
        key=os.environ.get(TEAM_VARIABLE) or secrets.token_hex(8),
        id=identity,
        restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        host=os.environ.get("SLURMD_NODENAME") or platform.node(),
    )


def node_path(text: str) -> Path:
    """Return a folder that a site names, with this node's `$VARS` and `~`; unset ones stay."""
    path = Path(os.path.expandvars(text))
    with contextlib.suppress(RuntimeError):  # no such user
        path = path.expanduser()
    return path


def own_folder(named: str, below: str = "") -> Path:
    """Return a folder that nobody but this user can change, made with mode 700 if it is not there.

    So what lies in it can be believed: a process of this user has put it there. Who owns a folder
    further above is trusted, as root is; a group or others who may write there are not.

    Args:
        named: the folder, as a site names it.
        below: a name; then the folder is the one of this name in `named`, where others may have
            folders too, and it is for this user alone: others may not even read it.

    Raises:
        DamageError: it is no path on this node, or somebody else could change what is in it.
        OSError: it cannot be made.
    """
    path = node_path(named)
    if "$" in str(path) or not path.is_absolute():
        raise DamageError(f"{path} is not an absolute path on this node")
    path = Path(os.path.realpath(path)) / below
    for folder in reversed(path.parents):
        folder.mkdir(mode=0o700, exist_ok=True)  # each: `parents=True` would ask the umask
        _check_mode(folder)
    _check_owner(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise DamageError(f"{path} is not a folder of this user: name another place")
    if found.st_mode & (_OTHERS if below else _OTHERS_WRITE):
        mode = stat.S_IMODE(found.st_mode)
        raise DamageError(f"{path} is open to others (mode {mode:o}): remove it, or name another")
    return path


def _check_mode(folder: Path) -> None:
    """Refuse a folder where others could put a folder of their own in place of ours."""
    mode = folder.stat().st_mode
    if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
        raise DamageError(
            f"others could rename what is in {folder} (mode {stat.S_IMODE(mode):o}): name another "
            "place, or have their right to write there taken (chmod go-w)"
        )


def _check_owner(place: Path) -> None:
    """Refuse a place whose owner could do so."""
    owner = place.stat().st_uid
    if owner not in (0, os.geteuid()):
        raise DamageError(
            f"{place} belongs to user {owner}, who could rename what is in it: name a folder of "
            "your own"
        )


def say(text: str) -> None:
    """Write a line into the task's log; where the disk is full, the log is what matters least."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


class EngineLog(logging.Handler):
    """Writes what vLLM logs, and all warnings of Python, into the file of the running attempt.

    The file ends at `_MOST_LOG` characters. Where it cannot be written nothing is: a log is no
    reason to fail.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._path: Path | None = None
        self._left = 0

    def install(self) -> None:
        """Be the one place where they go."""
        logging.captureWarnings(True)
        for name in ("vllm", "py.warnings"):
            logger = logging.getLogger(name)
            logger.handlers = [self]
            logger.propagate = False
            logger.setLevel(logging.INFO)

    def turn_to(self, path: Path) -> None:
        """Write into this file from now on."""
        self._path, self._left = path, _MOST_LOG

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)[: self._left] + "\n"
        except (TypeError, ValueError):  # a message that does not fit its arguments
            return
        if self._path is None or self._left <= 0:
            return
        self._left -= len(text)
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(text)


def let_go_of_logs() -> None:
    """Let the process end as it would, also where the disk has no room for its last words.

    Python would make it exit code 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def with_room(
    write: Callable[[], T], seconds: float, pause: Callable[[float], object] | None = None
) -> T:
    """Write; where the disk is full or read-only, try again for so many seconds.

    What is to be written may have cost GPU-hours, and somebody may make room.

    Args:
        write: is called until it succeeds.
        seconds: how long it is tried.
        pause: waits so many seconds; what it returns is true once there is no more time.

    Raises:
        NoRoom: there is still no room.
        OSError: it is another error.
    """
    deadline = time.monotonic() + seconds
    hurried: object = False
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if hurried or time.monotonic() >= deadline:
                raise NoRoom(error.errno, error.strerror, error.filename) from error
            say(f"no room, waiting: {error}")
            hurried = (pause or time.sleep)(min(_LOOK_AGAIN_SECONDS, max(seconds / 10, 0.1)))
