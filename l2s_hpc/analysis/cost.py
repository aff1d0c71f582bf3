"""What a run has cost, from the receipts of the tables that count and from the journal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from l2s_hpc.records import Receipt
from l2s_hpc.store.state import RunState


@dataclass(frozen=True)
class Cost:
    """What a run has cost.

    Seconds are those of accepted attempts, unless said.

    Attributes:
        seconds: by phase (`merge`, `generate`, …), longest first. A candidate is graded and written
            while the next one generates, so that all phases may be more than the device's time.
        evaluations: seconds of a device by evaluation, see `Receipt.lasted`.
        device_hours: all of these, in hours. wasted_hours: of a device, by attempts that left a
            receipt and no table that counts.
        hours_per_candidate: both together by `candidates`; None if there are none.
        seconds_per_candidate: of a device, mean over accepted score tables; None if there are none.
        accepted: number of accepted score tables; candidates: of distinct models among them.
        attempts: number of attempts that were begun; failed: those that left no table for a fault
            that counts; lost: those that ended otherwise without one (interrupted, damaged, …).
        penalised: number of candidates that were given up.
        asked: number of genomes that the algorithm asked for.
        repeats: those of them whose candidate was known already, so that nothing was evaluated.
        devices: how many accepted tables each device made.
        gpu_idle: the share of the device time in which no device worked; None where no engine
            tells it.
    """

    seconds: dict[str, float]
    evaluations: dict[str, float]
    device_hours: float
    wasted_hours: float
    hours_per_candidate: float | None
    seconds_per_candidate: float | None
    accepted: int
    candidates: int
    attempts: int
    failed: int
    lost: int
    penalised: int
    asked: int
    repeats: int
    devices: dict[str, int]
    gpu_idle: float | None


def cost(state: RunState, receipts: Iterable[Receipt], references: Iterable[str]) -> Cost:
    """Return what a run has cost.

    Args:
        state: the run's state.
        receipts: those of its accepted tables.
        references: candidate ids that are evaluated whether or not they are asked for.
    """
    phases: dict[str, float] = {}
    evaluations: dict[str, float] = {}
    devices: dict[str, int] = {}
    idle: list[tuple[float, float]] = []
    accepted, candidates = 0, set()
    for receipt in receipts:
        accepted += 1
        candidates.add(receipt.candidate)
        devices[receipt.device] = devices.get(receipt.device, 0) + 1
        if "gpu_idle" in receipt.usage:
            idle.append((receipt.usage["gpu_idle"], receipt.reserved))
        for phase, seconds in receipt.seconds.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
        before = evaluations.get(receipt.evaluation, 0.0)
        evaluations[receipt.evaluation] = before + receipt.lasted
    total = sum(evaluations.values())
    attempts = [attempt for tries in state.attempts.values() for attempt in tries]
    ended = [attempt for attempt in attempts if attempt.outcome not in ("live", "accepted")]
    wasted = sum(attempt.seconds for attempt in ended)
    asked = [candidate for generation in state.generations for candidate in generation.candidates]
    return Cost(
        seconds=dict(sorted(phases.items(), key=lambda pair: -pair[1])),
        evaluations=evaluations,
        device_hours=total / 3600,
        wasted_hours=wasted / 3600,
        hours_per_candidate=(total + wasted) / 3600 / len(candidates) if candidates else None,
        seconds_per_candidate=total / accepted if accepted else None,
        accepted=accepted,
        candidates=len(candidates),
        attempts=len(attempts),
        failed=sum(attempt.counted for attempt in ended),
        lost=sum(not attempt.counted for attempt in ended),
        penalised=len(state.penalised),
        asked=len(asked),
        repeats=_repeats(asked, references),
        devices=devices,
        gpu_idle=mean_of(idle),
    )


def mean_of(weighted: Iterable[tuple[float, float]]) -> float | None:
    """Return the mean of pairs (value, weight); None where the weights are nothing."""
    pairs = list(weighted)
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None


def _repeats(asked: Iterable[str], references: Iterable[str]) -> int:
    known, repeats = set(references), 0
    for candidate in asked:
        repeats += candidate in known
        known.add(candidate)
    return repeats
