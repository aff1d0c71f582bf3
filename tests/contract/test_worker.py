"""The node's program on run directories made by hand: `python -m l2s_hpc.task.worker RUN TASK`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.evaluation.grading import GRADER
from l2s_hpc.recipes.recipe import average, single_model
from l2s_hpc.records import CandidateTask, Evaluation, Item, Protocol, Receipt, Recipe, Task
from l2s_hpc.store.files import read_json, sha256_file, write_json
from l2s_hpc.store.layout import AttemptPaths, RunPaths
from l2s_hpc.store.run import RunInfo
from l2s_hpc.store.scores import OUTPUTS, read_table, verify_table
from l2s_hpc.task.scripted import _draw
from tests.helpers import ROOT, sums, toy_items, toy_models, toy_protocol

IDENTITIES = {name: model.identity for name, model in toy_models().items()}
HALF = average({"slow": 1, "fast": 1}, IDENTITIES)
SLOW, FAST = (single_model(name, IDENTITIES) for name in ("slow", "fast"))
MIXES = [average({"slow": n, "fast": 10 - n}, IDENTITIES) for n in range(1, 9)]
WORKER = ("-m", "l2s_hpc.task.worker")
NO_ENV: Mapping[str, str] = {}


def scripted(**changes: Any) -> Protocol:
    settings = {"engine": "scripted", "engine_settings": {}, "max_tokens": 1000}
    return toy_protocol(**settings | changes)


class Run:
    """A run directory with what a node reads of it, and nothing else."""

    def __init__(self, folder: Path, protocol: Protocol, items: Sequence[Item]) -> None:
        self.paths = RunPaths(folder)
        sources = {name: {"path": f"shipped:toy/{name}", "revision": None} for name in IDENTITIES}
        info = RunInfo(
            id="hand-0001",
            name="hand",
            created="2026-01-01T00:00:00+00:00",
            command="",
            versions={},
            git=None,
            config={},
            site={"models": {}},
            models=sources,
            identities=IDENTITIES,
            frozen={},
            liveness="",
            references={},
            science={},
        )
        write_json(self.paths.run_json, info.model_dump(mode="json"))
        self.evaluation = Evaluation(name="search", protocol=protocol, items=tuple(items))
        described = self.evaluation.model_dump(mode="json")
        write_json(self.paths.evaluation("search"), described)

    def task(self, key: str, *recipes: Recipe, attempt: int = 1, **settings: Any) -> str:
        candidates = tuple(
            CandidateTask(
                evaluation="search",
                generation=0,
                candidate=recipe.candidate,
                attempt=attempt,
                recipe=recipe,
            )
            for recipe in recipes
        )
        task = Task(key=key, candidates=candidates, **settings)
        write_json(self.paths.task(key), task.model_dump(mode="json"))
        return key

    def start(
        self,
        key: str,
        program: Sequence[str] = WORKER,
        env: Mapping[str, str] = NO_ENV,
        **more: Any,
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *program, str(self.paths.folder), key],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            **more,
        )

    def do(self, key: str, **options: Any) -> str:
        """Run a task to its end and return what it printed."""
        process = self.start(key, **options)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out

    def attempt(self, recipe: Recipe, attempt: int = 1) -> AttemptPaths:
        return self.paths.attempt("search", 0, recipe.candidate, attempt)

    def receipt(self, recipe: Recipe, attempt: int = 1) -> Receipt:
        return Receipt.model_validate(read_json(self.attempt(recipe, attempt).receipt))


def until(condition: Callable[[], bool], process: subprocess.Popen[str], pause: float) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(pause)


def test_the_real_engine_from_end_to_end(tmp_path: Path) -> None:
    items = toy_items(4)
    run = Run(tmp_path, toy_protocol(chunk_items=3, max_tokens=60), items)
    broken = single_model("slow", IDENTITIES).model_copy(
        update={"config": {**SLOW.config, "parameters": {"normalize": "maybe"}}}
    )
    assert run.do(run.task("t", FAST, broken, HALF)) == "done t\n"

    failure = run.receipt(broken).failure
    assert failure is not None
    assert (failure.kind, failure.trace) == ("merge", "")
    assert failure.message.startswith("MergeError: mergekit cannot merge model.embed_tokens.weight")
    tables = {}
    for recipe in (FAST, HALF):
        receipt = run.receipt(recipe)
        assert receipt.failure is None
        table = tables[recipe.candidate] = verify_table(run.attempt(recipe).scores, receipt)
        assert receipt.rows == table.num_rows == len(items)
        assert set(table["item"].to_pylist()) == {item.item for item in items}
        assert receipt.versions.keys() == {"torch", "transformers", "mergekit", "python"}
        assert receipt.seconds.keys() == {"start", "merge", "load", "generate", "grade", "write"}
        assert (receipt.device, receipt.grader) == ("cpu", GRADER)
        assert receipt.outputs_sha256 == sha256_file(run.attempt(recipe).outputs)
        truncated = [reason == "length" for reason in table["finish_reason"].to_pylist()]
        assert table["truncated"].to_pylist() == truncated
    easy = tables[FAST.candidate].to_pylist()[0]
    assert easy["benchmark"] == "toy_easy"
    assert (easy["correct"], easy["extracted"], easy["grade_status"]) == (True, items[0].gold, "ok")
    outputs = read_table(run.attempt(FAST).outputs, OUTPUTS).to_pylist()
    assert outputs[0]["text"] == f"\\boxed{{{items[0].gold}}}"


def test_scores_say_what_the_outputs_say(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(samples=2, chunk_items=4), sums(10))
    run.do(run.task("t", HALF))
    receipt = run.receipt(HALF)
    table = verify_table(run.attempt(HALF).scores, receipt).to_pylist()
    outputs = read_table(run.attempt(HALF).outputs, OUTPUTS).to_pylist()
    assert len(table) == len(outputs) == 20
    for row, output in zip(table, outputs, strict=True):
        assert [row[k] for k in ("item", "sample")] == [output[k] for k in ("item", "sample")]
        assert row["correct"] == (output["text"] == f"\\boxed{{{row['gold']}}}")
        assert row["protocol"] == run.evaluation.protocol.hash
    assert {row["correct"] for row in table} == {True, False}
    assert [row["sample"] for row in table[:4]] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("sent", "kind", "message"),
    [
        (signal.SIGTERM, "interrupted", "SIGTERM received"),
        (signal.SIGUSR2, "timeout", "SIGUSR2 received, the time limit is near"),
    ],
)
def test_a_signal_leaves_a_receipt(
    sent: signal.Signals, kind: str, message: str, tmp_path: Path
) -> None:
    run = Run(tmp_path, scripted(chunk_items=1), sums(300))
    process = run.start(run.task("t", HALF, SLOW))
    until(run.attempt(HALF).chunk(2).with_suffix(".json").exists, process, 0.001)
    process.send_signal(sent)
    process.send_signal(signal.SIGINT)  # not for it
    process.communicate(timeout=10)
    assert process.returncode == 143
    receipt = run.receipt(HALF)
    assert receipt.failure is not None and receipt.chunks >= 2
    assert (receipt.failure.kind, receipt.failure.message) == (kind, message)
    assert not run.attempt(HALF).scores.exists()
    assert not run.attempt(SLOW).folder.exists(), "whose turn had not come has not begun"


def test_an_exception_is_written_down_and_the_next_candidate_is_done(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(), sums(3))
    broken = HALF.model_copy(update={"config": {**HALF.config, "models": [{"model": "slow"}]}})
    assert run.do(run.task("t", broken, SLOW)) == "done t\n"
    failure = run.receipt(broken).failure
    assert failure is not None
    assert (failure.kind, failure.message) == ("other", "KeyError: 'parameters'")
    assert failure.trace.startswith("Traceback")
    assert failure.trace.rstrip().endswith("KeyError: 'parameters'")
    verify_table(run.attempt(SLOW).scores, run.receipt(SLOW))


def test_a_broken_engine_is_an_engine_failure_and_is_replaced(tmp_path: Path) -> None:
    protocol = scripted(engine_settings={"faults": {"engine": 0.5}})
    run = Run(tmp_path, protocol, sums(3))
    run.do(run.task("t", *MIXES))
    failures = [run.receipt(recipe).failure for recipe in MIXES]
    kinds = [failure.kind if failure else "" for failure in failures]
    assert set(kinds) == {"", "engine"}
    assert "" in kinds[kinds.index("engine") :]


def test_finished_chunks_survive_a_kill(tmp_path: Path) -> None:
    items, protocol = sums(150), scripted(chunk_items=1)
    run = Run(tmp_path / "killed", protocol, items)
    process = run.start(run.task("first", HALF))
    until(run.attempt(HALF).chunk(2).with_suffix(".json").exists, process, 0.001)
    process.kill()
    process.communicate(timeout=10)
    first = run.attempt(HALF, 1)
    assert not first.receipt.exists()
    before = _files(first.folder)
    sealed = [n for n in range(len(items)) if first.chunk(n).with_suffix(".json").exists()]
    assert sealed == list(range(len(sealed)))
    assert 3 <= len(sealed) < len(items)

    run.do(run.task("second", HALF, attempt=2))
    assert _files(first.folder) == before  # an attempt writes in its own folder alone
    again = [n for n in range(len(items)) if run.attempt(HALF, 2).chunk(n).exists()]
    assert again == list(range(len(sealed), len(items)))
    second = run.receipt(HALF, 2)
    verify_table(run.attempt(HALF, 2).scores, second)

    undisturbed = Run(tmp_path / "undisturbed", protocol, items)
    undisturbed.do(undisturbed.task("t", HALF))
    assert second.content_sha256 == undisturbed.receipt(HALF).content_sha256
    assert second.outputs_sha256 == undisturbed.receipt(HALF).outputs_sha256


def _files(folder: Path) -> Mapping[str, tuple[int, int, int]]:
    found = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (s.st_ino, s.st_mtime_ns, s.st_size) for name, s in found.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("finished"), scripted(chunk_items=2), sums(6))
    run.do(run.task("first", HALF))
    return run


@pytest.mark.parametrize("damage", ["flip", "cut", "exchanged", "unsealed", "other protocol"])
def test_a_damaged_chunk_is_generated_again(damage: str, finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.paths.folder, tmp_path, dirs_exist_ok=True)
    run = Run(tmp_path, scripted(chunk_items=2), sums(6))
    first = run.attempt(HALF, 1)
    chunk, seal = first.chunk(1), first.chunk(1).with_suffix(".json")
    content = bytearray(chunk.read_bytes())
    match damage:
        case "flip":
            content[len(content) // 2] ^= 8
            chunk.write_bytes(content)
        case "cut":
            chunk.write_bytes(content[:-9])
        case "exchanged":
            chunk.write_bytes(first.chunk(0).read_bytes())
        case "unsealed":
            seal.unlink()
        case "other protocol":
            write_json(seal, read_json(seal) | {"protocol": "0" * 16})
    run.do(run.task("second", HALF, attempt=2))
    made = [n for n in range(3) if run.attempt(HALF, 2).chunk(n).exists()]
    assert made == [1]
    assert run.receipt(HALF, 2).content_sha256 == run.receipt(HALF, 1).content_sha256


def test_a_finished_attempt_is_not_done_again(finished: Run) -> None:
    before = _files(finished.attempt(HALF).folder)
    finished.do("first")
    assert _files(finished.attempt(HALF).folder) == before


@pytest.mark.parametrize(
    ("of_run", "kind", "message"),
    [
        (("A100", "scripted 1"), "device", "none, and the run's scores are from A100"),
        (("", "scripted 2"), "version", "scripted 1, and the run's scores are from scripted 2"),
    ],
)
def test_a_node_that_is_not_the_run_s_says_so_before_it_generates(
    of_run: tuple[str, str], kind: str, message: str, tmp_path: Path
) -> None:
    run = Run(tmp_path, scripted(), sums(3))
    assert run.do(run.task("t", HALF, SLOW, FAST, device=of_run[0], engine=of_run[1])) == "done t\n"
    receipt = run.receipt(HALF)
    assert receipt.failure is not None and "load" not in receipt.seconds
    assert (receipt.failure.kind, receipt.failure.message) == (kind, f"this node has {message}")
    for other in (SLOW, FAST):
        assert not run.attempt(other).folder.exists(), "it is for another node"
    run.do(run.task("next", SLOW, device="none", engine="scripted 1"))
    verify_table(run.attempt(SLOW).scores, run.receipt(SLOW))


# Slurm starts a job again, and others have begun


AGAIN = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "4", "SLURM_RESTART_COUNT": "1"}


def test_a_job_that_slurm_starts_again_goes_on_with_its_attempts(
    finished: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path, scripted(chunk_items=2, engine_settings={"chunk_delay": 0.2}), sums(6))
    process = run.start(run.task("t", SLOW, HALF, FAST))
    until(run.attempt(HALF).chunk(0).with_suffix(".json").exists, process, 0.001)
    process.terminate()
    process.communicate(timeout=10)
    done, left = _files(run.attempt(SLOW).folder), _files(run.attempt(HALF).folder)
    assert run.receipt(HALF).failure is not None

    assert run.do("t", env=AGAIN) == "done t\n"
    assert _files(run.attempt(SLOW).folder) == done, "what was done is left alone"
    kept = [name for name in left if name.startswith("chunk")]
    now = _files(run.attempt(HALF).folder)
    assert kept and {name: now[name] for name in kept} == {name: left[name] for name in kept}
    for recipe in (SLOW, HALF, FAST):
        verify_table(run.attempt(recipe).scores, run.receipt(recipe))
    receipt = run.receipt(HALF)
    assert (receipt.job, receipt.restart, receipt.chunks) == ("77_4", 1, 3)


def test_the_old_incarnation_of_a_job_is_fenced_off_by_the_new_one(tmp_path: Path) -> None:
    """Slurm has forgotten the first one, and it runs on."""
    run = Run(tmp_path, scripted(chunk_items=1, engine_settings={"chunk_delay": 0.05}), sums(40))
    old = run.start(run.task("t", HALF))
    until(run.attempt(HALF).chunk(1).with_suffix(".json").exists, old, 0.001)
    new = run.start("t", env=AGAIN)
    _, said = old.communicate(timeout=60)
    assert old.returncode == 0 and "is another's now" in said
    new.communicate(timeout=60)
    receipt = run.receipt(HALF)
    assert new.returncode == 0 and receipt.restart == 1
    verify_table(run.attempt(HALF).scores, receipt)


def test_a_late_writer_leaves_nothing_once_the_next_attempt_has_begun(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(chunk_items=1, engine_settings={"chunk_delay": 0.05}), sums(40))
    late = run.start(run.task("late", HALF, SLOW))
    until(run.attempt(HALF).chunk(1).with_suffix(".json").exists, late, 0.001)
    run.do(run.task("next", HALF, attempt=2))
    late.communicate(timeout=60)
    assert late.returncode == 0
    assert not run.attempt(HALF, 1).receipt.exists() and not run.attempt(HALF, 1).scores.exists()
    verify_table(run.attempt(HALF, 2).scores, run.receipt(HALF, 2))


# A full disk


FULL = """
import errno, sys, threading
from l2s_hpc.store import files
from l2s_hpc.task import node, worker

