"""From judged comparisons to preference pairs (R1_RECIPE 2.6, paper v2 section 3.1). Pure functions; who judges is an argument.

    pairs = [ResponsePair(...), ...]
    questions = comparisons(pairs)                   # four a pair, which response is A at random
    kept, drops = settle(pairs, judge(questions))    # mean verdict beyond 1 in size
    kept, balance = balance_lengths(kept)            # the chosen are no longer than the rejected, over the whole set
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r1mega.data.records import PreferencePair
from r1mega.errors import DataError

VERDICTS: Mapping[str, int] = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}


@dataclass(frozen=True, slots=True)
class ResponsePair:
    """Two whole responses to one prompt, not judged yet."""

    id: str
    prompt: str
    first: str
    second: str
    domain: str = "helpful"
    language: str = "en"
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One judgement to make. `swapped`: response A is the pair's second."""

    id: str  # "<pair id>#<judgement>"
    prompt: str
    a: str
    b: str
    swapped: bool


@dataclass(frozen=True, slots=True)
class LengthBalance:
    """Mean length of the chosen over mean length of the rejected before and after, and how many pairs it cost."""

    before: float
    after: float
    dropped: int


def comparisons(pairs: Sequence[ResponsePair], judgements: int = 4) -> list[Comparison]:
    """`judgements` comparisons for each pair, pairs in order. Each response is A in half of them (in an odd number, one of them once more), drawn by a
    hash of the pair's id: a judge's taste for one position cancels, and a repeated run asks the same."""
    if judgements < 1:
        raise ValueError(f"judgements={judgements}: must be at least 1")
    made = []
    for pair in pairs:
        for number, swapped in enumerate(_orders(pair.id, judgements)):
            a, b = (pair.second, pair.first) if swapped else (pair.first, pair.second)
            made.append(Comparison(f"{pair.id}#{number}", pair.prompt, a, b, swapped))
    return made


def _orders(pair_id: str, judgements: int) -> list[bool]:
    rng = random.Random(hashlib.blake2b(pair_id.encode(errors="surrogatepass"), digest_size=16).digest())
    orders = [bool(number % 2) for number in range(judgements)]
    if judgements % 2 and rng.random() < 0.5:
        orders = [not order for order in orders]
    rng.shuffle(orders)
    return orders


def settle(pairs: Sequence[ResponsePair], verdicts: Sequence[str | None], *, judgements: int = 4, min_margin: float = 1.0,
           ) -> tuple[list[PreferencePair], Counter[str]]:
    """The pairs whose mean verdict is beyond `min_margin` in size, in order, and how many were dropped by reason.

    `verdicts` answer `comparisons(pairs, judgements)`, one each: a key of `VERDICTS`, or None where the judge failed, which drops the pair and is never
    taken for a tie. Raises `DataError` for another number of verdicts or another word.
    """
    if len(verdicts) != judgements * len(pairs):
        raise DataError(f"{len(verdicts)} verdicts for {len(pairs)} pairs; expected {judgements} a pair, {judgements * len(pairs)}")
    kept: list[PreferencePair] = []
    drops: Counter[str] = Counter()
    for place, pair in enumerate(pairs):
        mean = _mean(pair, verdicts[place * judgements: (place + 1) * judgements])
        if mean is None:
            drops["judgement failed"] += 1
        elif abs(mean) <= min_margin:
            drops["margin too small"] += 1
        else:
            chosen, rejected = (pair.first, pair.second) if mean > 0 else (pair.second, pair.first)
            kept.append(PreferencePair(pair.id, pair.prompt, chosen, rejected, pair.domain, pair.language, abs(mean), judgements, pair.provenance))
    return kept, drops


def _mean(pair: ResponsePair, verdicts: Sequence[str | None]) -> float | None:
    """The mean preference for the pair's first response, -2 to 2."""
    total = 0
    for swapped, verdict in zip(_orders(pair.id, len(verdicts)), verdicts, strict=True):
        if verdict is None:
            return None
        if verdict not in VERDICTS:
            raise DataError(f"pair '{pair.id}': verdict '{verdict}', expected one of {', '.join(VERDICTS)}")
        total += -VERDICTS[verdict] if swapped else VERDICTS[verdict]
    return total / len(verdicts)


def balance_lengths(pairs: Sequence[PreferencePair], *, tolerance: float = 0.05, length: Callable[[str], float] = len,
                    ) -> tuple[list[PreferencePair], LengthBalance]:
    """Drop pairs until the total lengths of chosen and rejected differ by at most the share `tolerance` of the rejected total; the order stays.

    The paper keeps the two "comparable" over the whole set and does not say how; our choice drops the pairs with the largest difference towards the
    longer side first, which are the fewest and those a model would learn length from. A set that cannot be balanced so, such as a single pair, comes
    out as near as dropping gets it: look at `LengthBalance.after`. `length` of a text: characters by default.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance}: must lie between 0 and 1")
    sizes = {pair.id: (length(pair.chosen), length(pair.rejected)) for pair in pairs}
    if len(sizes) != len(pairs):
        raise DataError("two preference pairs share an id")
    chosen, rejected = (math.fsum(size[side] for size in sizes.values()) for side in (0, 1))
    before, sign = _ratio(chosen, rejected), 1 if chosen > rejected else -1
    gone: set[str] = set()
    for name, (long, short) in sorted(sizes.items(), key=lambda item: (-sign * (item[1][0] - item[1][1]), item[0])):
        excess = sign * (chosen - rejected)
        if excess <= tolerance * rejected or sign * (long - short) <= 0:
            break
        if excess - sign * (long - short) < -tolerance * (rejected - short) or len(gone) == len(pairs) - 1:
            continue  # it would tip the balance to the other side, or leave nothing
        chosen, rejected = chosen - long, rejected - short
        gone.add(name)
    return [pair for pair in pairs if pair.id not in gone], LengthBalance(before, _ratio(chosen, rejected), len(gone))


def _ratio(chosen: float, rejected: float) -> float:
    return chosen / rejected if rejected else (1.0 if not chosen else math.inf)
