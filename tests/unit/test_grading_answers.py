"""Which answers agree with which golds: one line a rule of the ladder, read both ways round."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from l2s_hpc.evaluation.grading import Grader


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1) as shared:
        yield shared


SAME = r"""
Values  (x+1)^2 ~~ x^2+2x+1
Values  \sqrt{8} ~~ 2\sqrt2
Values  \frac{1}{2}xy(x+y) ~~ \frac{x^2y+xy^2}{2}
Values  \sin^2 x + \cos^2 x ~~ 1
Values  \sin x \cos x ~~ \frac12 \sin 2x
Values  e^{\ln 3} ~~ 3
Values  \sin^2 1 + \cos^2 1 - 1 ~~ 0
Values  10^{-120} \sin 1 ~~ \sin 1 / 10^{120}
Values  \sqrt[3]{-8} ~~ -2
Values  (-8)^{1/3} ~~ -2
Values  \sqrt{x^2} ~~ |x|
Values  e^{i\pi} ~~ -1
Values  \frac{100!}{98!} ~~ 9900
Values  \binom{16}{2} ~~ 120
Values  |3-4i| ~~ 5
Values  \lfloor 3.7 \rfloor ~~ 3
Values  1011_2 ~~ 11
Values  0.1\overline{6} ~~ 1/6
Values  1.4142135623730951 ~~ \sqrt2
Values  sqrt(3)/2 ~~ \frac{\sqrt3}{2}
Values  3**2 ~~ 9
Values  \frac{3\sqrt2}{x^{-1}} ~~ 3x\sqrt{2}
Values  \log_2 8 ~~ 3
Values  2^{\frac12 (\log_2 800 - 3)} ~~ 10
Values  \cotx ~~ \cot x
Values  \log 100 ~~ 2
Values  \ln 2 ~~ \log 2
Values  \arctan 1 ~~ 45^\circ
Values  \cos 60^\circ ~~ 0.5
Calculus  \int_0^1 x^2 dx ~~ \frac13
Calculus  \int_{a}^{b} x dx ~~ \frac{b^2-a^2}{2}
Calculus  \int x \cos x \, dx ~~ x\sin x + \cos x
Calculus  \lim_{x \to 0} \frac{\sin x}{x} ~~ 1
Calculus  \frac{d}{dx} x^3 ~~ 3x^2
Calculus  \sum_{k=1}^{10} k ~~ 55
Calculus  \sum_{n=1}^{\infty} \frac{1}{2^n} ~~ 1
Calculus  C_1 e^x + C_2 e^{-x} ~~ c_1 e^{-x} + c_2 e^{x}
Mixed  2\frac13 ~~ \frac73
Mixed  -3 \frac{1}{2} ~~ -\frac72
Mixed  1 1/2 ~~ 1.5
Percent  28 \text{ percent} ~~ 28\%
Percent  33\% ~~ \frac{33}{100}
Percent  50\% ~~ 50
Units  5\text{ cm} ~~ 5
Units  144 \text{ cm}^2 ~~ 144
Units  10 \text{ m/s} ~~ 10 m/s
Units  \$32{,}348 ~~ 32348
Units  74^\circ ~~ 74
Units  -5^\circ ~~ -5
Units  156kgs ~~ 156
Units  17\text{ any text} ~~ 17
Units  3 \text{ feet} ~~ 3 ft
Units  1.5 \text{ million} ~~ 1500000
Units  12^{\text{th}} ~~ 12
Names  x = 5 ~~ 5
Names  f(x) = x^2 ~~ x^2
Names  y = x^2 ~~ f(x) = x^2
Names  \frac{NO}{BO} = \frac{1}{\sqrt6} ~~ \frac{1}{\sqrt{6}}
Names  \angle APC = 74^\circ ~~ 74
Names  (p, q) = (3, 2) ~~ (3, 2)
Names  (x, y) = (1, 2) ~~ x = 1, y = 2
Names  x \approx 11 ~~ 11
Names  \Phi (x, y) = \frac{x}{2y} + \frac{1}{2y} ~~ \Phi(x,y) = \frac{x+1}{2y}
Names  V_1 : V_2 = 11 : 21 ~~ \frac{11}{21}
Names  \frac{\sqrt3}{3} \approx 0.577 ~~ \frac{\sqrt3}{3}
Equations  y = 2x+1 ~~ 2x - y + 1 = 0
Equations  x^2 + y^2 = 1 ~~ x^2 = 1 - y^2
Equations  y = 1/x ~~ xy = 1
Equations  \ddot{u} = \frac{f(t)}{ml} - \frac{k u}{m} ~~ m l \ddot{u}(t) + k l u(t) = f(t)
Equations  x \le y ~~ y \ge x
Equations  2x + 3 < 5 ~~ x < 1
Equations  x^2+x-6 = (x-2)(x+3) ~~ (x-2)(x+3)
Lists  -3, 2 ~~ 2, -3
Lists  3 \pm 2\sqrt2 ~~ 3 + 2\sqrt2, 3 - 2\sqrt2
Lists  x = \pm 2 ~~ -2, 2
Lists  5 \text{ or } 6 ~~ 6 and 5
Lists  a = -2, b = -2 ~~ -2, -2
Lists  p=5,q=2;p=7,q=3 ~~ p=7,q=3 \text{ and } p=5,q=2
Lists  (\pm 1, 0) ~~ (1,0), (-1,0)
Lists  (1,2), (3,4) ~~ (3,4) or (1,2)
Lists  \frac{\pi}{2} + k\pi, k \in \mathbb{Z} ~~ \frac{\pi}{2} + k\pi
Sets  \{1,1,2\} ~~ \{2,1\}
Sets  \{1,2\} \cup \{2,3\} ~~ \{1,2,3\}
Sets  x \in \{1, 2\} ~~ 1, 2
Sets  \{\} ~~ \emptyset
Sets  \{\{1,2\},\{3\}\} ~~ \{\{3\},\{2,1\}\}
Reals  \mathbb{R} ~~ (-\infty, \infty)
Reals  [2,5] \cup [7,9] ~~ [7,9] \cup [2,5]
Reals  (-\infty,0) \cup (0,\infty) ~~ \mathbb{R} \setminus \{0\}
Reals  0 < f(x) < 1 ~~ (0,1)
Reals  1 \le |z| \le \frac32 ~~ z \in [-\frac32,-1] \cup [1,\frac32]
Reals  x > 1 \text{ and } x < 2 ~~ (1,2)
Reals  x < -2 or x > 2 ~~ |x| > 2
Reals  x \ne 3 ~~ (-\infty,3) \cup (3,\infty)
Reals  \{x \mid x > 2\} ~~ (2,\infty)
Reals  -1 < x \leqslant 1: (-1,1] ~~ (-1,1]
Matrices  \begin{pmatrix} 1/2 \\ 2 \end{pmatrix} ~~ \begin{bmatrix} .5 \\ 2 \\ \end{bmatrix}
Matrices  -\begin{pmatrix} 1 & 0 \end{pmatrix} ~~ \begin{pmatrix} -1 & 0 \end{pmatrix}
Matrices  \begin{bmatrix} 1 & 2 \end{bmatrix}^T ~~ \begin{bmatrix} 1 \\ 2 \end{bmatrix}
Matrices  \begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix} ~~ -2
Matrices  \begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix} ~~ (1,2,3)
Words  \textbf{(B)} ~~ B
Words  \text{Even} ~~ even
Words  \text{two} ~~ 2
Words  \text{no solution} ~~ \emptyset
Unicode  √2 ~~ \sqrt{2}
Unicode  x² ~~ x^2
Unicode  2½ ~~ 2.5
Unicode  3×10⁵ ~~ 300000
Unicode  x ≤ 3 ~~ x \le 3
Unicode  １２ ~~ 12
Grouping  (1,234) ~~ (1, 234)
Grouping  1 000 000 ~~ 1000000
Values  2e999 ~~ 2 \times 10^{999}
Values  7!! ~~ 105
Values  0.1666... ~~ \frac16
Values  3 x 10^5 ~~ 300000
Values  4 \operatorname{cis} \frac{\pi}{2} ~~ 4i
Values  {a+b \over c} ~~ \frac{a+b}{c}
Values  \left.\frac12\right. ~~ 0.5
Values  1101_{\text{two}} ~~ 13
Calculus  \sum_{k=1}^{n} k^2 ~~ \frac{n(n+1)(2n+1)}{6}
Calculus  \prod_{k=1}^{n} k ~~ n!
Units  20€ ~~ 20 \text{ euros}
Units  USD 20 ~~ 20
Units  60 miles per hour ~~ 60 mph
Units  100°C ~~ 100^\circ \text{C}
Times  1:03 PM ~~ \text{1:03 p.m.}
Times  1:03 ~~ \text{1:03 PM}
Times  9 am ~~ 9\text{ a.m.}
Words  twenty-one ~~ 21
Words  the ellipse ~~ ellipse
Words  no solutions ~~ \text{no solution}
Words  infinity ~~ \infty
Words  DNE ~~ does not exist
Matrices  -\mathbf{I} ~~ \begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}
Matrices  [[1, 2], [3, 4]] ~~ \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
Points  A(1, 2) ~~ (1, 2)
Points  [1, 2, 3] ~~ 1, 2, 3
Regions  x \ne 2, x \ne 3 ~~ (-\infty, 2) \cup (2, 3) \cup (3, \infty)
Quoted  `x+1` ~~ x+1
"""

DIFFERENT = r"""
Values  x^2+1 ~~ x^2+2
Values  \sqrt{2x} ~~ \sqrt2 x
Values  2(x+1) ~~ 2x+1
Values  \sqrt{x^2} ~~ x
Values  5!7! ~~ 12!
Values  1/2004! ~~ 1/2006!
Values  2^{1000}+1 ~~ 2^{1000}
Values  262537412640768744 ~~ e^{\pi\sqrt{163}}
Values  1.41 ~~ \sqrt2
Values  3.14159 ~~ \pi
Values  10^{-7} ~~ 2 \times 10^{-7}
Values  1/0 ~~ \infty
Values  1011_2 ~~ 1011_3
Values  a ~~ A
Values  x_1 ~~ x_2
Values  \log_2 10 ~~ \log 2
Values  f(2x) ~~ 2f(x)
Values  I(0) ~~ I(0) e^{-t}
Values  0 ~~ \infty \cdot 0
Values  7 ~~ e^{1000} - e^{1000} + 5
Values  10^{-120} \sin 1 ~~ 10^{-121} \sin 1
Values  \sin 1 ~~ \sin 1 + 10^{-90}
Percent  5\% ~~ 5.0001
Percent  2 ~~ 200
Units  5\text{ cm} ~~ 5\text{ m}
Units  7 cm ~~ 7 m
Units  12m ~~ 12n
Names  x = 5 ~~ y = 5
Names  a^2 + b = 0 ~~ 0
Names  x + 2 = 5 ~~ 5
Names  x^2+x-6 = (x-2)(x+2) ~~ (x-2)(x+2)
Equations  4x-5z = -50 ~~ 4x-5y = -50
Equations  x(y-1) = 0 ~~ y = 1
Equations  y = x ~~ xy = x^2
Equations  x^2 = 4 ~~ x = 2
Equations  x \le y ~~ x < y
Equations  x > 3 ~~ x < 3
Lists  5 ~~ 5, 7
Lists  x=1, y=2 ~~ x=2, y=1
Lists  p=5,q=2;p=7,q=3 ~~ p=5,q=3;p=7,q=2
Lists  (\pm 1, \pm 2) ~~ (1,2), (1,-2)
Points  (2,1) ~~ (1,2)
Points  {1,3} ~~ (3,1)
Points  \{1,2\} ~~ (1,2)
Points  (a,b) ~~ [a,b]
Reals  (-\infty,2] \cup [3,\infty) ~~ (-\infty,2) \cup (3,\infty)
Reals  [2,\infty) ~~ (2,\infty)
Matrices  \begin{pmatrix} 1 & 2 \end{pmatrix} ~~ \begin{pmatrix} 1 \\ 2 \end{pmatrix}
Words  Evelyn ~~ evenly
Words  \mbox{Sunday} ~~ \mbox{Saturday}
Words  True ~~ 1
Words  None ~~ 0
Words  3:00 ~~ 3
Values  1e400 ~~ 1e401
Values  3!! ~~ 720
Values  0.12... ~~ \frac{12}{99}
Values  0.333... ~~ 0.333
Values  B_{12} ~~ 11
Calculus  \sum_{k=1}^{n} k ~~ \frac{n(n-1)}{2}
Units  20 USD ~~ 20 EUR
Times  1:03 AM ~~ \text{1:03 PM}
Words  DNE ~~ 0
Words  no solution ~~ one solution
Choices  (A) 5 ~~ B
Choices  A:2 ~~ A
Matrices  I ~~ \begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}
Points  [1, 2] ~~ 1, 2
Points  (2, 2) ~~ \emptyset
Regions  a > 0, b > 0 ~~ a > 0
Lists  1, 2, 3, ... ~~ 1, 2, 3
"""


def pairs(text: str) -> list[tuple[str, str]]:
    """Each line holds a rule's name, two spaces, and two answers."""
    found = []
    for line in text.strip().splitlines():
        one, _, two = line.partition("  ")[2].partition(" ~~ ")
        found.append((one, two))
    return found


