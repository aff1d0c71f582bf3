"""Where a run stands, from its files alone: no Slurm is asked, so any machine will do."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from l2s_hpc.config import SiteConfig, flatten, validate
from l2s_hpc.controller.budget import usage
from l2s_hpc.controller.decide import bad_nodes
from l2s_hpc.errors import DamageError, UserError
from l2s_hpc.store.files import process_start, read_json
from l2s_hpc.store.journal import Journal
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import RunInfo, read_run
from l2s_hpc.store.state import RunState, read_state

_STALE_SECONDS = 600.0
"""A task that runs says how far it is every ten seconds, where its engine tells."""

_PROGRESS = (
    "task",
    "host",
    "candidate",
    "candidates_done",
    "candidates",
    "items_done",
    "items",
    "tokens",
    "tokens_per_second",
    "started",
    "updated",
    "expected_end",
)

_OF_SEARCHES = ("generation", "generations", "front", "looks_at_report")

_SILENCE_SECONDS = 900.0
"""A controller that lives writes every minute; its longest pause is five."""


class Status:
    """Where a run stands, from its files alone and from any host.

    Raises:
        UserError: the folder is not a run directory.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = RunPaths(folder)
        self._info = read_run(folder)
        if self._info.imported:
            raise UserError(
                "nothing is under way: these are imported results",
                hint="l2s ntr, front, grade and report read them",
                path=folder,
            )
        self._state, self._journal = read_state(self._paths)

    def read(self) -> dict[str, Any]:
        """Read what is new, and return all of it by name."""
        for entry in self._journal.refresh():
            self._state.apply(entry)
        info, state = self._info, self._state
        settings = {**flatten(info.config), **state.operational}
        site = validate(SiteConfig, state.site or info.site)
        phase, wanted = _phase(state, info)
        seen = last_seen(self._paths, self._journal)
        found = {
            "run": info.id,
            "phase": phase,
            "controller": "none is needed" if state.completed else describe(seen, state.stopped),
            "waiting": "" if state.completed else seen.note,
            "generation": len(state.generations),
            "generations": settings["search.generations"],
            "settled": sum(state.settled(phase, candidate) for candidate in wanted),
            "wanted": len(wanted),
            "live": sum(1 for _ in state.live_attempts()),
            "accepted": len(state.accepted),
            "failed": len(state.failures),
            "penalised": len(state.penalised),
            "front": len(state.front or ()),
            "running": running(self._paths, state),
            "excluded_nodes": bad_nodes(state, site.node_faults, site.allow_mixed_gpus),
            "ended_by": state.spent,
            "budget": _budget(state, settings),
            "looks_at_report": state.looks,
            "last_event": state.last_time,
            "reasons": list(dict.fromkeys(f"{a.kind}: {a.message}" for a in state.failures))[-5:],
        }
        searched = info.purpose == "search"
        return {
            name: value for name, value in found.items() if searched or name not in _OF_SEARCHES
        }


def running(paths: RunPaths, state: RunState, now: datetime | None = None) -> list[dict[str, Any]]:
    """Return what running tasks say of themselves, a small file each; see `task.progress`.

    `stale`: it has said nothing for long; its node may be gone. What a dead one left of a task that
    is settled is not shown.
    """
    moment = (now or datetime.now(UTC)).timestamp()
    found = []
    for batch in state.open_batches.values():
        live = {attempt.task for attempt in batch.live}
        for path in paths.all_progress(batch.tasks[0]) if live else ():
            try:
                said = read_json(path)
                if said["task"] in live:
                    age = round(moment - _seconds(said["updated"]))
                    names = {name: said[name] for name in _PROGRESS}
                    found.append(names | {"stale": age > _STALE_SECONDS, "age": age})
            except (OSError, DamageError, KeyError, TypeError, ValueError):
                continue  # it is for people, and is replaced all the time
    return found


@dataclass(frozen=True)
class Seen:
    """The last sign of a controller.

    Attributes:
        time: when; empty if there was none.
        host, pid, process: who gave it, as in a journal entry.
        job: the Slurm job of a detached one.
        queued: nothing was seen of that job yet but its submission.
        note: what it said it waits for.
    """

    time: str = ""
    host: str = ""
    pid: int = 0
    process: str = ""
    job: str = ""
    queued: bool = False
    note: str = ""


