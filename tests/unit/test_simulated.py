"""Whatever befalls cluster, disk and controllers, in whatever order: the undisturbed result.

A state machine draws faults over a simulated cluster in virtual time. At the end of each example
all is mended, the command is given once more, and the run must end as if nothing had happened.
`L2S_DEEP=N` draws N times as many examples.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from l2s_hpc.controller.control import stop
from l2s_hpc.controller.resolve import Resolved
from l2s_hpc.controller.step import Controller
from l2s_hpc.controller.verify import quarantine, verify
from l2s_hpc.errors import DamageError, IncompleteError, LimitError, SubmitError, Unreachable
from l2s_hpc.store.journal import Journal
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import RunInfo
from tests.mini import outcome, state_of, write_mini
from tests.simulated import (
    ALL,
    BLAMED,
    Crash,
    Seat,
    Settings,
    Simulation,
    crash,
    prepare,
)
from tests.simulated_nodes import DAMAGES, full

DEEP = int(os.environ.get("L2S_DEEP", "1"))
SITE = """
name = "simulated"
executor = "slurm"
engine = "scripted"
attempts = 3
candidates_per_task = 2
resubmit_cancelled = 3
node_faults = 2
"""
SEARCH = ("search.generations=2", "references.sweep=0", "protocol.chunk_items=3")
BROKEN = "faults = { error = 0.12 }"
"""Some candidates can never be evaluated: they must be given up, and no others."""

TROUBLES: dict[str, tuple[BaseException, bool]] = {
    "no reply": (Unreachable("Socket timed out"), True),
    "down": (Unreachable("Connection refused"), False),
    "limit": (LimitError("QOSMaxSubmitJobPerUserLimit"), False),
    "refused": (SubmitError("Invalid account"), False),
    "crash before": (Crash(), False),
    "crash after": (Crash(), True),
}
"""What a submission ends with, and whether Slurm has taken it all the same."""


@cache
def memory() -> Path:
    """A folder in memory, if there is one: thousands of runs are written and read."""
    return Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


@cache
def template() -> tuple[Path, RunInfo, Resolved]:
    """A run with nothing done yet; each example goes on with a copy of it."""
    mini = write_mini(memory(), SITE, BROKEN)
    folder = memory() / "template"
    info, resolved = prepare(folder, mini.job, mini.site, *SEARCH)
    return folder, info, resolved


@cache
def undisturbed() -> dict[str, object]:
    users = Users(simulate())
    with users.cluster.seams():
        users.finish()
    return result(users.simulation.paths.folder)


@pytest.fixture(scope="module", autouse=True)
def _tidy() -> Iterator[None]:
    yield
    shutil.rmtree(memory())


def simulate(seed: int = 0, behaviour: Settings | None = None) -> Simulation:
    folder, info, resolved = template()
    copy = Path(tempfile.mkdtemp(dir=memory())) / "run"
    shutil.copytree(folder, copy)
    return Simulation(RunPaths(copy), info, resolved, random.Random(seed), behaviour)


def result(folder: Path) -> dict[str, object]:
    """What must be the same; the reason of a penalty may be any of its failures."""
    found = outcome(folder)
    return found | {"penalised": sorted(found["penalised"])}  # type: ignore[call-overload]


class Users:
    """Two users, A and B, who give the command on one run, and answer as people do."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.cluster = simulation.cluster
        self.seats: dict[str, Seat] = {}
        self.controllers: dict[str, Controller] = {}
        self._busy: set[str] = set()
        self._pid = 0

    def start(self, who: str, host: str = "login1") -> None:
        self.kill(who)
        self._pid += 1
        self.seats[who] = Seat(host, self._pid)
        try:
            self.controllers[who] = self.simulation.start(self.seats[who])
        except (Crash, OSError):
            self.kill(who)

    def kill(self, who: str) -> None:
        self.controllers.pop(who, None)
        if who in self.seats:
            self.cluster.died(self.seats[who])

    def step(self, who: str) -> bool:
        """Step as `l2s run` does; whoever finds the command ended gives it again."""
        if who not in self.controllers:
            self.start(who)
        if who not in self.controllers:
            return False
        controller = self.controllers[who]
        self._busy.add(who)
        try:
            with self.cluster.seat(self.seats[who]):
                acted = not controller.finished and controller.step()
            if controller.state.completed:
                left = [job for job in self.cluster.live() if not job.void]
                assert left == [], "complete, and a job is there"
            return acted
        except Unreachable:
            return False
        except OSError as error:
            assert error.errno == errno.ENOSPC, "only a full disk is waited for"
            return False
        except (Crash, IncompleteError, SubmitError):
            self.kill(who)
        except DamageError:
            self.kill(who)
            self.mend_tables()
        finally:
            self._busy.discard(who)
        return False

    def go_on(self, who: str, steps: int, seconds: float = 20.0) -> None:
        for _ in range(steps):
            if not self.step(who):
                self.cluster.advance(seconds)

    def meanwhile(self, who: str, seconds: float) -> None:
        """Act while the other is held up, for so long at each step; who is held up cannot."""
        if who not in self._busy:
            for _ in range(4):
                self.step(who)
                self.cluster.advance(seconds)

    def mend_tables(self) -> None:
        """Give `l2s verify --quarantine`."""
        folder = self.simulation.paths.folder
        with suppress(Crash, OSError):
            quarantine(folder, verify(folder)[1])

    def finish(self) -> None:
        """Give the command until the run is complete."""
        for _ in range(12):
            self.start("A")
            for _ in range(400):
                if "A" not in self.controllers:
                    break
                if self.controllers["A"].finished:
                    return
                self.go_on("A", 1, 30.0)
        raise AssertionError("the run does not end")