sync, tries, (first, count) = files._fsync, 0, map(int, sys.argv[1:3])
whose = sys.argv[3]

def full(path):
    global tries
    if path.suffix == ".tmp" and whose in ("", threading.current_thread().name):
        tries += 1
        if first <= tries < first + count:
            raise OSError(errno.ENOSPC, "No space left on device")
    sync(path)

files._fsync = full
node._LOOK_AGAIN_SECONDS = 0.01
sys.exit(worker.main(sys.argv[4:]))
"""
"""The worker on a disk that is full for so many files from the n-th on, of one thread or of all."""

FOR_EVER = 10**6


def on_full_disk(first: int, count: int, thread: str = "") -> tuple[str, ...]:
    return ("-c", FULL, str(first), str(count), thread)


@pytest.mark.parametrize("first", [1, 8, 20])
def test_a_worker_without_room_for_a_receipt_says_so_by_its_exit_code(
    first: int, tmp_path: Path
) -> None:
    run = Run(tmp_path, scripted(chunk_items=1), sums(8))
    process = run.start(run.task("t", HALF, SLOW), on_full_disk(first, FOR_EVER))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "no room for a receipt" in said and "Traceback" not in said
    assert not run.attempt(HALF).receipt.exists() and not run.attempt(SLOW).receipt.exists()


@pytest.mark.parametrize(
    ("what", "first"), [("claim", 1), ("chunk", 2), ("seal", 3), ("scores", 7), ("receipt", 8)]
)
def test_room_is_waited_for_at_every_write(what: str, first: int, tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(chunk_items=2), sums(4))
    run.task("t", HALF, disk_seconds=30)
    process = run.start("t", on_full_disk(first, 3))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and said.count("no room, waiting") >= 3
    verify_table(run.attempt(HALF).scores, run.receipt(HALF))


@pytest.mark.parametrize("first", [3, 7, 8], ids=["a chunk", "the last chunk", "its seal"])
def test_a_full_disk_is_nobodys_fault(first: int, tmp_path: Path) -> None:
    """There is no room for a chunk, and then for the receipt there is."""
    run = Run(tmp_path, scripted(chunk_items=1), sums(4))
    run.do(run.task("t", HALF, SLOW), program=on_full_disk(first, 1, "writer"))
    failure = run.receipt(HALF).failure
    assert failure is not None and failure.kind == "interrupted"
    assert failure.message.startswith("no room: ")
    verify_table(run.attempt(SLOW).scores, run.receipt(SLOW))


SLOW_DISK = """
import sys, threading, time
from l2s_hpc.store import files
from l2s_hpc.task import worker

