"""The third rung: plain numbers, exactly. Most answers are decided here or before."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

EXPONENT: Final = 400  # beyond it, a power of ten is left to the symbolic rung
DOUBLE_DIGITS: Final = 15
DOUBLE_ERROR: Final = Fraction(5, 10**15)

GROUPED: Final = r"(?!0\d)\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?![\d]|,\d|\.\d*,)"
PLAIN: Final = rf"(?:{GROUPED}|\d+)(?:\.\d*)?|\.\d+"
_TEN = r"(?:[eE]|\s?(?:\\times|\\cdot|\*)\s?10\s?\^)\s?\{?(?P<exponent>[+-]?\d{1,3})\}?"
_DECIMAL = re.compile(
    rf"(?P<sign>[+-]?) ?(?:\\\$ ?)?(?P<value>{PLAIN})(?:{_TEN})?(?P<percent> ?\\?%)?"
)
_PART = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_FRACTIONS = (
    re.compile(rf"(?P<sign>[+-]?) ?(?P<above>{_PART}) ?/ ?(?P<below>{_PART})"),
    re.compile(
        rf"(?P<sign>[+-]?) ?\\frac ?\{{ ?(?P<above>{_PART}) ?\}} ?\{{ ?(?P<below>{_PART}) ?\}}"
    ),
    re.compile(r"(?P<sign>[+-]?) ?\\frac ?(?P<above>\d) ?(?P<below>\d)"),
)


@dataclass(frozen=True)
class Number:
    """An exact number as it was written.

    Attributes:
        value: its value; for a percentage the number before the sign.
        digits: the significant digits of a decimal, else 0.
        percent: it has a percent sign.
    """

    value: Fraction
    digits: int = 0
    percent: bool = False


def number(tidied: str) -> Number | None:
    """Read a whole tidy text as integer, decimal, fraction or a · 10^b; None if it is none."""
    if match := _DECIMAL.fullmatch(tidied):
        if abs(int(match["exponent"] or 0)) > EXPONENT:
            return None
        value = decimal(match["value"]) * Fraction(10) ** int(match["exponent"] or 0)
        digits, percent = digits_of(match["value"]), bool(match["percent"])
    elif match := next(filter(None, (form.fullmatch(tidied) for form in _FRACTIONS)), None):
        if not Fraction(match["below"]):
            return None
        value, digits = Fraction(match["above"]) / Fraction(match["below"]), 0
        percent = False
    else:
        return None
    return Number(-value if match["sign"] == "-" else value, digits, percent)


def decimal(text: str) -> Fraction:
    """Return the value of digits with separators and at most one decimal point."""
    return Fraction(re.sub("[, ]", "", text))


def digits_of(text: str) -> int:
    """Return how many significant digits a decimal has; 0 for an integer."""
    plain = re.sub("[, ]", "", text)
    return len(plain.replace(".", "").lstrip("0")) if "." in plain else 0


def equal(one: Number, two: Number) -> bool:
    """Compare exactly; a decimal with 15 digits, a printed double, passes as the exact number.

    p% is p/100, and p as well where the other side has no sign: whoever asks for a percentage may
    leave it out.
    """
    if one.percent != two.percent:
        bare, signed = (two, one) if one.percent else (one, two)
        hundredth = Number(signed.value / 100, signed.digits)
        return _close(bare, hundredth) or _close(bare, signed)
    return _close(one, two)


def _close(one: Number, two: Number) -> bool:
    if max(one.digits, two.digits) < DOUBLE_DIGITS:
        return one.value == two.value
    return abs(one.value - two.value) <= abs(one.value) * DOUBLE_ERROR
