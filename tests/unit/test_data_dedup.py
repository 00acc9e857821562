"""Deduplication against brute force over lists of n-grams."""

from __future__ import annotations

import random

import pytest

from r1mega.data.dedup import DUPLICATE, NEAR_DUPLICATE, DedupConfig, PromptDeduplicator, jaccard, shingles, text_digest
from r1mega.errors import ConfigError


def brute_jaccard(a: list[str], b: list[str], n: int) -> float:
    """By definition, with lists: every n-gram compared with every other."""
    grams = [[tuple(words[i: i + n]) for i in range(max(1, len(words) - n + 1))] for words in (a, b)]
    first, second = ([gram for i, gram in enumerate(part) if gram not in part[:i]] for part in grams)
    common = [gram for gram in first if gram in second]
    return len(common) / (len(first) + len(second) - len(common))


def variant(words: list[str], rng: random.Random) -> list[str]:
    return [rng.choice("abcdefgh") * 2 if rng.random() < 0.05 else word for word in words]


def test_jaccard_of_shingles_equals_the_definition() -> None:
    rng = random.Random(0)
    for _ in range(200):
        a = [rng.choice("abcdefgh") * 2 for _ in range(rng.randint(1, 40))]
        b, n = variant(a, rng), rng.randint(1, 6)
        assert jaccard(shingles(" ".join(a), n), shingles(" ".join(b), n)) == pytest.approx(brute_jaccard(a, b, n))


def test_what_is_kept_is_what_brute_force_keeps() -> None:
    rng = random.Random(1)
    dropped = 0
    for _ in range(60):
        base = [rng.choice("abcdefgh") * 2 for _ in range(40)]
        texts = [variant(base, rng) for _ in range(12)]
        limit = rng.choice([0.3, 0.5, 0.8])
        dedup, kept = PromptDeduplicator(DedupConfig(3, limit)), []
        for words in texts:
            near = any(brute_jaccard(words, other, 3) >= limit for other in kept)
            reason = dedup.add(" ".join(words))
            assert bool(reason) == near, (words, kept)
            if near:
                dropped += 1
            else:
                kept.append(words)
    assert dropped > 50, "the test compared nothing"


def test_exact_repeats_ignore_case_and_spacing_and_are_told_apart_from_near_ones() -> None:
    dedup = PromptDeduplicator(DedupConfig(2, 0.5))
    assert dedup.add("The sum is twelve and we are done") == ""
    assert dedup.add("the  SUM is twelve\nand we are done") == DUPLICATE
    assert dedup.add("The sum is twelve and we are ready") == NEAR_DUPLICATE
    assert dedup.add("Another way altogether") == ""


def test_without_near_duplicates_only_exact_ones_are_dropped() -> None:
    dedup = PromptDeduplicator(DedupConfig(2, 0.0), kept=["a b c d e"])
    assert dedup.add("a b c d f") == ""
    assert dedup.add("a b c d e") == DUPLICATE


def test_what_was_forgotten_is_new_again() -> None:
    dedup = PromptDeduplicator(DedupConfig(), kept=["a b c d e f"])
    assert dedup.add("a b c d e f") == DUPLICATE
    dedup.forget()
    assert dedup.add("a b c d e f") == ""


def test_a_shingle_is_eight_bytes_and_the_order_of_its_words_counts() -> None:
    words = [f"w{number}" for number in range(3500)]
    made = shingles(" ".join(words), 5)
    assert made.nbytes == 8 * (3500 - 4)
    assert jaccard(made, shingles(" ".join(words[::-1]), 5)) == 0
    assert [len(shingles(text, 5)) for text in ("", "a", "a b", "a b c d e", "a b a b a b a b")] == [0, 1, 1, 1, 2]
    assert jaccard(shingles("a a", 5), shingles("a a a", 5)) == 0, "a short text is a shingle as a whole"


def test_digests_keep_parts_apart() -> None:
    assert text_digest("ab", "c") != text_digest("a", "bc")
    assert text_digest("３＋５") == text_digest("3+5"), "full-width digits are the same digits"


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_similarity=2"):
        DedupConfig(5, 2)
