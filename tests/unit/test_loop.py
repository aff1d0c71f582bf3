"""The loop around steps: pauses, outages, full disks, SIGTERM; against scripted steps."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.config import SiteConfig
from l2s_hpc.controller.loop import drive, ended_by_sigterm, pause_seconds, run
from l2s_hpc.controller.notify import Notifier
from l2s_hpc.errors import IncompleteError, L2SError, SubmitError, Unreachable
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import RunState

Step = bool | Exception


class Scripted:
    """Stands for a controller: each step acts, waits or fails as told; then the run is complete."""

    def __init__(self, *steps: Step, folder: Path = Path("/nowhere")) -> None:
        self.steps = list(steps)
        self.waiting = "tasks wait"
        self.beats: list[str] = []
        self.beat_fault: Exception | None = None
        self.state = RunState()
        self.paths = RunPaths(folder)
        self.closed = False

    @property
    def finished(self) -> bool:
        return not self.steps

    def step(self) -> bool:
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def beat(self, note: str) -> None:
        if self.beat_fault is not None:
            raise self.beat_fault
        self.beats.append(note)

    def close(self) -> None:
        self.closed = True


def played(
    controller: Any, poll: float = 10, chain: Any = None, once: bool = False
) -> tuple[str, list[float], list[str]]:
    """Run the loop; return how it ended, its pauses and its notes."""
    pauses: list[float] = []
    notes: list[str] = []
    show: Callable[[Any, str], None] = lambda _, note: notes.append(note)  # noqa: E731
    ending = run(controller, poll, show, chain=chain, once=once, sleep=pauses.append)
    return ending, pauses, notes


def test_it_pauses_only_where_there_was_nothing_to_do() -> None:
    ending, pauses, notes = played(Scripted(True, True, False, True))
    assert ending == "complete"
    assert pauses == [10] and notes == ["", "", "tasks wait", ""]


def test_idle_pauses_grow_to_four_times_and_begin_anew_after_an_action() -> None:
    _, pauses, _ = played(Scripted(*[False] * 12, True, False, False))
    assert pauses[:3] == [10, 12, pytest.approx(14.4)]
    assert pauses[8:12] == [40, 40, 40, 40]
    assert pauses[12:] == [10, 12]


@pytest.mark.parametrize(
    ("poll", "first", "longest"),
    [(0.05, 0.05, 0.2), (60, 60, 240), (200, 200, 300), (900, 900, 900)],
)
def test_idle_pauses_stay_below_five_minutes_unless_the_site_says_more(
    poll: float, first: float, longest: float
) -> None:
    assert pause_seconds(poll, 1, 0) == first
    assert pause_seconds(poll, 100_000, 0) == pytest.approx(longest)


def test_outages_are_said_and_waited_for_longer_and_longer() -> None:
    outage = Unreachable("squeue failed")
    _, pauses, notes = played(Scripted(*[outage] * 9, False), poll=5)
    assert set(notes[:9]) == {"squeue failed; waiting"}
    assert 7.5 <= pauses[0] <= 10 and 15 <= pauses[1] <= 20
    assert all(225 <= pause <= 300 for pause in pauses[5:9])
    assert pauses[9] == 5


def test_an_outage_of_days_is_no_arithmetic_fault() -> None:
    assert 225 <= pause_seconds(5, 0, 100_000) <= 300


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_said_and_waited_for(number: int) -> None:
    full = OSError(number, os.strerror(number), "/run/journal/x")
    ending, pauses, notes = played(Scripted(full, full, full, True))
    assert ending == "complete" and len(pauses) == 3
    assert notes[0] == f"{os.strerror(number)} (/run/journal/x); waiting until files can be written"


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_shaky_disk_is_borne_once(number: int) -> None:
    fault = OSError(number, os.strerror(number))
    assert played(Scripted(fault, True, fault, False, fault, True))[0] == "complete"
    with pytest.raises(OSError, match=os.strerror(number)):
        played(Scripted(fault, fault))


def test_other_faults_of_the_disk_are_not_hidden() -> None:
    with pytest.raises(PermissionError):
        played(Scripted(PermissionError(errno.EACCES, "no")))


@pytest.mark.parametrize("error", [IncompleteError("pause"), SubmitError("refused")])
def test_a_pause_ends_the_loop(error: L2SError) -> None:
    with pytest.raises(type(error)):
        played(Scripted(True, error, True))


def test_every_step_is_followed_by_a_heartbeat() -> None:
    controller = Scripted(True, False, Unreachable("away"), True)
    played(controller)
    assert controller.beats == ["", "tasks wait", "away; waiting", ""]


def test_a_heartbeat_that_finds_no_room_is_said_and_holds_nothing_up() -> None:
    controller = Scripted(True, False)
    controller.beat_fault = OSError(errno.ENOSPC, "No space left on device")
    ending, _, notes = played(controller)
    assert ending == "complete"
    assert notes == ["No space left on device; waiting until files can be written", "tasks wait"]


def test_once_ends_where_it_would_wait() -> None:
    controller = Scripted(True, True, False, True)
    ending, pauses, _ = played(controller, once=True)
    assert ending == "waiting" and not pauses and controller.steps == [True]
    assert played(Scripted(Unreachable("away"), True), once=True)[0] == "waiting"
    assert played(Scripted(True, True), once=True)[0] == "complete"


class Chained:
    """Stands for a chain that is over at its n-th look."""

    def __init__(self, over_at: int, patience: float) -> None:
        self.successor, self.patience = "11", patience
        self.looks, self._over_at, self.ended = 0, over_at, False

    def tend(self) -> None:
        self.looks += 1

    @property
    def over(self) -> bool:
        return self.looks >= self._over_at

    def end(self) -> None:
        self.ended = True


def test_a_link_looks_after_its_chain_at_every_step_and_leaves_in_time() -> None:
    controller, chain = Scripted(*[False] * 20), Chained(over_at=5, patience=11)
    ending, pauses, _ = played(controller, chain=chain)
    assert ending == "relayed" and chain.looks == 5
    assert pauses == [10, 11, 11, 11]
    assert controller.beats[-1] == "the time of this job is up; job 11 goes on"


def site(notify: str = "") -> SiteConfig:
    return SiteConfig(name="s", executor="slurm", controller={"notify": notify})


def driven(controller: Scripted, once: bool = False, notify: str = "") -> str:
    notifier = Notifier(notify, controller.paths, print)
    return drive(controller, site(), lambda *_: None, notifier, None, once)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    return tmp_path


def test_a_pause_tells_the_user_and_closes_the_controller(folder: Path) -> None:
    controller = Scripted(True, IncompleteError("too many failed"), folder=folder)
    with pytest.raises(IncompleteError):
        driven(controller, notify='echo "$L2S_EVENT: $L2S_MESSAGE" > "$L2S_RUN/heard"')
    assert (folder / "heard").read_text(encoding="utf-8") == "paused: too many failed\n"
    assert controller.closed


def test_a_stop_is_the_users_own_news(folder: Path) -> None:
    controller = Scripted(IncompleteError("stopped by `l2s stop`"), folder=folder)
    controller.state.stopped = True
    with pytest.raises(IncompleteError):
        driven(controller, notify='touch "$L2S_RUN/heard"')
    assert not (folder / "heard").exists()


def test_cron_hears_of_a_pause_once(folder: Path) -> None:
    with pytest.raises(SubmitError):
        driven(Scripted(SubmitError("refused"), folder=folder), once=True)
    assert driven(Scripted(SubmitError("refused"), folder=folder), once=True) == "waiting"
    with pytest.raises(SubmitError):
        driven(Scripted(SubmitError("refused"), folder=folder))


def test_sigterm_ends_what_runs_as_ctrl_c_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), ended_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
