"""Each filter rejects what it is for, and nothing a reader would keep."""

from __future__ import annotations

import dataclasses
import random

import pytest

from r1mega.data.filters import FILTERS, Draft, FilterConfig, line_repeats, longest_paragraph, repetition_share, why_unfit
from r1mega.errors import ConfigError

GOOD = Draft("First we add 7 and 5, which is 12.\nThen we carry the one.\n\nSo the sum of both is 42.", "42")
OFF = FilterConfig(reasoning=False, min_language_share=0, max_paragraph_chars=0, code_blocks=False, max_repetition=0, max_line_repeats=0)
BAD = {
    "empty": dataclasses.replace(GOOD, response="  \n"),
    "mixed_language": dataclasses.replace(GOOD, reasoning="First we add 7 and 5. 然后我们把一进上去。"),
    "long_paragraph": dataclasses.replace(GOOD, reasoning=" ".join(f"and the w{''.join(random.Random(i).choices('abcdefgh', k=9))}" for i in range(300))),
    "code_block": dataclasses.replace(GOOD, reasoning="Let us write it:\n```python\nprint(42)\n```\nso it is done."),
    "repetition": dataclasses.replace(GOOD, reasoning="wait, let us check that the sum is right again. " * 12),
    "too_long": dataclasses.replace(GOOD, response="x" * 200)}


def config(**changes: object) -> FilterConfig:
    return dataclasses.replace(FilterConfig(max_chars=0), **changes)  # type: ignore[arg-type]


def test_a_good_sample_passes_every_filter() -> None:
    assert why_unfit(GOOD, config(max_chars=1000)) == ""


@pytest.mark.parametrize("reason", FILTERS)
def test_every_filter_rejects_its_kind_and_can_be_switched_off(reason: str) -> None:
    limits = config(max_chars=150) if reason == "too_long" else config()
    assert why_unfit(BAD[reason], limits) == reason
    if reason != "empty":  # a sample without a response is never fit
        assert why_unfit(BAD[reason], OFF) == ""


def test_reasoning_may_be_empty_where_none_is_wanted() -> None:
    trivial = Draft("", "Hello! How can I help?")
    assert why_unfit(trivial, config()) == "empty"
    assert why_unfit(trivial, config(reasoning=False)) == ""


def test_code_in_the_response_is_no_fault() -> None:
    assert why_unfit(dataclasses.replace(GOOD, response="```python\nprint(42)\n```"), config()) == ""


def test_a_chinese_chain_is_fit_for_a_chinese_prompt_only() -> None:
    chain = Draft("首先我们把7和5加起来，得到12。然后进一。", "42", "zh")
    assert why_unfit(chain, config()) == ""
    assert why_unfit(dataclasses.replace(chain, language="en"), config()) == "mixed_language"


def test_a_looping_line_is_repetition_even_between_other_lines() -> None:
    lines = [f"Step {i}: now word{'abcdefghijklmnopqrst'[i]} comes next." for i in range(12)]
    assert why_unfit(Draft("\n".join(lines), "1"), config()) == ""
    looping = "\n".join(line for pair in zip(lines, ["But wait, is it so?"] * 12, strict=True) for line in pair)
    assert why_unfit(Draft(looping, "1"), config()) == "repetition"
    assert line_repeats("a\na\na\na", 8) == 0, "short lines are no loop"


def test_repetition_share_against_counting_by_hand() -> None:
    """1 - distinct / total n-grams, on random words over a small alphabet, where repeats are common."""
    rng = random.Random(1)
    for _ in range(100):
        words, n = [rng.choice("abcd") * 2 for _ in range(rng.randint(1, 60))], rng.randint(1, 6)
        grams = [" ".join(words[i: i + n]) for i in range(len(words) - n + 1)]
        repeats = sum(gram in grams[:i] for i, gram in enumerate(grams))
        expected = repeats / len(grams) if len(words) >= 2 * n else 0.0
        assert repetition_share(" ".join(words), n) == pytest.approx(expected), words


def test_paragraphs_end_at_blank_lines() -> None:
    assert longest_paragraph("abc\ndef\n \nghijkl") == 7
    assert longest_paragraph("") == 0


@pytest.mark.parametrize("wrong", [{"min_language_share": 1.5}, {"max_repetition": -0.1}, {"max_chars": -1}, {"repetition_ngram": 0}])
def test_an_impossible_limit_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"filters.{next(iter(wrong))}="):
        config(**wrong)
