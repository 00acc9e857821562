"""From judgements to preference pairs and safety verdicts (R1_RECIPE 2.6, paper v2 section 3.1). Pure functions; who judges is an argument.

    pairs = [ResponsePair(...), ...]
    questions = comparisons(pairs)                   # four a pair, which response is A at random
    kept, drops = settle(pairs, judge(questions))    # mean verdict beyond 1 in size
    kept, balance = balance_lengths(kept)            # the chosen are no longer than the rejected, over the whole set

Single responses go the same way: `assessments`, then `agreed`.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r1mega.data.records import JudgedResponse, PreferencePair
from r1mega.errors import DataError
from r1mega.types import Prompt

VERDICTS: Mapping[str, int] = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}


@dataclass(frozen=True, slots=True)
class ResponsePair:
    """Two whole responses to one prompt, not judged yet."""

    id: str
    prompt: Prompt
    first: str
    second: str
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One judgement to make. `swapped`: response A is the pair's second."""

    id: str  # "<pair id>#<judgement>"
    prompt: Prompt
    a: str
    b: str
    swapped: bool


@dataclass(frozen=True, slots=True)
class WholeResponse:
    """One whole response, not judged yet."""

    id: str
    prompt: Prompt
    text: str
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Assessment:
    """One judgement of a single response to make: is it safe?"""

    id: str  # "<response id>#<judgement>"
    prompt: Prompt
    response: str


@dataclass(frozen=True, slots=True)
class LengthBalance:
    """Mean length of the chosen over mean length of the rejected before and after, and how many pairs it cost."""

    before: float
    after: float
    dropped: int


def _whole(text: str) -> str:
    return text


def comparisons(pairs: Sequence[ResponsePair], judgements: int = 4, *, shown: Callable[[str], str] = _whole) -> list[Comparison]:
    """`judgements` comparisons for each pair, pairs in order. Each response is A in half of them (in an odd number, one of them once more), drawn by a
    hash of the pair's id: a judge's taste for one position cancels, and a repeated run asks the same. `shown` is what the judge sees of a response."""
    if judgements < 1:
        raise ValueError(f"judgements={judgements}: must be at least 1")
    made = []
    for pair in pairs:
        first, second = shown(pair.first), shown(pair.second)
        for number, swapped in enumerate(_orders(pair.id, judgements)):
            a, b = (second, first) if swapped else (first, second)
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
    """The pairs whose mean verdict is beyond `min_margin` in size, in order, and how many were dropped by reason. The provenance of a kept pair tells the
    `verdicts`, and as which of A and B the chosen response stood in each (`chosen_as`).

    `verdicts` answer `comparisons(pairs, judgements)`, one each: a key of `VERDICTS`, or None where the judge failed, which drops the pair and is never
    taken for a tie. Raises `DataError` for another number of verdicts or another word.
    """
    if len(verdicts) != judgements * len(pairs):
        raise DataError(f"{len(verdicts)} verdicts for {len(pairs)} pairs; expected {judgements} a pair, {judgements * len(pairs)}")
    kept: list[PreferencePair] = []
    drops: Counter[str] = Counter()
    for place, pair in enumerate(pairs):
        mine = verdicts[place * judgements: (place + 1) * judgements]
        mean = _mean(pair, mine)
        if mean is None:
            drops["judgement_failed"] += 1
        elif abs(mean) <= min_margin:
            drops["margin_too_small"] += 1
        else:
            chosen, rejected = (pair.first, pair.second) if mean > 0 else (pair.second, pair.first)
            chosen_as = ["A" if swapped == (mean < 0) else "B" for swapped in _orders(pair.id, judgements)]
            kept.append(PreferencePair(pair.id, pair.prompt.question, chosen, rejected, pair.prompt.domain, pair.prompt.language, abs(mean), judgements,
                                       {**pair.provenance, "verdicts": list(mine), "chosen_as": chosen_as}))
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


