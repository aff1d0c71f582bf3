"""What `l2s status` says of a run, from its files alone."""

from __future__ import annotations

import io
import json
import shutil
import socket
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from l2s_hpc.cli.follow import status_line, watch
from l2s_hpc.controller import control
from l2s_hpc.controller.status import Seen, Status, ago, describe, last_seen
from l2s_hpc.errors import DamageError, IncompleteError, Unreachable, UserError
from l2s_hpc.store.files import write_json
from l2s_hpc.store.journal import Journal
from l2s_hpc.store.layout import RunPaths
from tests.mini import state_of, write_mini
from tests.unit.commands import Commands

NOW = datetime(2027, 1, 31, 12, 0, tzinfo=UTC)


def sign(minutes: float, **more: Any) -> Seen:
    time = (NOW - timedelta(minutes=minutes)).isoformat()
    return Seen(**{"time": time, "host": "elsewhere", "pid": 7, "process": "1", **more})


def said(seen: Seen, stopped: bool = False, process: str = "") -> str:
    return describe(seen, stopped, NOW, lambda pid: process)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (47 * 3600, "47 h"),
     (48 * 3600, "2 days"), (-5, "0 s")],
)  # fmt: skip
def test_ages_are_words(seconds: float, words: str) -> None:
    assert ago(seconds) == f"{words} ago"


def test_a_controller_on_another_host_was_last_seen() -> None:
    assert said(sign(3)) == "process 7 on elsewhere, last seen 3 min ago"
    assert said(sign(3, job="57")) == "Slurm job 57 on elsewhere, last seen 3 min ago"


def test_long_silence_is_said_with_what_to_do() -> None:
    assert said(sign(120)) == (
        "process 7 on elsewhere, last seen 2 h ago, which is long: if it has ended, "
        "`l2s run` with the same settings goes on"
    )


def test_on_this_host_it_is_known_whether_it_lives() -> None:
    here = sign(3, host=socket.gethostname())
    assert said(here, process="1").endswith("(running)")
    assert said(here, process="1", stopped=True).endswith("(running, asked to stop)")
    assert "(ended); `l2s run` with the same settings goes on" in said(here, process="2")
    job = sign(3, host=socket.gethostname(), job="57")
    assert "the next link of its chain, or `l2s run`" in said(job)


def test_a_job_in_the_queue_is_named() -> None:
    assert said(sign(3, job="57", queued=True)) == (
        "Slurm job 57, submitted 3 min ago, not begun yet"
    )


def test_without_a_controller_it_says_how_to_go_on() -> None:
    assert said(Seen()) == "none was started; `l2s run` with the same settings goes on"
    assert said(sign(3), stopped=True).startswith("none: stopped by `l2s stop`")
    assert said(sign(3, job="57", queued=True), stopped=True).startswith("none: stopped")


