"""One step of the controller: observe, decide, act. Nothing in memory matters."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from l2s_hpc.analysis.tradeoff import search_front
from l2s_hpc.cluster.jobs import Executor, never_runs
from l2s_hpc.controller.actions import (
    Abandon,
    Accept,
    Action,
    Adopt,
    Ask,
    Close,
    Complete,
    End,
    Fail,
    Fix,
    Penalise,
    Stage,
    Submit,
    Tell,
)
from l2s_hpc.controller.budget import Budget, finalists
from l2s_hpc.controller.course import finished
from l2s_hpc.controller.decide import decide
from l2s_hpc.controller.heartbeat import Heartbeat
from l2s_hpc.controller.judge import Observed
from l2s_hpc.controller.observe import Observer
from l2s_hpc.controller.policy import Policy
from l2s_hpc.controller.resolve import Resolved
from l2s_hpc.controller.searching import Searching
from l2s_hpc.controller.submission import Room, intent, make_tasks
from l2s_hpc.errors import DamageError, IncompleteError, LimitError, SubmitError, Unreachable
from l2s_hpc.store.files import link_durably, move_to_quarantine, write_json
from l2s_hpc.store.journal import Event, Journal
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.run import RunInfo
from l2s_hpc.store.scores import verify_outputs, verify_table
from l2s_hpc.store.state import RunState


class Controller:
    """Drives one run. Several on one run are harmless: the journal decides who acts.

    Attributes:
        state: the journal, folded, as far as it was read.
        waiting: why tasks do not run, as the last step saw it; empty if none says why.
    """

    def __init__(
        self,
        paths: RunPaths,
        info: RunInfo,
        resolved: Resolved,
        executor: Executor,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.paths = paths
        self.state = RunState()
        self.waiting = ""
        self._info = info
        self._resolved = resolved
        self._config = resolved.config
        self._executor = executor
        self._journal = Journal(paths.journal)
        self._clock = clock
        self._observer = Observer(paths, executor, resolved.site.grace_seconds, clock)
        self._room = Room(executor, resolved.site, clock)
        self._heartbeat = Heartbeat(paths.heartbeat, clock)
        self._observer.since |= self._heartbeat.remembered()
        self._searching = Searching(paths, info, resolved)
        self.policy = Policy(
            generations=resolved.config.search.generations,
            attempts=resolved.site.attempts,
            failures=resolved.config.search.failures,
            references=info.reference_ids(),
            parents=info.parent_ids(),
            resubmit_cancelled=resolved.site.resubmit_cancelled,
            node_faults=resolved.site.node_faults,
            allow_mixed_gpus=resolved.site.allow_mixed_gpus,
            twins=resolved.config.noise.twins,
            budget=_budget(resolved, info),
        )
        self.refresh()
        self._stops = self.state.stops

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return finished(self.state, self.policy, self._clock())

    def step(self) -> bool:
        """Do what is to be done now; return whether there was anything.

        Raises:
            IncompleteError: the run was stopped, or must not go on; the same command resumes.
            SubmitError: the job was refused; nothing is half recorded.
            Unreachable: Slurm gives no answer.
        """
        self.refresh()
        if self.state.stopped or self.state.stops > self._stops:
            # A submission that was under way when it was stopped is known only now.
            with contextlib.suppress(Unreachable):
                self._executor.cancel(self.state.open_batches)
            raise IncompleteError("stopped by `l2s stop`", hint="the same command goes on")
        observed = self._observer.look(self.state)
        self.waiting = _reasons(observed, self.state)
        return self._act(decide(self.state, observed, self.policy))

    def beat(self, note: str) -> None:
        """Tell whoever looks at the run that this controller lives, and what it waits for."""
        self._heartbeat.beat(note, self._observer.since)

    def restrict(self, evaluation: str, candidates: Sequence[str]) -> None:
        """Evaluate these candidates and nothing else, in place of a search."""
        self.policy = replace(self.policy, only=(evaluation, tuple(candidates)))

    def close(self) -> None:
        """Let go of the executor: workers of this machine end, a cluster's jobs go on."""
        self._executor.close()

    def summary(self) -> str:
        """Return a line on the search so far: evaluations, front, its ends by first objective."""
        front = search_front(self.state)
        known = {c for g in self.state.generations for c in g.candidates}
        asked = sum(len(g.candidates) for g in self.state.generations)
        return f"{asked} genomes, {len(known)} candidates, {len(front)} on the front"

    def refresh(self) -> None:
        """Read what is new in the journal."""
        for entry in self._journal.refresh():
            self.state.apply(entry)

    def record(self, events: list[Event]) -> bool:
        """Append events as one entry; False if another controller was faster."""
        before = len(self._journal.entries)
        won = self._journal.append(events)
        if won:
            self.state.apply(self._journal.entries[before])
        return won

    def _act(self, actions: Sequence[Action]) -> bool:
        """Turn actions into events and record them in one entry; a submission stands alone."""
        submissions = [action for action in actions if isinstance(action, Submit)]
        if submissions:
            acted = self._submit(submissions[0])
        else:
            events = [event for action in actions if (event := self._event(action)) is not None]
            acted = bool(events) and self.record(events)
        for action in actions:
            if isinstance(action, End):
                self._executor.end(action.batch, action.jobs)
        return acted

    def _event(self, action: Action) -> Event | None:
        match action:
            case Adopt(batch, job):
                return {"event": "submitted", "batch": batch, "job": job}
            case Abandon(batch):
                return {"event": "abandoned", "batch": batch, "reason": "it was never submitted"}
            case Close(batch):
                return {"event": "closed", "batch": batch}
            case Accept():
                return self._accept(action)
            case Fail():
                return self._fail(action)
            case Penalise(evaluation, candidate, reason):
                return {
                    "event": "penalised",
                    "evaluation": evaluation,
                    "candidate": candidate,
                    "reason": reason,
                }
            case Ask(generation):
                return self._searching.ask(self.state, generation)
            case Tell(generation):
                return self._searching.tell(self.state, generation)
            case Stage(evaluation):
                now = self._clock()
                return self._searching.stage(self.state, evaluation, self.policy, now)
            case Fix():
                return self._searching.fix(self.state)
            case Complete():
                return {"event": "completed"}
        return None

    def _accept(self, action: Accept) -> Event | None:
        """Verify a table, give it its accepted name, and let it count."""
        attempt, receipt = action.attempt, action.receipt
        where = (attempt.evaluation, attempt.generation, attempt.candidate)
        source = self.paths.attempt(*where, attempt.attempt)
        try:
            verify_table(source.scores, receipt)
            verify_outputs(source.outputs, receipt)
            self._check_receipt(receipt.run, receipt.protocol, receipt.rows, attempt.evaluation)
        except FileNotFoundError:
            return None  # the node has just taken it away, to begin anew: the next look decides
        except DamageError as error:
            node, seconds = receipt.host, receipt.lasted
            return self._fail(Fail(attempt, "damaged", str(error), False, node, seconds))
        link_durably(source.scores, self.paths.scores(*where))
        link_durably(source.outputs, self.paths.outputs(*where))
        link_durably(source.receipt, self.paths.receipt(*where))
        return {
            "event": "accepted",
            "evaluation": attempt.evaluation,
            "generation": attempt.generation,
            "candidate": attempt.candidate,
            "attempt": attempt.attempt,
            "content_sha256": receipt.content_sha256,
            "rows": receipt.rows,
            "node": receipt.host,
            "device": receipt.device,
            "engine": receipt.engine,
            "seconds": receipt.lasted,
        }

    def _check_receipt(self, run: str, protocol: str, rows: int, evaluation: str) -> None:
        described = self._resolved.evaluations[evaluation]
        expected = len(described.items) * described.protocol.samples
        if run != self._info.id:
            raise DamageError(f"a table of another run: {run}")
        if protocol != described.protocol.hash:
            raise DamageError(f"a table of another protocol: {protocol}")
        if rows != expected:
            raise DamageError(f"{rows} rows instead of {expected}")

    def _fail(self, action: Fail) -> Event:
        attempt = action.attempt
        if action.kind == "damaged":
            where = (attempt.evaluation, attempt.generation, attempt.candidate, attempt.attempt)
            move_to_quarantine(self.paths.attempt(*where).folder, self.paths.quarantine)
        return {
            "event": "failed",
            "evaluation": attempt.evaluation,
            "candidate": attempt.candidate,
            "attempt": attempt.attempt,
            "kind": action.kind,
            "message": action.message,
            "counted": action.counted,
            "node": action.node,
            "seconds": action.seconds,
            "chunks": action.chunks,
        }

    def _submit(self, action: Submit) -> bool:
        """Record the intent, submit, record the job: in this order, each durable before the next.

        What does not fit into one batch is missing still, and is submitted in a later step.
        """
        batch = f"l2s-{self._info.id}-{len(self._journal.entries) + 1:06d}"
        room = self._room.free(self.state)
        recipe = partial(self._searching.recipe, self.state)
        tasks = make_tasks(action, batch, self._resolved.site, recipe)[:room]
        if not tasks:
            self.waiting = self._room.reason
            return False
        device = "" if self.policy.allow_mixed_gpus else self.state.device
        run = {"device": device, "engine": self.state.engine}
        for task in tasks:
            write_json(self.paths.task(task.key), task.model_dump(mode="json") | run)
        if not self.record([intent(batch, tasks)]):
            return False
        try:
            job = self._executor.submit(batch, [task.key for task in tasks], action.avoid)
        except SubmitError as error:
            refused = {"event": "abandoned", "batch": batch, "reason": error.message}
            self.record([refused, {"event": "closed", "batch": batch}])
            if not isinstance(error, LimitError):
                raise
            again = self._room.refused(len(tasks), error.message)
            self.waiting = self._room.reason
            return again
        self._room.accepted(len(tasks))
        return self._submitted(batch, job)

    def _submitted(self, batch: str, job: str) -> bool:
        """Record a job; one that another controller has given up meanwhile is ended at once."""
        while not self.record([{"event": "submitted", "batch": batch, "job": job}]):
            self.refresh()
            state = self.state.batches[batch]
            if state.abandoned:
                self._executor.cancel({batch: state})
                return False
            if state.job is not None:
                return True
        return True


