"""Which option of a multiple-choice question a completion chooses."""

from __future__ import annotations

import re

from r1mega.rewards.answers import extract_answer
from r1mega.rewards.numbers import clean

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ALONE = re.compile(r"(?:option|choice|answer)?\s*:?\s*[(\[]?\s*([A-Za-z])\s*(?:[)\].:,]|$)(.*)", re.IGNORECASE | re.DOTALL)
_STATED = re.compile(r"\banswer(?:\s+is|\s*:)\s*(?:option\s+)?(?:\*\*|\\text\{|\$)*\s*[(\[]?([A-Z])\b(?!['’])", re.IGNORECASE)
_MARKS = "*_`$\"' \n"


def chosen_option(completion: str, options: int) -> str | None:
    r"""The letter of the chosen option, upper case; None where there is none or more than one.

    The answer stands where `extract_answer` looks: in `<answer>`, else in the last `\boxed{}`; there the letter stands alone or first, as in "B",
    "(b)", "B) 4 m" or "Option B". Where there is neither, the last "answer is B" or "Answer: B" after the reasoning counts, then a text that is a
    letter alone. Letters beyond the number of options are no answer.
    """
    if "<answer>" in completion or "</answer>" in completion:
        return _letter(extract_answer(completion, "answer_tag").answer, options)
    boxed = extract_answer(completion, "boxed").answer
    if boxed is not None:
        return _letter(boxed, options)
    if "<think>" in completion.rpartition("</think>")[2]:
        return None
    after = completion.rpartition("</think>")[2][-2000:]
    stated = _STATED.findall(after)
    return _letter(stated[-1], options) if stated else _letter(after, options)


def _letter(text: str | None, options: int) -> str | None:
    if not text:
        return None
    allowed = LETTERS[:options]
    text = clean(text.strip(_MARKS)).strip(_MARKS)
    found = _ALONE.fullmatch(text)
    if found is None or found[1].upper() not in allowed:
        return None
    return found[1].upper() if not _names_another(found[2], allowed) else None


def _names_another(rest: str, allowed: str) -> bool:
    """Whether more letters follow the first, as in "A, C" or "A) or (B)"; words say what the option is."""
    words = re.split(r"[\s,;/&()\[\].]+", rest)
    letters = [word for word in words if word in allowed and word]
    return bool(letters) and all(not word or word in letters or word in ("and", "or") for word in words)
