"""How far a running task is: its estimate, its file, and what `l2s status` makes of it."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc.cli.follow import status_text, task_line
from l2s_hpc.controller.status import running
from l2s_hpc.records import CandidateTask, Recipe, Task
from l2s_hpc.store.files import read_json, write_json
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.task import node, progress
from l2s_hpc.task.node import EngineLog
from l2s_hpc.task.pipeline import Background, Ended
from l2s_hpc.task.progress import Progress, Turn, seconds_left
from l2s_hpc.task.usage import Clock
from tests.unit.events import accepted, asked, shared, state_of, submitted

NOW = datetime(2027, 1, 31, 12, 0, tzinfo=UTC)


def test_what_is_left_is_estimated_from_what_went_before() -> None:
    assert seconds_left([], Turn(5, 0), 0.0, 3) is None, "nothing is known yet"
    assert seconds_left([], Turn(10, 100), 0.25, 2) == pytest.approx(30 + 2 * 40)
    before = [Turn(60, 1000), Turn(100, 3000)]
    assert seconds_left(before, Turn(50, 500), 0.9, 2) == pytest.approx(80 * 0.75 + 160)
    assert seconds_left(before, Turn(500, 9000), 0.9, 0) == 0, "longer than expected"
    for after in (0.0, 2.0):
        assert seconds_left([], Turn(10, 1), 2.2e-309, after) is None, "no number is so large"


@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.integers(0, 10**7)), max_size=4),
    st.floats(0, 1e5),
    st.integers(0, 10**7),
    st.floats(0, 1),
    st.floats(0, 100),
)
def test_an_estimate_is_never_negative(
    before: list[tuple[float, int]], seconds: float, tokens: int, share: float, after: float
) -> None:
    left = seconds_left([Turn(*b) for b in before], Turn(seconds, tokens), share, after)
    assert left is None or left >= 0


def task(count: int = 2) -> Task:
    recipe = Recipe(config={}, identities={})
    names = [f"c{n}" for n in range(count)]
    return Task(
        key="search-000001-0003",
        candidates=tuple(
            CandidateTask(evaluation="search", generation=0, candidate=c, attempt=1, recipe=recipe)
            for c in names
        ),
    )


def test_the_file_is_written_at_once_and_then_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    path = tmp_path / "p.json"
    line = Progress(path, task(), "n1")
    line.begin(0, 40)
    assert read_json(path)["items_done"] == 0
    line.tell(10, 500)
    assert read_json(path)["items_done"] == 0, "not yet"
    now[0] += 10
    line.tell(20, 1000)
    found = read_json(path)
    assert (found["items_done"], found["items"], found["tokens"]) == (20, 40, 1000)
    assert found["tokens_per_second"] == 100 and found["candidates_done"] == 0
    assert set(found) == set(status_names())
    line.remove()
    line.remove()
    assert list(tmp_path.iterdir()) == []


def status_names() -> tuple[str, ...]:
    from l2s_hpc.controller import status

    return status._PROGRESS


def said(paths: RunPaths, key: str, minutes: float, **more: Any) -> dict[str, Any]:
    updated = (NOW - timedelta(minutes=minutes)).isoformat()
    found = {
        "task": key, "host": "n1", "candidate": "c", "candidates_done": 1, "candidates": 4,
        "items_done": 20, "items": 40, "tokens": 1000, "tokens_per_second": 99.6,
        "started": updated, "updated": updated, "expected_end": updated, **more,
    }  # fmt: skip
    write_json(paths.progress(key), found)
    return found


def test_status_reads_what_running_tasks_say(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    state = state_of(asked(0, "a", "b"), shared("a", "b"), submitted())
    assert running(paths, state, NOW) == []
    said(paths, "b1-0", 3)
    said(paths, "b1-7", 3)  # of a task that is settled
    paths.progress("b1-8").write_text("{", encoding="utf-8")
    write_json(paths.progress("b1-9"), {"task": "b1-0"})
    (found,) = running(paths, state, NOW)
    assert (found["items_done"], found["stale"]) == (20, False)
    (found,) = running(paths, state, NOW + timedelta(minutes=7, seconds=1))
    assert found["stale"]
    json.dumps(found)
    over = state_of(asked(0, "a", "b"), shared("a", "b"), submitted(), accepted("a"), accepted("b"))
    assert running(paths, over, NOW) == []


def test_each_worker_of_a_team_has_its_line(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    state = state_of(asked(0, "a", "b"), shared("a", "b"), submitted())
    found = said(paths, "b1-0", 3)
    paths.progress("b1-0").unlink()
    for worker in "01":
        write_json(paths.progress("b1-0", worker), found)
    assert len(running(paths, state, NOW)) == 2


def test_a_task_in_a_line(tmp_path: Path) -> None:
    found = said(RunPaths(tmp_path), "b1-0", 3) | {"stale": False, "age": 180}
    line = task_line(found)
    assert line.startswith(
        "b1-0 on n1: candidate 2 of 4, 20/40 items, 1000 tokens (100 a second), "
        "ends about 2027-01-31"
    )
    assert task_line(found | {"stale": True, "age": 700}).endswith("; STALE: silent for 11 min")
    slow = found | {"tokens_per_second": None, "expected_end": None, "tokens": 0}
    assert task_line(slow) == "b1-0 on n1: candidate 2 of 4, 20/40 items, 0 tokens"
    text = str(status_text({"phase": "search", "running": [found | {"host": "\x1b[2J"}] * 25}))
    assert "25 tasks tell how far they are" in text and "and 5 more" in text
    assert "\x1b" not in text


# The clock


def test_the_idle_share_counts_from_the_end_of_the_generation_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("l2s_hpc.task.usage.time.perf_counter", lambda: now[0])
    clock = Clock()
    assert "gpu_idle" not in clock.usage()
    clock.free_since = 96.0  # the device waited four seconds for the grader
    now[0] = 101.0
    clock.loaded({"merge": 0.5, "load": 0.5})
    with clock.generating():
        now[0] = 106.0
    clock.generated(600)
    assert clock.device_is_free() == 106.0
    now[0] = 116.0  # grading does not count
    assert clock.device_seconds == 10
    assert clock.usage()["gpu_idle"] == pytest.approx(1 - 6 / 10)
    assert clock.usage()["tokens_per_second"] == pytest.approx(120)
    clock.last = True  # the device waits for the grader, and for nothing else
    assert clock.device_seconds == 20
    assert clock.usage()["gpu_idle"] == pytest.approx(1 - 6 / 20)
    assert clock.seconds == {"merge": 0.5, "load": 0.5, "generate": 5.0}


def test_a_device_is_an_attempts_own_until_all_is_generated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("l2s_hpc.task.usage.time.perf_counter", lambda: now[0])
    clock = Clock()
    now[0] = 103.0
    assert clock.device_seconds == 3, "it may fail, and the next one begins after that"
    clock.free_since = 110.0
    assert clock.device_seconds == 0


# The background


def test_what_is_given_is_done_in_order_one_at_a_time() -> None:
    background, done = Background(), []
    for number in range(5):
        background.give(lambda number=number: (time.sleep(0.01), done.append(number)))  # type: ignore[misc]
        assert len(done) >= number, "who gives waits for the one before"
    background.wait()
    assert done == list(range(5))


def test_a_failure_is_told_once_and_what_follows_is_not_done() -> None:
    background, done = Background(), []
    background.give(lambda: background.fail(OSError("no room")))
    with pytest.raises(Ended, match="no room") as ended:
        background.give(lambda: done.append(1))
    assert isinstance(ended.value.error, OSError)
    background.wait()
    assert done == []


def test_there_is_an_end_to_waiting() -> None:
    background = Background()
    background.give(lambda: time.sleep(0.5))
    assert not background.settled(0.01) and background.settled()


# The engine's log


def test_each_attempt_has_its_log_and_the_terminal_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(node, "_MOST_LOG", 400)
    loggers = [logging.getLogger(name) for name in ("vllm", "py.warnings")]
    before = [(one, one.handlers, one.propagate, one.level) for one in loggers]
    log = EngineLog()
    try:
        log.install()
        logging.getLogger("vllm.engine").info("of nobody")
        for name in "ab":
            log.turn_to(tmp_path / name)
            logging.getLogger("vllm.engine").info("started %s", name)
            logging.getLogger("vllm.engine").debug("detail")
            logging.getLogger("vllm.engine").info("%d", "a message that does not fit")
        for _ in range(100):
            logging.getLogger("vllm").warning("x" * 20)
        log.turn_to(tmp_path / "away" / "c")
        logging.getLogger("vllm").info("where no file can be")
    finally:
        logging.captureWarnings(False)
        for one, handlers, propagate, level in before:
            one.handlers, one.propagate = handlers, propagate
            one.setLevel(level)
    assert (tmp_path / "a").read_text(encoding="utf-8").endswith(" INFO started a\n")
    text = (tmp_path / "b").read_text(encoding="utf-8")
    assert "started b" in text and "detail" not in text and len(text) <= 402
    assert capfd.readouterr() == ("", "")
