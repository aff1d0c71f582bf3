"""The user's own command: it hears of pauses and of the end, once, and can harm nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from l2s_hpc.controller.notify import Notifier, run_command
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import AttemptState, RunState

DUMP = (
    "python3 -c 'import json, os; print(json.dumps("
    '[os.environ[n] for n in ("L2S_RUN", "L2S_EVENT", "L2S_MESSAGE")]))\' >> {}'
)


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "a run's; $(touch pwned)")
    paths.folder.mkdir()
    paths.run_json.write_text("{}", encoding="utf-8")
    return paths


def heard(file: Path) -> list[list[str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_what_happened_stands_in_the_environment(paths: RunPaths, tmp_path: Path) -> None:
    said: list[str] = []
    notifier = Notifier(DUMP.format(tmp_path / "heard"), paths, said.append)
    notifier.tell("paused", "it's `touch pwned`; $(touch pwned)\x1b[31m\0!")
    assert heard(tmp_path / "heard") == [
        [str(paths.folder), "paused", "it's `touch pwned`; $(touch pwned) [31m !"]
    ]
    assert said == ["site.controller.notify has told you (paused)"]
    assert not list(tmp_path.rglob("pwned"))


def test_the_same_news_is_told_once(paths: RunPaths, tmp_path: Path) -> None:
    state = RunState()
    for _ in range(2):  # two processes
        notifier = Notifier(DUMP.format(tmp_path / "heard"), paths, print)
        notifier.tell("paused", "why", state)
        notifier.tell("paused", "why", state)
        assert notifier.repeated
    assert len(heard(tmp_path / "heard")) == 1
    state.attempts["search", "c"] = [AttemptState("search", 0, "c", 1, "b", "t")]
    notifier.tell("paused", "why", state)
    assert not notifier.repeated
    notifier.tell("completed", "why", state)
    assert [event for _, event, _ in heard(tmp_path / "heard")] == ["paused", "paused", "completed"]


def test_without_a_command_nothing_is_run_or_said(paths: RunPaths) -> None:
    said: list[str] = []
    notifier = Notifier("", paths, said.append)
    notifier.tell("paused", "why")
    assert not notifier.repeated
    notifier.tell("paused", "why")
    assert notifier.repeated and not said


def test_nothing_is_written_where_there_is_no_run(tmp_path: Path) -> None:
    notifier = Notifier("", RunPaths(tmp_path / "none"), print)
    notifier.tell("paused", "why")
    assert not list(tmp_path.iterdir())


def test_a_failure_is_said(paths: RunPaths) -> None:
    fault = run_command("echo no such channel >&2; exit 7", paths, "paused", "why")
    assert fault == "failed with exit code 7: no such channel"


def test_a_shell_that_is_not_understood_is_said(paths: RunPaths) -> None:
    assert "exit code 127" in run_command("no-such-command-here", paths, "paused", "why")


def test_what_hangs_is_ended_with_its_children(paths: RunPaths, tmp_path: Path) -> None:
    begun = time.monotonic()
    command = f"(sleep 2; touch {tmp_path / 'late'}) | cat"
    fault = run_command(command, paths, "paused", "why", seconds=0.3)
    assert fault == "took more than 0.3 s and was ended"
    assert time.monotonic() - begun < 1.5
    time.sleep(2)
    assert not (tmp_path / "late").exists()


def test_a_child_left_in_the_background_holds_nothing_up(paths: RunPaths) -> None:
    begun = time.monotonic()
    assert run_command("sleep 5 &", paths, "completed", "why") == ""
    assert time.monotonic() - begun < 3


def test_much_output_and_a_long_message_are_no_trouble(paths: RunPaths) -> None:
    assert run_command("yes | head -c 1000000", paths, "completed", "x" * 1_000_000) == ""
