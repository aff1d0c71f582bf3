"""One attempt of one candidate: merge, generate chunk by chunk, grade, write, receipt."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from l2s_hpc.errors import DamageError
from l2s_hpc.evaluation.grading import GRADER, Grader
from l2s_hpc.evaluation.prompts import build
from l2s_hpc.records import CandidateTask, Evaluation, Failure, Item, Output, Receipt, Verdict
from l2s_hpc.store.files import create_json, read_json, sha256_file, write_json
from l2s_hpc.store.layout import AttemptPaths, RunPaths
from l2s_hpc.store.scores import OUTPUTS, SCORES, content_sha256, read_table, write_table
from l2s_hpc.task.engines import Engine
from l2s_hpc.task.node import job, with_room


class Clock:
    """Adds up the seconds of an attempt by phase."""

    def __init__(self) -> None:
        self.started = _now()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 6)


class Fenced(BaseException):
    """Somebody newer works on this candidate: Slurm started the job again, or the controller gave
    this attempt up. Whatever we wrote now could only do harm."""


class Attempt:
    """What one attempt needs, and where it writes."""

    def __init__(
        self,
        run: str,
        paths: RunPaths,
        task: CandidateTask,
        evaluation: Evaluation,
        disk_seconds: float = 0.0,
    ) -> None:
        self.run = run
        self.chunks = 0
        self._job = job()
        self._disk_seconds = disk_seconds
        self.task = task
        self.evaluation = evaluation
        self.paths = paths.attempt(task.evaluation, task.generation, task.candidate, task.attempt)
        self.clock = Clock()
        self._owner = self.paths.owner(0)
        self._earlier_seconds = 0.0
        self._earlier = [
            paths.attempt(task.evaluation, task.generation, task.candidate, attempt)
            for attempt in range(task.attempt, 0, -1)
        ]

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
        created = with_room(lambda: create_json(owner, claim), self._disk_seconds)
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

    def complete(self, engine: Engine, grader: Grader) -> Receipt:
        """Evaluate the candidate and leave a score table and its receipt."""
        outputs = self._outputs(engine)
        with self.clock.phase("grade"):
            items = {(i.benchmark, i.item): i for i in self.evaluation.items}
            asked = [items[output.benchmark, output.item] for output in outputs]
            verdicts = grader.grade(outputs, asked)
        with self.clock.phase("write"):
            self.check_fence()
            found = with_room(lambda: self._write(outputs, asked, verdicts), self._disk_seconds)
        return self._leave(self._receipt(engine, **found))

    def fail(self, failure: Failure, engine: Engine | None) -> Receipt:
        """Leave a receipt that says why there is no score table."""
        return self._leave(self._receipt(engine, failure=failure))

    def _leave(self, receipt: Receipt) -> Receipt:
        self.check_fence()
        # Who was told to end has only seconds left.
        ended = receipt.failure is not None and receipt.failure.unfinished
        with_room(
            lambda: write_json(self.paths.receipt, receipt.model_dump(mode="json")),
            0 if ended else self._disk_seconds,
        )
        return receipt

    def _outputs(self, engine: Engine) -> list[Output]:
        """Return all outputs, chunk by chunk; chunks that an earlier attempt finished are kept."""
        size = self.evaluation.protocol.chunk_items
        items = self.evaluation.items
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        loaded = False
        outputs: list[Output] = []
        for number, chunk in enumerate(chunks):
            self.check_fence()
            kept = self._kept(number)
            if kept is None and not loaded:
                for phase, seconds in engine.load(self.task.recipe).items():
                    self.clock.add(phase, seconds)
                loaded = True
            outputs += kept if kept is not None else self._generate(engine, number, chunk)
            self.chunks = number + 1
        return outputs

    def _generate(self, engine: Engine, number: int, items: Sequence[Item]) -> list[Output]:
        preset = self.evaluation.protocol.prompt
        with self.clock.phase("generate"):
            prompts = [build(preset, item.question, engine.tokenizer) for item in items]
            answers = engine.generate(prompts)
        outputs = [
            Output(
                benchmark=item.benchmark,
                item=item.item,
                sample=answer.sample,
                seed=answer.seed,
                text=answer.text,
                n_prompt_tokens=len(prompt),
                n_output_tokens=answer.n_output_tokens,
                n_charged_tokens=answer.n_output_tokens,
                finish_reason=answer.finish_reason,
            )
            for item, prompt, samples in zip(items, prompts, answers, strict=True)
            for answer in samples
        ]
        with self.clock.phase("write"):
            with_room(lambda: self._keep(number, outputs), self._disk_seconds)
        return outputs

    def _keep(self, number: int, outputs: Sequence[Output]) -> None:
        """Make a finished chunk durable; the small file after it says that it is whole."""
        path = self.paths.chunk(number)
        sha256 = write_table(path, self._output_rows(outputs), OUTPUTS)
        write_json(path.with_suffix(".json"), {"sha256": sha256, "protocol": self._protocol})

    def _kept(self, number: int) -> list[Output] | None:
        for earlier in self._earlier:
            outputs = self._read_kept(earlier, number)
            if outputs is not None:
                return outputs
        return None

    def _read_kept(self, earlier: AttemptPaths, number: int) -> list[Output] | None:
        path = earlier.chunk(number)
        seal = path.with_suffix(".json")
        try:
            if not seal.exists() or read_json(seal) != {
                "sha256": sha256_file(path),
                "protocol": self._protocol,
            }:
                return None
            rows = read_table(path, OUTPUTS).to_pylist()
        except (OSError, DamageError):
            return None
        return [Output(**{k: v for k, v in row.items() if k != "candidate"}) for row in rows]

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
                "truncated": output.finish_reason == "length",
            }
            for output, item, verdict in zip(outputs, items, verdicts, strict=True)
        ]
        outputs_sha256 = write_table(self.paths.outputs, self._output_rows(outputs), OUTPUTS)
        file_sha256 = write_table(self.paths.scores, rows, SCORES)
        return {
            "rows": len(rows),
            "file_sha256": file_sha256,
            "content_sha256": content_sha256(read_table(self.paths.scores)),
            "outputs_sha256": outputs_sha256,
            "grader": GRADER,
        }

    def _output_rows(self, outputs: Sequence[Output]) -> list[dict[str, object]]:
        return [{"candidate": self.task.candidate, **vars(output)} for output in outputs]

    @property
    def _protocol(self) -> str:
        return self.evaluation.protocol.hash

    def _receipt(self, engine: Engine | None, **found: object) -> Receipt:
        versions = dict(engine.versions) if engine else {}
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
                "chunks": self.chunks,
                "earlier_seconds": self._earlier_seconds,
                "device": engine.device if engine else "",
                "versions": versions | {"python": platform.python_version()},
                "seconds": self.clock.seconds,
                "started": self.clock.started,
                "ended": _now(),
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
