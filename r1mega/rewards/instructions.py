"""Instructions that a program can check: the public ids of IFEval (Zhou et al., 2023, arXiv 2311.07911), each a small function of the text.

    check = prepare("length_constraints:number_words", {"num_words": 50, "relation": "at least"})
    check("...")                       strict
    any(map(check, loosened("...")))   loose

Written from the descriptions of the ids. Known differences from the published checker: sentences are split by punctuation rather than a trained model,
keywords are literal text rather than patterns, and the language is found by `data.language` (by script alone for languages it cannot tell apart).
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from r1mega.data.language import LATIN, SCRIPT_LANGUAGES, language_share, word_shares
from r1mega.errors import nearest
from r1mega.rewards.json_schema import json_in

Check = Callable[[str], bool]
CHECKS: dict[str, Callable[..., bool]] = {}

_SAME_SCRIPT = {"uk": "ru", "bg": "ru", "ur": "ar", "fa": "ar", "ne": "hi", "mr": "hi", "kn": "kannada", "gu": "gujarati", "pa": "gurmukhi", "ml": "malayalam"}
_LATIN_ONLY = ("pl", "vi", "sw", "fi", "tr", "sv", "da", "no", "cs", "ro", "hu", "id")  # in Latin letters and unknown to the detector
_SENTENCE_END = re.compile(r"(?:[.!?]+[\"'”’)\]]*(?=\s|$)|[。！？]+|\n\s*\n)")
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|fig|no|inc|jr|sr|(?-i:[A-Z]))\.$", re.IGNORECASE)
_CLOSING_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


class InstructionError(ValueError):
    """An unknown instruction, or settings that do not fit it."""


def prepare(name: str, settings: Mapping[str, Any]) -> Check:
    """The check of one instruction. Raises `InstructionError` for an unknown id and for missing, unknown or mistyped settings."""
    if name not in CHECKS:
        raise InstructionError(f"instruction '{name}' is unknown.{nearest(str(name), CHECKS)} Known: {', '.join(CHECKS)}")
    function = CHECKS[name]
    hints = typing.get_type_hints(function)
    known = [key for key in inspect.signature(function).parameters if key != "text"]
    for key in settings:
        if key not in known:
            raise InstructionError(f"instruction '{name}' has no setting '{key}'.{nearest(key, known)} Known: {', '.join(known) or 'none'}")
    for key in known:
        if key not in settings:
            raise InstructionError(f"instruction '{name}' needs the setting '{key}'")
    typed = {key: _typed(name, key, value, hints[key]) for key, value in settings.items()}
    return lambda text: bool(text.strip()) and function(text, **typed)


def loosened(text: str) -> Iterator[str]:
    """The text as the loose measure reads it: as it is, without its first line, its last, both; each also without asterisks."""
    lines = text.split("\n")
    for kept in (lines, lines[1:], lines[:-1], lines[1:-1]):
        variant = "\n".join(kept).strip()
        yield variant
        yield variant.replace("*", "")


def _typed(name: str, key: str, value: Any, expected: Any) -> Any:
    if expected is int and isinstance(value, float) and value.is_integer():
        return int(value)  # a Parquet column with nulls turns integers into floats
    if expected is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if expected is str and isinstance(value, str) and value:
        if "relation" in key and value not in ("less than", "at least"):
            raise InstructionError(f"instruction '{name}': '{key}' must be 'less than' or 'at least', got {value!r}")
        if key == "language":
            _language(value)
        return value
    if expected == list[str] and isinstance(value, list) and value and all(isinstance(item, str) and item for item in value):
        return value
    wanted = {int: "an integer", str: "text"}.get(expected, "a list of texts")
    raise InstructionError(f"instruction '{name}': '{key}' must be {wanted}, got {value!r}")


def _instruction(name: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def add(function: Callable[..., bool]) -> Callable[..., bool]:
        CHECKS[name] = function
        return function
    return add


def _related(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


# -------------------------------------------------------------------------------------------------------------------------- words and letters


@_instruction("keywords:existence")
def _existence(text: str, keywords: list[str]) -> bool:
    return all(keyword.casefold() in text.casefold() for keyword in keywords)


@_instruction("keywords:frequency")
def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _related(text.casefold().count(keyword.strip().casefold()), relation, frequency)


@_instruction("keywords:forbidden_words")
def _forbidden(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


@_instruction("keywords:letter_frequency")
def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _related(text.lower().count(letter.lower()), let_relation, let_frequency)


@_instruction("change_case:capital_word_frequency")
def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return _related(sum(word.isupper() for word in re.findall(r"\w+(?:['’-]\w+)*", text)), capital_relation, capital_frequency)


@_instruction("change_case:english_capital")
def _all_capitals(text: str) -> bool:
    return text.isupper() and language_share(text.lower(), "en") >= 0.5


@_instruction("change_case:english_lowercase")
def _all_lowercase(text: str) -> bool:
    return text.islower() and language_share(text, "en") >= 0.5


@_instruction("punctuation:no_comma")
def _no_comma(text: str) -> bool:
    return "," not in text


@_instruction("language:response_language")
def _response_language(text: str, language: str) -> bool:
    """At least half of the words are in it."""
    label = _language(language)
    shares = word_shares(text)
    if label == LATIN:  # any Latin letters that are not plainly one of the languages which the detector tells apart
        others = set(SCRIPT_LANGUAGES.values()) | set(_SAME_SCRIPT.values())
        return sum(share for found, share in shares.items() if found not in others) >= 0.5 and shares.get("en", 0.0) < 0.5
    return shares.get(label, 0.0) + (shares.get(LATIN, 0.0) if label not in SCRIPT_LANGUAGES.values() and label.isascii() and len(label) == 2 else 0.0) >= 0.5


def _language(code: str) -> str:
    """What the detector calls the language, or the script of one that it does not know."""
    from r1mega.data.language import DEFAULT

    if code in DEFAULT.languages:
        return code
    if code in _SAME_SCRIPT or code in _LATIN_ONLY:
        return _SAME_SCRIPT.get(code, LATIN)
    known = sorted({*DEFAULT.languages, *_SAME_SCRIPT, *_LATIN_ONLY})
    raise InstructionError(f"language '{code}' is unknown.{nearest(code, known)} Known: {', '.join(known)}")


# ------------------------------------------------------------------------------------------------------------------------------------ length


@_instruction("length_constraints:number_words")
def _number_words(text: str, num_words: int, relation: str) -> bool:
    return _related(len(re.findall(r"\w+", text)), relation, num_words)


@_instruction("length_constraints:number_sentences")
def _number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _related(count_sentences(text), relation, num_sentences)


@_instruction("length_constraints:number_paragraphs")
def _number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs are parted by `***`; an empty one between two marks breaks the format."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(bool(part) for part in parts) == num_paragraphs


@_instruction("length_constraints:nth_paragraph_first_word")
def _nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are parted by an empty line."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    first = re.search(r"\w+(?:['’-]\w+)*", parts[nth_paragraph - 1].split()[0])
    return first is not None and first[0].casefold() == first_word.casefold()


def count_sentences(text: str) -> int:
    """Stretches that end with a sentence's punctuation or an empty line and hold a letter or digit; a stop after an abbreviation ends none."""
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        piece = text[start:end.end()]
        if end[0].startswith(".") and _ABBREVIATION.search(piece[-12:].rstrip("\"'”’)]")) and end.end() < len(text.rstrip()):
            continue
        count += bool(re.search(r"\w", piece))
        start = end.end()
    return count + bool(re.search(r"\w", text[start:]))


