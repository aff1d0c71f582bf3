"""How a search went: what its genomes gave, what each generation took, how long tasks waited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from l2s_hpc.analysis.cost import mean_of
from l2s_hpc.measures.ranks import rank_correlation
from l2s_hpc.records import Receipt
from l2s_hpc.store.journal import Journal
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.state import AttemptState, RunState

if TYPE_CHECKING:
    from l2s_hpc.analysis.run import Run

NEW, SAME, EQUIVALENT, REFERENCE = "new", "same genome", "equivalent genome", "reference"
KINDS = (NEW, SAME, EQUIVALENT, REFERENCE)
"""What a genome gives when it is asked for: a model that was not known; one that the same genome or
another one gave before; one that is evaluated as a reference anyway."""


@dataclass(frozen=True)
class GenerationFacts:
    """What one generation gave and took, in the `search` evaluation.

    Attributes:
        number: from 0; the references belong to the first.
        asked: genomes; genomes: how many of each of `KINDS`.
        tables: accepted score tables. failed: attempts that left none. penalised: candidates that
            were given up.
        seconds: of accepted attempts by phase; phases overlap (see `cost.Cost`).
        device_seconds: of accepted attempts; wasted_seconds: of those that left a receipt and no
            table that counts.
        wall_seconds: from asking to telling; 0 until then.
        idle: the share of the device time in which no device worked; None where nobody tells it.
    """

    number: int
    asked: int
    genomes: dict[str, int]
    tables: int
    failed: int
    penalised: int
    seconds: dict[str, float]
    device_seconds: float
    wasted_seconds: float
    wall_seconds: float
    idle: float | None


@dataclass(frozen=True)
class Queue:
    """How long tasks waited, in seconds from their submission to their first candidate's start.

    Tasks that Slurm has started more than once, and those that left no table, are not counted.
    """

    tasks: int
    median: float
    longest: float
    total: float


@dataclass(frozen=True)
class GeneFacts:
    """How a gene was searched, and how it goes with the objectives on the search items.

    Attributes:
        frozen: the value at which it was kept, because it does nothing; None if it was searched.
        n: candidates with a score table. values: how many values of it they have.
        low, high: the ends of these; front_low, front_high: on the front of the search.
        accuracy, tokens: Spearman's rank correlation with them; None where one does not vary.
    """

    name: str
    frozen: float | None
    n: int
    values: int
    low: float | None
    high: float | None
    front_low: float | None
    front_high: float | None
    accuracy: float | None
    tokens: float | None


@dataclass(frozen=True)
class Forensics:
    """How a search went.

    Attributes:
        generations: one for each that was asked for.
        genomes: how many asked genomes were of each of `KINDS`.
        queue: None where no accepted table tells it.
        genes: in their order.
    """

    generations: tuple[GenerationFacts, ...]
    genomes: dict[str, int]
    queue: Queue | None
    genes: tuple[GeneFacts, ...]


def forensics(run: Run) -> Forensics:
    """Return how a search went; of a run without one only how long tasks waited is known."""
    receipts = run.receipts()
    kinds = genome_kinds(run.state, run.labels)
    generations = tuple(
        _generation(run.state, number, Counter(of_generation), receipts)
        for number, of_generation in enumerate(kinds)
    )
    counted = Counter(kind for of_generation in kinds for kind in of_generation)
    return Forensics(
        generations=generations,
        genomes={kind: counted[kind] for kind in KINDS},
        queue=queue(run.state, receipts, submission_times(RunPaths(run.folder))),
        genes=tuple(_genes(run)) if generations else (),
    )


def genome_kinds(state: RunState, references: Iterable[str]) -> list[list[str]]:
    """Return by generation what each asked genome gave, one of `KINDS`."""
    apart, candidates, genomes = set(references), set[str](), set[tuple[float, ...]]()
    found = []
    for generation in state.generations:
        kinds = []
        for genome, candidate in zip(generation.genomes, generation.candidates, strict=True):
            if genome in genomes:
                kinds.append(SAME)
            elif candidate in apart:
                kinds.append(REFERENCE)
            else:
                kinds.append(EQUIVALENT if candidate in candidates else NEW)
            genomes.add(genome)
            candidates.add(candidate)
        found.append(kinds)
    return found


def submission_times(paths: RunPaths) -> dict[str, datetime]:
    """Return when the executor took each batch."""
    return {
        event["batch"]: datetime.fromisoformat(entry.time)
        for entry in Journal(paths.journal).refresh()
        for event in entry.events
        if event["event"] == "submitted"
    }


def queue(
    state: RunState, receipts: Iterable[Receipt], submitted: dict[str, datetime]
) -> Queue | None:
    """Return how long tasks waited; None where no accepted table tells it."""
    attempts = {attempt.key: attempt for tries in state.attempts.values() for attempt in tries}
    first: dict[tuple[str, str], datetime] = {}
    again = set()
    for receipt in receipts:
        attempt = attempts.get((receipt.evaluation, receipt.candidate, receipt.attempt))
        if attempt is None or attempt.batch not in submitted:
            continue
        task = (attempt.batch, attempt.task)
        again |= {task} if receipt.restart or receipt.earlier_seconds else set()
        began = datetime.fromisoformat(receipt.started)
        first[task] = min(first.get(task, began), began)
    # The clocks of a node and of the controller may differ a little.
    waits = [
        max((began - submitted[task[0]]).total_seconds(), 0.0)
        for task, began in first.items()
        if task not in again
    ]
    return Queue(len(waits), median(waits), max(waits), sum(waits)) if waits else None


def _generation(
    state: RunState, number: int, genomes: Counter[str], receipts: Sequence[Receipt]
) -> GenerationFacts:
    generation = state.generations[number]
    ours = [r for r in receipts if (r.evaluation, r.generation) == ("search", number)]
    seconds: Counter[str] = Counter()
    for receipt in ours:
        seconds.update(receipt.seconds)
    ended = [a for a in _attempts(state, number) if a.outcome not in ("live", "accepted")]
    gone = [c for c in set(generation.candidates) if ("search", c) in state.penalised]
    return GenerationFacts(
        number=number,
        asked=len(generation.genomes),
        genomes={kind: genomes[kind] for kind in KINDS},
        tables=len(ours),
        failed=len(ended),
        penalised=sum(state.first_seen[c] == number for c in gone),
        seconds=dict(seconds),
        device_seconds=sum(receipt.lasted for receipt in ours),
        wasted_seconds=sum(attempt.seconds for attempt in ended),
        wall_seconds=generation.seconds,
        idle=mean_of((r.usage["gpu_idle"], r.reserved) for r in ours if "gpu_idle" in r.usage),
    )


def _attempts(state: RunState, generation: int) -> list[AttemptState]:
    return [
        attempt
        for (evaluation, _), tries in state.attempts.items()
        for attempt in tries
        if evaluation == "search" and attempt.generation == generation
    ]


def _genes(run: Run) -> Iterable[GeneFacts]:
    if "search" not in run.evaluations:
        return
    frame = run.candidates("search").select("candidate", *run.genes, "accuracy", "tokens")
    known = frame.drop_nulls()
    on_front = known.filter(known["candidate"].is_in([r["candidate"] for r in run.front("search")]))
    for name in run.genes:
        values = known[name].to_numpy()
        ends = _ends(values) if values.size else (None, None)
        front = _ends(on_front[name].to_numpy()) if on_front.height else (None, None)
        yield GeneFacts(
            name=name,
            frozen=run.info.frozen.get(name),
            n=known.height,
            values=len(np.unique(values)),
            low=ends[0],
            high=ends[1],
            front_low=front[0],
            front_high=front[1],
            accuracy=rank_correlation(values, known["accuracy"].to_numpy()),
            tokens=rank_correlation(values, known["tokens"].to_numpy()),
        )


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.min()), float(values.max())
