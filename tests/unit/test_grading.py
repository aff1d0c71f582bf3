"""Grading: the quick rungs, what is remembered, and processes that cannot hang or be outlived."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.errors import L2SError, UserError
from l2s_hpc.evaluation.grading import GRADER, Decision, Grader, pool
from l2s_hpc.evaluation.grading.child import MEMORY
from l2s_hpc.records import Verdict

ROOT = Path(__file__).parents[2]
TOWER = "9^{9^{9^{9}}}"
ENDLESS = r"\sum_{k=1}^{9999} \sum_{j=1}^{9999} \sin(k j)"


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1) as shared:
        yield shared


def pids(grader: Grader) -> list[int]:
    return [child.process.pid for child in grader._pool.children]


def runs(pid: int) -> bool:
    """Whether a process does anything any more; one that nobody reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("5", "5"),
        ("5.", "5"),
        ("$5$", "5"),
        ("5.00", "5"),
        ("004", "4"),
        ("−3", "-3"),
        ("1,234,567", "1234567"),
        (r"1\,234.5", "1234.5"),
        ("32,\\! 349", "32349"),
        ("14{,}916", "14916"),
        ("5\u00a0000", "5000"),
        (".5", "1/2"),
        (r"\dfrac{3}{4}", "0.75"),
        (r"-\frac12", "-0.5"),
        (r"\frac{-1}{2}", r"-\frac{1}{2}"),
        ("-1./3", r"-\frac{1}{3}"),
        ("100000000000", "1e11"),
        (r"1.5 \times 10^{-19}", "1.5e-19"),
        ("0.333333333333333", r"\frac{1}{3}"),
        (str(7**4000), str(7**4000)),
        (r"\text{Evelyn}", "Evelyn"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (TOWER, TOWER),
    ],
)
def test_strings_and_numbers_are_decided_without_a_child(answer: str, gold: str) -> None:
    with Grader() as own:
        assert own.judge(answer, gold) == Verdict(True, answer, "ok")
        assert own._pool.children == []


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("6", "5"),
        ("1 1/2", "11/2"),
        ("0.33", "1/3"),
        ("3e-9", "4e-9"),
        ("10000000000000001", "10000000000000000"),
        (str(7**4000), str(7**4000 + 1)),
        ("1, 234", "1234"),
        ("2, 300", "2300"),
        ("pi c", "pic"),
        ("5.", "-5"),
        ("~", "."),
    ],
)
def test_what_differs_is_wrong(grader: Grader, answer: str, gold: str) -> None:
    assert not grader.judge(answer, gold).correct


@pytest.mark.parametrize("answer", [None, "", "  \n"])
def test_nothing_is_no_answer(grader: Grader, answer: str | None) -> None:
    assert grader.judge(answer, "5") == Verdict(False, answer, "no_answer")


@dataclass(frozen=True)
class Said:
    text: str
    finish_reason: str


@dataclass(frozen=True)
class Asked:
    gold: str


def test_outputs_and_items_are_paired_in_order(grader: Grader) -> None:
    outputs: list[Any] = [Said(r"\boxed{1}", "stop"), Said("", "stop"), Said(r"\boxed{2}", "stop")]
    items: list[Any] = [Asked("1"), Asked("1"), Asked("1")]
    verdicts = grader.grade(outputs, items)
    assert [v.correct for v in verdicts] == [True, False, False]
    assert [v.status for v in verdicts] == ["ok", "no_answer", "ok"]
    assert [v.extracted for v in verdicts] == ["1", None, "2"]
    with pytest.raises(ValueError, match="shorter"):
        grader.grade(outputs, items[:2])


def test_decisions_are_remembered_by_version_gold_and_answer() -> None:
    known: dict[tuple[str, str, str], Decision] = {}
    with Grader(workers=1, known=known) as own:
        own.decide([("1+x", "x+1"), ("1+x", None), ("1+x", "x+1"), ("5", "6")])
    assert set(known) == {(GRADER, "1+x", "x+1"), (GRADER, "5", "6")}
    known[GRADER, "1+x", "x+1"] = Decision(False, "ok", "as it was told")
    with Grader(workers=1, known=known) as own:
        assert own.decide([("1+x", "x+1")]) == [Decision(False, "ok", "as it was told")]
        assert own._pool.children == [], "nothing was left to decide"


def test_all_workers_share_the_pairs_of_one_call() -> None:
    golds = [f"x+{n}" for n in range(40)]
    with Grader(workers=2) as own:
        own.start()
        found = own.decide([(gold, f"{n}+x") for n, gold in enumerate(golds)])
        assert all(decision.correct for decision in found)
        assert sorted(child.asked for child in own._pool.children)[0] >= 2


