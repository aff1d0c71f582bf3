"""Extraction: which text counts as the final answer, in time linear in the length."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2s_hpc.evaluation.extraction import TAIL, Extraction, extract


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{ 5 }", "5"),
        (r"\fbox{9}", "9"),
        (r"\boxed {9}", "9"),
        (r"First \boxed{3}. That is wrong: \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}} and more {text}", r"\frac{1}{2}"),
        (r"\boxed{\frac{1}{2}}}", r"\frac{1}{2}"),
        (r"{ \boxed{5}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{x = \left\{ 1 \right.}", r"x = \left\{ 1 \right."),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{a \boxed{5} b}", r"a \boxed{5} b"),
        (r"\boxed{}", ""),
        (r"\boxed{5} and later \boxed{12", "5"),
        (r"\boxed{12", None),
        (r"\unboxed{12}", None),
        (r"the word boxed {12}", None),
        ("The answer is 12.", None),
        ("", None),
    ],
)
def test_the_last_complete_box_is_the_answer(text: str, answer: str | None) -> None:
    assert extract(text, "stop").answer == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{2} and \boxed{-3}.", "2, -3"),
        (r"\boxed{1},\boxed{2}, \boxed{3}", "1, 2, 3"),
        (r"$\boxed{1}$, and $\boxed{2}$", "1, 2"),
        (r"$$\boxed{k = 4} \quad \text{and} \quad \boxed{n = 2}$$", "k = 4, n = 2"),
        ("\\[\n\\boxed{(1, 2)},\\, \\boxed{(2, 1)}\n\\]", "(1, 2), (2, 1)"),
        (r"\boxed{0} then \boxed{1}, \boxed{2}", "1, 2"),
        (r"\boxed{10} and then \boxed{42}", "42"),
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{1} \land \boxed{2}", "2"),
    ],
)
def test_joined_boxes_are_a_list(text: str, answer: str) -> None:
    assert extract(text, "stop").answer == answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"<think>\boxed{1}</think> \boxed{2}", Extraction("2", "boxed")),
        (r"\boxed{1}</think> \boxed{2}", Extraction("2", "boxed")),
        (r"<think>\boxed{1}</think> no box", Extraction(None, "none")),
        (r"a</think> \boxed{1} </think> \boxed{2}", Extraction("2", "boxed")),
        (r"a</think> \boxed{1} </think> no box", Extraction(None, "none")),
        (r"<think> so \boxed{1}", Extraction(None, "thinking")),
        (r"<think>a</think> \boxed{1} <think> but", Extraction(None, "thinking")),
    ],
)
def test_thinking_does_not_count(text: str, expected: Extraction) -> None:
    assert extract(text, "stop") == expected


@pytest.mark.parametrize("reason", ["length", "cycle", "error"])
def test_a_cut_output(reason: str) -> None:
    assert extract(r"\boxed{3}, so \boxed{1", reason).answer is None, "cut inside a box"
    assert extract(r"\boxed{3}, so", reason).answer == "3"
    assert extract(r"\boxed{\boxed{3}}, so", reason).answer == "3"


@given(st.text(), st.text(alphabet=r"\boxedfb{}, and$think<>/" + "\n"), st.integers(0, 10**6))
def test_a_box_after_anything_is_found(anything: str, latex: str, number: int) -> None:
    end = rf"</think> So \boxed{{{number}}}"
    assert extract(anything + latex + end, "stop").answer == str(number)
    extract(anything + latex, "length")


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 200_000,
        "\\boxed{" * 9_000 + "}" * 9_000,
        "\\boxed{1}," * 100_000,
        "\\boxed" + " " * 1_000_000,
        "{" * 1_000_000,
        "\\" * 1_000_001,
        "<think>" * 200_000 + "</think>" * 200_000,
        "\\boxed{" + "x" * 1_000_000 + "}",
    ],
)
def test_megabytes_are_quick(text: str) -> None:
    start = time.perf_counter()
    extract(text, "length")
    assert time.perf_counter() - start < 1.0


def test_only_the_end_is_searched() -> None:
    assert extract(r"\boxed{5}" + "x" * TAIL, "stop").answer is None
    assert extract(r"\boxed{5}" + "x" * (TAIL - 9), "stop").answer == "5"