def _budget(resolved: Resolved, info: RunInfo) -> Budget:
    population = resolved.config.search.population
    return Budget(
        limits=resolved.config.budget,
        population=population,
        final=finalists(len(set(info.reference_ids().values())), population),
        twins=resolved.config.noise.twins,
        items=tuple((name, len(e.items)) for name, e in resolved.evaluations.items()),
    )


def _reasons(observed: Observed, state: RunState) -> str:
    """Return why tasks are not running, with how many say so."""
    settled = {*observed.unsubmitted, *observed.found}
    unsubmitted = [
        f"{name} is being submitted by process {batch.entry.pid} on {batch.entry.host}"
        for name, batch in state.open_batches.items()
        if batch.job is None and not batch.abandoned and name not in settled
    ]
    said = Counter(
        (job.state, job.reason)
        for job in observed.jobs.values()
        if job.state in ("pending", "unknown") and job.reason not in ("", "None")
    )
    counts = [
        f"{count} tasks {job}: {reason}{_advice(reason)}"
        for (job, reason), count in sorted(said.items())
    ]
    return "; ".join(unsubmitted + counts)


def _advice(reason: str) -> str:
    """Return what to do about a task that can never run; empty where it only waits."""
    advice = never_runs(reason)
    return f" (will never run: {advice})" if advice else ""
