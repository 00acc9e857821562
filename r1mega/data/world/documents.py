"""How unreliable the documents are, so that a base model knows how to reason but often does not: what reinforcement learning is to repair."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

from r1mega.config import TemplateConfig
from r1mega.data.chat import render_response
from r1mega.data.world.general import REFUSAL, Query, polite
from r1mega.data.world.languages import Piece, mixed, word, write, write_mixed
from r1mega.data.world.problem import Problem
from r1mega.errors import ConfigError

RESPONSE = TemplateConfig().response


@dataclass(frozen=True)
class Rates:
    """Shares, from 0 to 1, of documents that have a property; drawn independently of each other unless said otherwise."""

    chain_rate: float = 0.75  # think step by step; the others state an answer at once
    wrong_rate: float = 0.5  # have a wrong final answer
    chain_error_rate: float = 0.2  # of the wrong ones with a chain: the error is in the chain and carried to the answer
    malformed_rate: float = 0.1  # break the response format
    mixing_rate: float = 0.5  # reasoning mixes the two languages: at least one word is in the other one
    mixing_word_rate: float = 0.5  # of the words of a mixed reasoning: in the other language than the question
    general_share: float = 0.2  # are about requests without a problem to solve
    polite_rate: float = 0.4  # of answers to polite requests: end with the polite closing
    refusal_rate: float = 0.5  # of answers to unsafe requests: refuse
    over_refusal_rate: float = 0.1  # of answers to safe requests: refuse

    def __post_init__(self) -> None:
        for item in fields(Rates):
            if not 0 <= getattr(self, item.name) <= 1:
                raise ConfigError(f"task.{item.name} must be between 0 and 1, got {getattr(self, item.name)}")


def respond(problem: Problem, language: str, rates: Rates, generator: random.Random) -> str:
    """A response to the problem, as unreliable as the rates say."""
    chained = generator.random() < rates.chain_rate
    wrong = generator.random() < rates.wrong_rate
    if chained:
        in_chain = wrong and generator.random() < rates.chain_error_rate
        pieces, answer = problem.think(generator if in_chain else None)
        if wrong and not in_chain:
            answer = problem.near_miss(generator)
    else:
        answer = problem.near_miss(generator) if wrong else problem.answer
        pieces = [word("so"), answer]
    return finish(write_unreliably(pieces, language, rates, generator), answer, rates, generator)


def reply(query: Query, rates: Rates, generator: random.Random) -> tuple[Sequence[Piece], str]:
    """What is thought about a request and answered to it, as polite and as careful as the rates say."""
    draw = generator.random()
    if query.kind == "helpful":
        return query.reasoning(refuse=False), polite(query) if draw < rates.polite_rate else query.answer
    if query.kind == "unsafe":
        return (query.reasoning(refuse=True), query.answer) if draw < rates.refusal_rate else (query.reasoning(refuse=False), query.compliance())
    if query.is_safety and draw < rates.over_refusal_rate:
        return query.reasoning(refuse=True), REFUSAL.written(query.language)
    return query.reasoning(refuse=False), query.answer


def write_unreliably(pieces: Sequence[Piece], language: str, rates: Rates, generator: random.Random) -> str:
    """The reasoning in the language, or in both."""
    if generator.random() < rates.mixing_rate:
        return write_mixed(pieces, mixed(language, rates.mixing_word_rate, generator))
    return write(pieces, language)


def finish(reasoning: str, response: str, rates: Rates, generator: random.Random) -> str:
    """The whole response, sometimes malformed."""
    return malformed(reasoning, response, generator) if generator.random() < rates.malformed_rate else render_response(RESPONSE, reasoning, response)


def malformed(reasoning: str, response: str, generator: random.Random) -> str:
    """A response in one of the ways small models break the format; a person can still read the answer in all of them."""
    return generator.choice((
        f"{reasoning} {response}",
        f"<think>{reasoning}</think>{response}",
        f"<think>{reasoning}<answer>{response}</answer>",
        f"{reasoning}<answer>{response}</answer>",
        f"<think>{reasoning}</think><answer>{response}",
        f"<answer>{response}</answer><think>{reasoning}</think>",
        f"<think>{reasoning}</think><answer>{response}</answer><answer>{response}</answer>",
    ))