sync = files._fsync

def slow(path):
    if threading.current_thread().name == "writer":
        time.sleep(0.3)
    sync(path)

files._fsync = slow
sys.exit(worker.main(sys.argv[1:]))
"""
"""The worker on a disk that takes its time for chunks."""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_lets_a_chunk_come_to_the_disk(sent: signal.Signals, tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(chunk_items=1, engine_settings={"chunk_delay": 0.5}), sums(4))
    process = run.start(run.task("t", HALF), ("-c", SLOW_DISK))
    written = run.attempt(HALF).chunk(0)
    until(written.exists, process, 0.001)
    assert not written.with_suffix(".json").exists()
    process.send_signal(sent)
    process.communicate(timeout=10)
    assert process.returncode == 143 and run.receipt(HALF).chunks == 1
    assert not list(written.parent.glob(".*.tmp"))


# Several workers of one task


def test_two_workers_share_the_candidates_of_a_task(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(engine_settings={"chunk_delay": 0.3}), sums(3))
    assert run.do(run.task("t", *MIXES, workers=2)) == "done t\ndone t\n"
    workers = set()
    for recipe in MIXES:
        verify_table(run.attempt(recipe).scores, run.receipt(recipe))
        (claim,) = run.attempt(recipe).owners()
        workers.add(read_json(claim)["pid"])
    assert len(workers) == 2


def test_a_worker_that_dies_takes_one_candidate_with_it(tmp_path: Path) -> None:
    settings = {"faults": {"kill": 0.3}, "chunk_delay": 0.1, "once": str(tmp_path / "once")}
    run = Run(tmp_path / "run", scripted(engine_settings=settings), sums(3))
    victims = [r for r in MIXES if _draw(b"kill", r.candidate.encode()) < 0.3][:1]
    others = [r for r in MIXES if _draw(b"kill", r.candidate.encode()) >= 0.3][:4]
    assert len(victims) == 1 and len(others) == 4
    process = run.start(run.task("t", *victims, *others, workers=2))
    process.communicate(timeout=60)
    assert process.returncode == 128 + 9
    assert run.attempt(victims[0]).owners() and not run.attempt(victims[0]).receipt.exists()
    for recipe in others:
        verify_table(run.attempt(recipe).scores, run.receipt(recipe))


def test_a_signal_interrupts_every_worker_of_a_task(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(chunk_items=1, engine_settings={"chunk_delay": 0.05}), sums(300))
    first, second, third = MIXES[:3]
    process = run.start(run.task("t", first, second, third, workers=2))
    for recipe in (first, second):
        until(run.attempt(recipe).chunk(1).with_suffix(".json").exists, process, 0.001)
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=30)
    assert process.returncode == 143
    for recipe in (first, second):
        failure = run.receipt(recipe).failure
        assert failure is not None and failure.kind == "timeout"
    assert not run.attempt(third).folder.exists()
    run.do("t", env={**AGAIN, "L2S_SCRIPTED": '{"chunk_delay": 0}'})
    for recipe in (first, second, third):
        verify_table(run.attempt(recipe).scores, run.receipt(recipe))


# A worker of this machine


def test_keys_from_standard_input(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(), sums(3))
    run.task("a", HALF)
    run.task("b", SLOW, FAST)
    process = run.start("-", stdin=subprocess.PIPE)
    out, err = process.communicate("a\nb\n", timeout=60)
    assert (process.returncode, out) == (0, "done a\ndone b\n"), err
    for recipe in (HALF, SLOW, FAST):
        verify_table(run.attempt(recipe).scores, run.receipt(recipe))


# Grading in the background


SLOW_GRADER = """
import sys, time
from l2s_hpc.evaluation.grading import Grader
from l2s_hpc.task import progress, worker

