r"""Decide whether a model's final answer equals the gold answer.

    with Grader() as grader:
        verdicts = grader.grade(outputs, items)

Answers are hostile text that a model wrote. A pair goes down a ladder, and the first rung that can
decide does:

    limits     size, nesting, text shaped like code: refused, undecided
    normal     one way of writing spaces and signs; equal texts are equal answers
    numbers    plain numbers, compared exactly
    structure  lists, sets, points, intervals, matrices, `x = v`: part by part
    equality   single elements by value: exact, else at random points to 150 digits

The first three are quick and run here. The others read the answer with a parser of our own
(`reader`), which builds trees and runs nothing; they run in child processes (`child`, `pool`) with
a limit of memory, which are killed when a pair takes too long. Limits, derivatives and
antiderivatives are worked out by sympy, which gets objects and never text: its own reader of text
is `eval`, and math-verify's, which we do not use, leads there for every number.
"""

from l2s_hpc.evaluation.grading.grader import GRADER, Grader
from l2s_hpc.evaluation.grading.pool import SYMPY, Decision

__all__ = ["GRADER", "SYMPY", "Decision", "Grader"]
