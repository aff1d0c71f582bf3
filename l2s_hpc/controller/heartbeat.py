"""`controller.json`: what a controller says of itself, for people who look at the run."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from l2s_hpc.errors import DamageError
from l2s_hpc.store.files import process_start, read_json, write_json

JOB_VARIABLE = "L2S_CONTROLLER_JOB"
"""The Slurm job of a detached controller, whose own SLURM_* variables are taken away."""

_SECONDS = 60.0


class Heartbeat:
    """Writes the file at every new note, and once a minute.

    How long things have been waited for stands there too, so that waiting goes on after a restart;
    without the file it begins anew.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._note = ""
        self._since: Mapping[str, float] = {}
        self._time = -_SECONDS

    def beat(self, note: str, since: Mapping[str, float]) -> None:
        """Write what is said and waited for, if there is anything new in it."""
        now = self._clock()
        if (note, since) == (self._note, self._since) and now - self._time < _SECONDS:
            return
        self._note, self._since, self._time = note, dict(since), now
        write_json(
            self._path,
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "process": process_start(os.getpid()),
                "job": os.environ.get(JOB_VARIABLE, ""),
                "time": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
                "note": note,
                "since": since,
            },
        )

    def remembered(self) -> dict[str, float]:
        """Return since when the last controller of the run waited for things."""
        try:
            return {
                str(what): float(since) for what, since in read_json(self._path)["since"].items()
            }
        except (OSError, DamageError, KeyError, TypeError, ValueError, AttributeError):
            return {}
