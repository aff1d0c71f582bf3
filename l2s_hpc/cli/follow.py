"""`l2s status --watch`: a run as its files show it, wherever it is searched."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live

from l2s_hpc.cli.output import now, pairs_text, plain
from l2s_hpc.errors import L2SError

_WATCH_SECONDS = 2.0


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
        with Live(pairs_text(found), console=console, auto_refresh=False) as live:
            while found["phase"] != "complete":
                sleep(_WATCH_SECONDS)
                found = _read_again(read, found)
                live.update(pairs_text(found), refresh=True)
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
