"""Repeats steps until the run is complete."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from l2s_hpc.controller.step import Controller
from l2s_hpc.errors import Unreachable

_LONGEST_WAIT = 300.0


def run(
    controller: Controller, poll_seconds: float, show: Callable[[Controller, str], None]
) -> None:
    """Step until the run is complete.

    An outage of Slurm is waited for, with longer and longer pauses, and said each time.

    Args:
        controller: drives the run.
        poll_seconds: the pause after a step that had nothing to do.
        show: called after every step with a note for the user, mostly empty.

    Raises:
        IncompleteError: the run must not go on.
        SubmitError: the job was refused.
    """
    failures = 0
    while not controller.finished:
        try:
            acted = controller.step()
            note = "" if acted else controller.waiting
            failures = 0
        except Unreachable as error:
            failures += 1
            acted, note = False, f"{error.message}; waiting"
        show(controller, note)
        if not acted:
            time.sleep(_pause(poll_seconds, failures))


def _pause(poll_seconds: float, failures: int) -> float:
    """Return the pause in seconds; after failures it doubles, up to five minutes, with jitter."""
    if not failures:
        return poll_seconds
    longest: float = min(poll_seconds * 2.0**failures, _LONGEST_WAIT)
    return longest * random.uniform(0.75, 1.0)
