"""The grader: the quick rungs of the ladder, what is remembered, and the pool for the rest."""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final

from l2s_hpc.evaluation.extraction import extract
from l2s_hpc.evaluation.grading.limits import refusal
from l2s_hpc.evaluation.grading.normal import same_text, tidy
from l2s_hpc.evaluation.grading.numbers import equal, number
from l2s_hpc.evaluation.grading.pool import SYMPY, Decision, Pool
from l2s_hpc.records import Verdict

if TYPE_CHECKING:
    from l2s_hpc.records import Item, Output

GRADER: Final = f"ladder-3+sympy-{SYMPY}"
"""The version of all that a verdict depends on; extraction rules included."""

MOST_WORKERS: Final = 4

Known = MutableMapping[tuple[str, str, str], Decision]
"""Decisions by (grader version, gold, answer)."""


class Grader:
    """Grades pairs and remembers each; not for use by two threads at once.

    The child processes start when the first pair needs them, and end with `close()`, with the
    `with` block, or with this process, however that ends.
    """

    def __init__(self, workers: int | None = None, known: Known | None = None) -> None:
        """Begin without any process.

        Args:
            workers: how many child processes share the work; each takes a core and at most 1 GiB,
                usually 0.1. None takes one for each core that this process may use, at most 4.
            known: where decisions are looked up and put; a dictionary if None. A lasting one should
                drop the statuses timeout and error on the way in: they may be the machine's.
        """
        cores = len(os.sched_getaffinity(0))
        self._pool = Pool(min(MOST_WORKERS, cores) if workers is None else workers)
        self._known: Known = {} if known is None else known

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the child processes, if there are any, and wait for their end."""
        self._pool.close()

    def start(self) -> None:
        """Start the child processes now and wait until they are ready.

        Raises:
            UserError: sympy is another version here, or cannot be imported.
            L2SError: a grading process does not start.
        """
        self._pool.start()

    def grade(self, outputs: Sequence[Output], items: Sequence[Item]) -> list[Verdict]:
        """Return the verdict on each output, for the item at the same place.

        Raises:
            UserError: sympy is another version here, or cannot be imported.
            L2SError: a grading process does not start.
        """
        pairs = [
            (item.gold, extract(output.text, output.finish_reason).answer)
            for output, item in zip(outputs, items, strict=True)
        ]
        decisions = self.decide(pairs)
        return [
            Verdict(decision.correct, answer, decision.status)
            for (_, answer), decision in zip(pairs, decisions, strict=True)
        ]

    def judge(self, answer: str | None, gold: str) -> Verdict:
        """Return the verdict on an answer that is already extracted (None = there is none).

        Raises:
            UserError: sympy is another version here, or cannot be imported.
            L2SError: a grading process does not start.
        """
        (decision,) = self.decide([(gold, answer)])
        return Verdict(decision.correct, answer, decision.status)

    def decide(self, pairs: Sequence[tuple[str, str | None]]) -> list[Decision]:
        """Return the decision on each pair of gold and answer; equal pairs are decided once.

        Raises:
            UserError: sympy is another version here, or cannot be imported.
            L2SError: a grading process does not start.
        """
        found: dict[tuple[str, str], Decision] = {}
        hard: dict[tuple[str, str], tuple[str, str]] = {}
        for gold, answer in pairs:
            if answer is None or not answer.strip() or (gold, answer) in found:
                continue
            decision = self._known.get((GRADER, gold, answer)) or _quickly(gold, answer)
            if decision is None:
                hard[gold, answer] = tidy(gold), tidy(answer)
            else:
                found[gold, answer] = decision
        found |= zip(hard, self._pool.decide(list(hard.values())), strict=True)
        for (gold, answer), decision in found.items():
            self._known[GRADER, gold, answer] = decision
        return [
            found[gold, answer] if answer is not None and answer.strip() else NO_ANSWER
            for gold, answer in pairs
        ]


NO_ANSWER: Final = Decision(False, "no_answer", "there is no answer")


def _quickly(gold: str, answer: str) -> Decision | None:
    """Return what limits, equal texts or plain numbers decide, else None."""
    if refused := refusal(answer) or refusal(gold):
        return Decision(False, "undecided", refused)
    gold, answer = tidy(gold), tidy(answer)
    if refused := refusal(answer) or refusal(gold):  # a sign of Unicode may become a command
        return Decision(False, "undecided", refused)
    if same_text(gold, answer):
        return Decision(True, "ok", "the same text")
    one, two = number(gold), number(answer)
    if one is not None and two is not None:
        return Decision(equal(one, two), "ok", "compared as numbers")
    return None
