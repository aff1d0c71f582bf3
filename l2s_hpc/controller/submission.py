"""How many candidates go into one submission, and what a node is told of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from l2s_hpc.cluster.jobs import Executor
from l2s_hpc.config import SiteConfig
from l2s_hpc.controller.actions import Submit
from l2s_hpc.records import CandidateTask, Recipe, Task
from l2s_hpc.store.journal import Event
from l2s_hpc.store.layout import task_key
from l2s_hpc.store.state import RunState

_NO_LIMIT = sys.maxsize
_PAUSE_SECONDS = 15.0
_LONGEST_PAUSE_SECONDS = 300.0


class Room:
    """How many tasks may be submitted at once: the cluster's and the site's limits, and what Slurm
    refused lately. What it remembers only saves refusals: nothing depends on it."""

    def __init__(
        self, executor: Executor, site: SiteConfig, clock: Callable[[], float] = time.time
    ) -> None:
        self._executor = executor
        self._clock = clock
        self._most_jobs = site.max_jobs
        self._limit = _NO_LIMIT
        self.reason = ""
        self._refusals = 0
        self._wait_until = 0.0

    def free(self, state: RunState) -> int:
        """Return how many tasks may be submitted now."""
        if self._clock() < self._wait_until:
            return 0  # the reason is that of the refusal
        live = len({attempt.task for attempt in state.live_attempts()})
        free = max(self._most_jobs - live, 0) if self._most_jobs else _NO_LIMIT
        self.reason = "" if free else f"site.max_jobs = {self._most_jobs} tasks are under way"
        return min(self._executor.most_tasks, self._limit, free)

    def accepted(self, tasks: int) -> None:
        """Slurm took these: next time twice as many may go."""
        self._refusals = 0
        if self._limit != _NO_LIMIT:
            self._limit = max(self._limit, 2 * tasks)

    def refused(self, tasks: int, why: str) -> bool:
        """Slurm refused these for a limit; return whether half of them may go at once.

        Where a single one is too many, it is tried again after a while, and then ever later.
        """
        self._limit = max(tasks // 2, 1)
        self.reason = f"{why}; waiting for room"
        if tasks > 1:
            return True
        pause = min(_PAUSE_SECONDS * 2.0**self._refusals, _LONGEST_PAUSE_SECONDS)
        self._wait_until = self._clock() + pause
        self._refusals = min(self._refusals + 1, 10)
        return False


def make_tasks(
    action: Submit, batch: str, site: SiteConfig, recipe: Callable[[str], Recipe]
) -> list[Task]:
    """Return the tasks of a submission, each with up to `site.candidates_per_task` candidates."""
    size = site.candidates_per_task
    number = batch.rpartition("-")[2]
    candidates = [
        CandidateTask(
            evaluation=action.evaluation,
            generation=generation,
            candidate=candidate,
            attempt=attempt,
            recipe=recipe(candidate),
        )
        for candidate, generation, attempt in action.candidates
    ]
    groups = [candidates[start : start + size] for start in range(0, len(candidates), size)]
    return [
        Task(
            key=task_key(f"{action.evaluation}-{number}", index),
            models=site.models,
            workers=site.workers_per_task,
            disk_seconds=site.disk_seconds,
            scratch=site.scratch,
            cache=site.vllm.cache,
            candidates=tuple(group),
        )
        for index, group in enumerate(groups)
    ]


def intent(batch: str, tasks: Sequence[Task]) -> Event:
    """Return the event that stands in the journal before a submission."""
    return {
        "event": "intent",
        "batch": batch,
        "tasks": [
            {
                "key": task.key,
                "candidates": [
                    [c.evaluation, c.generation, c.candidate, c.attempt] for c in task.candidates
                ],
            }
            for task in tasks
        ],
    }
