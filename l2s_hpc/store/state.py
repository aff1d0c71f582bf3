"""What the journal says: its events folded into the state of a run.

Events, each a JSON object with the key `event`:

- `asked` generation, genomes, candidates: the algorithm asked for these
- `intent` batch, tasks: about to be submitted under that unique name
- `submitted` batch, job: the executor took it
- `abandoned` batch, reason: it was never submitted; its attempts do not count
- `closed` batch: all its attempts are settled, and its jobs are gone
- `accepted` evaluation, generation, candidate, attempt, content_sha256, rows, node, device, engine,
  seconds
- `failed` evaluation, candidate, attempt, kind, message, counted, node, seconds, chunks
- `quarantined` evaluation, candidate, reason: an accepted table was damaged and counts no more
- `penalised` evaluation, candidate, reason
- `told` generation, objectives, violations
- `stage` evaluation, candidates, spent, again: evaluated after the search, or without one; `spent`:
  the budget that ended it before its last generation; `again`: those that were given up and are
  tried anew
- `fixed` front, picks: chosen on the selection split, before the report split is looked at
- `changed` key, old, new: an operational setting
- `started` command, site, operational, by_user, resubmit: a controller began or went on; `by_user`:
  somebody gave the command, so that what could not begin is tried anew; `resubmit`: what somebody
  cancelled until now is sent again
- `detached` job: a controller was submitted to Slurm
- `stopped`: it shall end; jobs under way are cancelled by us
- `completed`
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from l2s_hpc.errors import DamageError
from l2s_hpc.store.journal import Entry, Event, Journal
from l2s_hpc.store.layout import Group, RunPaths, Where

Genome = tuple[float, ...]
Key = tuple[str, str]
"""(evaluation, candidate)"""

AttemptKey = tuple[str, str, int]
"""(evaluation, candidate, attempt)"""


@dataclass
class GenerationState:
    """One generation; objectives and violations are None until it is told.

    Attributes:
        asked: when it was asked for. seconds: from then to its being told, 0 until then.
    """

    genomes: tuple[Genome, ...]
    candidates: tuple[str, ...]
    objectives: tuple[tuple[float, ...], ...] | None = None
    violations: tuple[tuple[float, ...], ...] | None = None
    asked: str = ""
    seconds: float = 0.0


@dataclass
class AttemptState:
    """One attempt of a candidate; live until it is accepted, failed or abandoned.

    Attributes:
        counted: whether the failure is the candidate's own, and leads to a penalty.
        node: where it ran, as its receipt or Slurm says; empty if nobody does.
        seconds: of a device, by its receipt (see `Receipt.lasted`); 0 without one.
        chunks: chunks that were durable when it ended.
        forgiven: it was cancelled, could not begin or was made otherwise than the run's tables, and
            the user gave the command again: it is not counted against the site any more.
    """

    evaluation: str
    generation: int
    candidate: str
    attempt: int
    batch: str
    task: str
    outcome: str = "live"
    kind: str = ""
    message: str = ""
    counted: bool = False
    node: str = ""
    seconds: float = 0.0
    chunks: int = 0
    forgiven: bool = False

    @property
    def key(self) -> AttemptKey:
        """What tells it from all other attempts of a run."""
        return self.evaluation, self.candidate, self.attempt


@dataclass
class BatchState:
    """One submission; `job` is None until the executor took it.

    Attributes:
        live: its attempts that may still bring a receipt.
        begun: tasks that left a receipt.
        stopped: `l2s stop` cancelled its jobs: that was nobody else's will.
        abandoned: it was given up as never submitted; a job that shows up all the same is ended.
    """

    name: str
    tasks: tuple[str, ...]
    entry: Entry
    job: str | None = None
    live: list[AttemptState] = field(default_factory=list)
    begun: set[str] = field(default_factory=set)
    stopped: bool = False
    abandoned: bool = False


@dataclass(frozen=True)
class Accepted:
    """A score table that counts."""

    evaluation: str
    generation: int
    candidate: str
    attempt: int
    content_sha256: str
    rows: int

    @property
    def where(self) -> Where:
        """What its table, receipt and outputs are found by."""
        return self.evaluation, self.generation, self.candidate

    @property
    def group(self) -> Group:
        """The generation whose tables `l2s compact` joins with it."""
        return self.evaluation, self.generation


@dataclass
class RunState:
    """The state of a run, as far as the journal was read.

    Attributes:
        batches: all submissions by name, in order. open_batches: those that are not closed yet.
        outcomes: by node, the attempts that ended there, in order. failures: all of them, in order.
        stops: how often somebody gave `l2s stop`.
        device, engine: the kind of GPU that made the first accepted table, and with which versions
            (see `Receipt.engine`); empty before.
        gpu_seconds: seconds of a device that all attempts had which left a receipt.
        site: the site of the last start. operational: its settings that may change.
        spent: the budget that ended the search early, if one did.
        reopened: what was accepted once, was found damaged, and is evaluated again.
    """

    generations: list[GenerationState] = field(default_factory=list)
    accepted: dict[Key, Accepted] = field(default_factory=dict)
    attempts: dict[Key, list[AttemptState]] = field(default_factory=dict)
    penalised: dict[Key, str] = field(default_factory=dict)
    batches: dict[str, BatchState] = field(default_factory=dict)
    open_batches: dict[str, BatchState] = field(default_factory=dict)
    outcomes: dict[str, list[AttemptState]] = field(default_factory=dict)
    failures: list[AttemptState] = field(default_factory=list)
    device: str = ""
    engine: str = ""
    gpu_seconds: float = 0.0
    stages: dict[str, tuple[str, ...]] = field(default_factory=dict)
    front: tuple[str, ...] | None = None
    picks: dict[str, str] = field(default_factory=dict)
    spent: str = ""
    looks: int = 0
    completed: bool = False
    stopped: bool = False
    stops: int = 0
    site: dict[str, Any] = field(default_factory=dict)
    operational: dict[str, Any] = field(default_factory=dict)
    first_seen: dict[str, int] = field(default_factory=dict)
    genomes: dict[str, Genome] = field(default_factory=dict)
    reopened: set[Key] = field(default_factory=set)
    last_time: str = ""

    def apply(self, entry: Entry) -> None:
        """Fold one entry in."""
        self.last_time = entry.time
        for event in entry.events:
            handler = getattr(self, f"_{event['event']}", None)
            if handler is not None:
                handler(event, entry)

    def live_attempts(self) -> Iterable[AttemptState]:
        """Yield attempts that may still bring a receipt."""
        return (attempt for batch in self.open_batches.values() for attempt in batch.live)

    def settled(self, evaluation: str, candidate: str) -> bool:
        """Return whether a candidate needs nothing more in an evaluation."""
        key = (evaluation, candidate)
        return key in self.accepted or key in self.penalised

    @property
    def told(self) -> int:
        """Number of generations whose objectives are recorded."""
        return sum(generation.objectives is not None for generation in self.generations)

    def _asked(self, event: Event, entry: Entry) -> None:
        genomes = tuple(tuple(genome) for genome in event["genomes"])
        candidates = tuple(event["candidates"])
        self.generations.append(GenerationState(genomes, candidates, asked=entry.time))
        for genome, candidate in zip(genomes, candidates, strict=True):
            self.first_seen.setdefault(candidate, event["generation"])
            self.genomes.setdefault(candidate, genome)
        # A search that grows chooses anew: what was chosen before belongs to the shorter search.
        self.stages, self.front, self.picks, self.completed = {}, None, {}, False
        self.spent = ""

    def _intent(self, event: Event, entry: Entry) -> None:
        keys = tuple(task["key"] for task in event["tasks"])
        batch = BatchState(event["batch"], keys, entry)
        self.batches[batch.name] = self.open_batches[batch.name] = batch
        for task in event["tasks"]:
            for evaluation, generation, candidate, attempt in task["candidates"]:
                state = AttemptState(
                    evaluation, generation, candidate, attempt, batch.name, task["key"]
                )
                self.attempts.setdefault((evaluation, candidate), []).append(state)
                batch.live.append(state)

    def _submitted(self, event: Event, entry: Entry) -> None:
        self.batches[event["batch"]].job = event["job"]

    def _abandoned(self, event: Event, entry: Entry) -> None:
        batch = self.batches[event["batch"]]
        batch.abandoned = True
        for attempt in batch.live:
            attempt.outcome, attempt.message = "abandoned", event["reason"]
        batch.live = []

    def _closed(self, event: Event, entry: Entry) -> None:
        self.open_batches.pop(event["batch"], None)

    def _accepted(self, event: Event, entry: Entry) -> None:
        fields = {name: event[name] for name in Accepted.__dataclass_fields__}
        key = (event["evaluation"], event["candidate"])
        self.accepted[key] = Accepted(**fields)
        self.device = self.device or event.get("device", "")
        self.engine = self.engine or event.get("engine", "")
        self.reopened.discard(key)
        self._end(key, event, "accepted")

    def _quarantined(self, event: Event, entry: Entry) -> None:
        key = (event["evaluation"], event["candidate"])
        accepted = self.accepted.pop(key)
        self._attempt(key, accepted.attempt).outcome = "quarantined"
        self.reopened.add(key)
        self.completed = False

    def _failed(self, event: Event, entry: Entry) -> None:
        key = (event["evaluation"], event["candidate"])
        attempt = self._end(key, event, "failed")
        attempt.kind, attempt.message = event["kind"], event["message"]
        attempt.counted, attempt.chunks = event["counted"], event.get("chunks", 0)
        self.failures.append(attempt)

    def _penalised(self, event: Event, entry: Entry) -> None:
        key = (event["evaluation"], event["candidate"])
        self.penalised[key] = event["reason"]
        self.reopened.discard(key)

    def _told(self, event: Event, entry: Entry) -> None:
        generation = self.generations[event["generation"]]
        generation.objectives = tuple(tuple(row) for row in event["objectives"])
        generation.violations = tuple(tuple(row) for row in event["violations"])
        asked, told = (datetime.fromisoformat(time) for time in (generation.asked, entry.time))
        generation.seconds = (told - asked).total_seconds()

    def _stage(self, event: Event, entry: Entry) -> None:
        self.stages[event["evaluation"]] = tuple(event["candidates"])
        self.completed = False
        for candidate in event.get("again", ()):
            self.penalised.pop((event["evaluation"], candidate), None)
            for attempt in self.attempts.get((event["evaluation"], candidate), ()):
                attempt.counted = False
        self.looks += event["evaluation"] == "report"
        self.spent = event.get("spent", self.spent)

    def _fixed(self, event: Event, entry: Entry) -> None:
        self.front, self.picks = tuple(event["front"]), dict(event["picks"])

    def _completed(self, event: Event, entry: Entry) -> None:
        self.completed = True

    def _started(self, event: Event, entry: Entry) -> None:
        self.stopped = False
        self.site = event.get("site", self.site)
        self.operational = event.get("operational", self.operational)
        by_user = event.get("by_user", True)
        forgiven = {
            "not begun": by_user,
            "device": by_user,
            "version": by_user,
            "interrupted": by_user,
            "timeout": by_user,
            "cancelled": event.get("resubmit"),
        }
        for attempt in (a for tries in self.attempts.values() for a in tries):
            attempt.forgiven = attempt.forgiven or bool(forgiven.get(attempt.kind))

    def _stopped(self, event: Event, entry: Entry) -> None:
        self.stopped = True
        self.stops += 1
        for batch in self.open_batches.values():
            batch.stopped = True

    def _end(self, key: Key, event: Event, outcome: str) -> AttemptState:
        """Settle a live attempt; what its receipt said of node and time is added up."""
        attempt = self._attempt(key, event["attempt"])
        attempt.outcome, attempt.node = outcome, event.get("node", "")
        attempt.seconds = event.get("seconds", 0.0)
        self.gpu_seconds += attempt.seconds
        batch = self.batches[attempt.batch]
        batch.live = [other for other in batch.live if other is not attempt]
        if outcome == "accepted" or attempt.seconds:
            batch.begun.add(attempt.task)
        if attempt.node:
            self.outcomes.setdefault(attempt.node, []).append(attempt)
        return attempt

    def _attempt(self, key: Key, number: int) -> AttemptState:
        return next(a for a in self.attempts[key] if a.attempt == number)


def check_journal(paths: RunPaths) -> None:
    """Raise `DamageError` if there are score tables and no journal that could have accepted them.

    Such a run is a copy of a part, and no new run that may begin at the beginning.
    """
    if not any(paths.journal.glob("*/*.json")) and any(paths.all_scores()):
        raise DamageError(
            "the journal is missing, though there are score tables",
            hint="copy the run directory whole; an import that was ended goes on with its command",
            path=paths.journal,
        )


def read_state(paths: RunPaths, tables_first: bool = False) -> tuple[RunState, Journal]:
    """Fold a run's journal.

    Args:
        paths: the run.
        tables_first: score tables may be there before the first entry, as an import writes them.

    Raises:
        DamageError: an entry is damaged, or one is missing and hides all that follow, or all are.
    """
    there = len(list(paths.journal.glob("*/*.json")))
    if not tables_first:
        check_journal(paths)
    state, journal = RunState(), Journal(paths.journal)
    for entry in journal.refresh():
        state.apply(entry)
    if len(journal.entries) < there:
        raise DamageError(
            f"the journal has a gap: entry {len(journal.entries) + 1} is missing",
            hint="copy the run directory again, or see `l2s verify`",
            path=paths.journal,
        )
    return state, journal