grade, seconds = Grader.grade, float(sys.argv[1])

def slowly(self, outputs, items):
    time.sleep(seconds)
    return grade(self, outputs, items)

Grader.grade = slowly
progress._SECONDS = 0.0
worker._LAST_SECONDS = float(sys.argv[2])
sys.exit(worker.main(sys.argv[3:]))
"""
"""The worker with a grader that needs so many seconds, and so many to end in."""


def slow_grader(seconds: float, last: float = 8.0) -> tuple[str, ...]:
    return ("-c", SLOW_GRADER, str(seconds), str(last))


def begun(run: Run, recipe: Recipe) -> Callable[[], bool]:
    return lambda: bool(run.attempt(recipe).owners())


def when(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_candidate_generates_while_the_one_before_is_graded(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(engine_settings={"chunk_delay": 1.0}), sums(3))
    mixes = MIXES[:3]
    run.do(run.task("t", *mixes), program=slow_grader(0.9))
    receipts = [run.receipt(recipe) for recipe in mixes]
    for recipe, receipt in zip(mixes, receipts, strict=True):
        verify_table(run.attempt(recipe).scores, receipt)
        assert receipt.seconds["grade"] >= 0.9 and receipt.seconds["generate"] >= 1.0
    for before, after in pairwise(receipts):
        assert when(after.started) < when(before.ended) - 0.4, "it has begun during the grading"
        assert when(after.ended) > when(before.ended), "they end in order"
    assert receipts[1].usage["gpu_idle"] < 0.4, "the device did not wait for the grader"
    assert receipts[2].usage["gpu_idle"] > 0.4, "but of the last one it did"
    lasted = when(receipts[-1].ended) - when(receipts[0].started)
    worked = sum(sum(receipt.seconds.values()) for receipt in receipts)
    assert lasted < worked - 0.9, "two of three gradings cost no time"


def test_no_second_of_a_device_counts_twice(tmp_path: Path) -> None:
    """Four candidates, of which one fails; each is graded beside the next, the last one alone."""
    run = Run(tmp_path, scripted(chunk_items=2, engine_settings={"chunk_delay": 0.2}), sums(4))
    broken = HALF.model_copy(update={"config": {**HALF.config, "models": [{"model": "slow"}]}})
    recipes = (MIXES[0], MIXES[1], broken, MIXES[2], MIXES[3])
    run.do(run.task("t", *recipes), program=slow_grader(0.7))
    receipts = [run.receipt(recipe) for recipe in recipes]
    whole = when(receipts[-1].ended) - when(receipts[0].started)
    assert whole - 0.2 < sum(receipt.lasted for receipt in receipts) < whole + 0.01
    assert sum(when(r.ended) - when(r.started) for r in receipts) > whole + 1.0, "they overlap"
    assert receipts[-1].lasted > 0.4 + 0.7, "its grading is the task's time too"


def test_a_slow_grader_is_waited_for_and_the_receipt_says_so(tmp_path: Path) -> None:
    """At most one candidate is being finished, so that outputs do not pile up."""
    run = Run(tmp_path, scripted(engine_settings={"chunk_delay": 0.1}), sums(3))
    mixes = MIXES[:4]
    run.do(run.task("t", *mixes), program=slow_grader(0.7))
    receipts = [run.receipt(recipe) for recipe in mixes]
    for before, after in zip(receipts, receipts[2:], strict=False):
        assert when(after.started) > when(before.ended) - 0.1
    assert receipts[-1].usage["gpu_idle"] > 0.6


def test_a_failure_of_one_does_not_spoil_the_others(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(), sums(3))
    broken = HALF.model_copy(update={"config": {**HALF.config, "models": [{"model": "slow"}]}})
    run.do(run.task("t", SLOW, broken, FAST), program=slow_grader(0.4))
    failed = run.receipt(broken)
    assert failed.failure is not None and failed.failure.kind == "other"
    assert failed.ended >= run.receipt(SLOW).ended, "receipts come in the order of the candidates"
    for recipe in (SLOW, FAST):
        verify_table(run.attempt(recipe).scores, run.receipt(recipe))


def test_a_grader_that_does_not_start_fails_its_candidate(tmp_path: Path) -> None:
    items = tuple(i.model_copy(update={"gold": "x+1"}) for i in sums(1))
    run = Run(tmp_path, scripted(), items)
    (tmp_path / "sympy.py").write_text("raise ImportError('away')", encoding="utf-8")
    run.do(run.task("t", SLOW), env={"PYTHONPATH": f"{ROOT}:{tmp_path}"})
    failure = run.receipt(SLOW).failure
    assert failure is not None and "the grader cannot start" in failure.message


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_lets_the_graded_one_end_and_interrupts_the_running_one(
    sent: signal.Signals, tmp_path: Path
) -> None:
    run = Run(tmp_path, scripted(chunk_items=1, engine_settings={"chunk_delay": 0.1}), sums(20))
    run.task("t", SLOW, HALF, FAST)
    process = run.start("t", slow_grader(1.0))
    until(run.attempt(HALF).chunk(1).with_suffix(".json").exists, process, 0.001)
    assert not run.attempt(SLOW).receipt.exists(), "it is being graded"
    process.send_signal(sent)
    process.communicate(timeout=10)
    assert process.returncode == 143
    verify_table(run.attempt(SLOW).scores, run.receipt(SLOW))
    failure = run.receipt(HALF).failure
    assert failure is not None and failure.unfinished and run.receipt(HALF).chunks >= 1
    assert not run.attempt(FAST).folder.exists()
    run.do("t", env=AGAIN)
    for recipe in (SLOW, HALF, FAST):
        verify_table(run.attempt(recipe).scores, run.receipt(recipe))


def test_a_signal_when_all_is_generated_lets_the_last_grading_end(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(), sums(3))
    run.task("t", SLOW)
    process = run.start("t", slow_grader(1.0))
    until(run.attempt(SLOW).chunk(0).with_suffix(".json").exists, process, 0.001)
    time.sleep(0.2)
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 143
    verify_table(run.attempt(SLOW).scores, run.receipt(SLOW))


def test_a_grading_that_takes_too_long_is_left_to_the_next_incarnation(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(), sums(3))
    run.task("t", SLOW, HALF)
    process = run.start("t", slow_grader(60, last=0.5), env={"L2S_SCRIPTED": '{"delay": 0.3}'})
    until(run.attempt(HALF).chunk(0).with_suffix(".json").exists, process, 0.001)
    time.sleep(0.3)
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 143
    for recipe in (SLOW, HALF):
        failure = run.receipt(recipe).failure
        assert failure is not None and failure.kind == "interrupted"
        assert run.receipt(recipe).chunks == 1
    kept = _files(run.attempt(SLOW).folder)["chunk-0000.parquet"]
    run.do("t", env=AGAIN)
    assert _files(run.attempt(SLOW).folder)["chunk-0000.parquet"] == kept
    for recipe in (SLOW, HALF):
        verify_table(run.attempt(recipe).scores, run.receipt(recipe))


def test_a_kill_between_two_candidates_leaves_both_to_be_gone_on_with(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(chunk_items=1, engine_settings={"chunk_delay": 0.1}), sums(10))
    run.task("t", SLOW, HALF)
    process = run.start("t", slow_grader(30))
    until(run.attempt(HALF).chunk(1).with_suffix(".json").exists, process, 0.001)
    process.kill()
    process.communicate(timeout=10)
    claims = [read_json(run.attempt(recipe).owners()[-1]) for recipe in (SLOW, HALF)]
    assert claims[0] == claims[1], "the controller sees that one worker had begun both"
    run.do("t", env=AGAIN)
    for recipe, chunks in ((SLOW, 10), (HALF, 10)):
        assert run.receipt(recipe).chunks == chunks
        verify_table(run.attempt(recipe).scores, run.receipt(recipe))
    assert run.receipt(SLOW).seconds.keys() == {"start", "grade", "write"}, "all was generated"


def test_who_is_fenced_off_in_the_background_ends_the_task(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(chunk_items=1, engine_settings={"chunk_delay": 0.05}), sums(60))
    run.task("t", SLOW, HALF, FAST)
    process = run.start("t", slow_grader(0.7))
    until(begun(run, HALF), process, 0.001)
    run.attempt(SLOW, 2).folder.mkdir(parents=True)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0 and "is another's now" in said
    assert not run.attempt(SLOW).receipt.exists() and not run.attempt(SLOW).scores.exists()
    failure = run.receipt(HALF).failure
    assert failure is not None and failure.kind == "interrupted"
    assert failure.message.startswith("its task ended: attempt 1 of")
    assert not run.attempt(FAST).folder.exists()


FULL_IN_BACKGROUND = """
import errno, sys, threading
from l2s_hpc.store import files
from l2s_hpc.task import worker