def trouble(how: str) -> Callable[[Callable[[], str]], str]:
    """Return what becomes of a submission."""

    def submit(take: Callable[[], str]) -> str:
        error, taken = TROUBLES[how]
        if taken:
            take()
        raise error

    return submit


def frozen(users: Users, who: str, crashes: bool) -> Callable[[Callable[[], str]], str]:
    """Return a submission before which its controller freezes, while another one acts."""

    def submit(take: Callable[[], str]) -> str:
        users.meanwhile(who, 200.0)
        number = take()
        if crashes:
            raise Crash
        return number

    return submit


class Faults(RuleBasedStateMachine):
    """Two controllers, one cluster, one run; every rule is something that happens in real life."""

    @initialize(
        seed=st.integers(0, 2**16),
        delay=st.sampled_from([0.0, 50.0]),
        remembered=st.sampled_from([300.0, 20.0]),
    )
    def begin(self, seed: int, delay: float, remembered: float) -> None:
        self.users = Users(simulate(seed, Settings(delay=delay, memory=remembered)))
        self.paths, self.cluster = self.users.simulation.paths, self.users.cluster
        self.stack = ExitStack()
        self.stack.enter_context(self.cluster.seams())
        self.written: dict[Path, bytes] = {}
        self.a_node_was_full = False

    # Controllers

    @rule(who=st.sampled_from("AAAB"), steps=st.integers(1, 12))
    def go_on(self, who: str, steps: int) -> None:
        self.users.go_on(who, steps)

    @rule(who=st.sampled_from("AB"), host=st.sampled_from(["login1", "login2"]))
    def kill_and_start(self, who: str, host: str) -> None:
        self.users.start(who, host)

    @rule(write=st.integers(0, 40))
    def crash_in_a_write(self, write: int) -> None:
        self.cluster.controllers.plan(write, crash)

    @rule(write=st.integers(0, 40), times=st.integers(1, 5))
    def full_disk(self, write: int, times: int) -> None:
        self.cluster.controllers.plan(write, full, times)

    @rule(write=st.integers(0, 25), who=st.sampled_from("AB"), seconds=st.sampled_from([0, 200]))
    def another_acts_in_a_write(self, write: int, who: str, seconds: float) -> None:
        self.cluster.controllers.plan(write, lambda: self.users.meanwhile(who, seconds))

    @rule()
    def user_stops(self) -> None:
        with suppress(IncompleteError, OSError, Crash):
            stop(self.paths.folder)

    # Slurm

    @rule(seconds=st.sampled_from([5, 60, 500]))
    def wait(self, seconds: float) -> None:
        self.cluster.advance(seconds)

    @rule(down=st.booleans())
    def outage(self, down: bool) -> None:
        self.cluster.down = down

    @rule(how=st.sampled_from(sorted(TROUBLES)))
    def trouble_in_a_submission(self, how: str) -> None:
        self.cluster.on_submit = trouble(how)

    @rule(who=st.sampled_from("AB"), crashes=st.booleans())
    def freeze_in_a_submission(self, who: str, crashes: bool) -> None:
        self.cluster.on_submit = frozen(self.users, who, crashes)

    @rule(limit=st.sampled_from([0, 1, 3]))
    def submit_limit(self, limit: int) -> None:
        self.cluster.settings.most_jobs = limit

    @rule()
    def forget(self) -> None:
        self.cluster.forget()

    @precondition(lambda self: self.cluster.live())
    @rule(pick=st.integers(0, 20))
    def user_cancels(self, pick: int) -> None:
        jobs = self.cluster.live()
        self.cluster.cancel_by_hand(jobs[pick % len(jobs)])

    # Nodes

    @precondition(lambda self: self.cluster.running())
    @rule(fault=st.sampled_from(ALL), pick=st.integers(0, 20), chunks=st.integers(0, 2))
    def strike(self, fault: str, pick: int, chunks: int) -> None:
        """A candidate is struck at most twice in a way that looks like its own fault."""
        jobs = self.cluster.running()
        job = jobs[pick % len(jobs)]
        struck = [key for key in self.cluster.blamed if job.work and key[:2] == job.work.candidate]
        if fault not in BLAMED or len(struck) < 2:
            self.cluster.strike(job, fault, chunks)

    @precondition(lambda self: not self.a_node_was_full)
    @rule(write=st.integers(0, 12), times=st.integers(1, 8))
    def full_disk_of_a_node(self, write: int, times: int) -> None:
        self.a_node_was_full = True
        self.cluster.nodes.disk.plan(write, full, times)

    # The shared disk

    @rule(delay=st.sampled_from([0.0, 50.0]))
    def slow_disk(self, delay: float) -> None:
        self.cluster.nodes.delay = delay

    @rule(pick=st.integers(0, 50))
    def accepted_table_rots(self, pick: int) -> None:
        tables = sorted((self.paths.folder / "scores").rglob("*.parquet"))
        if tables:
            path = tables[pick % len(tables)]
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            self.users.mend_tables()

    @invariant()
    def the_journal_is_sound(self) -> None:
        if hasattr(self, "users"):
            check_journal(self.paths, self.written)

    def teardown(self) -> None:
        if not hasattr(self, "users"):
            return
        try:
            self.cluster.heal()
            for who in "AB":
                self.users.kill(who)
            # One that found the disk full had moved a damaged table away, and said nothing yet.
            self.users.mend_tables()
            self.users.finish()
            check(self.users.simulation)
        finally:
            self.stack.close()
            shutil.rmtree(self.paths.folder.parent)


