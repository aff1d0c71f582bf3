"""What a controller says of itself, and remembers of what it waited for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from l2s_hpc.controller.heartbeat import JOB_VARIABLE, Heartbeat
from l2s_hpc.store.files import process_start, read_json


@pytest.fixture
def now() -> list[float]:
    return [1_800_000_000.0]


@pytest.fixture
def heartbeat(tmp_path: Path, now: list[float]) -> Heartbeat:
    return Heartbeat(tmp_path / "controller.json", lambda: now[0])


@pytest.fixture
def written(tmp_path: Path) -> Callable[[], bool]:
    """Whether the file was written since the last call."""
    path = tmp_path / "controller.json"

    def found() -> bool:
        there = path.exists()
        if there:
            path.rename(path.with_name("seen.json"))
        return there

    return found


def test_it_says_who_lives_and_what_is_waited_for(
    heartbeat: Heartbeat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "123")
    heartbeat.beat("2 tasks pending: Priority", {"task x": 5.0})
    assert read_json(tmp_path / "controller.json") == {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process": process_start(os.getpid()),
        "job": "123",
        "time": "2027-01-15T08:00:00+00:00",
        "note": "2 tasks pending: Priority",
        "since": {"task x": 5.0},
    }


def test_nothing_new_is_written_once_a_minute(
    heartbeat: Heartbeat, now: list[float], written: Callable[[], bool]
) -> None:
    beats = []
    for _ in range(13):
        heartbeat.beat("", {})
        beats.append(written())
        now[0] += 10
    assert [n for n, beat in enumerate(beats) if beat] == [0, 6, 12]


def test_news_are_written_at_once(
    heartbeat: Heartbeat, now: list[float], written: Callable[[], bool]
) -> None:
    since: dict[str, float] = {}
    heartbeat.beat("", since)
    assert written()
    heartbeat.beat("squeue gave no answer; waiting", since)
    assert written()
    since["task x"] = now[0]
    heartbeat.beat("squeue gave no answer; waiting", since)
    assert written(), "the caller may go on with the same dictionary"
    heartbeat.beat("squeue gave no answer; waiting", since)
    assert not written()


def test_what_could_not_be_written_is_written_later(
    heartbeat: Heartbeat, tmp_path: Path, now: list[float]
) -> None:
    """A full disk: the loop goes on, and so does the heartbeat."""
    path = tmp_path / "controller.json"
    path.mkdir()
    with pytest.raises(OSError):
        heartbeat.beat("news", {})
    path.rmdir()
    now[0] += 60
    heartbeat.beat("news", {})
    assert read_json(path)["note"] == "news"


def test_waiting_is_remembered_by_the_next_controller(heartbeat: Heartbeat, tmp_path: Path) -> None:
    assert heartbeat.remembered() == {}
    heartbeat.beat("", {"task x": 5.0, "table /y": 7.5})
    again = Heartbeat(tmp_path / "controller.json", lambda: 0.0)
    assert again.remembered() == {"task x": 5.0, "table /y": 7.5}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "{}", '{"since": 3}', '{"since": {"x": "long"}}',
     '{"since": {"x": null}}', '{"since": ["x"]}'],
)  # fmt: skip
def test_a_file_that_is_no_heartbeat_is_as_good_as_none(
    heartbeat: Heartbeat, tmp_path: Path, text: str
) -> None:
    (tmp_path / "controller.json").write_text(text, encoding="utf-8")
    assert heartbeat.remembered() == {}
