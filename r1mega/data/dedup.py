"""Samples that say the same: exact repeats by digest over a whole set, near repeats by n-gram overlap among the answers to one prompt.

Near repeats are compared exactly (Jaccard similarity of word n-grams), and only within a prompt: answers to different problems are different
data. So the work is linear in the set, a few comparisons per sample, whatever its size. First come, first kept: feed samples in their order.

An n-gram is held as 64 bits of hash, so an answer of 3,500 words takes 28 kB while its prompt is under way. Two n-grams that share a hash by chance
would shift a similarity by one part in their number; among the 7,000 of two such answers that happens once in 10^12 pairs.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from r1mega.data.language import content_words
from r1mega.errors import ConfigError

DUPLICATE, NEAR_DUPLICATE = "duplicate", "near_duplicate"  # the reasons drops are counted under

_ODD, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)  # multiplying by an odd number modulo 2^64 loses nothing


@dataclass(frozen=True)
class DedupConfig:
    """When two answers to one prompt count as one."""

    ngram: int = 5  # words
    max_similarity: float = 0.8  # Jaccard similarity from which a later answer is dropped; 1: only equal n-gram sets; 0: off

    def __post_init__(self) -> None:
        if self.ngram < 1 or not 0 <= self.max_similarity <= 1:
            raise ConfigError(f"dedup: ngram={self.ngram} must be at least 1 and max_similarity={self.max_similarity} between 0 and 1")


def text_digest(*parts: str) -> str:
    """SHA-256 of the parts without what does not matter to a reader: case, spacing, compatibility forms."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(" ".join(unicodedata.normalize("NFKC", part).casefold().split()).encode("utf-8", "backslashreplace") + b"\0")
    return digest.hexdigest()


def shingles(text: str, n: int) -> np.ndarray:
    """The set of n-grams of words as hashes: uint64 [m], ascending and distinct. A shorter text is one shingle, an empty one none."""
    words = content_words(text)
    if not words:
        return np.zeros(0, np.uint64)
    known = {word: int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") for word in set(words)}
    hashes = np.array([known[word] for word in words], np.uint64)
    length = min(n, len(words))
    count = len(words) - length + 1
    grams = np.full(count, length, np.uint64)  # a short text's only shingle differs from every longer n-gram
    for start in range(length):
        grams = (grams ^ (grams >> _SHIFT)) * _ODD + hashes[start: start + count]  # a bijection of what came before, so that the order counts
    return np.unique(grams)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|a & b| / |a | b| of two sets as `shingles` makes them; 1 for two empty ones."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - common
    return common / union if union else 1.0


class PromptDeduplicator:
    """The answers to one prompt that were kept so far."""

    def __init__(self, config: DedupConfig, kept: Iterable[str] = ()) -> None:
        self._config = config
        self._digests: set[str] = set()
        self._shingles: list[np.ndarray] = []
        for text in kept:
            self._keep(text_digest(text), shingles(text, config.ngram))

    def add(self, text: str) -> str:
        """Keep `text` and return "", or return why it is dropped."""
        digest = text_digest(text)
        if digest in self._digests:
            return DUPLICATE
        made = shingles(text, self._config.ngram)
        if self._config.max_similarity and any(self._near(made, other) for other in self._shingles):
            return NEAR_DUPLICATE
        self._keep(digest, made)
        return ""

    def forget(self) -> None:
        """Free the memory, once no more answers to this prompt are to come."""
        self._digests.clear()
        self._shingles.clear()

    def _near(self, a: np.ndarray, b: np.ndarray) -> bool:
        limit = self._config.max_similarity
        smaller, larger = sorted((len(a), len(b)))
        return bool(larger) and smaller >= limit * larger and jaccard(a, b) >= limit  # the sizes alone bound the similarity

    def _keep(self, digest: str, made: np.ndarray) -> None:
        self._digests.add(digest)
        self._shingles.append(made)
