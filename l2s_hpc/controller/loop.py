"""Repeats steps until the run is complete, whatever the cluster does meanwhile."""

from __future__ import annotations

import errno
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from l2s_hpc.cluster.detach import OwnJob
from l2s_hpc.config import SiteConfig
from l2s_hpc.controller.chain import Chain
from l2s_hpc.controller.detach import chain_of
from l2s_hpc.controller.notify import Notifier
from l2s_hpc.controller.step import Controller
from l2s_hpc.errors import NO_ROOM, L2SError, Unreachable

Ending = Literal["complete", "waiting", "relayed"]
"""How a loop ends: all is done; `once` would have to wait; the next link of the chain goes on."""

_LONGEST_WAIT = 300.0
_SHAKY = (errno.ESTALE, errno.EIO)
"""A shared disk may say so while its server changes; twice in a row it is a fault."""


def drive(
    controller: Controller,
    site: SiteConfig,
    show: Callable[[Controller, str], None],
    notifier: Notifier,
    own: OwnJob | None = None,
    once: bool = False,
) -> Ending:
    """Step until the run is complete, as a link of a chain if that is what we are.

    The user is told when the search pauses. Unless the chain goes on, its successors are cancelled.

    Args:
        controller: drives the run; it is closed in the end.
        site: as for the run.
        show: called after every step with a note for the user, mostly empty.
        notifier: tells the user of a pause.
        own: the Slurm job that this process runs in.
        once: end where there is nothing to do but to wait; a pause is said the first time only.

    Raises:
        IncompleteError: the run must not go on.
        SubmitError: the job was refused.
    """
    chain = chain_of(controller.paths.folder, site, own, notifier.say)
    try:
        ending = run(controller, site.poll_seconds, show, chain=chain, once=once)
    except L2SError as error:
        # After `l2s stop` a job in the queue may be a new one, and an old one sees that it ends.
        if not controller.state.stopped:
            if chain is not None:
                chain.end()
            notifier.tell("paused", error.message, controller.state)
            if once and notifier.repeated:
                return "waiting"
        raise
    finally:
        controller.close()
    if chain is not None and ending == "complete":
        chain.end()
    return ending


def run(
    controller: Controller,
    poll_seconds: float,
    show: Callable[[Controller, str], None],
    *,
    chain: Chain | None = None,
    once: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Ending:
    """Step until the run is complete.

    An outage of Slurm or a full disk is waited for, with longer and longer pauses, and said.

    Args:
        controller: drives the run.
        poll_seconds: the pause after a step that had nothing to do; it grows while nothing happens.
        show: called after every step with a note for the user, mostly empty.
        chain: of which this process is a link.
        once: end where there is nothing to do but to wait.
        sleep: waits so many seconds.

    Raises:
        IncompleteError: the run must not go on.
        SubmitError: the job was refused.
    """
    idle = failures = 0
    while not controller.finished:
        acted, failed, note = _step(controller, failures)
        failures = failures + 1 if failed else 0
        idle = 0 if acted or failed else idle + 1
        note = _beat(controller, note)
        show(controller, note)
        if chain is not None:
            chain.tend()
            if chain.over:
                _beat(controller, f"the time of this job is up; job {chain.successor} goes on")
                return "relayed"
        if acted:
            continue
        if once:
            _beat(controller, f"{note or 'there is something to wait for'}; the next call goes on")
            return "waiting"
        pause = pause_seconds(poll_seconds, idle, failures)
        sleep(min(pause, chain.patience) if chain is not None else pause)
    return "complete"


def pause_seconds(poll_seconds: float, idle: int, failures: int) -> float:
    """Return how long to pause.

    Args:
        poll_seconds: the site's.
        idle: steps in a row with nothing to do: up to four times as long, at most five minutes.
        failures: steps in a row that failed: doubled each time, at most five minutes, with jitter.
    """
    if failures:
        longest: float = min(poll_seconds * 2.0 ** min(failures, 20), _LONGEST_WAIT)
        return longest * random.uniform(0.75, 1.0)
    most = max(poll_seconds, min(4 * poll_seconds, _LONGEST_WAIT))
    return float(min(poll_seconds * 1.2 ** min(max(idle - 1, 0), 20), most))


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end what runs within as Ctrl-C does: soon, and without a traceback."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _step(controller: Controller, failures: int) -> tuple[bool, bool, str]:
    """Step once; return whether it acted, whether it failed for now, and a note for the user."""
    try:
        acted = controller.step()
        return acted, False, "" if acted else controller.waiting
    except Unreachable as error:
        return False, True, f"{error.message}; waiting"
    except OSError as error:
        if not (error.errno in NO_ROOM or (error.errno in _SHAKY and not failures)):
            raise
        return False, True, _disk_note(error)


def _beat(controller: Controller, note: str) -> str:
    """Let the controller tell that it lives; return the note, or that this cannot be written."""
    try:
        controller.beat(note)
    except OSError as error:
        if error.errno not in (*NO_ROOM, *_SHAKY):
            raise
        return note or _disk_note(error)
    return note


def _disk_note(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror}{where}; waiting until files can be written"
