"""Counts by domain, and the card that shows them."""

from __future__ import annotations

from collections import Counter

from r1mega.data.card import Kept, Tally, dataset_card, domain_rows, drops_table, headline, merge
from r1mega.data.records import SampleRecord


def row(number: int, domain: str, tokens: int, prompt: str) -> SampleRecord:
    return SampleRecord(f"s{number}", "question", "because", "42", domain=domain, language="en" if number else "zh",
                        provenance={"tokens": tokens, "prompt_id": prompt, "rewriter": None})


ROWS = [row(0, "math", 100, "a"), row(1, "math", 200, "a"), row(2, "code", 60, "c")]


def kept(rows: list[SampleRecord]) -> Kept:
    found = Kept()
    assert list(found.counted(rows)) == rows
    return found


PARTS = [{"math": Tally(2, 3, 12, 5, Counter(incorrect=7, repetition=1))},
         {"math": Tally(1, 1, 4, 1, Counter(incorrect=3)), "code": Tally(1, 2, 8, 2, Counter(near_duplicate=1, surplus=0))}]


def test_replicas_add_up() -> None:
    total = merge(PARTS)
    assert list(total) == ["code", "math"]
    assert total["math"] == Tally(3, 4, 16, 6, Counter(incorrect=10, repetition=1))
    assert PARTS[0]["math"].prompts == 2, "merging must not change what it merges"


def test_rows_of_the_table() -> None:
    code, math, total = domain_rows(kept(ROWS), merge(PARTS))
    assert (math.domain, math.samples, math.prompts, math.without_sample) == ("math", 2, 3, 2)
    assert (math.mean_rounds, math.mean_tokens, math.correct_rate) == (4 / 3, 150, 6 / 16)
    assert (code.samples, code.mean_rounds, code.correct_rate) == (1, 2, 0.25)
    assert (total.samples, total.prompts, total.without_sample, total.mean_tokens, total.correct_rate) == (3, 4, 2, 120, 8 / 24)


def test_drops_by_reason_and_domain_without_zeros() -> None:
    assert drops_table(merge(PARTS)) == {"total": {"incorrect": 10, "near_duplicate": 1, "repetition": 1},
                                         "domains": {"code": {"near_duplicate": 1}, "math": {"incorrect": 10, "repetition": 1}}}


def test_headline_metrics() -> None:
    metrics = headline(kept(ROWS), merge(PARTS))
    assert metrics["samples"] == 3
    assert metrics["prompts_without_sample"] == 2
    assert metrics["drops/incorrect"] == 10
    assert headline(kept([]), {})["mean_tokens"] == 0


def test_the_card_says_it_all_and_its_tables_are_whole() -> None:
    card = dataset_card("Samples of stage x", kept(ROWS), merge(PARTS), provenance={"checkpoint": "abc|def"}, settings={"dedup": {"ngram": 5}},
                        contaminated={"aime": 2})
    for part in ("# Samples of stage x", "3 samples in en (2), zh (1).", "| math | 2 | 3 | 2 | 1.3 | 150.0 | 37.5% |", "| incorrect | 10 | 0 | 10 |",
                 "| aime | 2 |", r"| checkpoint | abc\|def |", "| dedup | ngram=5 |"):
        assert part in card, part
    for table in (block for block in card.split("\n\n") if block.startswith("|")):
        columns = {line.replace(r"\|", "").count("|") for line in table.splitlines()}
        assert len(columns) == 1, f"rows of different width:\n{table}"
    assert "Nothing." in dataset_card("x", kept(ROWS), {}, provenance={}, settings={}, contaminated={})
