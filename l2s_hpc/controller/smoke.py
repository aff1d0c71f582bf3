"""One candidate through the real queue: `l2s run --smoke` and `l2s plan --probe`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from l2s_hpc.controller.control import stop
from l2s_hpc.controller.loop import run as run_loop
from l2s_hpc.controller.step import Controller
from l2s_hpc.errors import IncompleteError
from l2s_hpc.store.tables import Tables


def smoke_runs(folder: Path) -> list[Path]:
    """Return the folders of a run's smoke tests, the latest last."""
    parent = _parent(folder)
    numbers = [int(p.name) for p in parent.iterdir() if p.name.isdigit()] if parent.exists() else []
    return [parent / str(number) for number in sorted(numbers)]


def next_folder(folder: Path) -> Path:
    """Return a new folder beside a run's: every smoke test goes through the queue anew."""
    return next(place for n in count(1) if not (place := _parent(folder) / str(n)).exists())


def smoke(
    controller: Controller, poll_seconds: float, show: Callable[[Controller, str], None]
) -> dict[str, Any]:
    """Evaluate the plain average alone, on the search split.

    Args:
        controller: of a new run in `next_folder`; it is closed in the end.
        poll_seconds, show: as for the loop.

    Returns:
        Where it ran, and its seconds by phase.

    Raises:
        IncompleteError: the candidate failed, or the run was stopped.
        KeyboardInterrupt: the user does not want to wait; its job is ended.
    """
    key = ("search", controller.policy.references["average"])
    controller.restrict(key[0], [key[1]])
    try:
        run_loop(controller, poll_seconds, show)
    except KeyboardInterrupt:
        # Nobody goes on with this run: the next smoke test is another one.
        stop(controller.paths.folder)
        raise
    finally:
        controller.close()
    if key not in controller.state.accepted:
        reason = controller.state.penalised[key]
        raise IncompleteError(f"the candidate failed: {reason}", path=controller.paths.folder)
    accepted = controller.state.accepted[key]
    receipt = Tables(controller.paths).receipt(("search", accepted.generation, key[1]))
    return {
        "node": receipt.host,
        "device": receipt.device,
        "answers": receipt.rows,
        "seconds": receipt.seconds,
    }


def _parent(folder: Path) -> Path:
    return folder.with_name(folder.name + ".smoke")