def check(simulation: Simulation) -> None:
    """The undisturbed result, and nothing that was not to be: no job left, nobody blamed."""
    folder, cluster = simulation.paths.folder, simulation.cluster
    check_journal(simulation.paths, {})
    assert result(folder) == undisturbed()
    assert cluster.live() == [], "a job is left behind"
    assert [d for d in verify(folder)[1] if d.accepted is not None] == []
    state = state_of(folder)
    assert list(state.live_attempts()) == []
    for key, tries in state.attempts.items():
        assert sum(attempt.outcome == "accepted" for attempt in tries) <= 1
        assert sum(attempt.counted for attempt in tries) <= 6, "given up too late"
        for attempt in tries:
            number = (*key, attempt.attempt)
            hit = number in cluster.blamed | cluster.nodes.damaged
            assert not attempt.counted or hit or key in state.penalised
            assert attempt.kind != "damaged" or number in cluster.nodes.damaged


def check_journal(paths: RunPaths, before: dict[Path, bytes]) -> None:
    """No entry changes, none is missing, and each table is accepted once."""
    for path in paths.journal.glob("*/*.json"):
        assert before.setdefault(path, path.read_bytes()) == path.read_bytes(), "an entry changed"
    entries = Journal(paths.journal).refresh()
    assert len(entries) == len(before), "the journal has a gap"
    accepted: set[tuple[str, str]] = set()
    for event in (event for entry in entries for event in entry.events):
        key = (event.get("evaluation", ""), event.get("candidate", ""))
        if event["event"] == "accepted":
            assert key not in accepted, f"accepted twice: {key}"
            accepted.add(key)
        elif event["event"] == "quarantined":
            accepted.remove(key)


