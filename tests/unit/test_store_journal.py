"""The journal: one winner for each number, no gap, no torn entry, and damage that is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.errors import DamageError
from l2s_hpc.store.files import write_json
from l2s_hpc.store.journal import Journal

WRITERS, NUMBERS = 8, 50
RACE = f"""
import sys
from pathlib import Path
from l2s_hpc.store.journal import Journal

journal, won, lost = Journal(Path(sys.argv[1])), [], 0
print("ready", flush=True)
sys.stdin.readline()
while len(journal.entries) < {NUMBERS}:
    if journal.append([{{"event": "x", "by": sys.argv[2], "long": "é" * 5000}}]):
        won.append(len(journal.entries))
    else:
        lost += 1
        journal.refresh()
print(lost, *won)
"""


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    writer, reader = Journal(tmp_path), Journal(tmp_path)
    assert writer.append([{"event": "a", "x": [1.5, None]}, {"event": "b"}])
    assert [entry.events for entry in reader.refresh()] == [writer.entries[0].events]
    assert writer.append([{"event": "c"}])
    (new,) = reader.refresh()
    assert reader.entries == writer.entries and new.number == 2 and new.pid == os.getpid()
    assert reader.refresh() == []


def test_a_writer_that_has_not_seen_the_last_entry_loses_and_leaves_nothing(tmp_path: Path) -> None:
    fast, slow = Journal(tmp_path), Journal(tmp_path)
    assert fast.append([{"event": "fast"}])
    assert not slow.append([{"event": "slow"}])
    assert slow.entries == [] and len(list(tmp_path.rglob("*.*"))) == 1
    slow.refresh()
    assert slow.append([{"event": "slow"}])
    assert [e.events[0]["event"] for e in slow.entries] == ["fast", "slow"]


def test_processes_that_race_get_each_number_once(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path), str(n)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        for n in range(WRITERS)
    ]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    counts = [[int(word) for word in p.communicate()[0].split()] for p in running]
    won = [numbers for _, *numbers in counts]
    assert sorted(n for numbers in won for n in numbers) == list(range(1, NUMBERS + 1))
    assert sum(lost for lost, *_ in counts) > 0, "nobody raced"
    journal = Journal(tmp_path)
    entries = journal.refresh()
    assert [entry.number for entry in entries] == list(range(1, NUMBERS + 1))
    for entry in entries:
        assert entry.number in won[int(entry.events[0]["by"])]
    assert len(list(tmp_path.rglob("*.*"))) == NUMBERS


def written(folder: Path, change: dict[str, Any]) -> Path:
    """A journal of one entry, some of whose fields were changed on disk."""
    assert Journal(folder).append([{"event": "a"}])
    (path,) = folder.rglob("*.json")
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | change)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": 2}, "holds entry 2, not 1"),
        ({"events": 3}, "not a journal entry"),
        ({"events": "abc"}, "not a journal entry: it holds something else than events"),
        ({"events": [{"no": "name"}]}, "not a journal entry: it holds something else than events"),
        ({"unknown": 1}, "not a journal entry"),
    ],
)
def test_a_wrong_entry_is_damage_that_names_the_file(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = written(tmp_path, change)
    with pytest.raises(DamageError, match=message) as error:
        Journal(tmp_path).refresh()
    assert str(path) in str(error.value) and error.value.exit_code == 3


def test_a_torn_entry_is_damage_wherever_it_is_cut(tmp_path: Path) -> None:
    path = written(tmp_path, {})
    whole = path.read_bytes()
    for length in range(len(whole) - 2):
        path.write_bytes(whole[:length])
        with pytest.raises(DamageError, match="not valid JSON"):
            Journal(tmp_path).refresh()


@pytest.mark.parametrize("value", [[], 3, None, "text", {"number": 1}])
def test_json_of_another_kind_is_damage(tmp_path: Path, value: Any) -> None:
    path = written(tmp_path, {})
    write_json(path, value)
    with pytest.raises(DamageError, match="not a journal entry"):
        Journal(tmp_path).refresh()


def test_names_are_sharded_by_thousand(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.append([{"event": "a"}])
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.json")] == [
        "000/00000001.json"
    ]