# ---------------------------------------------------------------------------------------------------------------------------- format and parts


@_instruction("detectable_content:number_placeholders")
def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]+\]", text)) >= num_placeholders


@_instruction("detectable_content:postscript")
def _postscript(text: str, postscript_marker: str) -> bool:
    """The mark with something after it; spaces within the mark do not count."""
    letters = r"\s?".join(re.escape(character) for character in postscript_marker if not character.isspace())
    return bool(re.search(rf"(?<!\w){letters}\s*\S", text, re.IGNORECASE))


@_instruction("detectable_format:number_bullet_lists")
def _bullets(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^[^\S\n]*(?:\*[^*\n]|-[^-\n]).*$", text, re.MULTILINE)) == num_bullets


@_instruction("detectable_format:number_highlighted_sections")
def _highlights(text: str, num_highlights: int) -> bool:
    return len(re.findall(r"\*\*[^\n*]*[^\s*][^\n*]*\*\*|\*[^\n*]*[^\s*][^\n*]*\*", text)) >= num_highlights


@_instruction("detectable_format:multiple_sections")
def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"(?<!\w){re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


@_instruction("detectable_format:title")
def _title(text: str) -> bool:
    return any(title.strip("< \t") for title in re.findall(r"<<([^\n>]+)>>", text))


@_instruction("detectable_format:json_format")
def _json_format(text: str) -> bool:
    """The whole text, apart from a code fence, is JSON."""
    try:
        json.loads(json_in(text, whole=True))
    except (ValueError, RecursionError):
        return False
    return True


@_instruction("detectable_format:constrained_response")
def _constrained(text: str) -> bool:
    return any(choice in text for choice in _CLOSING_CHOICES)


@_instruction("combination:two_responses")
def _two_responses(text: str) -> bool:
    """Two different ones, parted by six asterisks."""
    parts = [part.strip() for part in text.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


@_instruction("combination:repeat_prompt")
def _repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().casefold().startswith(prompt_to_repeat.strip().casefold())


@_instruction("startend:start_checker")
def _starts(text: str, start_phrase: str) -> bool:
    return text.strip().strip('"').casefold().startswith(start_phrase.strip().casefold())


@_instruction("startend:end_checker")
def _ends(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').casefold().endswith(end_phrase.strip().strip('"').casefold())


@_instruction("startend:quotation")
def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'
