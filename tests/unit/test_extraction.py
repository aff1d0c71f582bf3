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
        (r"\boxed{5} and later \boxed{12", None),
        (r"\boxed{5 and then \boxed{12}", "12"),
        (r"$\beginboxed{8\sqrt{6}}$", r"8\sqrt{6}"),
        (r"\boxed{12", None),
        (r"So the result is \boxed 7", "7"),
        (r"$\boxed -12.5$.", "-12.5"),
        (r"\framebox{9}", "9"),
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
        (r"$y_1 = \boxed{x}$ and $y_2 = \boxed{2x}$", "x, 2x"),
        (r"\boxed{3} or \boxed{5}", "3, 5"),
        (r"\boxed{1}, we see that, and so \boxed{2}", "2"),
        (r"\boxed{1} \land \boxed{2}", "2"),
    ],
)
def test_joined_boxes_are_a_list(text: str, answer: str) -> None:
    assert extract(text, "stop").answer == answer


@pytest.mark.parametrize(
    ("text", "answer", "rule"),
    [
        (r"<think>\boxed{1}</think> \boxed{2}", "2", "boxed"),
        (r"\boxed{1}</think> \boxed{2}", "2", "boxed"),
        (r"<think>\boxed{1}</think> no box", None, "none"),
        (r"a</think> \boxed{1} </think> \boxed{2}", "2", "boxed"),
        (r"a</think> \boxed{1} </think> no box", None, "none"),
        (r"<think> so \boxed{1}", None, "thinking"),
        (r"<think>a</think> \boxed{1} <think> but", None, "thinking"),
        (r"12, no: 13.</think> The answer is 13.", "13", "answer"),
    ],
)
def test_thinking_does_not_count(text: str, answer: str | None, rule: str) -> None:
    found = extract(text, "stop")
    assert (found.answer, found.rule) == (answer, rule)


@pytest.mark.parametrize(
    ("text", "answer", "rule"),
    [
        (r"\boxed{255} so. Final Answer: The final answer is $10,455$.", "$10,455$", "final"),
        (r"The final answer is \((-6, 10)\). I hope it is correct.", r"\((-6, 10)\)", "final"),
        (r"The final answer is 5. So \boxed{6}", "6", "boxed"),
        ("The answer is 12.", "12", "answer"),
        ("The answer is **42**.", "42", "answer"),
        ("The answer is (B).", "(B)", "answer"),
        ("Final Answer: The area of $ABC$ is 120. I hope it is correct.", "120", "answer"),
        ("Answer: $x=3$ and $x=4$.", "$x=3$ and $x=4$", "answer"),
        ("So the answer is\n\n$$42$$", "$$42$$", "answer"),
        ("The answer is 1. No, the answer is 2.", "2", "answer"),
        ("2 + 2 = 4\n#### 1,234", "1,234", "hashes"),
        ("We find\n\\[ x = 42 \\]", "x = 42", "displayed"),
        ("We have $a = 1$. So the pair is $(7, 6)$.", "$(7, 6)$", "statement"),
        ("The solutions are $2$ and $3$.", "$2$ and $3$", "statement"),
        ("$$x = 2.$$ Therefore, it increases by 100%.", "100%", "statement"),
        ("There are 12 distinct ones. I hope it is correct.", "12", "statement"),
        ("so the number is 10 which is 1,000.99m²", "1,000.99", "statement"),
        (r"-1 + \sqrt{3}", r"-1 + \sqrt{3}", "statement"),
        ("5 is odd, 6 is even. I could not solve this problem.", None, "none"),
        (r"the word boxed {12} is no box, say I", "12", "statement"),
        (r"Hence it is \boxed{12", None, "cut"),
        (r"The answer is 5.<|im_end|><|im_start|>user The answer is 6.", "5", "answer"),
    ],
)
def test_what_counts_without_a_box(text: str, answer: str | None, rule: str) -> None:
    found = extract(text, "stop")
    assert (found.answer, found.rule) == (answer, rule)
    cut = extract(text, "length")
    assert cut.rule in ("boxed", "cut"), "a cut output has no answer but in a box"


def test_the_last_number_is_a_guess_that_is_asked_for_and_named() -> None:
    text = "First 3, then 4. I give up, sorry!"
    assert extract(text, "stop") == Extraction(None, "none")
    found = extract(text, "stop", last_number=True)
    assert (found.answer, found.rule) == ("4", "last_number")
    assert extract(text, "length", last_number=True).answer is None
    assert extract("The answer is 5, not 6.", "stop", last_number=True).rule == "answer"


@pytest.mark.parametrize(
    "text", [r"</think> so \boxed{5}, \boxed{6}", "x" * TAIL + " The answer is 12.", "#### 7"]
)
def test_the_span_tells_where_the_answer_stands(text: str) -> None:
    found = extract(text, "stop")
    assert found.span and found.answer
    inside = text[slice(*found.span)]
    assert inside.startswith(found.answer[0]) and inside.endswith(found.answer[-1])


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


@pytest.mark.parametrize("size", [TAIL // 4, 4 * TAIL])
@pytest.mark.parametrize(
    "unit",
    [
        "\\boxed{",
        "\\boxed{1},",
        "{",
        "\\",
        "<think>",
        "</think>",
        " ",
        "x",
    ],
)
@pytest.mark.parametrize("head", ["", "\\boxed", "\\boxed{", "The answer is "])
def test_four_times_the_text_takes_about_four_times_as_long(
    head: str, unit: str, size: int
) -> None:
    """Below what is searched of a text and above it; the square would be sixteen times."""

    def seconds(length: int) -> float:
        text = head + unit * (length // len(unit)) + "}" * (length // 8)

        def once() -> float:
            start = time.process_time()
            extract(text, "length")
            return time.process_time() - start

        return min(once() for _ in range(3))

    assert seconds(4 * size) < 8 * seconds(size) + 0.02


def test_only_the_end_is_searched() -> None:
    assert extract(r"\boxed{5}" + "x" * TAIL, "stop").answer is None
    assert extract(r"\boxed{5}" + "x" * (TAIL - 9), "stop").answer == "5"