@pytest.mark.parametrize(("one", "two"), pairs(SAME))
def test_the_same_answer_written_otherwise(grader: Grader, one: str, two: str) -> None:
    assert grader.judge(one, two).correct
    assert grader.judge(two, one).correct


@pytest.mark.parametrize(("one", "two"), pairs(DIFFERENT))
def test_another_answer(grader: Grader, one: str, two: str) -> None:
    assert not grader.judge(one, two).correct
    assert not grader.judge(two, one).correct


def test_the_letter_of_a_unit_is_one_where_the_gold_has_no_variable(grader: Grader) -> None:
    assert grader.judge("5 m", "5").correct
    assert not grader.judge("5", "5 m").correct, "the gold's m may be a variable"
    assert not grader.judge("5x", "5").correct


@pytest.mark.parametrize("gold", ["C", r"\text{(C)}", "(C)", "12"])
def test_a_choice_may_be_answered_with_what_it_offers(grader: Grader, gold: str) -> None:
    assert grader.judge(r"\textbf{(C)}\ 12", gold).correct
    assert not grader.judge(r"\textbf{(D)}\ 13", gold).correct
    assert not grader.judge(gold, r"\textbf{(D)}\ 13").correct


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (r"\frac{1}{", "not readable"),
        (r"\begin{aligned} x \end{aligned}", "not readable"),
        ("(10^{100})!", "a factorial too large"),
        ("(10^{10})! + 5 - (10^{10})! + x", "no value at any point"),
        ("9^{9^{9^{9}}}", "a power too large"),
        (r"\prod_{k=1}^{10^9} k", "too many terms"),
        ("3 apples and 4 pears are here", "not readable"),
    ],
)
def test_what_cannot_be_told_is_undecided_and_says_why(
    grader: Grader, answer: str, reason: str
) -> None:
    (decision,) = grader.decide([("x+1", answer)])
    assert (decision.correct, decision.status) == (False, "undecided")
    assert reason in decision.reason
