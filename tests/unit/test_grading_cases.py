"""Grading seen whole: the file of cases, real outputs, arbitrary text, and `l2s grade --cases`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from l2s_hpc.cli.main import app
from l2s_hpc.errors import UserError
from l2s_hpc.evaluation.extraction import extract
from l2s_hpc.evaluation.grading import Grader, child

SHARED = Path(__file__).parents[3] / "shared"
CASES = SHARED / "grading" / "cases.jsonl"
SWEEP = SHARED / "upstream" / "sweep-1.5B"
needs_cases = pytest.mark.skipif(not CASES.exists(), reason="the file of cases is not here")
needs_sweep = pytest.mark.skipif(not SWEEP.exists(), reason="the recorded outputs are not here")


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1) as shared:
        yield shared


@pytest.fixture(scope="module")
def second() -> Iterator[Grader]:
    with Grader(workers=2) as shared:
        yield shared


def l2s(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def cases() -> list[dict[str, Any]]:
    return [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]


# The file of cases


@needs_cases
@pytest.mark.slow
def test_the_file_of_cases() -> None:
    done = l2s("grade", "--cases", CASES, "--json")
    assert done.exit_code == 0, done.output
    found = {row["id"]: row for row in map(json.loads, done.stdout.splitlines())}
    expected = {case["id"]: case["expected"] for case in cases()}
    assert list(found) == list(expected)
    correct = {name: row["verdict"] == "correct" for name, row in found.items()}
    agreed = sum(correct[name] == expected[name] for name in expected)
    negatives = [name for name in expected if not expected[name]]
    accepted = sum(correct[name] for name in negatives)
    slowest = max(row["seconds"] for row in found.values())
    print(
        f"{agreed} of {len(expected)} agree = {agreed / len(expected):.2%}, false accepts "
        f"{accepted} of {len(negatives)}, slowest {slowest:.2f} s"
    )
    assert agreed >= 0.98 * len(expected)
    assert accepted <= 0.015 * len(negatives)
    assert slowest <= 5.0
    assert not list(Path("/tmp").glob("grader_pwned_*"))


def test_one_object_a_line(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "kind": "answer", "prediction": "0.5", "gold": r"\frac12"},
        {"id": "b", "kind": "response", "prediction": r"So \boxed{x}", "gold": "x+1"},
        {"id": "c", "kind": "answer", "prediction": r"\frac{1}{", "gold": "1"},
        {"id": "d", "kind": "response", "prediction": "I do not know", "gold": "1"},
        {
            "id": "e",
            "kind": "response",
            "prediction": {"unit": "hm ", "count": 10**12, "suffix": r"\boxed{7}"},
            "gold": "7",
        },
        {"id": 6, "kind": "answer", "prediction": {"unit": "x", "count": 10**12}, "gold": "x"},
        {"id": "g", "kind": "answer", "prediction": "\ud800 5", "gold": "5"},
    ]
    path = tmp_path / "cases.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    start = time.monotonic()
    done = l2s("grade", "--cases", path, "--json")
    assert done.exit_code == 0, done.output
    assert time.monotonic() - start < 30.0
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["id"], row["verdict"], row["rule"]) for row in found] == [
        ("a", "correct", "given"),
        ("b", "wrong", "boxed"),
        ("c", "undecided", "given"),
        ("d", "wrong", "none"),
        ("e", "correct", "boxed"),
        (6, "undecided", "given"),
        ("g", "undecided", "given"),
    ]
    assert set(found[0]) == {"id", "verdict", "answer", "rule", "reason", "seconds"}
    assert found[1]["answer"] == "x" and found[3]["answer"] is None
    assert found[3]["reason"] == "there is no answer"
    assert "longer than" in found[5]["reason"] and len(found[5]["answer"]) <= 4096
    table = l2s("grade", "--cases", path)
    assert "7 cases" in table.stdout and "undecided" in table.stdout and "slowest" in table.stdout


def test_the_last_number_is_counted_apart(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    row = {"id": "a", "kind": "response", "prediction": "4 or so. No idea!", "gold": "4"}
    path.write_text(json.dumps(row), encoding="utf-8")
    assert json.loads(l2s("grade", "--cases", path, "--json").stdout)["verdict"] == "wrong"
    found = json.loads(l2s("grade", "--cases", path, "--json", "--last-number").stdout)
    assert (found["verdict"], found["rule"]) == ("correct", "last_number")


GOOD = '{"id": "a", "kind": "answer", "prediction": "5", "gold": "5"}'


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "is no JSON"),
        ("[1]", "no object"),
        ('{"id": "a", "kind": "answer", "gold": "5"}', "no 'prediction'"),
        (GOOD.replace('"gold": "5"', '"gold": 5'), "id and gold are texts"),
        (GOOD.replace('"kind": "answer"', '"kind": "essay"'), "not 'essay'"),
        (GOOD.replace('"prediction": "5"', '"prediction": 5'), "a text or a recipe"),
        (GOOD.replace('"5", "gold"', '{"unit": "x"}, "gold"'), "a recipe is"),
        (GOOD.replace('"5", "gold"', '{"unit": "x", "count": -1}, "gold"'), "a recipe is"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_printed(line: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(f"{GOOD}\n{line}\n", encoding="utf-8")
    done = l2s("grade", "--cases", path, "--json")
    assert isinstance(done.exception, UserError) and done.stdout == ""
    assert "line 2" in str(done.exception) and fault in str(done.exception)
    assert str(path) in str(done.exception) and done.exception.exit_code == 2


@pytest.mark.parametrize("words", [(), ("run", "--cases", "file"), ("run", "--last-number")])
def test_a_run_or_a_file(words: tuple[str, ...]) -> None:
    done = l2s("grade", *words)
    assert isinstance(done.exception, UserError) and done.exception.exit_code == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = l2s("grade", "--cases", tmp_path / "none.jsonl")
    assert isinstance(done.exception, UserError) and "none.jsonl" in str(done.exception)


# Any text


PIECES = st.lists(
    st.sampled_from(
        [
            *"0123456789.,:;!'+-*/^_=<>()[]{}$%|& xyeifn",
            r"\frac",
            r"\sqrt",
            r"\pi",
            r"\text{ cm}",
            r"\text{and}",
            "\\\\",
            r"\{",
            r"\}",
            r"\pm ",
            r"\cup ",
            r"\infty ",
            r"\sum_{k=1}^{9}",
            r"\int_0^1",
            "dx",
            r"\lim_{x\to 0}",
            r"\begin{pmatrix}",
            r"\end{pmatrix}",
            r"\log",
            " or ",
            "²",
            "½",
        ]
    ),
    max_size=14,
).map("".join)
ANSWERS = st.text(max_size=40) | PIECES


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(ANSWERS, ANSWERS), min_size=1, max_size=6), st.randoms())
def test_no_text_raises_and_the_order_does_not_matter(
    grader: Grader, second: Grader, pairs: list[tuple[str, str | None]], chance: Any
) -> None:
    start = time.monotonic()
    first = grader.decide(pairs)
    order = list(range(len(pairs)))
    chance.shuffle(order)
    again = dict(zip(order, second.decide([pairs[n] for n in order]), strict=True))
    for n, decision in enumerate(first):
        assert decision == again[n] or "timeout" in (decision.status, again[n].status)
        assert decision.status == "ok" or not decision.correct
        assert decision.status != "error", decision
        assert decision.reason
    assert time.monotonic() - start < 60.0


@settings(max_examples=200, deadline=None)
@given(PIECES, PIECES)
def test_the_child_decides_any_pair_without_an_error(gold: str, answer: str) -> None:
    """In this process, so that a fault shows its traceback; what is slow is left to the pool."""
    if any(slow in gold + answer for slow in ("\\sum", "\\int", "\\lim", "!")):
        return
    correct, status, reason = child.decide(gold, answer)
    assert status in ("ok", "undecided") and reason
    if gold == answer and status == "ok" and "0" not in gold and "infty" not in gold:
        assert correct or "compared" in reason


@given(st.text(), st.text(alphabet=r"\boxedfb{}, and$think<>/#=is answer" + "\n"))
def test_any_output_can_be_searched(anything: str, latex: str) -> None:
    for reason in ("stop", "length"):
        for text in (anything, latex, anything + latex + anything):
            found = extract(text, reason, last_number=True)
            assert (found.answer is None) == (found.rule in ("none", "thinking", "cut"))
            if found.span:
                assert 0 <= found.span[0] <= found.span[1] <= len(text)


# Real outputs


def recorded() -> list[tuple[str, str]]:
    """A gold and an output for each of some recorded ones."""
    pairs = []
    for path in sorted(SWEEP.glob("*/*/*/*.jsonl"))[::4]:
        for line in path.read_text(encoding="utf-8").splitlines()[::10]:
            row = json.loads(line)
            pairs.append((row["gt"], row["code"][0]))
    return pairs


@needs_sweep
def test_mutated_outputs_are_decided_the_same_in_any_order(grader: Grader, second: Grader) -> None:
    rows = recorded()
    assert len(rows) > 100
    pairs: list[tuple[str, str | None]] = []

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        gold, text = rows[data.draw(st.integers(0, len(rows) - 1))]
        at = max(0, len(text) - data.draw(st.integers(0, 400)))
        piece = data.draw(PIECES | st.text(max_size=5))
        cut = data.draw(st.integers(0, 30))
        pairs.append((gold, extract(text[:at] + piece + text[at + cut :], "stop").answer))

    collect()
    start = time.monotonic()
    first = grader.decide(pairs)
    again = second.decide(pairs[::-1])[::-1]
    assert time.monotonic() - start < 240.0
    for one, two in zip(first, again, strict=True):
        assert one == two or "timeout" in (one.status, two.status)
        assert one.status != "error"


@needs_sweep
@pytest.mark.slow
def test_all_recorded_outputs_are_graded_in_a_minute_and_again_at_once() -> None:
    known: dict[Any, Any] = {}
    files = sorted(SWEEP.glob("*/*/*/*.jsonl"))
    assert len(files) == 20
    seconds = []
    for _ in range(2):
        start, rows = time.monotonic(), 0
        with Grader(workers=2, known=known) as own:
            for path in files:
                lines = path.read_text(encoding="utf-8").splitlines()
                read = [json.loads(line) for line in lines]
                found = [extract(row["code"][0], "stop").answer for row in read]
                own.decide([(row["gt"], answer) for row, answer in zip(read, found, strict=True)])
                rows += len(read)
        seconds.append(time.monotonic() - start)
    print(f"{rows} outputs, {len(known)} pairs: {seconds[0]:.1f} s, again {seconds[1]:.1f} s")
    assert seconds[0] < 60.0
    assert seconds[1] < seconds[0]
