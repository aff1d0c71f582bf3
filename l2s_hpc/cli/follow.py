"""`l2s status --watch`: a run as its files show it, wherever it is searched."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from l2s_hpc.cli.output import now, pairs_text, plain
from l2s_hpc.errors import L2SError

_WATCH_SECONDS = 2.0
_MOST_TASKS = 20


def watch(
    read: Callable[[], Mapping[str, Any]],
    console: Console,
    as_json: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Follow a run until it is complete: redrawn on a terminal, else a line for every change.

    A run directory that cannot be read for a while is waited for, once it was read.

    Args:
        read: returns the run's status.
        console: where to show it.
        as_json: a JSON object a line, for every change.
        sleep: waits so many seconds.
    """
    found = read()
    if console.is_terminal and not as_json:
        with Live(status_text(found), console=console, auto_refresh=False) as live:
            while found["phase"] != "complete":
                sleep(_WATCH_SECONDS)
                found = _read_again(read, found)
                live.update(status_text(found), refresh=True)
        return
    shown = ""
    while True:
        line = plain(status_line(found))
        if line != shown:
            text = json.dumps(found, ensure_ascii=False) if as_json else f"{now()} {line}"
            print(text, file=console.file, flush=True)
            shown = line
        if found["phase"] == "complete":
            return
        sleep(_WATCH_SECONDS)
        found = _read_again(read, found)


def status_text(found: Mapping[str, Any]) -> Text:
    """Return a run's status, a line for each fact and for each running task."""
    tasks = found.get("running", [])
    lines = [task_line(task) for task in tasks[:_MOST_TASKS]]
    if len(tasks) > _MOST_TASKS:
        lines.append(f"and {len(tasks) - _MOST_TASKS} more")
    facts = pairs_text({**found, "running": f"{len(tasks)} tasks tell how far they are"})
    return Text("\n").join([facts, *(Text(f"    {plain(line)}") for line in lines)])


def task_line(task: Mapping[str, Any]) -> str:
    """Return how far a running task is, in a line."""
    rate = task["tokens_per_second"]
    speed = f" ({rate:.0f} a second)" if rate else ""
    line = (
        f"{task['task']} on {task['host']}: candidate {task['candidates_done'] + 1} of "
        f"{task['candidates']}, {task['items_done']}/{task['items']} items, "
        f"{task['tokens']} tokens{speed}"
    )
    if task["stale"]:
        return f"{line}; STALE: silent for {task['age'] // 60} min"
    if task["expected_end"]:
        end = datetime.fromisoformat(task["expected_end"]).astimezone()
        line += f", ends about {end:%Y-%m-%d %H:%M}"
    return line


def status_line(found: Mapping[str, Any]) -> str:
    """Return what changes of a run's status, in a line."""
    if found["phase"] == "complete":
        return f"complete: {found['front']} on the front"
    where = found["phase"]
    if where == "search":
        where = f"generation {found['generation']}/{found['generations']}"
    failed = f", {found['failed']} attempts failed" if found["failed"] else ""
    waiting = f"; {found['waiting']}" if found["waiting"] else ""
    return (
        f"{where}: {found['settled']}/{found['wanted']} settled, {found['live']} under way"
        f"{failed}{waiting}"
    )


def _read_again(
    read: Callable[[], Mapping[str, Any]], before: Mapping[str, Any]
) -> Mapping[str, Any]:
    try:
        return read()
    except (OSError, L2SError) as error:
        return {**before, "waiting": f"the run directory cannot be read just now: {error}"}
