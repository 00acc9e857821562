"""Text that is shown while it is made: whole characters, reasoning and answer apart, nothing lost."""

from __future__ import annotations

import itertools
import random

import pytest

from r1mega.rollout.streaming import Parts, TokenText


def decode(tokens: list[int]) -> str:
    """Tokens are bytes: a character has up to four of them."""
    return bytes(tokens).decode("utf-8", errors="replace")


def test_characters_come_whole_and_all_of_them() -> None:
    text = "a数学🙂é\n<think>ok</think>"
    stream = TokenText(decode)
    pieces = [stream.push(token) for token in text.encode()]
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)
    assert stream.rest() == ""


def test_broken_characters_lose_nothing() -> None:
    draw = random.Random(0)
    for _ in range(300):
        tokens = draw.choices([*b"ab ", *"数🙂".encode(), 0x80, 0xff], k=draw.randint(0, 20))
        stream = TokenText(decode)
        assert "".join([*(stream.push(token) for token in tokens), stream.rest()]) == decode(tokens), tokens


def test_a_token_whose_text_depends_on_the_one_before() -> None:
    words = ["▁one", "▁two", "three"]

    def joined(tokens: list[int]) -> str:  # as SentencePiece: the space before the first word of a text is not there
        return "".join(words[token] for token in tokens).replace("▁", " ").removeprefix(" ")

    for tokens in itertools.product(range(3), repeat=5):
        stream = TokenText(joined)
        assert "".join(map(stream.push, tokens)) == joined(list(tokens))


def streamed(text: str, cuts: list[int], **settings: object) -> tuple[str, str, str]:
    parts = Parts(**{"starts_in_reasoning": False, **settings})  # type: ignore[arg-type]
    pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    found = [part for piece in pieces for part in parts.push(piece)] + parts.rest()
    by_kind = ["".join(said for kind, said in found if kind == wanted) for wanted in ("reasoning", "answer")]
    return by_kind[0], by_kind[1], "".join(said for _, said in found)


@pytest.mark.parametrize(("text", "settings", "reasoning", "answer"), [
    ("<think>\nhm < 3 </th\n</think>\n\n42", {}, "<think>\nhm < 3 </th\n</think>", "\n\n42"),
    ("hm</think>42<", {"starts_in_reasoning": True}, "hm</think>", "42<"),
    ("42", {}, "", "42"),
    ("cut <thin", {}, "", "cut <thin"),
    ("<think>never closed", {}, "<think>never closed", ""),
    ("4<think>2</think>5\nUser: 6</think>", {"stop": ["\nUser:"]}, "<think>2</think>", "45"),
    ("4\nUse", {"stop": ["\nUser:", "Usex"]}, "", "4\nUse"),
])
def test_reasoning_and_answer_however_the_text_is_cut(text: str, settings: dict[str, object], reasoning: str, answer: str) -> None:
    for places in itertools.chain.from_iterable(itertools.combinations(range(1, len(text)), count) for count in (0, 1, 2)):
        told = streamed(text, list(places), **settings)
        assert told[:2] == (reasoning, answer), places
    assert streamed(text, list(range(1, len(text))), **settings)[:2] == (reasoning, answer)


def test_text_is_held_back_only_while_it_may_be_a_mark() -> None:
    parts = Parts(starts_in_reasoning=False)
    assert parts.push("1 <") == [("answer", "1 ")]
    assert parts.push("2") == [("answer", "<2")]
