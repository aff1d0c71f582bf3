"""The vocabulary of the reader: functions, letters, signs and units."""

from __future__ import annotations

import re
from typing import Final


def names(text: str) -> list[str]:
    """Return the words of a text; so a vocabulary reads as one."""
    return text.split()


FUNCTIONS: Final = {
    name: name
    for name in names(
        "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech"
        " csch arcsinh arccosh arctanh log ln exp sqrt abs max min gcd lcm det floor ceil lg cis"
    )
} | {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "arsinh": "arcsinh",
    "arcosh": "arccosh", "artanh": "arctanh", "asinh": "arcsinh", "acosh": "arccosh",
    "atanh": "arctanh", "cosec": "csc", "tg": "tan", "ctg": "cot", "arctg": "arctan",
    "GCD": "gcd", "LCM": "lcm", "Re": "Re", "Im": "Im", "arg": "arg",
    "tr": "tr", "Tr": "tr", "trace": "tr", "sgn": "sgn", "sign": "sgn",
}  # fmt: skip
INVERSES: Final = {name: "arc" + name for name in names("sin cos tan cot sec csc sinh cosh tanh")}
LETTERS: Final = {
    name: name
    for name in names(
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho"
        " sigma tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega hbar"
        " partial nabla"
    )
} | {
    "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta", "varrho": "rho",
    "varsigma": "sigma", "ell": "l", "imath": "i", "jmath": "j", "Re": "Re", "Im": "Im",
}  # fmt: skip
RELATIONS: Final = {
    "=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "==": "=",
    r"\le": "<=", r"\leq": "<=", r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=",
    r"\geqslant": ">=", r"\lt": "<", r"\gt": ">", r"\ne": "!=", r"\neq": "!=", r"\in": "in",
    r"\approx": "~", r"\simeq": "~", r"\sim": "~", r"\equiv": "=", r"\coloneqq": "=",
    r"\doteq": "~", ":=": "=",
}  # fmt: skip
DECORATIONS: Final = frozenset(
    names(
        "mathbf mathit mathcal mathsf mathtt vec hat bar tilde overrightarrow overline underline"
        " widehat boldsymbol mathfrak mathscr dot ddot widetilde overleftrightarrow"
    )
)
MEANT: Final = frozenset({"hat", "bar", "tilde", "dot", "ddot", "widehat", "widetilde"})
"""Decorations that make another letter of a letter; the others are a matter of font."""
TEXTS: Final = frozenset(names("text textbf textit textrm textnormal mbox mathrm operatorname rm"))
NUMBER_SETS: Final = frozenset("RZNQC")
SEPARATORS: Final = {
    "and": "and", "or": "or", r"\land": "and", r"\lor": "or", r"\wedge": "and", r"\vee": "or",
}  # fmt: skip
WORDS: Final = frozenset(names("odd yes one two six ten red all nan dne"))
"""Words of three letters that are no product of three variables."""
PERCENT: Final = frozenset({"percent", "pct", "percentage", "percents", "%"})
CURRENCIES: Final = {
    r"\$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹", r"\pounds": "£", "USD": "$", "EUR": "€",
    "GBP": "£", "Rs": "₹",
}  # fmt: skip

UNITS: Final = frozenset(
    names(
        "mm cm dm km ft yd mi in inch inches kg lb lbs oz ml mL hr hrs min mins sec secs mph"
        " kmh km/h Hz kHz MHz GHz Pa kPa MPa eV keV MeV GeV kJ kW MW kWh kV fm Gpc mol cal kcal"
        " rad deg degrees degree erg dyn dyne sq cu cc Mpc kpc pc yr yrs AU meter meters metre"
        " metres centimeter centimeters centimetre centimetres millimeter millimeters kilometer"
        " kilometers kilometre kilometres foot feet yard yards mile miles gram grams kilogram"
        " kilograms pound pounds ounce ounces ton tons liter liters litre litres gallon gallons"
        " second seconds minute minutes hour hours day days week weeks month months year years"
        " dollar dollars cent cents euro euros yuan rupees unit units square cubic radian"
        " radians times ways people students men women children boys girls points apples books"
        " items marbles cookies coins balls pages sides squares triangles edges vertices"
        " solutions persons integers numbers values pairs sets subsets paths routes arrangements"
        " permutations games hz joules watts volts amperes newtons kelvin kelvins bits bytes"
        " USD EUR GBP Rs"
    )
)
SHORT_UNITS: Final = frozenset(names("m s g h L"))
"""Letters that are a unit in upright type, after a slash, or where the gold has no variable."""
_SAME_UNITS: Final = {
    "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm",
    "kilometer": "km", "kilometre": "km", "foot": "ft", "feet": "ft", "inche": "inch",
    "in": "inch", "gram": "g", "kilogram": "kg", "lb": "pound", "second": "s", "sec": "s",
    "minute": "min", "hour": "h", "hr": "h", "liter": "L", "litre": "L", "l": "L", "yr": "year",
    "dollar": "$", "usd": "$", "yard": "yd", "mile": "mi", "degree": "deg", "radian": "rad",
    "cubic": "cu", "square": "sq", "unit": "", "joule": "J", "newton": "N", "watt": "W",
    "volt": "V", "kelvin": "K", "people": "person", "ounce": "oz", "per": "/", "mph": "mi/h",
    "kmh": "km/h", "kph": "km/h", "euro": "€", "eur": "€", "gbp": "£",
    "rupee": "₹", "rs": "₹",
}  # fmt: skip

INFINITIES: Final = frozenset(names("inf infty infinity oo"))
MAGNITUDES: Final = {
    "dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
NUMBER_WORDS: Final = {
    word: value
    for value, word in enumerate(
        names(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
            " fifteen sixteen seventeen eighteen nineteen twenty"
        )
    )
}
for _n, _tens in enumerate(names("twenty thirty forty fifty sixty seventy eighty ninety"), start=2):
    NUMBER_WORDS[_tens] = 10 * _n
    for _unit in names("one two three four five six seven eight nine"):
        NUMBER_WORDS[f"{_tens}-{_unit}"] = NUMBER_WORDS[f"{_tens} {_unit}"] = (
            10 * _n + NUMBER_WORDS[_unit]
        )


def unit_name(text: str) -> str:
    """Return one way of writing a unit; empty for one that says nothing, such as `units`."""
    words = re.findall(r"[^\W\d_]+|\d+|[^\w\s]", text.replace("{", "").replace("}", ""))
    plain = [_one_unit(word) for word in words]
    if plain[:1] in (["sq"], ["cu"]) and len(plain) > 1:
        plain = [*plain[1:], "^", "2" if plain[0] == "sq" else "3"]
    joined = "".join(plain)
    return "" if joined in ("^2", "^3", "sq", "cu") else joined


def _one_unit(word: str) -> str:
    singular = word[:-1] if len(word) > 2 and word.endswith("s") else word
    return _SAME_UNITS.get(singular, _SAME_UNITS.get(singular.lower(), singular))
