"""One attempt of one candidate: merge, generate chunk by chunk, grade, write, receipt."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from l2s_hpc.errors import DamageError, L2SError
from l2s_hpc.evaluation.grading import GRADER, Grader
from l2s_hpc.evaluation.prompts import build
from l2s_hpc.records import CandidateTask, Evaluation, Failure, Item, Output, Receipt, Verdict
from l2s_hpc.store.files import create_json, read_json, write_json
from l2s_hpc.store.layout import RunPaths
from l2s_hpc.store.scores import OUTPUTS, SCORES, content_sha256, read_table, write_table
from l2s_hpc.task.chunks import Chunks
from l2s_hpc.task.engines import Engine, Generated, Tell
from l2s_hpc.task.node import job, with_room
from l2s_hpc.task.pipeline import Background, Outcome
from l2s_hpc.task.usage import Clock, now

T = TypeVar("T")


class Fenced(BaseException):
    """Somebody newer works on this candidate: Slurm started the job again, or the controller gave
    this attempt up. Whatever we wrote now could only do harm."""


class Attempt:
    """What one attempt needs, and where it writes.

    `generate` needs the engine, `finish` needs the grader and may run on another thread. Chunks are
    written by a third one while the next chunk generates.

    Attributes:
        generated: all answers are there; the last chunk may be under way to the disk.
        outputs: the answers until now; an answer's tokens are charged in full where it was ended
            for going in a circle.
    """

    def __init__(
        self,
        run: str,
        paths: RunPaths,
        task: CandidateTask,
        evaluation: Evaluation,
        disk_seconds: float = 0.0,
        hurry: threading.Event | None = None,
        writer: Background | None = None,
    ) -> None:
        """Take what is to be done.

        Args:
            run, paths, task, evaluation: what, and where.
            disk_seconds: how long room on a full disk is waited for.
            hurry: once it is set, no more.
            writer: writes the chunks, those of one attempt after those of another.
        """
        self.run = run
        self.generated = False
        self.outputs: list[Output] = []
        self._job = job()
        self._disk_seconds = disk_seconds
        self._hurry = hurry or threading.Event()
        self._writer = writer or Background("writer")
        self._written = Outcome()
        self.task = task
        self.evaluation = evaluation
        self._protocol = evaluation.protocol.hash
        self.paths = paths.attempt(task.evaluation, task.generation, task.candidate, task.attempt)
        self.clock = Clock()
        self._owner = self.paths.owner(0)
        self._earlier_seconds = 0.0
        earlier = [
            paths.attempt(task.evaluation, task.generation, task.candidate, attempt)
            for attempt in range(task.attempt, 0, -1)
        ]
        self._chunks = Chunks(earlier, task.candidate, self._protocol)
        self._device = self._fingerprint = ""
        self._versions: dict[str, str] = {}
        self._usage: dict[str, float] = {}
        self._leaving = threading.Lock()

    def claim(self) -> bool:
        """Make the attempt ours, durably; False if it is done, given up, or another worker's.

        Slurm may start a job again, even under the same id and restart count, while an older
        incarnation still runs. The last one to claim an attempt owns it; the others are fenced.
        """
        if _final(self._left()) or self._given_up():
            return False
        owners = self.paths.owners()
        if owners and self._is_ours(owners[-1]):
            return False
        claim = {"job": self._job.key, "host": self._job.host, "pid": os.getpid()}
        owner = self.paths.owner(len(owners))
        created = self._with_room(lambda: create_json(owner, claim))
        # Where its directory could not be synced at first, the claim stands all the same.
        if not created and _read(owner) != claim:
            return False
        self._owner = owner
        return self._take_over()

    def _take_over(self) -> bool:
        """Remove the receipt of an incarnation that was ended, and remember what it cost.

        It says why that one ended; if this one dies silently, it is no excuse. False if that one
        has come to its end while we claimed the attempt.
        """
        receipt = self._left()
        if _final(receipt):
            return False
        self._earlier_seconds = receipt.lasted if receipt else 0.0
        self.paths.receipt.unlink(missing_ok=True)
        return True

    def check_fence(self) -> None:
        """Raise `Fenced` if somebody newer works on this candidate."""
        if self._fenced():
            raise Fenced(f"attempt {self.task.attempt} of {self.task.candidate} is another's now")

    def _fenced(self) -> bool:
        return self._given_up() or self.paths.owners()[-1:] not in ([], [self._owner])

    def _given_up(self) -> bool:
        """Whether a later attempt of this candidate has begun."""
        others = self.paths.folder.parent.glob("*")
        return any(p.name.isdigit() and int(p.name) > self.task.attempt for p in others)

    def _is_ours(self, owner: Path) -> bool:
        """Whether a claim is that of another worker of this job."""
        claim = _read(owner)
        return isinstance(claim, dict) and claim.get("job") == self._job.key

    def _left(self) -> Receipt | None:
        """Return the receipt that an incarnation has left; None where none can be read."""
        try:
            return Receipt.model_validate(read_json(self.paths.receipt))
        except (OSError, ValueError, DamageError):
            return None

    def generate(self, engine: Engine, tell: Tell) -> None:
        """Generate what no earlier attempt has kept, chunk by chunk; each is written at once.

        What fails in writing one is raised before the next one begins, or by `finish`.

        Args:
            engine: makes the candidate live if anything is to be generated.
            tell: hears how many answers are there, and how many tokens they have.
        """
        size = self.evaluation.protocol.chunk_items
        items = self.evaluation.items
        self._chunks.made_by(engine.device, engine.versions)
        loaded = False
        for number, start in enumerate(range(0, len(items), size)):
            self.check_fence()
            self._written.check()
            outputs = self._chunks.kept(number)
            if outputs is None:
                if not loaded:
                    self.clock.loaded(engine.load(self.task.recipe))
                    loaded = True
                    tell(len(self.outputs), self.tokens)
                outputs = self._generate(engine, items[start : start + size], tell)
                self._writer.give(partial(self._keep, number, outputs))
            self.outputs += outputs
            tell(len(self.outputs), self.tokens)
        self._describe(engine)
        self.generated = True

    def written(self, seconds: float | None = None) -> bool:
        """Wait, at most so many seconds; return whether no chunk is under way to the disk."""
        return self._writer.settled(seconds)

    def _keep(self, number: int, outputs: Sequence[Output]) -> None:
        """Write a chunk; on the writer's thread."""
        with self._written:
            self._written.check()
            self.check_fence()
            with self.clock.phase("write"):
                self._with_room(lambda: self._chunks.keep(number, outputs))

    @property
    def tokens(self) -> int:
        """How many tokens the answers have until now."""
        return sum(output.n_output_tokens for output in self.outputs)

    def finish(self, grader: Grader) -> Receipt:
        """Grade what was generated, and leave a score table and its receipt.

        Both come after the chunks; what failed in writing one of those is raised.
        """
        self.written()
        self._written.check()
        with self.clock.phase("grade"):
            items = {(i.benchmark, i.item): i for i in self.evaluation.items}
            asked = [items[output.benchmark, output.item] for output in self.outputs]
            verdicts = grader.grade(self.outputs, asked)
        with self.clock.phase("write"):
            self.check_fence()
            found = self._with_room(lambda: self._write(self.outputs, asked, verdicts))
        return self._leave(self._receipt(**found))

    def fail(self, failure: Failure, engine: Engine | None = None) -> Receipt:
        """Leave a receipt that says why there is no score table.

        An interruption is no reason to take back what was left before.
        """
        if engine is not None:
            # A broken engine may not be able to say what it used.
            with contextlib.suppress(RuntimeError, L2SError):
                self._describe(engine)
        return self._leave(self._receipt(failure=failure))

    def _leave(self, receipt: Receipt) -> Receipt:
        # Who was told to end has only seconds left.
        ended = receipt.failure is not None and receipt.failure.unfinished
        with self._leaving:
            self.check_fence()
            if not (ended and self.paths.receipt.exists()):
                self._with_room(
                    lambda: write_json(self.paths.receipt, receipt.model_dump(mode="json")),
                    0 if ended else None,
                )
        return receipt

    def _with_room(self, write: Callable[[], T], seconds: float | None = None) -> T:
        patience = self._disk_seconds if seconds is None else seconds
        return with_room(write, patience, self._hurry.wait)

    def _generate(self, engine: Engine, items: Sequence[Item], tell: Tell) -> list[Output]:
        protocol = self.evaluation.protocol
        answers_before, tokens_before = len(self.outputs), self.tokens
        prompts = [
            build(protocol.prompt, item.question, engine.tokenizer, protocol.shots)
            for item in items
        ]
        with self.clock.generating():
            answers = engine.generate(
                prompts,
                [protocol.budget(item.benchmark) for item in items],
                lambda done, tokens: tell(answers_before + done, tokens_before + tokens),
            )
        outputs = [
            Output(
                benchmark=item.benchmark,
                item=item.item,
                sample=answer.sample,
                seed=answer.seed,
                text=answer.text,
                n_prompt_tokens=len(prompt),
                n_output_tokens=answer.n_output_tokens,
                n_charged_tokens=self._charged(item, answer),
                finish_reason=answer.finish_reason,
            )
            for item, prompt, samples in zip(items, prompts, answers, strict=True)
            for answer in samples
        ]
        self.clock.generated(sum(output.n_output_tokens for output in outputs))
        return outputs

    def _charged(self, item: Item, answer: Generated) -> int:
        """Return what an answer counts: without the guard it would have gone on to its end."""
        if answer.finish_reason == "cycle":
            return self.evaluation.protocol.budget(item.benchmark)
        return answer.n_output_tokens

    def _write(
        self, outputs: Sequence[Output], items: Sequence[Item], verdicts: Sequence[Verdict]
    ) -> dict[str, str | int]:
        rows = [
            {
                "run": self.run,
                "evaluation": self.task.evaluation,
                "protocol": self._protocol,
                "generation": self.task.generation,
                "candidate": self.task.candidate,
                "benchmark": output.benchmark,
                "item": output.item,
                "sample": output.sample,
                "seed": output.seed,
                "correct": verdict.correct,
                "gradable": item.gradable,
                "extracted": verdict.extracted,
                "gold": item.gold,
                "grader": GRADER,
                "grade_status": verdict.status,
                "n_prompt_tokens": output.n_prompt_tokens,
                "n_output_tokens": output.n_output_tokens,
                "n_charged_tokens": output.n_charged_tokens,
                "finish_reason": output.finish_reason,
                "truncated": output.finish_reason in ("length", "cycle"),
            }
            for output, item, verdict in zip(outputs, items, verdicts, strict=True)
        ]
        outputs_sha256 = write_table(self.paths.outputs, self._chunks.rows(outputs), OUTPUTS)
        file_sha256 = write_table(self.paths.scores, rows, SCORES)
        return {
            "rows": len(rows),
            "file_sha256": file_sha256,
            "content_sha256": content_sha256(read_table(self.paths.scores)),
            "outputs_sha256": outputs_sha256,
            "grader": GRADER,
        }

    def _describe(self, engine: Engine) -> None:
        """Note what a receipt says of the engine: soon it works for another candidate."""
        self._device, self._fingerprint = engine.device, engine.fingerprint
        self._versions = dict(engine.versions)
        self._usage = dict(engine.usage())

    def _receipt(self, **found: object) -> Receipt:
        return Receipt.model_validate(
            {
                "run": self.run,
                "evaluation": self.task.evaluation,
                "generation": self.task.generation,
                "candidate": self.task.candidate,
                "attempt": self.task.attempt,
                "protocol": self._protocol,
                "host": self._job.host,
                "job": self._job.id,
                "restart": self._job.restart,
                "chunks": self._chunks.durable(),
                "earlier_seconds": self._earlier_seconds,
                "device_seconds": self.clock.device_seconds,
                "device": self._device,
                "fingerprint": self._fingerprint,
                "versions": self._versions | {"python": platform.python_version()},
                "usage": self.clock.usage() | self._usage,
                "seconds": dict(self.clock.seconds),
                "started": self.clock.started,
                "ended": now(),
                **json.loads(json.dumps(found, default=_dump)),
            }
        )


def _final(receipt: Receipt | None) -> bool:
    """Whether a receipt says more than that an incarnation was ended."""
    return receipt is not None and not (receipt.failure and receipt.failure.unfinished)


def _read(path: Path) -> object:
    """Return what stands in a JSON file, or None where nobody can tell."""
    try:
        return read_json(path)
    except (OSError, DamageError):
        return None


def _dump(value: object) -> object:
    return value.model_dump() if isinstance(value, Failure) else value
