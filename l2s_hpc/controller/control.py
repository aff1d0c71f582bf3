"""What a user asks of a run from outside: its status, and to stop it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from l2s_hpc.config import SiteConfig, validate
from l2s_hpc.controller.executors import make_executor
from l2s_hpc.store.files import process_start
from l2s_hpc.store.journal import Event, Journal
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import RunInfo, read_run
from l2s_hpc.store.state import BatchState, RunState, read_state


def status(folder: Path) -> dict[str, Any]:
    """Return where a run stands, from its files alone.

    Raises:
        UserError: the folder is not a run directory.
    """
    info, state, journal = _read(folder)
    phase, wanted = _phase(state, info)
    attempts = [attempt for tries in state.attempts.values() for attempt in tries]
    return {
        "run": info.id,
        "phase": phase,
        "controller": _controller(journal),
        "generation": len(state.generations),
        "generations": info.config["search"]["generations"],
        "settled": sum(state.settled(phase, candidate) for candidate in wanted),
        "wanted": len(wanted),
        "live": sum(attempt.outcome == "live" for attempt in attempts),
        "accepted": len(state.accepted),
        "failed": sum(attempt.outcome == "failed" for attempt in attempts),
        "penalised": len(state.penalised),
        "front": len(state.front or ()),
        "looks_at_report": state.looks,
        "last_event": state.last_time,
        "reasons": sorted({f"{a.kind}: {a.message}" for a in attempts if a.kind})[-5:],
    }


def stop(folder: Path) -> int:
    """Ask the run's controller to end, and cancel this run's jobs and no others.

    `l2s run` with the same settings goes on later.

    Returns:
        The number of submissions that were under way.
    """
    info, state, journal = _read(folder)
    site = validate(SiteConfig, state.site or info.site)
    while not journal.append(_stop_events(state, site)):
        for entry in journal.refresh():
            state.apply(entry)
    if site.executor == "slurm":
        make_executor(RunPaths(folder), site).cancel(_live(state))
    return len(_live(state))


def _live(state: RunState) -> dict[str, BatchState]:
    names = {attempt.batch for attempt in state.live_attempts()}
    return {name: state.batches[name] for name in sorted(names)}


def _stop_events(state: RunState, site: SiteConfig) -> list[Event]:
    """Return the events of a stop.

    Local workers end with their controller. It may have run on a machine that is gone, so their
    batches are given up here: nobody would ever learn what became of them.
    """
    given_up = _live(state) if site.executor == "local" else {}
    return [
        {"event": "stopped"},
        *({"event": "abandoned", "batch": n, "reason": "`l2s stop`"} for n in given_up),
    ]


def _read(folder: Path) -> tuple[RunInfo, RunState, Journal]:
    info = read_run(folder)
    return (info, *read_state(RunPaths(folder)))


def _phase(state: RunState, info: RunInfo) -> tuple[str, list[str]]:
    """Return the evaluation that is under way, or `complete`, and its candidates."""
    if state.completed:
        return "complete", []
    for name in ("report", "selection"):
        if name in state.stages:
            return name, list(state.stages[name])
    candidates = list(state.generations[-1].candidates) if state.generations else []
    first = list(info.reference_ids().values()) if len(state.generations) == 1 else []
    return "search", list(dict.fromkeys([*first, *candidates]))


def _controller(journal: Journal) -> str:
    """Say who acted last, and whether it still lives (on this host it can be known)."""
    starts = [e for e in journal.entries for event in e.events if event["event"] == "started"]
    if not starts:
        return "none"
    last = starts[-1]
    where = f"process {last.pid} on {last.host}"
    if last.host != socket.gethostname():
        return where
    return where + (" (running)" if process_start(last.pid) == last.process else " (ended)")