def test_the_undisturbed_run_is_worth_comparing_with() -> None:
    found = undisturbed()
    assert found["completed"] and found["front"] and found["penalised"]
    assert len(found["tables"]) > 15  # type: ignore[arg-type]
    assert "noise" in {evaluation for evaluation, _ in found["tables"]}  # type: ignore[attr-defined]


def test_any_interleaving_of_faults_gives_the_undisturbed_result() -> None:
    undisturbed()
    run_state_machine_as_test(
        Faults,
        settings=settings(
            max_examples=25 * DEEP,
            stateful_step_count=30,
            deadline=None,
            derandomize=DEEP == 1,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("seed", range(4 * DEEP))
def test_a_third_of_all_candidates_meets_faults(seed: int) -> None:
    behaviour = Settings(faults=0.33, most_faults=2, delay=50.0 * (seed % 2))
    users = Users(simulate(seed, behaviour))
    with users.cluster.seams():
        users.finish()
    check(users.simulation)


@pytest.mark.parametrize("kind", ALL)
def test_a_fault_of_each_kind_once_for_most_candidates(kind: str) -> None:
    users = Users(simulate(1, Settings(faults=0.7, kinds=(kind,))))
    with users.cluster.seams():
        users.finish()
    check(users.simulation)
    kinds = {
        a.kind for tries in state_of(users.simulation.paths.folder).attempts.values() for a in tries
    }
    assert kind not in DAMAGES or "damaged" in kinds


@pytest.mark.parametrize("how", sorted(TROUBLES))
def test_trouble_in_the_first_submission(how: str) -> None:
    users = Users(simulate())
    with users.cluster.seams():
        users.cluster.on_submit = trouble(how)
        users.finish()
    check(users.simulation)


@pytest.mark.parametrize("host", ["login1", "login2"])
@pytest.mark.parametrize("crashes", [False, True])
def test_a_controller_freezes_in_a_submission(host: str, crashes: bool) -> None:
    """On another login node nobody can know: its batch is given up, and its job ended later."""
    users = Users(simulate())
    with users.cluster.seams():
        users.start("B", host)
        users.cluster.on_submit = frozen(users, "B", crashes)
        users.finish()
    check(users.simulation)


@pytest.mark.parametrize("write", range(0, 60, 10))
def test_another_controller_acts_in_a_write(write: int) -> None:
    users = Users(simulate())
    with users.cluster.seams():
        users.start("B", "login2")
        users.cluster.controllers.plan(write, lambda: users.meanwhile("B", 100.0))
        users.finish()
    check(users.simulation)
