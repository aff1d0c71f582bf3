"""How many candidates a task should evaluate: by hand, and for any site and speed."""

from __future__ import annotations

import heapq
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc.cli.main import app
from l2s_hpc.config import SiteConfig
from l2s_hpc.controller import plan as planning
from l2s_hpc.controller.forecast import Speed, at_once, clock_seconds, stage
from l2s_hpc.controller.packing import LIMIT_SHARE, NEAR, Packing, advice, packing, propose
from tests.mini import write_mini


def slurm(**settings: Any) -> SiteConfig:
    return SiteConfig.model_validate({"name": "s", "executor": "slurm", **settings})


def speed(start: float, candidate: float) -> Speed:
    return Speed(start, candidate, 0.0, receipts=1, places=("x",))


def proposed(candidates: int, seconds: Speed, site: SiteConfig) -> Packing:
    return propose(site, seconds, [stage(candidates, 0, site)])


@pytest.mark.parametrize(
    ("candidates", "start", "each", "settings", "size", "clock"),
    [
        # As many GPUs as candidates: each gets its own.
        (20, 60, 60, {"throttle": 32}, 1, 60 + 60),
        # Four GPUs: five each, and not four, because the fifth task would be a second wave.
        (20, 60, 120, {"throttle": 4}, 5, 60 + 5 * 120),
        (20, 60, 120, {"throttle": 32, "max_jobs": 4}, 5, 60 + 5 * 120),
        # Two in two waves last 2 * 1260 s, four in one wave 2460 s with half the starts.
        (20, 60, 600, {"throttle": 6, "minutes": 240}, 4, 60 + 4 * 600),
        # Up to six in a task take at most 5 % more time than one (1010 s). From four on two starts
        # are enough.
        (8, 1000, 10, {"throttle": 8}, 4, 1000 + 4 * 10),
        # One GPU: all in one task, or as many as fit into two thirds of a quarter of an hour.
        (20, 60, 120, {"throttle": 1, "minutes": 240}, 20, 60 + 20 * 120),
        (20, 60, 120, {"throttle": 1, "minutes": 15}, 4, 5 * (60 + 4 * 120)),
        # Two nodes of four GPUs: twelve on one (three turns), eight on the other (two).
        (20, 60, 60, {"throttle": 2, "workers_per_task": 4}, 12, 60 + 3 * 60),
        # Fewer candidates than GPUs of a node.
        (3, 60, 60, {"throttle": 2, "workers_per_task": 4}, 4, 60 + 60),
        # A search of candidates that are all known already.
        (0, 60, 60, {}, 1, 0),
    ],
)
def test_by_hand(
    candidates: int, start: float, each: float, settings: Any, size: int, clock: float
) -> None:
    found = proposed(candidates, speed(start, each), slurm(**settings))
    assert (found.size, found.clock, found.fits) == (size, clock, True)


def test_what_it_costs() -> None:
    found = packing(8, slurm(workers_per_task=4), speed(60, 30), [stage(20, 0, slurm())])
    # Tasks of 8, 8 and 4 candidates, each with four workers: twelve starts.
    assert (found.tasks, found.starts, found.gpu) == (3, 12 * 60, 12 * 60 + 20 * 30)
    assert found.start_share == pytest.approx(720 / 1320)
    assert found.longest == 60 + 2 * 30
    assert packing(1, slurm(), speed(0, 0), [stage(2, 0, slurm())]).start_share == 0


def test_the_longest_evaluation_decides_what_fits() -> None:
    site = slurm(throttle=2, minutes=30)
    seconds = Speed(60, 0, 1, receipts=1, places=("x",))
    search, report = stage(20, 60, site), stage(10, 300, site)
    assert propose(site, seconds, [search]).size == 10
    # 20 minutes hold the start and three candidates of the report split.
    assert propose(site, seconds, [search, report]).size == 3
    # Of two candidates there are no three in a task.
    few = replace(report, candidates=2)
    assert propose(site, seconds, [search, few]).size == 10


def test_where_nothing_leaves_the_reserve_the_smallest_is_taken_and_it_is_said() -> None:
    site = slurm(throttle=1, minutes=4, candidates_per_task=2)
    assert not proposed(20, speed(60, 120), site).fits
    said = advice(site, speed(60, 120), [stage(20, 0, site)] * 4)
    assert said["proposed"] == 1
    assert "a task would take 3 of site.minutes = 4, more than two thirds" in said["meaning"]
    assert [row["fits_time_limit"] for row in said["compared"]] == [False, False]