sync = files._fsync

def full(path):
    if threading.current_thread().name == "background":
        raise OSError(errno.ENOSPC, "No space left on device")
    sync(path)

files._fsync = full
sys.exit(worker.main(sys.argv[1:]))
"""
"""The disk is full for what is written in the background alone."""


def test_no_room_in_the_background_ends_the_task(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(chunk_items=1, engine_settings={"chunk_delay": 0.1}), sums(20))
    process = run.start(run.task("t", SLOW, HALF, FAST), ("-c", FULL_IN_BACKGROUND))
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75 and "no room for a receipt" in said
    assert not run.attempt(SLOW).receipt.exists() and not run.attempt(FAST).folder.exists()
    failure = run.receipt(HALF).failure
    assert failure is not None and failure.kind == "interrupted"
    assert failure.message.startswith("its task ended: [Errno 28] No space left")
    assert run.receipt(HALF).chunks < 20, "it is told at once"


def test_who_is_told_to_end_does_not_wait_for_room_in_the_background(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(chunk_items=1, engine_settings={"chunk_delay": 0.1}), sums(90))
    run.task("t", SLOW, HALF, disk_seconds=300)
    process = run.start("t", ("-c", FULL_IN_BACKGROUND))
    until(begun(run, HALF), process, 0.001)
    time.sleep(0.5)
    process.terminate()
    start = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75 and "no room, waiting" in said
    assert time.monotonic() - start < 5
    failure = run.receipt(HALF).failure
    assert failure is not None and failure.message == "SIGTERM received"


FAILS_ON_FULL_DISK = """
import errno, sys
from l2s_hpc.store import files
from l2s_hpc.task import worker
from l2s_hpc.task.engines import EngineError
from l2s_hpc.task.scripted import ScriptedEngine

