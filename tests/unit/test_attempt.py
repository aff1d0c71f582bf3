"""Who may work on an attempt: claims, and the fence around who is no longer wanted."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.evaluation.grading import Grader
from l2s_hpc.evaluation.prompts import build
from l2s_hpc.records import CandidateTask, Evaluation, Failure, Receipt, Recipe, deciding
from l2s_hpc.store import files
from l2s_hpc.store.files import read_json, write_json
from l2s_hpc.store.layout import AttemptPaths, RunPaths
from l2s_hpc.store.scores import read_table, verify_table
from l2s_hpc.task import evaluate, node
from l2s_hpc.task.chunks import Chunks
from l2s_hpc.task.evaluate import Attempt, Fenced
from l2s_hpc.task.node import Job
from l2s_hpc.task.scripted import ScriptedEngine
from tests.helpers import sums, toy_protocol

RECIPE = Recipe(
    config={"models": [{"model": "slow", "parameters": {"weight": 1.0}}]}, identities={}
)
ITEMS = sums(4)
EVALUATION = Evaluation(
    name="search",
    protocol=toy_protocol(engine="scripted", engine_settings={}, max_tokens=999, chunk_items=1),
    items=ITEMS,
)


class Jobs:
    """Makes attempts of one candidate, as processes of different jobs would."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths, self._patch = RunPaths(folder), monkeypatch

    def attempt(self, key: str, number: int = 1, restart: int = 0, seconds: float = 0) -> Attempt:
        job = Job(key=key, id="7_0", restart=restart, host=f"node-of-{key}")
        self._patch.setattr(evaluate, "job", lambda: job)
        task = CandidateTask(
            evaluation="search",
            generation=0,
            candidate=RECIPE.candidate,
            attempt=number,
            recipe=RECIPE,
        )
        return Attempt("run-1", self.paths, task, EVALUATION, seconds)

    def folder(self, number: int = 1) -> AttemptPaths:
        return self.paths.attempt("search", 0, RECIPE.candidate, number)

    def receipt(self, number: int = 1) -> Receipt:
        return Receipt.model_validate(read_json(self.folder(number).receipt))


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    return Jobs(tmp_path, monkeypatch)


class Engine(ScriptedEngine):
    """A scripted engine that lets something happen before it answers a chunk."""

    def __init__(self, *happenings: Any) -> None:
        super().__init__(EVALUATION.protocol)
        self.happenings, self.chunks = list(happenings), 0

    def generate(self, prompts: Sequence[Sequence[int]], *more: Any) -> Any:
        self.chunks += 1
        if self.happenings:
            self.happenings.pop(0)()
        return super().generate(prompts, *more)


def complete(attempt: Attempt, engine: Engine | None = None) -> Receipt:
    grader = Grader()
    try:
        attempt.generate(engine or Engine(), lambda answers, tokens: None)
        return attempt.finish(grader)
    finally:
        grader.close()


def told_to_end(attempt: Attempt, kind: str = "interrupted") -> None:
    attempt.written()
    attempt.fail(Failure.model_validate({"kind": kind, "message": "SIGTERM received"}), None)


# Claims


def test_one_worker_of_a_job_claims_an_attempt(jobs: Jobs) -> None:
    first, second = jobs.attempt("job"), jobs.attempt("job")
    assert first.claim() and not second.claim()
    first.check_fence()


