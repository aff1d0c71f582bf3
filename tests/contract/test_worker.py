"""The node's program on run directories made by hand: `python -m l2s_hpc.task.worker RUN TASK`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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
from tests.helpers import ROOT, toy_items, toy_models, toy_protocol

IDENTITIES = {name: model.identity for name, model in toy_models().items()}
HALF = average({"slow": 1, "fast": 1}, IDENTITIES)
SLOW, FAST = (single_model(name, IDENTITIES) for name in ("slow", "fast"))


def sums(count: int) -> tuple[Item, ...]:
    """Items whose question ends in the answer, as the scripted engine likes it."""
    return tuple(
        Item(
            benchmark="sums",
            item=f"{n:016x}",
            question=f"{n}+{n}={2 * n}",
            gold=str(2 * n),
            question_hash=f"{n:016x}",
        )
        for n in range(count)
    )


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

    def task(self, key: str, *recipes: Recipe, attempt: int = 1) -> str:
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
        task = Task(key=key, candidates=candidates)
        write_json(self.paths.task(key), task.model_dump(mode="json"))
        return key

    def start(self, key: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "l2s_hpc.task.worker", str(self.paths.folder), key],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            **options,
        )

    def do(self, key: str) -> str:
        """Run a task to its end and return what it printed."""
        process = self.start(key)
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


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_leaves_a_receipt(sent: signal.Signals, tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(chunk_items=1), sums(300))
    process = run.start(run.task("t", HALF, SLOW))
    until(run.attempt(HALF).chunk(1).with_suffix(".json").exists, process, 0.001)
    process.send_signal(sent)
    process.send_signal(signal.SIGINT)  # not for it
    process.communicate(timeout=10)
    assert process.returncode == 143
    failure = run.receipt(HALF).failure
    assert failure is not None
    assert (failure.kind, failure.message) == ("interrupted", f"{sent.name} received")
    assert not run.attempt(HALF).scores.exists()
    assert not run.attempt(SLOW).receipt.exists()


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
    recipes = [average({"slow": n, "fast": 10 - n}, IDENTITIES) for n in range(1, 9)]
    run.do(run.task("t", *recipes))
    failures = [run.receipt(recipe).failure for recipe in recipes]
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


def test_keys_from_standard_input(tmp_path: Path) -> None:
    run = Run(tmp_path, scripted(), sums(3))
    run.task("a", HALF)
    run.task("b", SLOW, FAST)
    process = run.start("-", stdin=subprocess.PIPE)
    out, err = process.communicate("a\nb\n", timeout=60)
    assert (process.returncode, out) == (0, "done a\ndone b\n"), err
    for recipe in (HALF, SLOW, FAST):
        verify_table(run.attempt(recipe).scores, run.receipt(recipe))
