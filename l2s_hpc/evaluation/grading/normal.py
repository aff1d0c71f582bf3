r"""The second rung: one way of writing spaces, signs and delimiters, and the test of equal strings.

Nothing here changes what a text means; `\left(` becomes `(`, `x²` becomes `x^{2}`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_GREEK: Final = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta",
    "η": "eta", "θ": "theta", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi",
    "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "χ": "chi", "ψ": "psi",
    "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Σ": "Sigma",
    "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega", "ϕ": "phi",
}  # fmt: skip
_COMMANDS: Final = {
    "×": "times", "·": "cdot", "⋅": "cdot", "∙": "cdot", "÷": "div", "∞": "infty", "≤": "le",
    "≥": "ge", "⩽": "le", "⩾": "ge", "≠": "ne", "≈": "approx", "±": "pm", "∓": "mp", "∪": "cup",
    "∩": "cap", "∈": "in", "∅": "emptyset", "√": "sqrt", "∠": "angle", "⟨": "langle",
    "⟩": "rangle", "⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil", "⌉": "rceil", "∖": "setminus",
    "ℏ": "hbar", "ℓ": "ell", "→": "to", "∑": "sum", "∏": "prod", "∫": "int",
}  # fmt: skip
_UNICODE = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", None),
        **{sign: rf"\{name} " for sign, name in (_GREEK | _COMMANDS).items()},
        "°": r"^{\circ}",
        "º": r"^{\circ}",
        "ℝ": r"\mathbb{R}",
        "ℤ": r"\mathbb{Z}",
        "ℕ": r"\mathbb{N}",
        "ℚ": r"\mathbb{Q}",
        "ℂ": r"\mathbb{C}",
        "∛": r"\sqrt[3]",
        "′": "'",
        "’": "'",
        "，": ",",
        "；": ";",
        "、": ",",
        "。": ".",
    }
)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋"
_SCRIPTS = re.compile(f"(?P<raised>[{_RAISED}]+)|(?P<lowered>[{_LOWERED}]+)")
_PLAIN_SCRIPTS = str.maketrans(_RAISED + _LOWERED, "0123456789+-ni" + "0123456789+-")
_TIDY = (
    (re.compile(r"\\(?:left|right) ?\."), ""),  # a delimiter that is not there
    # 0.333... repeats; digits that do not are cut, and the dots say no more than that.
    (re.compile(r"(\d*\.\d*?)(\d+?)\2+ ?(?:\.\.\.|\\[lc]?dots(?![A-Za-z]))"), r"\1\\overline{\2}"),
    (re.compile(r"(?<=\d\.)\((\d+)\)"), r"\\overline{\1}"),
    (re.compile(r"(?<=\d) ?x ?(?=10 ?\^)"), r"\\times "),
    (re.compile(r"(?<!\\)\\!\s*"), ""),  # not the second half of a line break
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<!\\)\\[,;:> ]|~|\\(?:q?quad|thinspace|enspace)(?![A-Za-z])"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:tbinom|dbinom)(?![A-Za-z])"), r"\\binom"),
    (
        re.compile(
            r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|mathstrut"
            r"|allowbreak|nonumber|boldsymbol|mathbf|bf|bm)(?![A-Za-z])"
        ),
        "",
    ),
    (re.compile(r"\\phantom\{[^{}]*\}"), ""),
    (re.compile(r"(?<!\\)(?:\\[()\[\]]|\$)"), " "),
    (re.compile(r"\s+"), " "),
    (re.compile(r", ?\.\.\. ?$"), r", \\ldots"),  # a list that goes on
    (re.compile(r"(\\circ ?\}?) ?([CF])(?![A-Za-z])"), r"\1\\text{ \2}"),
)
# The a.m. of a time: after minutes, or marked by its dots, its capitals or its upright type.
_HALF_DAY = re.compile(
    r"(?<=\d) ?(?:\\(?:text|mathrm|mbox) ?\{[ ~\\]*([AaPp])\.? ?[Mm]\b\.? *\}"
    r"|(?:(?<=:\d\d)|(?<=:\d\d ))([ap]m)\b|([AP])M\b|([ap])\. ?m\b\.?)"
)
_MODULES = re.compile(r"\b(?:np|numpy|math|sp|sympy)\.(?=[a-z])")
_END = re.compile(r"(?:[.,;\\ ])+$")
_QUOTED = re.compile(r"(\*\*|[*`\"])([^*`\"]+)\1")  # by Markdown, or in words
_WHOLE_BOX = re.compile(r"\\(?:boxed|fbox|framebox) ?\{(.*)\}")

_WHOLE_TEXT = re.compile(r"\\(?:text|textbf|mathbf|textrm|mbox|mathrm) ?\{([^{}]*)\}")


def tidy(text: str) -> str:
    """Return the same mathematics with one way of writing spaces, signs and delimiters."""
    text = _SCRIPTS.sub(_script, text.translate(_UNICODE))
    text = "".join(_fraction(c) if ord(c) > 127 else c for c in text)
    text = _MODULES.sub("", text)
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    text = _END.sub("", text.strip())
    if quoted := _QUOTED.fullmatch(text):
        text = quoted[2].strip()
    if (words := _WHOLE_TEXT.fullmatch(text)) and re.search(r"\d", words[1]):
        text = words[1].strip()
    text = _HALF_DAY.sub(lambda half: rf"\text{{ {half[half.lastindex or 0][0].lower()}m}}", text)
    if (whole := _WHOLE_BOX.fullmatch(text)) and _balanced(whole[1]):
        return _END.sub("", whole[1].strip())
    return text


def _script(match: re.Match[str]) -> str:
    plain = match[0].translate(_PLAIN_SCRIPTS)
    return ("^{" if match["raised"] else "_{") + plain + "}"


def _fraction(character: str) -> str:
    """Return a vulgar fraction as LaTeX, a wide letter as a plain one, the rest unchanged."""
    plain = unicodedata.normalize("NFKC", character)
    above, slash, below = plain.partition("\u2044")
    if slash and above.isdigit() and below.isdigit():
        return rf"\frac{{{above}}}{{{below}}}"
    return plain


def _balanced(text: str) -> bool:
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text):
        depth += (token[0] == "{") - (token[0] == "}")
        if depth < 0:
            return False
    return depth == 0


_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|mbox|mathrm)\s*\{([^{}]*)\}")
_LOOSE_SPACE = re.compile(r"(?<![^\W_]) | (?![^\W_])")
_PROSE = re.compile(r"[^\W\d_]{3,}(?:[ ,'-]+[^\W\d_]+)*")


def same_text(gold: str, answer: str) -> bool:
    """Tell whether two tidy texts are the same but for loose spaces and the font of words."""
    return _tight(gold) == _tight(answer) != ""


def _tight(tidied: str) -> str:
    """Return a form in which equal strings mean equal answers.

    Spaces go where neither letters nor digits would grow together: `1 1/2` is not `11/2`. Capital
    letters mean something in a formula, and nothing in words.
    """
    plain = _WORDS.sub(r"\1", tidied)
    choice = re.fullmatch(r" ?\(([A-Za-z])\) ?", plain)  # the letter of a multiple choice
    plain = _LOOSE_SPACE.sub("", choice[1] if choice else plain)
    return plain.casefold() if _PROSE.fullmatch(plain) else plain
