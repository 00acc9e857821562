"""Exact comparison of answers that are plain numbers: no symbolic algebra, microseconds instead of milliseconds.

Handles signs, thousands separators, decimals, fractions and mixed numbers (plain or LaTeX), scientific notation, percentages, currency signs
and units. Anything else is left to the caller (`parse_number` returns None).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 200  # characters; a longer text is not a plain number

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_PLAIN = re.compile(rf"({_DECIMAL})(?:[eE]([-+]?\d{{1,3}})|\s*\\?(?:times|x|×|\*)\s*10\s*(?:\^|\*\*)\s*\{{?([-+]?\d{{1,3}})\}}?)?")
_RATIO = re.compile(rf"({_DECIMAL})\s*/\s*({_DECIMAL})")
_LATEX = re.compile(rf"(?:(\d+)\s*)?\\[dtc]?frac\s*(?:\{{\s*([-+]?)({_DECIMAL})\s*\}}\s*\{{\s*({_DECIMAL})\s*\}}|()(\d)\s*(\d))")
_MIXED = re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)")
_UNIT = re.compile(r"(?:[^\W\d_]|[°²³µ])[^\d\\{}=+*<>]{0,40}(?:\^\{?[23]\}?)?")  # starts with a letter: "apples", "cm^2", "miles per hour"
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{\s*([^{}]*)\}")
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_NOT_UNITS = re.compile(r"\b(?:or|and|to|if|mod|but|plus|minus|times)\b", re.IGNORECASE)  # "5 or more" is not five mores
_SYMBOLS = frozenset("abcdefghijklnopqrstuvwxyzeπ") - frozenset("glms")  # one letter is a variable, except gram, litre, metre, second

_KNOWN_UNITS = {
    alias: unit for unit, aliases in {
        "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "m": "m meter metre", "km": "km kilometer kilometre",
        "in": "in inch inche", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile",
        "mg": "mg milligram", "g": "g gram", "kg": "kg kilogram", "lb": "lb pound", "oz": "oz ounce",
        "ms": "ms millisecond", "s": "s sec second", "min": "min minute", "h": "h hr hour",
        "d": "d day", "week": "week", "month": "month", "year": "yr year",
        "ml": "ml milliliter millilitre", "l": "l liter litre", "cent": "cent", "dollar": "dollar usd",
    }.items() for alias in aliases.split()
}


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value with how it was written."""

    value: Fraction
    decimal: bool = False  # written with a decimal point, so perhaps rounded
    percent: bool = False
    unit: str = ""  # as written, lower case
    unevaluated: bool = False  # a quotient that is a whole number: 6/2


def clean(text: str) -> str:
    """The text without mathematical delimiters, LaTeX spacing, text macros, and a final full stop."""
    text = text.strip()
    for left, right in _WRAPPERS:
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            text = text[len(left):-len(right)].strip()
            break
    text = text.replace("−", "-").replace("–", "-").replace("{,}", ",").replace(r"\!", "").replace("\u00a0", " ").replace("\u202f", " ")
    for space in (r"\,", r"\;", r"\:", r"\ ", "~"):
        text = text.replace(space, " ")
    text = _LATEX_TEXT.sub(r" \1 ", text).strip()
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text


@functools.lru_cache(maxsize=4096)
def parse_number(text: str) -> Number | None:
    """The plain number that the whole text is, else None."""
    if len(text) > MAX_LENGTH:
        return None
    text = clean(text).replace(r"\$", "$").replace(r"\%", "%").replace(r"^\circ", "°").replace(r"^{\circ}", "°")
    sign = 1
    while text[:1] in ("+", "-", "$", "€", "£") and text:
        sign = -sign if text[0] == "-" else sign
        text = text[1:].lstrip()
    for pattern, build in ((_LATEX, _latex), (_MIXED, _mixed), (_RATIO, _ratio), (_PLAIN, _plain)):
        match = pattern.match(text)
        if match is None:
            continue
        suffix = _suffix(text[match.end():].strip(), glued=match.end() < len(text) and not text[match.end()].isspace())
        value = build(match)
        if suffix is None or value is None:
            return None
        percent, unit = suffix
        unevaluated = pattern in (_LATEX, _RATIO) and value.denominator == 1
        return Number(sign * value, "." in match[0], percent, unit, unevaluated)
    return None


def equal(answer: Number, reference: Number) -> bool:
    """Whether two numbers are the same answer.

    Exactly, or to six decimals where one is written as a decimal (math-verify's tolerance). 50% is both 50 and 0.5. Units count
    only when both state one and both are well-known: then they must agree (5 cm is not 5 m); they are not converted.
    """
    left, right = _KNOWN_UNITS.get(_singular(answer.unit)), _KNOWN_UNITS.get(_singular(reference.unit))
    if left and right and left != right:
        return False
    rounded = answer.decimal or reference.decimal
    if answer.percent == reference.percent:
        return _same(answer.value, reference.value, rounded)
    scaled = [number.value / 100 if number.percent else number.value for number in (answer, reference)]
    return _same(answer.value, reference.value, rounded) or _same(scaled[0], scaled[1], True)


def _same(left: Fraction, right: Fraction, rounded: bool) -> bool:
    return left == right or (rounded and round(left, 6) == round(right, 6))


def _suffix(text: str, *, glued: bool) -> tuple[bool, str] | None:
    """(is a percentage, unit) of what follows the digits; None when that makes it more than a number."""
    if text.startswith("%") or text.lower().startswith("percent"):
        rest = text[1:] if text.startswith("%") else text[len("percent"):]
        return (True, "") if not rest.strip() else None
    if not text:
        return False, ""
    if not _UNIT.fullmatch(text) or _NOT_UNITS.search(text) or (len(text) == 1 and text.lower() in _SYMBOLS and glued):
        return None
    return False, text.lower()


def _singular(unit: str) -> str:
    unit = unit.rstrip(".")
    return unit[:-1] if len(unit) > 2 and unit.endswith("s") else unit


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip(".") or "0")


def _plain(match: re.Match[str]) -> Fraction | None:
    exponent = match[2] or match[3]
    return _number(match[1]) * (Fraction(10) ** int(exponent) if exponent else 1)


def _ratio(match: re.Match[str]) -> Fraction | None:
    below = _number(match[2])
    return _number(match[1]) / below if below else None


def _mixed(match: re.Match[str]) -> Fraction | None:
    return int(match[1]) + Fraction(int(match[2]), int(match[3])) if int(match[3]) else None


def _latex(match: re.Match[str]) -> Fraction | None:
    above, below = _number(match[3] or match[6]), _number(match[4] or match[7])
    if not below:
        return None
    value = above / below
    return int(match[1] or 0) + (-value if match[2] == "-" else value)