sync, generate, calls, synced = files._fsync, ScriptedEngine.generate, [], []

def full(path):
    synced.append(path.suffix)
    if synced.count(".tmp") > 1:  # the first one is the claim
        raise OSError(errno.ENOSPC, "No space left on device")
    sync(path)

def fails(*given):
    calls.append(1)
    if len(calls) == 2:
        print("it fails", file=sys.stderr, flush=True)
        raise EngineError("the second chunk fails")
    return generate(*given)

files._fsync, ScriptedEngine.generate = full, fails
sys.exit(worker.main(sys.argv[1:]))
"""
"""The first chunk waits for room, and the engine fails at the second one."""


def test_who_is_told_to_end_does_not_wait_for_room_for_a_failure(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(chunk_items=1), sums(4))
    run.task("t", HALF, disk_seconds=300)
    process = run.start("t", ("-c", FAILS_ON_FULL_DISK))
    assert process.stderr is not None
    while "it fails" not in (line := process.stderr.readline()):
        assert line
    time.sleep(0.5)
    process.terminate()
    start = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and "no room for a receipt" in said
    assert time.monotonic() - start < 5


# A broken engine that spoils its process


def test_a_worker_whose_engine_spoilt_the_process_goes_on_in_a_new_one(tmp_path: Path) -> None:
    settings = {"faults": {"engine": 0.5}, "new_process": True}
    run = Run(tmp_path, scripted(engine_settings=settings), sums(3))
    broken = [r for r in MIXES if _draw(b"engine", r.candidate.encode()) < 0.5][:3]
    sound = [r for r in MIXES if r not in broken][:2]
    recipes = [sound[0], *broken, sound[1]]
    process = run.start(run.task("t", *recipes))
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "done t\n"), said
    assert said.count("goes on in a new process") == 3
    for recipe in sound:
        verify_table(run.attempt(recipe).scores, run.receipt(recipe))
    for recipe in broken:
        failure = run.receipt(recipe).failure
        assert failure is not None and "scripted engine failure" in failure.message
    claims = [read_json(path) for r in recipes for path in run.attempt(r).owners()]
    assert len(claims) == 5 and all(claim == claims[0] for claim in claims)


def test_a_worker_whose_engine_breaks_again_and_again_gives_up(tmp_path: Path) -> None:
    settings = {"faults": {"engine": 1.0}, "new_process": True}
    run = Run(tmp_path, scripted(engine_settings=settings), sums(3))
    process = run.start(run.task("t", *MIXES[:6]))
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "the engine broke 4 times in task t" in said and "Traceback" not in said
    assert [run.attempt(recipe).receipt.exists() for recipe in MIXES[:6]] == [True] * 4 + [
        False
    ] * 2


def test_a_new_process_loses_no_key_of_standard_input(tmp_path: Path) -> None:
    once = tmp_path / "once"
    settings = {"faults": {"engine": 1.0}, "new_process": True, "once": str(once)}
    run = Run(tmp_path / "run", scripted(engine_settings=settings), sums(3))
    run.task("a", HALF, SLOW)
    run.task("b", FAST)
    run.task("c", *MIXES[:2])
    process = run.start("-", stdin=subprocess.PIPE)
    out, said = process.communicate("a\nb\nc\n", timeout=60)
    assert (process.returncode, out) == (0, "done a\ndone b\ndone c\n"), said
    assert said.count("goes on in a new process") == 5, "each candidate fails once"


# What is used, and how far it is


def test_a_receipt_says_what_was_used(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(chunk_items=2, engine_settings={"chunk_delay": 0.2}), sums(4))
    run.do(run.task("t", HALF))
    usage = run.receipt(HALF).usage
    assert usage.keys() == {"tokens_per_second", "gpu_idle", "peak_host_gb"}
    tokens = sum(read_table(run.attempt(HALF).scores)["n_output_tokens"].to_pylist())
    seconds = run.receipt(HALF).seconds["generate"]
    assert usage["tokens_per_second"] == pytest.approx(tokens / seconds, rel=0.01)
    assert 0.02 < usage["peak_host_gb"] < 4
    assert 0.01 < usage["gpu_idle"] < 1, "the engine's start counts"


def test_a_running_task_says_how_far_it_is_and_leaves_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(chunk_items=5, engine_settings={"chunk_delay": 0.3}), sums(10))
    path = run.paths.progress(run.task("t", SLOW, HALF))
    process = run.start("t", slow_grader(0.0))
    seen: list[dict[str, Any]] = []
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            seen.append(read_json(path))
        time.sleep(0.01)
    process.communicate(timeout=10)
    assert process.returncode == 0 and not path.exists()
    assert sorted(p.name for p in path.parent.iterdir()) == ["t.json"]
    first, last = seen[0], seen[-1]
    assert (first["candidate"], first["candidates_done"], first["items_done"]) == (
        SLOW.candidate,
        0,
        0,
    )
    assert first["expected_end"] is None and first["tokens"] == 0
    assert (last["candidate"], last["candidates_done"], last["candidates"]) == (
        HALF.candidate,
        1,
        2,
    )
    assert (last["items"], last["task"]) == (10, "t") and last["tokens"] > 0
    half = next(s for s in seen if s["candidates_done"] == 1 and s["items_done"] == 5)
    left = when(half["expected_end"]) - when(half["updated"])
    assert -1.0 <= left <= 1.5 and half["tokens_per_second"] > 10


def test_a_task_on_a_full_disk_needs_no_progress(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(), sums(3))
    run.paths.progress(run.task("t", HALF)).mkdir(parents=True)
    run.do("t")
    verify_table(run.attempt(HALF).scores, run.receipt(HALF))
