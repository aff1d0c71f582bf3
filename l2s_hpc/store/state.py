"""What the journal says: its events folded into the state of a run.

Events, each a JSON object with the key `event`:

- `asked` generation, genomes, candidates: the algorithm asked for these
- `intent` batch, tasks: about to be submitted under that unique name
- `submitted` batch, job: the executor took it
- `abandoned` batch, reason: it was never submitted; its attempts do not count
- `accepted` evaluation, generation, candidate, attempt, content_sha256, rows
- `failed` evaluation, candidate, attempt, kind, message, counted
- `quarantined` evaluation, candidate, reason: an accepted table was damaged and counts no more
- `penalised` evaluation, candidate, reason
- `told` generation, objectives, violations
- `stage` evaluation, candidates: what is evaluated after the search
- `fixed` front, picks: chosen on the selection split, before the report split is looked at
- `changed` key, old, new: an operational setting
- `started` command, site: a controller began or went on; `stopped`: it shall end
- `completed`
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from l2s_hpc.errors import DamageError
from l2s_hpc.store.journal import Entry, Event, Journal
from l2s_hpc.store.layout import RunPaths

Genome = tuple[float, ...]
Key = tuple[str, str]
"""(evaluation, candidate)"""


@dataclass
class GenerationState:
    """One generation; objectives and violations are None until it is told."""

    genomes: tuple[Genome, ...]
    candidates: tuple[str, ...]
    objectives: tuple[tuple[float, ...], ...] | None = None
    violations: tuple[tuple[float, ...], ...] | None = None


@dataclass
class AttemptState:
    """One attempt of a candidate; live until it is accepted, failed or abandoned."""

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


@dataclass
class BatchState:
    """One submission; `job` is None until the executor took it."""

    name: str
    tasks: tuple[str, ...]
    entry: Entry
    job: str | None = None


@dataclass(frozen=True)
class Accepted:
    """A score table that counts."""

    evaluation: str
    generation: int
    candidate: str
    attempt: int
    content_sha256: str
    rows: int


@dataclass
class RunState:
    """The state of a run, as far as the journal was read."""

    generations: list[GenerationState] = field(default_factory=list)
    accepted: dict[Key, Accepted] = field(default_factory=dict)
    attempts: dict[Key, list[AttemptState]] = field(default_factory=dict)
    penalised: dict[Key, str] = field(default_factory=dict)
    batches: dict[str, BatchState] = field(default_factory=dict)
    stages: dict[str, tuple[str, ...]] = field(default_factory=dict)
    front: tuple[str, ...] | None = None
    picks: dict[str, str] = field(default_factory=dict)
    looks: int = 0
    completed: bool = False
    stopped: bool = False
    site: dict[str, Any] = field(default_factory=dict)
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
        return (a for tries in self.attempts.values() for a in tries if a.outcome == "live")

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
        self.generations.append(GenerationState(genomes, candidates))
        for genome, candidate in zip(genomes, candidates, strict=True):
            self.first_seen.setdefault(candidate, event["generation"])
            self.genomes.setdefault(candidate, genome)
        # A search that grows chooses anew: what was chosen before belongs to the shorter search.
        self.stages, self.front, self.picks, self.completed = {}, None, {}, False

    def _intent(self, event: Event, entry: Entry) -> None:
        keys = tuple(task["key"] for task in event["tasks"])
        self.batches[event["batch"]] = BatchState(event["batch"], keys, entry)
        for task in event["tasks"]:
            for evaluation, generation, candidate, attempt in task["candidates"]:
                state = AttemptState(
                    evaluation, generation, candidate, attempt, event["batch"], task["key"]
                )
                self.attempts.setdefault((evaluation, candidate), []).append(state)

    def _submitted(self, event: Event, entry: Entry) -> None:
        self.batches[event["batch"]].job = event["job"]

    def _abandoned(self, event: Event, entry: Entry) -> None:
        del self.batches[event["batch"]]
        for attempt in self.live_attempts():
            if attempt.batch == event["batch"]:
                attempt.outcome, attempt.message = "abandoned", event["reason"]

    def _accepted(self, event: Event, entry: Entry) -> None:
        fields = {name: event[name] for name in Accepted.__dataclass_fields__}
        key = (event["evaluation"], event["candidate"])
        self.accepted[key] = Accepted(**fields)
        self.reopened.discard(key)
        self._close(key, event["attempt"], "accepted")

    def _quarantined(self, event: Event, entry: Entry) -> None:
        key = (event["evaluation"], event["candidate"])
        accepted = self.accepted.pop(key)
        self._close(key, accepted.attempt, "quarantined")
        self.reopened.add(key)
        self.completed = False

    def _failed(self, event: Event, entry: Entry) -> None:
        key = (event["evaluation"], event["candidate"])
        attempt = self._close(key, event["attempt"], "failed")
        attempt.kind, attempt.message = event["kind"], event["message"]
        attempt.counted = event["counted"]

    def _penalised(self, event: Event, entry: Entry) -> None:
        key = (event["evaluation"], event["candidate"])
        self.penalised[key] = event["reason"]
        self.reopened.discard(key)

    def _told(self, event: Event, entry: Entry) -> None:
        generation = self.generations[event["generation"]]
        generation.objectives = tuple(tuple(row) for row in event["objectives"])
        generation.violations = tuple(tuple(row) for row in event["violations"])

    def _stage(self, event: Event, entry: Entry) -> None:
        self.stages[event["evaluation"]] = tuple(event["candidates"])
        self.looks += event["evaluation"] == "report"

    def _fixed(self, event: Event, entry: Entry) -> None:
        self.front, self.picks = tuple(event["front"]), dict(event["picks"])

    def _completed(self, event: Event, entry: Entry) -> None:
        self.completed = True

    def _started(self, event: Event, entry: Entry) -> None:
        self.stopped = False
        self.site = event.get("site", self.site)

    def _stopped(self, event: Event, entry: Entry) -> None:
        self.stopped = True

    def _close(self, key: Key, number: int, outcome: str) -> AttemptState:
        attempt = next(a for a in self.attempts[key] if a.attempt == number)
        attempt.outcome = outcome
        return attempt


def read_state(paths: RunPaths) -> tuple[RunState, Journal]:
    """Fold a run's journal.

    Raises:
        DamageError: an entry is damaged, or one is missing and hides all that follow.
    """
    there = len(list(paths.journal.glob("*/*.json")))
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
