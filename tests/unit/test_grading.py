"""Grading: verdicts, and that no answer can hang, crash, fool or outlive the grader."""

from __future__ import annotations

import json
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
from hypothesis import given, settings
from hypothesis import strategies as st

from l2s_hpc.errors import L2SError, UserError
from l2s_hpc.evaluation import grading
from l2s_hpc.evaluation.extraction import extract
from l2s_hpc.evaluation.grading import Grader
from l2s_hpc.records import Verdict

ROOT = Path(__file__).parents[2]
CASES = ROOT.parent / "shared" / "grading" / "cases.jsonl"
TOWER = "9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as shared:
        yield shared


def pid(grader: Grader) -> int:
    assert grader._child
    return grader._child._process.pid


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
        assert own._child is None


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


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("(x+1)^2", "x^2+2x+1", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        ("-3, 2", "2, -3", True),
        ("(2, 1)", "(1, 2)", False),
        ("2", "2, -3", False),
        ("x = 5", "5", True),
        (r"10\text{ cm}", "10", True),
        ("x²", "x^2", True),
        (
            r"\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix}",
            r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
            True,
        ),
        (
            r"\begin{pmatrix}1 & 2 \\ 3 & 5\end{pmatrix}",
            r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
            False,
        ),
    ],
)
def test_mathematics_is_compared_by_value(
    grader: Grader, answer: str, gold: str, correct: bool
) -> None:
    assert grader.judge(answer, gold) == Verdict(correct, answer, "ok")


@pytest.mark.parametrize("answer", [None, "", "  \n"])
def test_nothing_is_no_answer(grader: Grader, answer: str | None) -> None:
    assert grader.judge(answer, "5") == Verdict(False, answer, "no_answer")


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('touch /tmp/grader_pwned_unit')",
        "().__class__.__bases__[0]",
        "import os",
        "(lambda: 5)()",
        "open('/tmp/grader_pwned_unit', 'w') or 5",
        r"\input{/etc/passwd}",
        "1" * 4097,
        "(" * 65 + "5" + ")" * 65,
        r"\frac{E_{1}",
    ],
)
def test_what_is_no_mathematics_is_undecided_and_wrong(grader: Grader, answer: str) -> None:
    assert grader.judge(answer, "5") == Verdict(False, answer, "undecided")


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


@pytest.mark.parametrize("answer", [TOWER, "(10^{10})!"])
def test_an_endless_answer_is_killed_and_the_next_is_decided(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Grader() as own:
        own.judge("x+1", "1+x")
        monkeypatch.setattr(grading, "SECONDS", 1.0)
        busy, start = pid(own), time.monotonic()
        assert own.judge(answer, "1") == Verdict(False, answer, "timeout")
        assert time.monotonic() - start < 2.5
        assert not Path(f"/proc/{busy}").exists(), "killed and reaped"
        start = time.monotonic()
        assert own.judge(answer, "1").status == "timeout", "remembered"
        assert time.monotonic() - start < 0.1
        monkeypatch.undo()
        assert own.judge("y+1", "1+y").correct


def test_close_is_quick_and_leaves_no_zombie() -> None:
    with Grader() as own:
        own.judge("x+1", "1+x")
        child, start = pid(own), time.monotonic()
    assert time.monotonic() - start < 0.5
    assert not Path(f"/proc/{child}").exists()
    own.close()


def test_a_child_that_is_killed_from_outside_is_replaced_without_a_wrong_verdict() -> None:
    with Grader() as own:
        own.judge("x+1", "1+x")
        os.kill(pid(own), signal.SIGTERM)  # a cancelled job signals all its processes
        first = pid(own)
        assert own.judge("y+1", "1+y").correct and pid(own) == first, "SIGTERM is not for it"
        os.kill(first, signal.SIGKILL)
        assert own.judge("z+1", "1+z").correct and pid(own) != first


def test_a_child_that_is_out_of_step_is_replaced() -> None:
    with Grader() as own:
        own.judge("x+1", "1+x")
        first = own._child
        assert first
        first._requests.write(b'[99, "1", "2"]\n')  # as if an exception had come before the reply
        assert own.judge("y+1", "1+y").correct and own._child is not first


def test_a_child_is_recycled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "PAIRS_PER_CHILD", 1)
    with Grader() as own:
        assert own.judge("x+1", "1+x").correct
        first = pid(own)
        assert own.judge("y+1", "1+y").correct
        assert pid(own) != first and not runs(first)


def test_a_child_has_limits_and_loads_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sympy.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with Grader() as own:
        assert own.judge("x+1", "1+x").correct
        limits = Path(f"/proc/{pid(own)}/limits").read_text(encoding="utf-8")
    limit = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert str(grading.MEMORY) in limit


