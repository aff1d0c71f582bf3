"""The live view of a search: a bar on a terminal; elsewhere dated lines, for a log covers days."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from l2s_hpc.cli.output import now, plain
from l2s_hpc.config import SearchConfig
from l2s_hpc.controller.course import under_way
from l2s_hpc.controller.decide import bad_nodes
from l2s_hpc.controller.step import Controller


class Progress:
    """Shows what changed since the last step."""

    def __init__(self, config: SearchConfig, console: Console) -> None:
        self._generations = config.search.generations
        self._started = time.monotonic()
        self._told = 0
        self._phase = ""
        self._penalised = 0
        self._spent = ""
        self._failures: int | None = None
        self._bad: set[str] = set()
        self._note = ""
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, controller: Controller, note: str) -> None:
        """Show the state after a step."""
        self._show_told(controller)
        self._show_spent(controller)
        self._show_phase(controller)
        self._show_failures(controller)
        self._show_penalties(controller)
        if note and note != self._note:
            self.say(note)
        self._note = note

    def say(self, text: str) -> None:
        """Show a line: with the time since the start on a terminal, else with the date."""
        elapsed = int(time.monotonic() - self._started)
        when = f"[{elapsed // 60:02d}:{elapsed % 60:02d}]"
        if not self._bar.console.is_terminal:
            when = now()
        self._bar.console.print(f"{when} {plain(text)}", markup=False)

    def _show_phase(self, controller: Controller) -> None:
        state = controller.state
        wanted = under_way(state, controller.policy)
        if wanted is None:
            return
        evaluation, candidates = wanted
        settled = sum(state.settled(evaluation, candidate) for candidate in candidates)
        phase = evaluation
        if evaluation == "search" and state.generations:
            phase = f"generation {len(state.generations)}/{self._generations}"
        self._bar.update(self._task, description=phase, completed=settled, total=len(candidates))
        if phase != self._phase:
            self.say(f"{phase}: {len(candidates)} candidate{'' if len(candidates) == 1 else 's'}")
            self._phase = phase

    def _show_told(self, controller: Controller) -> None:
        told = controller.state.told
        if told != self._told:
            self._told = told
            self.say(f"generation {told}/{self._generations} done: {controller.summary()}")

    def _show_spent(self, controller: Controller) -> None:
        spent = controller.state.spent
        if spent and spent != self._spent:
            self.say(f"the budget ends the search: {spent}")
        self._spent = spent

    def _show_failures(self, controller: Controller) -> None:
        """A line for each attempt that failed since the last step, and for each bad node."""
        failures = controller.state.failures
        self._failures = len(failures) if self._failures is None else self._failures
        for failed in failures[self._failures :]:
            where = f" on {failed.node}" if failed.node else ""
            self.say(f"{failed.candidate}{where}: {failed.kind}: {failed.message}")
        self._failures = len(failures)
        bad = bad_nodes(
            controller.state, controller.policy.node_faults, controller.policy.allow_mixed_gpus
        )
        for node in sorted(set(bad) - self._bad):
            self.say(f"{node} is excluded: one candidate after another failed there")
        self._bad = set(bad)

    def _show_penalties(self, controller: Controller) -> None:
        penalised = list(controller.state.penalised.items())
        for (evaluation, candidate), reason in penalised[self._penalised :]:
            self.say(f"{candidate} is given up in '{evaluation}': {reason}")
        self._penalised = len(penalised)
