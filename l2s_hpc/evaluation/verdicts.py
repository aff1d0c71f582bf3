"""Verdicts that are remembered from run to run, by grader version, gold and answer.

In recorded searches 304,942 outputs held 32,314 different pairs. A folder holds what one version of
the grader has decided, in Parquet parts that are written whole and never changed: two graders at
once do each other no harm, and a crash loses a part at most. It is an aid: without it, or with a
damaged part, the same pairs are graded again.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, MutableMapping
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from l2s_hpc.errors import DamageError
from l2s_hpc.evaluation.grading import Decision
from l2s_hpc.records import short_hash
from l2s_hpc.store.layout import file_name
from l2s_hpc.store.scores import read_table, write_table

MOST_PARTS = 32
"""More parts than these are made one."""

_PARTS = pa.schema(
    [
        pa.field("gold", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ],
    metadata={"schema": "l2s_hpc verdicts 1"},
)

Key = tuple[str, str, str]
"""(grader version, gold, answer)"""


class VerdictCache(MutableMapping[Key, Decision]):
    """The decisions of one version of the grader; `save` makes new ones durable.

    What may come out otherwise another time (`error`, `timeout` on a busy machine) is remembered
    until the process ends and not saved.
    """

    def __init__(self, folder: Path, grader: str) -> None:
        """Read what is remembered of a version of the grader in a folder of its own."""
        self._folder = folder
        self._grader = grader
        self._known: dict[Key, Decision] = {}
        self._new: set[Key] = set()
        self._parts: list[Path] = []
        for path in sorted(folder.glob("*.parquet")):
            self._read(path)

    def __getitem__(self, key: Key) -> Decision:
        return self._known[key]

    def __setitem__(self, key: Key, decision: Decision) -> None:
        if self._known.get(key) != decision and decision.status not in _FLEETING:
            self._new.add(key)
        self._known[key] = decision

    def __delitem__(self, key: Key) -> None:
        del self._known[key]
        self._new.discard(key)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def save(self) -> None:
        """Write what is new as one more part; raises OSError where that is not possible."""
        if len(self._parts) >= MOST_PARTS:
            lasting = {key for key, d in self._known.items() if d.status not in _FLEETING}
            merged = self._write(lasting)
            for part in self._parts:
                if part != merged:
                    part.unlink(missing_ok=True)
            self._parts = [merged]
        elif self._new:
            self._parts.append(self._write(self._new))
        self._new = set()

    def _write(self, keys: Collection[Key]) -> Path:
        rows = [
            {"gold": key[1], "answer": key[2], **asdict(self._known[key])} for key in sorted(keys)
        ]
        # Named by its content: who writes the same part writes the same file.
        path = self._folder / f"{short_hash(rows)}.parquet"
        write_table(path, rows, _PARTS)
        return path

    def _read(self, path: Path) -> None:
        try:
            rows = read_table(path, _PARTS).to_pylist()
        except DamageError:  # torn by a machine that went down, or merged away while we looked
            return
        self._parts.append(path)
        for row in rows:
            key = (self._grader, row.pop("gold"), row.pop("answer"))
            self._known[key] = Decision(**row)


_FLEETING = ("error", "timeout")


def cache_folder(grader: str) -> Path:
    """Return the user's folder of remembered verdicts of a version of the grader."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
    return base / "l2s_hpc" / "verdicts" / file_name(grader)