def test_advice_is_about_a_later_generation() -> None:
    site = slurm(throttle=4, candidates_per_task=5)
    parts = [stage(n, 0, site) for n in (40, 20, 20, 8, 3, 8)]
    said = advice(site, speed(60, 120), parts)
    assert said["proposed"] == said["site"] == 5
    assert said["compared"][0]["tasks"] == 4
    assert said["meaning"] == "5; that is what is proposed, where 4 tasks can run at once"


def test_workers_of_this_machine_need_no_advice() -> None:
    site = SiteConfig(name="l", executor="local", parallel=2)
    said = advice(site, speed(60, 120), [stage(20, 0, site)] * 3)
    assert said["proposed"] is None and not said["compared"]
    assert said["meaning"] == "1; workers of this machine start once a generation"


SITES = st.builds(
    lambda throttle, most, workers, minutes, size: slurm(
        throttle=throttle,
        max_jobs=most,
        workers_per_task=workers,
        minutes=minutes,
        candidates_per_task=size,
    ),
    st.integers(1, 12),
    st.integers(0, 12),
    st.integers(1, 4),
    st.integers(1, 120),
    st.integers(1, 12),
)
# Whole seconds: sums of these are exact.
SPEEDS = st.builds(speed, st.integers(0, 300), st.integers(0, 900))


@given(st.integers(0, 60), SPEEDS, SITES)
def test_the_clock_is_that_of_tasks_that_start_in_turn(
    candidates: int, seconds: Speed, site: SiteConfig
) -> None:
    size, workers = site.candidates_per_task, site.workers_per_task
    free = [0.0] * at_once(site)
    ends = [0.0]
    for begin in range(0, candidates, size):
        turns = -(-min(size, candidates - begin) // workers)
        ends.append(heapq.heappop(free) + seconds.start + turns * seconds.candidate)
        heapq.heappush(free, ends[-1])
    assert clock_seconds(stage(candidates, 0, site), seconds, site) == max(ends)


@given(st.integers(1, 60), SPEEDS, SITES)
def test_no_other_number_is_better(candidates: int, seconds: Speed, site: SiteConfig) -> None:
    parts = [stage(candidates, 0, site)]
    best = propose(site, seconds, parts)
    workers = site.workers_per_task
    # Also numbers at which some workers of the last turn idle or that no generation fills.
    others = [packing(n * workers, site, seconds, parts) for n in range(1, candidates + 3)]
    assert best.size % workers == 0
    fitting = [one for one in others if one.fits]
    assert best.fits == bool(fitting)
    if not fitting:
        assert best.size == workers
        return
    assert best.longest <= LIMIT_SHARE * 60 * site.minutes
    shortest = min(one.clock for one in fitting)
    assert best.clock <= NEAR * shortest
    near = [one for one in fitting if one.clock <= NEAR * shortest]
    assert all((best.gpu, best.size) <= (one.gpu, one.size) for one in near)


@given(st.integers(1, 60), SPEEDS, SITES, st.integers(1, 12))
def test_neither_the_sites_own_number_nor_the_unit_of_time_matters(
    candidates: int, seconds: Speed, site: SiteConfig, other: int
) -> None:
    parts = [stage(candidates, 0, site)]
    best = propose(site, seconds, parts).size
    assert propose(site.model_copy(update={"candidates_per_task": other}), seconds, parts).size == (
        best
    )
    twice = replace(seconds, start=2 * seconds.start, candidate=2 * seconds.candidate)
    slower = site.model_copy(update={"minutes": 2 * site.minutes})
    assert propose(slower, twice, parts).size == best


def test_plan_prints_both_numbers_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = 'name = "s"\nexecutor = "slurm"\nengine = "scripted"\nthrottle = 2\n'
    mini = write_mini(tmp_path, site)
    monkeypatch.setattr(planning, "speed_from", lambda folder, protocol: speed(60, 30))
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["plan", str(mini.job), "--site", str(mini.site), "--run", str(tmp_path / "run")]
    app(words, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "1; 2 is proposed, where 2 tasks can run at once" in printed
    assert "Candidates per task: what a generation takes" in printed
    rows = [re.findall(r"[\w.]+", line) for line in printed.splitlines() if "│" in line]
    # Four candidates, two GPUs: two waves of 90 s, or one of 120 s.
    assert ["site", "1", "4", "3", "0.667", "0.100", "1.5", "True"] in rows
    assert ["proposed", "2", "2", "2", "0.500", "0.067", "2", "True"] in rows
    assert 'engine                     scripted (site.engine = "scripted")' in printed
