"""Hostile answers: nothing is run, nothing is written, nothing takes more than its share."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from l2s_hpc.evaluation.extraction import extract
from l2s_hpc.evaluation.grading import Grader
from l2s_hpc.evaluation.grading.child import refuse
from l2s_hpc.evaluation.grading.limits import MAX_CHARACTERS, MAX_NESTING

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1) as shared:
        yield shared


PAYLOADS = [
    "__import__('os').system('touch MARK')",
    "__import__('os').system('touch MARK') or 0",
    'eval(\'open("MARK", "w")\')',
    "exec('import os')",
    "import os",
    "(lambda: 5)()",
    "().__class__.__bases__[0].__subclasses__()",
    "open('MARK', 'w').write('x') or 0",
    "breakpoint()",
    "exit()",
    r"\input{/etc/passwd}",
    r"\def\x{\x}\x",
    r"\write18{touch MARK}",
    "1" * (MAX_CHARACTERS + 1),
    "(" * (MAX_NESTING + 1) + "5" + ")" * (MAX_NESTING + 1),
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_code_and_excess_are_refused_unread(grader: Grader, payload: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    answer = payload.replace("MARK", str(mark))
    for gold in ("0", "x+1"):
        (decision,) = grader.decide([(gold, answer)])
        assert (decision.correct, decision.status) == (False, "undecided")
    assert not mark.exists()


TRICKS = [
    "os.system('touch MARK')",
    "system`touch MARK`",
    r"\text{os.system('touch MARK')}",
    r"\operatorname{eval}(x)",
    "x.__class__",
    "S('x')",
    "E1.evalf(subs=9)",
    r"\frac{eval}{exec}",
    "{print}(1)",
    r"\lim_{x \to import} x",
    r"x_{__import__('os').system('touch MARK')}",
    "e v a l ( 1 )",
    "ｅｖａｌ(1)",
    "f'{open}'",
]


@pytest.mark.parametrize("trick", TRICKS)
def test_code_that_passes_the_filter_is_not_run_by_any_rung(trick: str, tmp_path: Path) -> None:
    """Each rung of the child is tried in a process that ends at the first thing it must not do."""
    mark = tmp_path / "mark"
    code = f"""
import os, sys
from l2s_hpc.evaluation.grading import child
from l2s_hpc.evaluation.grading.normal import tidy
child._prepare()
def watch(event, args):
    try:
        child.refuse(event, args)
    except PermissionError as error:
        os.write(2, f"{{event}}: {{args}}".encode())
        os._exit(9)
sys.addaudithook(watch)
for gold in ("0", "x+1", r"\\int x dx"):
    print(child.decide(gold, tidy({trick.replace("MARK", str(mark))!r}))[0])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False"] * 3
    assert not mark.exists()


@pytest.mark.parametrize(
    ("event", "args"),
    [
        ("compile", ("1+1", "<string>")),
        ("compile", (b"1+1", "<string>")),
        ("open", ("file", "w", 1)),
        ("os.system", (b"true",)),
        ("subprocess.Popen", ("true",)),
        ("socket.connect", ()),
        ("os.exec", ()),
        ("os.fork", ()),
    ],
)
def test_the_guard_of_the_child_refuses(event: str, args: tuple[object, ...]) -> None:
    with pytest.raises(PermissionError):
        refuse(event, args)


def test_the_guard_lets_a_child_work() -> None:
    refuse("compile", (b"x = 1", "/usr/lib/python3/late.py"))
    refuse("open", ("file", "r", 0))
    refuse("import", ("sympy",))


def test_the_guard_is_on_in_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that would run text finds that it cannot."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sympy\nsympy.limit = lambda *args: sympy.Integer(eval('1'))\n", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Grader(workers=1) as own:
        (decision,) = own.decide([("1", r"\lim_{x \to 2} x")])
    assert (decision.status, decision.reason) == ("error", "PermissionError")


HEAVY = [
    "9^{9^{9^{9}}}",
    "(10^{10})!",
    "((10^{6})!)!",
    r"\prod_{k=1}^{10^9} k",
    r"\sum_{k=1}^{10^9} k",
    r"\binom{10^{9}}{5\cdot 10^{8}}",
    r"\sum_{k=1}^{\infty} \sum_{j=1}^{\infty} \frac{1}{k^2 j^2 + 1}",
    r"\sum_{k=1}^{9999} \sum_{j=1}^{9999} \sin(kj)",
    r"\int_0^1 \int_0^1 \int_0^1 \sin(xyz) dx dy dz",
    r"\int \sqrt{\sin(x^x)} \ln(\cos x) dx",
    r"\lim_{x \to 0} \frac{(\sin(\tan x))^{20} - (\tan(\sin x))^{20}}{x^{40}}",
    "x^{" * 40 + "x" + "}" * 40,
    r"\frac{1}{" * 60 + "2" + "}" * 60,
    "+".join(f"{k}!" for k in range(700)),
    "-" * 4000 + "1",
    "^".join("9" * 500),
    r"\sqrt" * 600 + "2",
    "1,2," * 900 + "3",
    r"\pm 1" + r" \pm 1" * 400,
    "|" * 4000,
    "((" * 30 + "1" + "))" * 30,
    r"\begin{pmatrix}" + r"1 & 2 \\" * 300 + r"3 & 4 \end{pmatrix}^{64}",
    "sin " * 1000 + "x",
    "9" * 4000,
    r"\text{" * 60 + "a" + "}" * 60,
]


@pytest.mark.parametrize("answer", HEAVY, ids=lambda answer: answer[:30])
def test_heavy_answers_stay_in_their_limits(grader: Grader, answer: str) -> None:
    grader.start()
    for gold in ("x+1", "7"):
        start = time.monotonic()
        (decision,) = grader.decide([(gold, answer)])
        assert time.monotonic() - start < 5.0
        assert not decision.correct
        grader.start()
    peak = Path(f"/proc/{grader._pool.children[0].process.pid}/status").read_text(encoding="utf-8")
    assert int(peak.partition("VmPeak:")[2].split()[0]) <= 1024**2


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 200_000,
        "\\boxed{1}," * 100_000,
        "\\boxed" + " " * 1_000_000,
        "answer is " * 100_000,
        "$" * 1_000_001,
        "$x$" * 300_000,
        "\\[" * 500_000,
        "\\(" * 500_000,
        "\\[ x " * 200_000,
        "####" * 250_000,
        "." * 1_000_000,
        "1," * 500_000,
        "1" * 1_000_000,
        "I hope it is correct. " * 50_000,
        " " * 1_000_000 + "x",
        "<|im_start|>" * 80_000,
        "<｜" * 300_000,
        "<think>" * 100_000 + "</think>" * 100_000,
        "final answer is " * 60_000,
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_extraction_from_megabytes_is_quick(text: str, reason: str) -> None:
    start = time.perf_counter()
    extract(text, reason, last_number=True)
    assert time.perf_counter() - start < 1.0