def last_seen(paths: RunPaths, journal: Journal) -> Seen:
    """Return the latest of a run's heartbeat, its last start and its last submission."""
    latest = Seen()
    for entry in journal.entries:
        for event in entry.events:
            if event["event"] == "started":
                latest = Seen(entry.time, entry.host, entry.pid, entry.process)
            elif event["event"] == "detached":
                latest = Seen(entry.time, job=event["job"], queued=True)
    try:
        beat = read_json(paths.heartbeat)
        names = ("time", "host", "pid", "process", "job", "note")
        seen = Seen(**{name: beat[name] for name in names})
    except (OSError, DamageError, KeyError, TypeError):
        return latest  # the heartbeat is for people, and there may be none
    same = (seen.host, seen.pid, seen.process) == (latest.host, latest.pid, latest.process)
    return seen if same or _seconds(seen.time) >= _seconds(latest.time) else latest


def describe(
    seen: Seen,
    stopped: bool,
    now: datetime | None = None,
    process_of: Callable[[int], str] = process_start,
) -> str:
    """Say in words what is known of a run's controller, and what to do if there is none.

    Args:
        seen: its last sign.
        stopped: whether `l2s stop` ended it.
        now: the time.
        process_of: returns the kernel's start time of a process of this host.
    """
    on = "`l2s run` with the same settings goes on"
    age = (now or datetime.now(UTC)).timestamp() - _seconds(seen.time)
    if not seen.time:
        return f"none was started; {on}"
    if seen.queued and not stopped:
        return f"Slurm job {seen.job}, submitted {ago(age)}, not begun yet"
    job = f"Slurm job {seen.job}" if seen.job else f"process {seen.pid}"
    who = f"{job} on {seen.host}"
    if seen.host == socket.gethostname():
        if process_of(seen.pid) == seen.process:
            return f"{who} (running{', asked to stop' if stopped else ''})"
        if stopped:
            return f"none: stopped by `l2s stop`; {on}"
        return f"{who} (ended); {'the next link of its chain, or ' if seen.job else ''}{on}"
    if stopped:
        return f"none: stopped by `l2s stop`; {on}"
    silent = f", which is long: if it has ended, {on}" if age > _SILENCE_SECONDS else ""
    return f"{who}, last seen {ago(age)}{silent}"


def ago(seconds: float) -> str:
    """Return an age in words, such as `3 min ago`."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (seconds >= size and unit != "days"):
            return f"{int(seconds // size)} {unit} ago"
    return f"{max(int(seconds), 0)} s ago"


def _phase(state: RunState, info: RunInfo) -> tuple[str, list[str]]:
    """Return the evaluation that is under way, or `complete`, and its candidates."""
    if state.completed:
        return "complete", []
    if info.purpose == "evaluate":
        return _evaluation_under_way(state)
    if state.stages:
        name = list(state.stages)[-1]
        return name, list(state.stages[name])
    candidates = list(state.generations[-1].candidates) if state.generations else []
    first = list(info.reference_ids().values()) if len(state.generations) == 1 else []
    return "search", list(dict.fromkeys([*first, *candidates]))


def _evaluation_under_way(state: RunState) -> tuple[str, list[str]]:
    """Return the first evaluation of existing checkpoints that lacks some, and its candidates."""
    for name, candidates in state.stages.items():
        if not all(state.settled(name, candidate) for candidate in candidates):
            return name, list(candidates)
    return "evaluate", []


def _budget(state: RunState, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was used and is left of GPU-hours, candidates and time; None is no limit."""
    used = usage(state)
    found: dict[str, Any] = {
        "gpu_hours": round(used.gpu_hours, 4),
        "attempts_of_unknown_hours": used.unknown,
        "candidates": used.candidates,
    }
    hours = settings.get("budget.max_gpu_hours")
    candidates = settings.get("budget.max_candidates")
    deadline = settings.get("budget.deadline")
    if hours is not None:
        found["gpu_hours_left"] = round(max(hours - used.gpu_hours, 0.0), 4)
    if candidates is not None:
        found["candidates_left"] = max(candidates - used.candidates, 0)
    if deadline is not None:
        left = (_seconds(str(deadline)) - datetime.now(UTC).timestamp()) / 3600
        found |= {"deadline": str(deadline), "hours_left": round(max(left, 0.0), 2)}
    return found


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp() if time else 0.0