def test_the_latest_sign_counts(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    journal = Journal(paths.journal)
    assert last_seen(paths, journal) == Seen()
    journal.append([{"event": "started", "command": "l2s run", "site": {}}])
    started = last_seen(paths, journal)
    assert (started.pid, started.job) == (journal.entries[0].pid, "")
    # The heartbeat's time is cut to seconds, and that of the same process tells more.
    beat = {
        "host": started.host,
        "pid": started.pid,
        "process": started.process,
        "job": "57",
        "time": started.time[:19] + "+00:00",
        "note": "3 tasks pending: Priority",
    }
    write_json(paths.heartbeat, beat)
    assert last_seen(paths, journal).job == "57"
    journal.append([{"event": "detached", "job": "58"}])
    entry = journal.entries[-1]
    assert last_seen(paths, journal) == Seen(entry.time, job="58", queued=True)
    later = datetime.now(UTC) + timedelta(seconds=5)
    write_json(paths.heartbeat, {**beat, "pid": 1, "job": "58", "time": later.isoformat()})
    assert last_seen(paths, journal).note == "3 tasks pending: Priority"
    paths.heartbeat.write_text("{", encoding="utf-8")
    assert last_seen(paths, journal).job == "58"


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("complete")
    write_mini(folder).run(folder / "run")
    return folder / "run"


def test_status_of_a_complete_run(complete: Path) -> None:
    found = Status(complete).read()
    assert found["phase"] == "complete" and found["controller"] == "none is needed"
    assert found["generation"] == found["generations"] == 3
    assert found["live"] == found["failed"] == 0 and found["excluded_nodes"] == []
    assert found["budget"]["candidates"] == len(state_of(complete).genomes)
    assert found["budget"]["gpu_hours"] >= 0
    json.dumps(found)


def test_the_present_settings_count_and_not_those_of_the_first_start(
    complete: Path, tmp_path: Path
) -> None:
    journal = Journal(RunPaths(complete).journal)
    journal.refresh()
    operational = {
        "search.generations": 5,
        "budget.max_gpu_hours": 2.0,
        "budget.max_candidates": 100,
        "budget.deadline": "2027-01-31T18:00:00+01:00",
    }
    status = Status(complete)
    status.read()
    journal.append(
        [{"event": "started", "command": "", "site": state_of(complete).site,
          "operational": operational}]
    )  # fmt: skip
    found = status.read()  # the same reader sees what is new
    assert found["generations"] == 5
    assert found["budget"]["gpu_hours_left"] == pytest.approx(2.0, abs=0.01)
    assert found["budget"]["candidates_left"] == 100 - found["budget"]["candidates"]
    assert found["budget"]["deadline"] == "2027-01-31T18:00:00+01:00"


def test_status_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        Status(tmp_path)


def test_stop_that_cannot_reach_slurm_stands_and_can_be_repeated(
    complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(complete, tmp_path / "run")
    journal = Journal(RunPaths(run).journal)
    journal.refresh()
    site = {**state_of(run).site, "executor": "slurm"}
    journal.append([{"event": "started", "command": "", "site": site}])
    cancelled: list[str] = []
    away = True

    def cancel(self: control.ControllerJobs, jobs: object = ()) -> None:
        if away:
            raise Unreachable("scancel failed: no answer")
        cancelled.append(self.name)

    monkeypatch.setattr(control.ControllerJobs, "cancel", cancel)
    batches = list(state_of(run).batches)
    commands = Commands(tmp_path / "bin", monkeypatch)
    lives = f"{batches[0]}|77|0|RUNNING|0|n1|None|\nanother-runs|78|0|RUNNING|0|n1|None|\n"
    commands.answer("squeue", lives)
    commands.answer("scancel")
    # Who is cancelled is COMPLETING at the next look, and then gone.
    script = commands.folder / "scancel"
    text = script.read_text(encoding="utf-8")
    gone = f'sed -i "s/RUNNING/COMPLETING/" {commands.folder}/squeue.out\n'
    script.write_text(text.replace("cat ", f"{gone}cat ", 1), encoding="utf-8")
    monkeypatch.setattr(control, "_LOOK_SECONDS", 0)
    with pytest.raises(IncompleteError, match="asked to stop, but its jobs could not") as error:
        control.stop(run)
    assert error.value.exit_code == 3 and "again" in error.value.hint
    assert state_of(run).stopped
    away = False
    assert control.stop(run) == 0
    assert len(cancelled) == 1 and cancelled[0].endswith("-controller")
    asked = commands.calls("squeue")
    everyone = f"--name={','.join(batches)}"
    assert everyone in asked[0], "closed ones too: Slurm may have ghosts of them"
    assert commands.calls("scancel") == [["77"]]


def test_stop_goes_on_until_no_task_is_seen(
    complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller may be in its last sbatch: its job is seen a moment later."""
    run = shutil.copytree(complete, tmp_path / "run")
    site = {**state_of(run).site, "executor": "slurm"}
    journal = Journal(RunPaths(run).journal)
    journal.refresh()
    journal.append([{"event": "started", "command": "", "site": site}])
    (batch, *_) = state_of(run).batches
    commands = Commands(tmp_path / "bin", monkeypatch)
    for name in ("squeue", "scancel"):
        commands.answer(name)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        rounds = {1: f"{batch}|81|0|PENDING|0||None|\n", 3: ""}
        if len(slept) in rounds:
            commands.answer("squeue", rounds[len(slept)])

    commands.answer("squeue", f"{batch}|80|0|RUNNING|0|n1|None|\n")
    monkeypatch.setattr(control, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(control.ControllerJobs, "cancel", lambda self, jobs=(): None)
    control.stop(run)
    assert commands.calls("scancel") == [["80"], ["81"], ["81"]] and len(slept) == 3
    commands.answer("squeue", f"{batch}|82|0|RUNNING|0|n1|None|\n")
    control.stop(run)
    assert len(slept) <= 3 + control._MOST_LOOKS, "it does not wait for ever"


class Views:
    """Status after status, or an error in its place."""

    def __init__(self, *found: Mapping[str, Any] | Exception) -> None:
        self._found = list(found)

    def __call__(self) -> Mapping[str, Any]:
        view = self._found.pop(0)
        if isinstance(view, Exception):
            raise view
        return view


def view(phase: str = "search", **more: Any) -> dict[str, Any]:
    found = {"phase": phase, "generation": 2, "generations": 10, "settled": 5, "wanted": 20}
    return {**found, "live": 3, "failed": 0, "waiting": "", "front": 4, **more}


def followed(*found: Mapping[str, Any] | Exception, terminal: bool = False, **how: Any) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    watch(Views(*found), console, sleep=lambda _: None, **how)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_status_in_a_line() -> None:
    assert status_line(view()) == "generation 2/10: 5/20 settled, 3 under way"
    line = status_line(view("report", failed=2, waiting="3 tasks pending: Priority"))
    assert line == (
        "report: 5/20 settled, 3 under way, 2 attempts failed; 3 tasks pending: Priority"
    )
    assert status_line(view("complete")) == "complete: 4 on the front"


def test_watch_prints_changes_with_the_date_until_the_end() -> None:
    text = followed(view(), view(), view(settled=6), view("complete"))
    lines = text.splitlines()
    assert [line[20:] for line in lines] == [
        "generation 2/10: 5/20 settled, 3 under way",
        "generation 2/10: 6/20 settled, 3 under way",
        "complete: 4 on the front",
    ]
    datetime.strptime(lines[0][:19], "%Y-%m-%d %H:%M:%S")


def test_watch_gives_json_lines() -> None:
    text = followed(view(), view(), view("complete"), as_json=True)
    assert [json.loads(line)["phase"] for line in text.splitlines()] == ["search", "complete"]


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), DamageError("a gap"), UserError("no run.json")]
)
def test_watch_bears_a_directory_that_is_away_for_a_while(error: Exception) -> None:
    text = followed(view(), error, error, view(), view("complete"))
    assert text.count("cannot be read just now") == 1
    assert text.endswith("complete: 4 on the front\n")


def test_watch_of_no_run_says_so_at_once() -> None:
    with pytest.raises(UserError):
        followed(UserError("not a run directory"))


def test_watch_draws_on_a_terminal() -> None:
    text = followed(view(), view(settled=6), view("complete"), terminal=True)
    assert "settled" in text and "complete" in text


def test_what_a_model_wrote_cannot_act_on_the_terminal() -> None:
    assert "\x1b" not in followed(view(waiting="\x1b[2J boo"), view("complete"))