def test_the_others_go_on_while_one_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with Grader(workers=2) as own:
        own.start()
        monkeypatch.setattr(pool, "SECONDS", 1.0)
        start = time.monotonic()
        found = own.decide([("1", ENDLESS), *((f"x+{n}", f"{n}+x") for n in range(20))])
        assert time.monotonic() - start < 4.0
        assert [decision.status for decision in found] == ["timeout"] + ["ok"] * 20


def test_an_endless_answer_is_killed_and_the_next_is_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Grader(workers=1) as own:
        own.start()
        monkeypatch.setattr(pool, "SECONDS", 1.0)
        (busy,), start = pids(own), time.monotonic()
        assert own.judge(ENDLESS, "1") == Verdict(False, ENDLESS, "timeout")
        assert time.monotonic() - start < 2.5
        assert not Path(f"/proc/{busy}").exists(), "killed and reaped"
        start = time.monotonic()
        assert own.judge(ENDLESS, "1").status == "timeout", "remembered"
        assert time.monotonic() - start < 0.1
        monkeypatch.undo()
        assert own.judge("y+1", "1+y").correct


def test_close_is_quick_and_leaves_no_zombie() -> None:
    with Grader(workers=1) as own:
        own.judge("x+1", "1+x")
        (child,), start = pids(own), time.monotonic()
    assert time.monotonic() - start < 0.5
    assert not Path(f"/proc/{child}").exists()
    own.close()


def test_a_child_that_is_killed_from_outside_is_replaced_without_a_wrong_verdict() -> None:
    with Grader(workers=1) as own:
        own.judge("x+1", "1+x")
        (first,) = pids(own)
        os.kill(first, signal.SIGTERM)  # a cancelled job signals all its processes
        assert own.judge("y+1", "1+y").correct and pids(own) == [first], "SIGTERM is not for it"
        os.kill(first, signal.SIGKILL)
        assert own.judge("z+1", "1+z").correct and pids(own) != [first]


def test_a_child_that_is_out_of_step_is_replaced() -> None:
    with Grader(workers=1) as own:
        own.judge("x+1", "1+x")
        (first,) = own._pool.children
        first._requests.write(b'[99, "1", "2"]\n')  # as if an exception had come before the reply
        assert own.judge("y+1", "1+y").correct and own._pool.children != [first]


def test_a_child_is_recycled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PAIRS_PER_CHILD", 1)
    with Grader(workers=1) as own:
        own.start()
        (first,) = pids(own)
        assert own.judge("x+1", "1+x").correct
        assert pids(own) != [first] and not runs(first)
        assert own.judge("y+1", "1+y").correct


def test_a_child_has_limits_and_loads_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sympy.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with Grader(workers=1) as own:
        assert own.judge("x+1", "1+x").correct
        limits = Path(f"/proc/{pids(own)[0]}/limits").read_text(encoding="utf-8")
    limit = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert str(MEMORY) in limit and MEMORY <= 1024**3


ORPHAN = f"""
from l2s_hpc.evaluation.grading import Grader
grader = Grader(workers=1)
grader.judge("x+1", "1+x")
print(grader._pool.children[0].process.pid, flush=True)
grader.judge({ENDLESS!r}, "1") if BUSY else input()
"""


@pytest.mark.parametrize(
    ("busy", "seconds"),
    [(False, 2.0), pytest.param(True, pool.SECONDS + 3.0, marks=pytest.mark.slow)],
)
def test_the_child_of_a_killed_parent_ends(busy: bool, seconds: float) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN.replace("BUSY", str(busy))],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        assert runs(child)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + seconds
        while runs(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not runs(child)


@pytest.mark.parametrize(
    ("package", "named"),
    [
        ("raise ImportError('away')", "sympy cannot be imported: ImportError: away"),
        ("raise RuntimeError('old')", "sympy cannot be imported: RuntimeError: old"),
    ],
)
def test_a_broken_package_fails_at_once_and_each_time(
    package: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sympy.py").write_text(package, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Grader(workers=2) as own:
        for _ in range(2):
            with pytest.raises(UserError, match=named) as told:
                own.judge("x+1", "1+x")
            assert f"sympy=={pool.SYMPY}" in told.value.hint
            assert own._pool.children == []


def test_a_process_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with Grader(workers=1) as own, pytest.raises(L2SError, match="process did not start") as told:
        own.judge("x+1", "1+x")
    assert "l2s_hpc.evaluation.grading.child" in told.value.hint


def test_the_grader_is_imported_without_sympy() -> None:
    code = "import sys, l2s_hpc.evaluation.grading;print({'sympy', 'mpmath'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