@pytest.mark.parametrize("fault", [MemoryError, RecursionError, TypeError])
def test_a_fault_inside_the_comparison_is_an_error_verdict(
    fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    import math_verify

    def fail(*args: Any, **kwargs: Any) -> None:
        raise fault

    monkeypatch.setattr(math_verify, "parse", fail)
    assert grading._compare("1", "2") == (False, "error")


ORPHAN = f"""
from l2s_hpc.evaluation.grading import Grader
from l2s_hpc.records import Verdict
grader = Grader()
grader.judge("x+1", "1+x")
print(grader._child._process.pid, flush=True)
grader.judge({TOWER!r}, "1") if BUSY else input()
"""


@pytest.mark.parametrize(
    ("busy", "seconds"),
    [(False, 2.0), pytest.param(True, grading.SECONDS + 3.0, marks=pytest.mark.slow)],
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


MISSING = "raise ModuleNotFoundError(\"No module named 'sympy'\", name='sympy')"
BROKEN = "raise AttributeError('mpmath has no rational')"
OLD = "math_verify-0.0.1.dist-info/METADATA"


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("math_verify.py", MISSING, "cannot be imported: .*No module named 'sympy'"),
        ("sympy/__init__.py", BROKEN, "math-verify cannot be imported: .*mpmath has no rational"),
        (OLD, "Name: math-verify\nVersion: 0.0.1\n", "needs math-verify 0.9.0, found 0.0.1"),
    ],
)
def test_math_verify_that_cannot_be_used_is_named_at_once_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, said: str
) -> None:
    """One grader lives through all candidates of a worker: no later one may wait for a start."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    begun = time.monotonic()
    with Grader() as own:
        for _ in range(3):
            with pytest.raises(UserError, match=said) as error:
                own.judge("x+1", "1+x")
            assert "pip install --force-reinstall math-verify==0.9.0" in error.value.hint
        assert own.judge("5.0", "5").correct
    assert time.monotonic() - begun < 30


def test_a_child_that_does_not_start_is_said_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with Grader() as own:
        for _ in range(2):
            with pytest.raises(L2SError, match="grading process did not start") as error:
                own.judge("x+1", "1+x")
            assert "python -m l2s_hpc.evaluation.grading" in error.value.hint


def test_the_grader_is_imported_without_sympy() -> None:
    code = (
        "import sys, l2s_hpc.evaluation.grading; print({'sympy', 'math_verify'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


PIECES = st.lists(
    st.sampled_from(
        [
            *"0123456789.,+-*/^=()[]{}$% xyei",
            r"\frac",
            r"\sqrt{2}",
            r"\pi",
            r"\text{a}",
            r"\\",
            r"\{",
        ]
    ),
    max_size=12,
).map("".join)


@settings(max_examples=40, deadline=None)
@given(st.text() | PIECES, st.text() | PIECES)
def test_no_text_raises_and_equal_pairs_get_equal_verdicts(
    grader: Grader, second: Grader, answer: str, gold: str
) -> None:
    one, two = grader.judge(answer, gold), second.judge(answer, gold)
    assert one == two or "timeout" in (one.status, two.status)
    assert one == grader.judge(answer, gold)
    assert one.status == "ok" or not one.correct


@pytest.fixture(scope="module")
def second() -> Iterator[Grader]:
    with Grader() as shared:
        yield shared


def spelled_out(prediction: Any) -> str:
    """The text of a case; megabytes are stored as a recipe."""
    if isinstance(prediction, str):
        return prediction
    repeated = str(prediction["unit"]) * int(prediction["count"])
    return str(prediction.get("prefix", "")) + repeated + str(prediction.get("suffix", ""))


@pytest.mark.slow
@pytest.mark.skipif(not CASES.exists(), reason="the file of grading cases is not here")
def test_the_file_of_cases(grader: Grader) -> None:
    cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    agreed = false_accepts = 0
    slowest = 0.0
    for case in cases:
        start, text = time.monotonic(), spelled_out(case["prediction"])
        answer = extract(text, "stop").answer if case["kind"] == "response" else text
        verdict = grader.judge(answer, case["gold"])
        slowest = max(slowest, time.monotonic() - start)
        agreed += verdict.correct == case["expected"]
        false_accepts += verdict.correct and not case["expected"]
    share = agreed / len(cases)
    print(f"{agreed} of {len(cases)} = {share:.1%}, {false_accepts} false accepts, {slowest:.1f} s")
    assert share >= 0.85
    assert false_accepts <= 0.02 * len(cases)
    # Each pair has three seconds; the rest is for the next child to start, on a busy machine too.
    assert slowest <= 30
    assert not list(Path("/tmp").glob("grader_pwned_*"))