def assessments(responses: Sequence[WholeResponse], judgements: int = 1, *, shown: Callable[[str], str] = _whole) -> list[Assessment]:
    """`judgements` assessments of each response, responses in order."""
    if judgements < 1:
        raise ValueError(f"judgements={judgements}: must be at least 1")
    return [Assessment(f"{response.id}#{number}", response.prompt, shown(response.text)) for response in responses for number in range(judgements)]


def agreed(responses: Sequence[WholeResponse], verdicts: Sequence[bool | None], *, judgements: int = 1) -> tuple[list[JudgedResponse], Counter[str]]:
    """The responses whose verdicts (true: safe) all say the same, in order, and how many were dropped by reason.

    `verdicts` answer `assessments(responses, judgements)`, one each, None where the judge failed or could not decide, which drops the response. The
    paper does not say how often a response was judged; that all must agree is our choice. Raises `DataError` for another number of verdicts.
    """
    if len(verdicts) != judgements * len(responses):
        raise DataError(f"{len(verdicts)} verdicts for {len(responses)} responses; expected {judgements} each, {judgements * len(responses)}")
    kept: list[JudgedResponse] = []
    drops: Counter[str] = Counter()
    for place, response in enumerate(responses):
        mine = verdicts[place * judgements: (place + 1) * judgements]
        if None in mine:
            drops["no_verdict"] += 1
        elif len(set(mine)) > 1:
            drops["judgements_disagree"] += 1
        else:
            prompt = response.prompt
            kept.append(JudgedResponse(response.id, prompt.question, response.text, bool(mine[0]), prompt.domain, prompt.language,
                                       {**response.provenance, "verdicts": list(mine)}))
    return kept, drops


def balance_lengths(pairs: Sequence[PreferencePair], *, tolerance: float = 0.05, length: Callable[[str], float] = len,
                    ) -> tuple[list[PreferencePair], LengthBalance]:
    """`unbalanced` for pairs in memory: those that stay, in order. `length` of a text: characters by default."""
    sizes = {pair.id: (length(pair.chosen), length(pair.rejected)) for pair in pairs}
    if len(sizes) != len(pairs):
        raise DataError("two preference pairs share an id")
    gone, balance = unbalanced(sizes, tolerance=tolerance)
    return [pair for pair in pairs if pair.id not in gone], balance


def unbalanced(sizes: Mapping[str, tuple[float, float]], *, tolerance: float = 0.05) -> tuple[set[str], LengthBalance]:
    """Which pairs to drop until the total lengths of chosen and rejected differ by at most the share `tolerance` of the rejected total. `sizes`: pair
    id -> (length of the chosen, of the rejected).

    The paper keeps the two "comparable" over the whole set and does not say how; our choice drops the pairs with the largest difference towards the
    longer side first, which are the fewest and those a model would learn length from. A set that cannot be balanced so, such as a single pair, comes
    out as near as dropping gets it: look at `LengthBalance.after`.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance}: must lie between 0 and 1")
    chosen, rejected = (math.fsum(size[side] for size in sizes.values()) for side in (0, 1))
    before, sign = _ratio(chosen, rejected), 1 if chosen > rejected else -1
    gone: set[str] = set()
    for name, (long, short) in sorted(sizes.items(), key=lambda item: (-sign * (item[1][0] - item[1][1]), item[0])):
        excess = sign * (chosen - rejected)
        if excess <= tolerance * rejected or sign * (long - short) <= 0:
            break
        if excess - sign * (long - short) < -tolerance * (rejected - short) or len(gone) == len(sizes) - 1:
            continue  # it would tip the balance to the other side, or leave nothing
        chosen, rejected = chosen - long, rejected - short
        gone.add(name)
    return gone, LengthBalance(before, _ratio(chosen, rejected), len(gone))


def _ratio(chosen: float, rejected: float) -> float:
    return chosen / rejected if rejected else (1.0 if not chosen else math.inf)
