"""`l2s evaluate` without an engine: its protocol, its items, its models, and what is decided."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from l2s_hpc.cli.main import app
from l2s_hpc.cluster.detach import ControllerJob, ControllerJobs
from l2s_hpc.config import SiteConfig
from l2s_hpc.controller.actions import Complete, Submit
from l2s_hpc.controller.checkpoints import checkpoints, located
from l2s_hpc.controller.decide import decide, finished
from l2s_hpc.controller.evaluate import protocol_of
from l2s_hpc.controller.status import _evaluation_under_way
from l2s_hpc.errors import IncompleteError, UserError
from l2s_hpc.evaluation.benchmarks import load_all
from l2s_hpc.evaluation.whole import all_items
from l2s_hpc.recipes.recipe import average
from l2s_hpc.records import CandidateTask, Protocol
from l2s_hpc.store.state import RunState
from tests.helpers import TOY, toy_protocol
from tests.unit.events import NOTHING, POLICY, Event, again, closed, evaluated, state_of

SITE = SiteConfig(name="s", executor="local")
COMPLETED: Event = {"event": "completed"}


# The protocol


def test_presets_and_what_changes_them() -> None:
    report, search = protocol_of("report", {}), protocol_of("search", {})
    assert (report.temperature, report.top_p, report.max_tokens, report.samples) == (
        0.6,
        0.95,
        32_768,
        16,
    )
    assert (search.temperature, search.max_tokens, search.samples) == (0, 10_240, 1)
    assert (report.chunk_items, search.chunk_items) == (64, 1024)
    changed = protocol_of("report", {"samples": 2000, "prompt": "chat"})
    assert (changed.samples, changed.seed, changed.prompt, changed.chunk_items) == (
        2000,
        0,
        "chat",
        1,
    )
    assert protocol_of("search", {"chunk_items": 7}).chunk_items == 7


@pytest.mark.parametrize(
    ("preset", "changes", "said"),
    [
        ("serch", {}, "no protocol 'serch'"),
        ("search", {"samples": 2}, "2 samples at temperature 0"),
        ("report", {"top_p": 2}, "'top_p': input should be less than or equal to 1"),
    ],
)
def test_wrong_protocols(preset: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        protocol_of(preset, changes)


def test_a_protocol_without_tokenizer_leaves_models_alone() -> None:
    recipe = average({"mine": 1.0}, {"mine": "x"})
    assert toy_protocol().alone(recipe) == ""
    assert toy_protocol(tokenizer="").alone(recipe) == "mine"
    assert Protocol.hash.fget(toy_protocol(tokenizer="")) != toy_protocol().hash  # type: ignore


# Items


def test_all_items_are_there_in_the_order_of_a_draw() -> None:
    benchmarks = load_all(["toy_easy", "toy_hard"], {})
    items = all_items(benchmarks, seed=3)
    for name in ("toy_easy", "toy_hard"):
        there = {problem.item.item for problem in benchmarks[name].problems}
        assert {item.item for item in items if item.benchmark == name} == there
    assert items != all_items(benchmarks, seed=4)
    few = all_items(benchmarks, seed=3, most=5)
    assert few[:5] == items[:5] and [item.benchmark for item in few[5:]] == ["toy_hard"] * 5


def test_copies_of_a_question_stand_together_and_count_once(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    rows = [{"question": f"{n % 4}?", "answer": str(n % 4)} for n in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    items = all_items(load_all(["own"], {"own": str(file)}), most=2)
    assert len(items) == 4 and items[0].question == items[1].question
    assert items[1].item == f"{items[0].item}-2"


# Models


def test_models_are_named_by_their_folders(tmp_path: Path) -> None:
    folder = shutil.copytree(TOY / "slow", tmp_path / "R1-Distill 1.5B")
    words = [str(folder), "shipped:toy/fast", f"mine={TOY / 'base'}"]
    models = located(words, SITE)
    assert list(models) == ["R1_Distill_1_5B", "fast", "mine"]
    found = checkpoints(words, models, ["fast"], tmp_path)
    assert [(m.number, m.label) for m in found] == [
        (0, "R1_Distill_1_5B"),
        (1, "parent.fast"),
        (2, "mine"),
    ]
    assert found[0].source["path"] == str(folder) and 454 in found[0].stop_ids
    assert all(len(m.recipe.config["models"]) == 1 for m in found)


def test_a_folder_whose_name_has_an_equals_sign(tmp_path: Path) -> None:
    folder = shutil.copytree(TOY / "slow", tmp_path / "lr=0.1")
    assert list(located([str(folder)], SITE)) == ["lr_0_1"]


# What is decided

ONLY = replace(POLICY, only=("mine", ("a", "b")))


def test_a_complete_run_goes_on_with_models_that_it_has_got_since() -> None:
    events = [*evaluated("mine", "a"), closed("of-mine"), COMPLETED]
    state = state_of(*events)
    assert not finished(state, ONLY)
    assert decide(state, NOTHING, ONLY) == [Submit("mine", (("b", 0, 1),))]
    both = [*evaluated("mine", "a", "b"), closed("of-mine")]
    assert decide(state_of(*both), NOTHING, ONLY) == [Complete()]
    assert finished(state_of(*both, COMPLETED), ONLY)


def test_another_evaluation_makes_a_run_incomplete() -> None:
    stage = {"event": "stage", "evaluation": "mine", "candidates": ["a"]}
    assert not state_of(COMPLETED, stage).completed


def test_what_was_given_up_is_tried_anew_when_a_user_asks() -> None:
    given_up = {"event": "penalised", "evaluation": "search", "candidate": "a", "reason": "r"}
    stage: Event = {"event": "stage", "evaluation": "search", "candidates": ["a"]}
    only = replace(POLICY, only=("search", ("a",)))
    events = [*again("a", 1), closed("a1"), *again("a", 2), closed("a2"), given_up, stage]

    def state(*more: Event) -> RunState:
        return state_of(*events, *more)

    assert state().settled("search", "a") and decide(state(), NOTHING, only) == [Complete()]
    asked = state({**stage, "again": ["a"]})
    assert not asked.settled("search", "a")
    assert decide(asked, NOTHING, only) == [Submit("search", (("a", 0, 3),))]


def test_status_tells_which_evaluation_is_under_way() -> None:
    first: Event = {"event": "stage", "evaluation": "one", "candidates": ["a"]}
    second: Event = {"event": "stage", "evaluation": "two", "candidates": ["a", "b"]}
    state = state_of(first, *evaluated("one", "a"), second)
    assert _evaluation_under_way(state) == ("two", ["a", "b"])


# The controller as a Slurm job


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that take every job and know of none, and a site for them."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol"):
        text = "echo 77" if name == "sbatch" else "true"
        (commands / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    site = 'name = "s"\nexecutor = "slurm"\nengine = "scripted"\nworkers_per_task = 2\n'
    (tmp_path / "site.toml").write_text(site, encoding="utf-8")
    return tmp_path


def detach(monkeypatch: pytest.MonkeyPatch, *more: str) -> Result:
    words = ["evaluate", "shipped:toy/slow", "--benchmarks", "toy_easy", "--run", "run"]
    words += ["--site", "site.toml", "--detach", "--json", *more]
    monkeypatch.setattr(sys, "argv", ["l2s", *words])
    return CliRunner().invoke(app, words)


def test_detach_submits_the_same_command(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = detach(monkeypatch, "--resubmit-cancelled")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"run": "run", "job": "77", "log": "run/logs/controller.log"}
    script = (slurm / "run" / "controller.sbatch").read_text(encoding="utf-8")
    assert script.splitlines()[-1].endswith(
        'evaluate shipped:toy/slow --benchmarks toy_easy --run run --site site.toml "$@"'
    )


def test_a_run_has_one_controller(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert detach(monkeypatch).exit_code == 0
    there = [ControllerJob("76", "running", "n1")]
    monkeypatch.setattr(ControllerJobs, "standing", lambda jobs: there)
    done = detach(monkeypatch)
    assert done.exit_code == 0 and json.loads(done.stdout)["job"] == "76"
    other = detach(monkeypatch, "--name", "other").exception
    assert isinstance(other, IncompleteError)
    assert "job 76 is a controller of this run, with another command" in str(other)
    assert not (slurm / "run" / "evaluations" / "other.json").exists()


def test_a_task_has_a_model_for_each_of_its_workers(tmp_path: Path) -> None:
    from l2s_hpc.controller.evaluate import _one_model_each
    from l2s_hpc.controller.submission import make_tasks

    site = SiteConfig(name="s", executor="slurm", workers_per_task=2, candidates_per_task=8)
    recipe = average({"mine": 1.0}, {"mine": "x"})
    action = Submit("mine", tuple((f"{n}", 0, 1) for n in range(5)))
    tasks = make_tasks(action, "l2s-x-000003", _one_model_each(site), lambda candidate: recipe)
    assert [len(task.candidates) for task in tasks] == [2, 2, 1]
    assert all(isinstance(c, CandidateTask) for task in tasks for c in task.candidates)


# The worker


def test_a_change_of_model_is_no_fault_of_the_engine(tmp_path: Path) -> None:
    """A process that begins anew for five models, and then for an engine that breaks."""
    script = """
import sys
from pathlib import Path
from l2s_hpc.task.renewal import begin_anew
turns = Path(sys.argv[1])
turn = len(turns.read_text()) if turns.exists() else 0
turns.write_text("." * (turn + 1))
begin_anew("t", *["another model"][turn // 5:])
print("gave up in turn", turn)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "turns")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "gave up in turn 8\n"
    assert done.stderr.count("another model: task t goes on in a new process") == 5
    assert done.stderr.count("the engine broke: task t goes on in a new process") == 3
    assert "the engine broke 4 times in task t" in done.stderr
