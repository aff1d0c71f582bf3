"""The journal: numbered, immutable JSON files that together are the state of a run.

An entry holds all events of one controller step. It is created by a hard link to the next free
number, so there is no gap, no torn entry, and of two writers one wins and the other looks again.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from l2s_hpc.errors import DamageError
from l2s_hpc.store.files import create_json, process_start, read_json

Event = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One journal file: its number, when and by whom it was written, and its events.

    `process` is the writer's start time in the kernel's clock, which tells it from a later process
    of the same pid.
    """

    number: int
    time: str
    host: str
    pid: int
    process: str
    events: tuple[Event, ...]


class Journal:
    """Reads and appends entries; knows only what it has read, and reads only what is new."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[Entry] = []

    def refresh(self) -> list[Entry]:
        """Read the entries that are new since the last call, and return them."""
        new = []
        while (path := self._path(len(self.entries) + 1)).exists():
            entry = _read_entry(path, len(self.entries) + 1)
            self.entries.append(entry)
            new.append(entry)
        return new

    def append(self, events: list[Event]) -> bool:
        """Append one entry after the last one read; False if another writer was faster.

        An entry that was lost to another writer leaves nothing behind: refresh, and decide anew.
        """
        number = len(self.entries) + 1
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        pid = os.getpid()
        entry = Entry(number, time, socket.gethostname(), pid, process_start(pid), tuple(events))
        value = {**vars(entry), "events": events}
        if not create_json(self._path(number), value):
            return False
        self.entries.append(entry)
        return True

    def _path(self, number: int) -> Path:
        return self.folder / f"{number // 1000:03d}" / f"{number:08d}.json"


def _read_entry(path: Path, number: int) -> Entry:
    value = read_json(path)
    try:
        entry = Entry(**{**value, "events": tuple(value["events"])})
    except (TypeError, KeyError) as error:
        raise DamageError(f"not a journal entry: {error}", path=path) from error
    if not all(isinstance(event, dict) and "event" in event for event in entry.events):
        raise DamageError("not a journal entry: it holds something else than events", path=path)
    if entry.number != number:
        raise DamageError(f"holds entry {entry.number}, not {number}", path=path)
    return entry
