"""Judged comparisons to preference pairs: orders, means, margins and the balance of lengths, against cases worked out by hand."""

import json
import random
from collections import Counter

import pytest
from scripted_server import Reply, Seen, chat, serve

from r1mega.data.preferences import VERDICTS, Comparison, ResponsePair, balance_lengths, comparisons, settle
from r1mega.data.records import PreferencePair
from r1mega.errors import DataError
from r1mega.remote.ask import ChatConfig
from r1mega.remote.config import ServerConfig
from r1mega.remote.pairwise import PairwiseJudge
from r1mega.types import Prompt

PAIRS = [ResponsePair(f"p{number}", Prompt("q", "Tell me.", domain="helpful"), f"first {number}", f"second {number}") for number in range(200)]


def verdict_for(comparison: Comparison, first: int) -> str:
    """What a judge says that prefers the pair's first response by `first`."""
    return next(word for word, value in VERDICTS.items() if value == (-first if comparison.swapped else first))


def test_each_response_is_a_in_half_the_judgements_in_an_order_fixed_by_the_id() -> None:
    made = comparisons(PAIRS)
    assert made == comparisons(PAIRS)
    assert comparisons(PAIRS[7:8]) == made[28:32]
    assert len({item.id for item in made}) == 800
    orders = Counter(tuple(item.swapped for item in made[place: place + 4]) for place in range(0, 800, 4))
    assert all(sum(order) == 2 for order in orders)
    assert len(orders) == 6  # all orders of two and two occur
    for item in made:
        assert (item.a.startswith("second"), item.b.startswith("first")) == (item.swapped, item.swapped)
    odd = comparisons(PAIRS, judgements=1)
    assert 70 < sum(item.swapped for item in odd) < 130


def test_the_preferred_response_wins_wherever_it_stood() -> None:
    made = comparisons(PAIRS)
    kept, drops = settle(PAIRS, [verdict_for(item, 2 if int(item.id[1:].split("#")[0]) % 2 else -2) for item in made])
    assert not drops
    assert all(pair.chosen.startswith("first" if int(pair.id[1:]) % 2 else "second") for pair in kept)
    assert all((pair.margin, pair.judgements) == (2.0, 4) for pair in kept)


def test_a_judge_that_always_prefers_a_decides_nothing() -> None:
    kept, drops = settle(PAIRS, ["A>>B"] * 800)
    assert (kept, drops) == ([], {"margin_too_small": 200})


@pytest.mark.parametrize(("preferences", "margin"), [((2, 2, 2, 2), 2.0), ((2, 1, 1, 1), 1.25), ((-2, -2, -1, 0), 1.25), ((1, 1, 1, 1), None),
                                                     ((2, 2, 0, 0), None), ((2, 2, 2, -2), None), ((0, 0, 0, 0), None)])
def test_kept_beyond_a_mean_of_one(preferences: tuple[int, ...], margin: float | None) -> None:
    verdicts = [verdict_for(item, value) for item, value in zip(comparisons(PAIRS[:1]), preferences, strict=True)]
    kept, drops = settle(PAIRS[:1], verdicts)
    if margin is None:
        assert (kept, drops) == ([], {"margin_too_small": 1})
    else:
        assert kept[0].margin == margin
        assert kept[0].chosen.startswith("first" if sum(preferences) > 0 else "second")


def test_a_failed_judgement_drops_its_pair_and_is_no_tie() -> None:
    kept, drops = settle(PAIRS[:1], ["A=B", None, "A=B", "A=B"], min_margin=0.0)
    assert (kept, drops) == ([], {"judgement_failed": 1})


def test_wrong_verdicts_are_refused() -> None:
    with pytest.raises(DataError, match="3 verdicts for 1 pairs; expected 4 a pair"):
        settle(PAIRS[:1], ["A=B"] * 3)
    with pytest.raises(DataError, match=r"pair 'p0': verdict 'A<B'"):
        settle(PAIRS[:1], ["A<B"] * 4)
    with pytest.raises(ValueError, match="judgements=0"):
        comparisons(PAIRS, judgements=0)


def pair(number: int, chosen: int, rejected: int) -> PreferencePair:
    return PreferencePair(f"p{number}", "Tell me.", "c" * chosen, "r" * rejected)


@pytest.mark.parametrize("longer", ["chosen", "rejected"])
def test_lengths_are_balanced_over_the_whole_set(longer: str) -> None:
    rng = random.Random(0)
    sizes = [(rng.randint(50, 400), rng.randint(50, 250)) for _ in range(500)]
    pairs = [pair(number, *(size if longer == "chosen" else size[::-1])) for number, size in enumerate(sizes)]
    kept, balance = balance_lengths(pairs, tolerance=0.05)
    ratio = sum(len(item.chosen) for item in kept) / sum(len(item.rejected) for item in kept)
    assert ratio == pytest.approx(balance.after)
    assert 0.95 <= ratio <= 1.05
    assert abs(balance.before - 1) > 0.25
    assert balance.dropped == 500 - len(kept)
    assert 0 < balance.dropped < 200
    assert [item for item in pairs if item in kept] == kept
    assert balance_lengths(list(reversed(pairs)))[0] == list(reversed(kept))


def test_what_is_balanced_stays_whole() -> None:
    pairs = [pair(0, 100, 10), pair(1, 10, 100)]
    assert balance_lengths(pairs)[0] == pairs
    assert balance_lengths([])[0] == []


def test_a_pair_that_would_tip_the_balance_stays() -> None:
    pairs = [pair(0, 1000, 100), *(pair(number, 140, 240) for number in range(1, 6)), *(pair(number, 200, 100) for number in range(6, 10))]
    kept, balance = balance_lengths(pairs, tolerance=0.05)  # without p0 the chosen would be far shorter
    assert "p0" in {item.id for item in kept}
    assert abs(balance.after - 1) < abs(balance.before - 1)
    alone, hopeless = balance_lengths([pair(0, 100, 10)])
    assert (len(alone), hopeless.after) == (1, 10.0)


def test_length_is_the_callers_measure() -> None:
    pairs = [PreferencePair("a", "q", "one two three", "onetwothree"), PreferencePair("b", "q", "x", "y y y")]
    _, balance = balance_lengths(pairs, length=lambda text: len(text.split()))
    assert (balance.before, balance.dropped) == (1.0, 0)


def test_a_judge_behind_a_server() -> None:
    def answer(_: int, request: Seen) -> Reply:
        question = request.body["messages"][1]["content"]
        a, b = (question.split(f"<<response {name} ")[1].split(">>\n", 1)[1].split("\n<<end")[0] for name in "AB")
        word = "certainly" if "p1" in a + b else ("A>>B" if len(a) > len(b) else "B>>A")  # p1: no verdict
        return chat(json.dumps({"own_answer": ".", "analysis": ".", "verdict": word}))

    asked = Prompt("q", "Tell me.", domain="helpful")
    pairs = [ResponsePair("p0", asked, "p0 long and helpful", "p0 no"), ResponsePair("p1", asked, "p1 yes", "p1 no")]
    with serve(answer) as server:
        judge = PairwiseJudge(ChatConfig("m", ServerConfig(base_url=server.url), attempts=2))
        kept, drops = settle(pairs, judge(comparisons(pairs)))
    assert [(item.id, item.chosen, item.margin) for item in kept] == [("p0", "p0 long and helpful", 2.0)]
    assert drops == {"judgement_failed": 1}
    assert len(server.seen) == 4 + 2 * 4