def test_of_workers_that_claim_at_once_one_wins(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked, and neither saw the other's claim."""
    first, second = jobs.attempt("job"), jobs.attempt("job")
    monkeypatch.setattr(AttemptPaths, "owners", lambda self: [])
    assert first.claim()
    monkeypatch.setattr(evaluate.os, "getpid", lambda: 1)
    assert not second.claim(), "it is another process of the same job"


def test_a_claim_says_whose_it_is(jobs: Jobs) -> None:
    jobs.attempt("abc").claim()
    (path,) = jobs.folder().owners()
    claim = read_json(path)
    assert (claim["job"], claim["host"]) == ("abc", "node-of-abc") and claim["pid"] > 0


@pytest.mark.parametrize("restart", [0, 1])
def test_the_next_incarnation_takes_an_open_attempt_over(jobs: Jobs, restart: int) -> None:
    """After a loss of slurmctld's memory a job may even come again under the same count."""
    old = jobs.attempt("old")
    assert old.claim()
    new = jobs.attempt("new", restart=restart)
    assert new.claim()
    new.check_fence()
    with pytest.raises(Fenced, match="another's now"):
        old.check_fence()


def test_a_team_that_was_started_again_shares_what_is_open(jobs: Jobs) -> None:
    assert jobs.attempt("old").claim()
    assert [jobs.attempt("new").claim(), jobs.attempt("new").claim()] == [True, False]


def test_an_attempt_that_was_given_up_is_not_claimed(jobs: Jobs) -> None:
    assert jobs.attempt("two", 2).claim()
    assert not jobs.attempt("one", 1).claim()
    assert jobs.folder(1).owners() == []


def test_who_is_at_work_is_fenced_off_when_the_next_attempt_begins(jobs: Jobs) -> None:
    late = jobs.attempt("one", 1)
    assert late.claim()
    late.check_fence()
    assert jobs.attempt("two", 2).claim()
    with pytest.raises(Fenced):
        late.check_fence()


def test_the_receipt_of_an_interruption_is_taken_away_by_who_goes_on(jobs: Jobs) -> None:
    """It would excuse the new incarnation, if that dies without a word."""
    for kind in ("interrupted", "timeout"):
        old = jobs.attempt(f"old-{kind}")
        assert old.claim()
        told_to_end(old, kind)
        assert jobs.folder().receipt.exists()
        assert jobs.attempt(f"new-{kind}").claim()
        assert not jobs.folder().receipt.exists()


def test_what_an_incarnation_cost_that_was_ended_stands_in_the_next_receipt(jobs: Jobs) -> None:
    for number in (1, 2):
        attempt = jobs.attempt(f"job{number}", restart=number - 1)
        assert attempt.claim()
        told_to_end(attempt)
        lasted = {"device_seconds": 60.0 * number}
        write_json(jobs.folder().receipt, read_json(jobs.folder().receipt) | lasted)
    assert jobs.receipt().lasted == 60 + 120
    last = jobs.attempt("last", restart=2)
    assert last.claim()
    assert complete(last).earlier_seconds == 180


def test_who_does_not_know_what_was_before_adds_nothing(jobs: Jobs) -> None:
    write_json(jobs.folder().receipt, {"run": 1})
    attempt = jobs.attempt("job")
    assert attempt.claim()
    assert complete(attempt).earlier_seconds == 0


@pytest.mark.parametrize("kind", ["", "merge", "engine", "write", "other"])
def test_what_is_done_is_left_alone(jobs: Jobs, kind: str) -> None:
    old = jobs.attempt("old")
    assert old.claim()
    if kind:
        told_to_end(old, kind)
    else:
        complete(old)
    before = jobs.folder().receipt.read_bytes()
    assert not jobs.attempt("new", restart=1).claim()
    assert jobs.folder().receipt.read_bytes() == before and len(jobs.folder().owners()) == 1


def test_a_torn_receipt_is_not_a_done_one(jobs: Jobs) -> None:
    write_json(jobs.folder().receipt, {"run": 1})
    assert jobs.attempt("job").claim()


def test_a_torn_claim_is_taken_over(jobs: Jobs) -> None:
    for text in ("", "[]", "{}"):
        path = jobs.folder().owner(len(jobs.folder().owners()))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        assert jobs.attempt(f"job{text}").claim()


def test_claims_stand_in_the_order_of_their_numbers(jobs: Jobs) -> None:
    for number in range(12):
        assert jobs.attempt(f"job{number}").claim()
    owners = [read_json(path)["job"] for path in jobs.folder().owners()]
    assert owners == [f"job{number}" for number in range(12)]


def test_a_claim_waits_for_room(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def full(path: Path, value: object) -> bool:
        tries.append(path)
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return files.create_json(path, value)

    monkeypatch.setattr(evaluate, "create_json", full)
    monkeypatch.setattr(node, "_LOOK_AGAIN_SECONDS", 0.01)
    assert jobs.attempt("job", seconds=60).claim()
    with pytest.raises(OSError, match="No space"):
        tries.clear()
        jobs.attempt("another", seconds=0).claim()


def test_a_claim_that_is_tried_again_is_still_ours(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, failed = files._fsync, []

    def full(path: Path) -> None:
        if path.is_dir() and jobs.folder().owner(0).exists() and not failed:
            failed.append(path)
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        sync(path)

    monkeypatch.setattr(files, "_fsync", full)
    monkeypatch.setattr(node, "_LOOK_AGAIN_SECONDS", 0.01)
    assert jobs.attempt("job", seconds=60).claim() and failed


# The fence


def test_a_late_writer_is_stopped_at_the_next_chunk(jobs: Jobs) -> None:
    """A cancelled task whose Python runs on, while another node has begun the next attempt."""
    late = jobs.attempt("late")
    late.claim()
    engine = Engine(lambda: None, lambda: jobs.attempt("new", 2).claim())
    with pytest.raises(Fenced):
        complete(late, engine)
    assert engine.chunks == 2
    assert not jobs.folder(1).scores.exists() and not jobs.folder(1).receipt.exists()
    assert not jobs.folder(1).chunk(1).exists(), "it was generated after the fence came down"


def test_an_old_incarnation_leaves_no_table_and_no_receipt(jobs: Jobs) -> None:
    old = jobs.attempt("old")
    old.claim()
    take_over = [lambda: None] * 3 + [lambda: jobs.attempt("new", restart=1).claim()]
    with pytest.raises(Fenced):
        complete(old, Engine(*take_over))
    assert not jobs.folder().scores.exists() and not jobs.folder().receipt.exists()
    new = jobs.attempt("newest", restart=2)
    assert new.claim()
    receipt = complete(new)
    assert receipt.host == "node-of-newest" and receipt.restart == 2
    verify_table(jobs.folder().scores, receipt)


def test_who_is_fenced_off_leaves_no_failure_either(jobs: Jobs) -> None:
    old = jobs.attempt("old")
    old.claim()
    jobs.attempt("new").claim()
    with pytest.raises(Fenced):
        told_to_end(old)
    assert not jobs.folder().receipt.exists()


def test_to_be_put_aside_is_not_to_be_fenced(jobs: Jobs) -> None:
    """The controller may have moved the folder away, for damage; nobody else is at work."""
    attempt = jobs.attempt("job")
    attempt.claim()
    jobs.folder().folder.rename(jobs.paths.folder / "aside")
    attempt.check_fence()


# What is kept


def test_the_next_incarnation_goes_on_at_the_next_chunk(jobs: Jobs) -> None:
    def end() -> None:
        raise KeyboardInterrupt

    old = jobs.attempt("old")
    old.claim()
    with pytest.raises(KeyboardInterrupt):
        complete(old, Engine(lambda: None, lambda: None, end))
    told_to_end(old)
    assert jobs.receipt().chunks == 2
    new, engine = jobs.attempt("new", restart=1), Engine()
    assert new.claim()
    receipt = complete(new, engine)
    assert engine.chunks == 2 and receipt.chunks == 4
    undisturbed = complete(jobs.attempt("other", 3))
    assert undisturbed.content_sha256 == receipt.content_sha256


def test_a_receipt_counts_the_chunks_that_earlier_attempts_finished(jobs: Jobs) -> None:
    """Else an attempt that was interrupted at once would seem to be thrown back."""

    def end() -> None:
        raise KeyboardInterrupt

    for number, chunks in ((1, 3), (2, 3)):
        attempt = jobs.attempt(f"job{number}", number)
        attempt.claim()
        happenings = [lambda: None] * 3 if number == 1 else []
        with pytest.raises(KeyboardInterrupt):
            complete(attempt, Engine(*happenings, end))
        told_to_end(attempt, "timeout")
        assert jobs.receipt(number).chunks == chunks


VLLM = {"vllm": "0.32.0", "torch": "2.13.0", "transformers": "5.19.0", "mergekit": "0.1.5"}


class Of(Engine):
    """An engine on some device, of some versions."""

    def __init__(self, device: str, changes: Mapping[str, str], *happenings: Any) -> None:
        super().__init__(*happenings)
        self.device, self.versions = device, VLLM | changes


def end() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("device", "changes", "made"),
    [
        ("H100", {}, 2),
        ("A100", {}, 4),
        ("H100", {"vllm": "0.26.0"}, 4),
        ("H100", {"torch": "2.11.0"}, 4),
        ("H100", {"mergekit": "0.2.0"}, 4),
        ("H100", {"mergekit": "0.1.6", "transformers": "5.20.0", "python": "3.13.0"}, 2),
    ],
    ids=["same", "device", "vllm", "torch", "mergekit", "what decides no token"],
)
def test_one_table_holds_answers_of_one_device_and_one_engine(
    device: str, changes: Mapping[str, str], made: int, jobs: Jobs
) -> None:
    first = jobs.attempt("first")
    first.claim()
    with pytest.raises(KeyboardInterrupt):
        complete(first, Of("H100", {}, lambda: None, lambda: None, end))
    told_to_end(first)
    assert jobs.receipt().chunks == 2
    second, engine = jobs.attempt("second", 2), Of(device, changes)
    second.claim()
    receipt = complete(second, engine)
    assert (engine.chunks, receipt.chunks, receipt.device) == (made, 4, device)


def test_a_transformers_version_decides_where_transformers_generates() -> None:
    alone = {"torch": "2.13.0", "transformers": "5.19.0", "python": "3.11"}
    assert deciding(alone).keys() == {"torch", "transformers"}
    assert deciding(VLLM) == {"vllm": "0.32.0", "torch": "2.13.0", "mergekit": "0.1"}


def test_who_ends_right_after_a_chunk_is_sealed_has_come_so_far(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit that comes then must not count against the candidate."""
    sync, seal = files._fsync, jobs.folder().chunk(0).with_suffix(".json")

    def last_moment(path: Path) -> None:
        if path.is_dir() and seal.exists():
            raise KeyboardInterrupt
        sync(path)

    attempt = jobs.attempt("job")
    attempt.claim()
    monkeypatch.setattr(files, "_fsync", last_moment)
    with pytest.raises(KeyboardInterrupt):
        complete(attempt)
    monkeypatch.undo()
    told_to_end(attempt, "timeout")
    assert jobs.receipt().chunks == 1


def test_chunks_count_as_far_as_none_is_missing(jobs: Jobs) -> None:
    attempt = jobs.attempt("job")
    attempt.claim()
    assert complete(attempt).chunks == 4
    chunks = Chunks([jobs.folder()], RECIPE.candidate, EVALUATION.protocol.hash)
    assert chunks.durable() == 4, "what makes them is not known yet"
    chunks.made_by("none", {"scripted": "1"})
    assert chunks.durable() == 4
    chunks.made_by("none", {"scripted": "2"})
    assert chunks.durable() == 0
    chunks.made_by("none", {"scripted": "1"})
    jobs.folder().chunk(1).write_bytes(b"torn")
    assert chunks.durable() == 1 and chunks.kept(1) is None and chunks.kept(2) is not None
    assert Chunks([jobs.folder()], RECIPE.candidate, "another").durable() == 0


# Writing beside the engine


class Held:
    """The writing of one chunk begins, and goes on only when it is let."""

    def __init__(self, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.let, self.number, self._keep = threading.Event(), number, Chunks.keep
        monkeypatch.setattr(Chunks, "keep", lambda *of: self.keep(*of))

    def keep(self, chunks: Chunks, number: int, outputs: Any) -> None:
        if number == self.number and not self.let.wait(10):
            raise TimeoutError("nothing went on while it was written")
        self._keep(chunks, number, outputs)


def test_a_chunk_is_written_while_the_next_one_generates(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(1, monkeypatch)
    attempt = jobs.attempt("job")
    attempt.claim()
    nothing: list[Any] = [lambda: None] * 2
    assert complete(attempt, Engine(*nothing, held.let.set)).chunks == 4


def test_a_table_comes_after_the_last_chunk(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(3, monkeypatch)
    attempt = jobs.attempt("job")
    attempt.claim()
    attempt.generate(Engine(), lambda answers, tokens: None)
    assert attempt.generated and not attempt.written(0.05)
    assert not jobs.folder().chunk(3).exists()
    threading.Timer(0.3, held.let.set).start()
    grader = Grader()
    receipt = attempt.finish(grader)
    grader.close()
    assert receipt.chunks == 4 and held.let.is_set()


@pytest.mark.parametrize("number", range(4))
def test_a_chunk_that_cannot_be_written_ends_the_attempt(
    number: int, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Chunks.keep

    def broken(chunks: Chunks, this: int, outputs: Any) -> None:
        if this == number:
            raise OSError(errno.EIO, "Input/output error")
        keep(chunks, this, outputs)

    monkeypatch.setattr(Chunks, "keep", broken)
    attempt, engine = jobs.attempt("job"), Engine()
    attempt.claim()
    with pytest.raises(OSError, match="Input/output"):
        complete(attempt, engine)
    assert engine.chunks <= number + 2, "at most one more has begun"
    assert not jobs.folder().scores.exists() and not jobs.folder().chunk(number + 1).exists()
    attempt.fail(Failure(kind="write", message="why"))
    assert jobs.receipt().chunks == number


# What an answer costs


def test_an_answer_that_went_in_a_circle_is_charged_its_whole_budget(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = EVALUATION.protocol.model_copy(update={"budgets": {"sums": 500}, "max_tokens": 900})
    monkeypatch.setitem(
        globals(), "EVALUATION", EVALUATION.model_copy(update={"protocol": protocol})
    )
    asked: list[Sequence[int]] = []

    class Circling(Engine):
        def generate(self, prompts: Sequence[Sequence[int]], *more: Any) -> Any:
            asked.append(more[0])
            ((answer,),) = super().generate(prompts, *more)
            reason = "cycle" if len(asked) == 1 else answer.finish_reason
            return [[replace(answer, n_output_tokens=40, finish_reason=reason)]]

    attempt = jobs.attempt("job")
    attempt.claim()
    complete(attempt, Circling())
    assert asked == [[500]] * 4, "the engine is told the benchmark's budget"
    rows = read_table(jobs.folder().scores).to_pylist()
    assert [row["n_charged_tokens"] for row in rows] == [500, 40, 40, 40]
    assert [row["n_output_tokens"] for row in rows] == [40] * 4
    assert [row["truncated"] for row in rows] == [True, False, False, False]


# What it used


def test_a_receipt_says_what_the_engine_used_also_of_a_failure(jobs: Jobs) -> None:
    class Telling(Engine):
        fingerprint = "f" * 16

        def load(self, recipe: Recipe) -> Mapping[str, float]:
            super().load(recipe)
            return {"merge": 0.5, "load": 0.25}

        def usage(self) -> Mapping[str, float]:
            return {"batch_occupancy": 0.5, "peak_gpu_gb": 17.0}

    attempt = jobs.attempt("job")
    attempt.claim()
    receipt = complete(attempt, Telling())
    assert (receipt.usage["batch_occupancy"], receipt.usage["peak_gpu_gb"]) == (0.5, 17.0)
    assert receipt.usage["tokens_per_second"] > 0 and receipt.usage["peak_host_gb"] > 0
    assert receipt.seconds["load"] == 0.25 and receipt.fingerprint == "f" * 16
    failed = jobs.attempt("job", 2)
    failed.claim()
    left = failed.fail(Failure(kind="engine", message="why"), Telling())
    assert left.usage["peak_gpu_gb"] == 17.0 and left.fingerprint == "f" * 16


def test_the_device_is_not_busy_while_prompts_are_built(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*of: Any) -> list[int]:
        time.sleep(0.02)
        return build(*of)

    monkeypatch.setattr(evaluate, "build", slowly)
    attempt = jobs.attempt("job")
    attempt.claim()
    receipt = complete(attempt)
    assert receipt.seconds["generate"] < 0.04 and receipt.usage["gpu_idle"] > 0.5


def test_a_broken_engine_need_not_say_what_it_used(jobs: Jobs) -> None:
    class Broken(Engine):
        def usage(self) -> Mapping[str, float]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    attempt = jobs.attempt("job")
    attempt.claim()
    attempt.fail(Failure(kind="engine", message="why"), Broken())
    assert jobs.receipt().failure == Failure(kind="engine", message="why")


def test_an_interruption_takes_back_nothing(jobs: Jobs) -> None:
    attempt = jobs.attempt("job")
    attempt.claim()
    receipt = complete(attempt)
    told_to_end(attempt)
    assert jobs.receipt() == receipt
