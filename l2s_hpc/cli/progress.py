"""The live view of a search: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from l2s_hpc.config import SearchConfig
from l2s_hpc.controller.decide import under_way
from l2s_hpc.controller.step import Controller


class Progress:
    """Shows what changed since the last step."""

    def __init__(self, config: SearchConfig, console: Console) -> None:
        self._generations = config.search.generations
        self._started = time.monotonic()
        self._told = 0
        self._phase = ""
        self._penalised = 0
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
        self._show_phase(controller)
        self._show_told(controller)
        self._show_penalties(controller)
        if note and note != self._note:
            self._line(note)
        self._note = note

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
            self._line(f"{phase}: {len(candidates)} candidates")
            self._phase = phase

    def _show_told(self, controller: Controller) -> None:
        told = controller.state.told
        if told != self._told:
            self._told = told
            self._line(f"generation {told}/{self._generations} done: {controller.summary()}")

    def _show_penalties(self, controller: Controller) -> None:
        penalised = list(controller.state.penalised.items())
        for (evaluation, candidate), reason in penalised[self._penalised :]:
            self._line(f"{candidate} is given up in '{evaluation}': {reason}")
        self._penalised = len(penalised)

    def _line(self, text: str) -> None:
        elapsed = int(time.monotonic() - self._started)
        self._bar.console.print(f"[{elapsed // 60:02d}:{elapsed % 60:02d}] {text}", markup=False)
