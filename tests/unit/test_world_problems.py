"""The tiny world's problems: answers against computations of their own, chains that say what is true, the accuracy reward's verdict, the languages."""

from __future__ import annotations

import random
import re
from itertools import permutations

import pytest
from r1mega_plugins.rewards.accuracy import Accuracy, AccuracyConfig

from r1mega.data.language import language_share
from r1mega.data.world.families import FAMILIES
from r1mega.data.world.languages import LANGUAGES, Word, mixed, word, write, write_mixed
from r1mega.data.world.problem import Problem
from r1mega.types import RewardSample

FORMULA = re.compile(r"(\d[\d+-]*[+-]\d+)=(-?\d+)")


def some(family: str, count: int = 250, seed: int = 0) -> list[Problem]:
    """Problems of a family, posed at random."""
    generator = random.Random(f"{family} {seed}")
    every = list(FAMILIES[family].every(40))
    return [problem.posed(generator) for problem in generator.sample(every, min(count, len(every)))]


def solved(family: str, question: str) -> str:
    """The answer, worked out from the English question alone and in another way than the world's own."""
    if family in ("add", "subtract"):
        return str(eval(question.removeprefix("what is ").rstrip("?")))
    if family == "countdown":
        given, target = re.fullmatch(r"([\d,]+) make (\d+) without\?", question).groups()  # type: ignore[union-attr]
        left = [z for x, y, z in permutations(map(int, given.split(","))) if x + y == int(target)]
        assert len(set(left)) == 1, f"{question}: more than one answer"
        return str(left[0])
    if family == "order":
        statements, asked = re.fullmatch(r"if (.*): (\w+)\?", question).groups()  # type: ignore[union-attr]
        above = [(x, y) if relation == "above" else (y, x) for x, relation, y in map(str.split, statements.split(","))]
        names = {name for pair in above for name in pair}
        ranking = [order for order in permutations(names) if all(order.index(x) < order.index(y) for x, y in above)]
        assert len(ranking) == 1, f"{question}: {len(ranking)} orders fit"
        return ranking[0][("top", "middle", "bottom").index(asked)]
    if family == "truth":
        statements, asked = re.fullmatch(r"if (.*): (\w)\?", question).groups()  # type: ignore[union-attr]
        values = {"T": True, "F": False}
        for name, relation, other in map(str.split, statements.split(",")):
            values[name] = values[other] if relation == "is" else not values[other]
        return "T" if values[asked] else "F"
    if family == "count":
        wanted, text = re.fullmatch(r"count (\w) in (.*)\?", question).groups()  # type: ignore[union-attr]
        return str(len(re.findall(wanted, text)))
    if family == "letter":
        place, text = re.fullmatch(r"letter (\d) of (.*)\?", question).groups()  # type: ignore[union-attr]
        return str(text.split()[int(place) - 1])
    text, place = re.fullmatch(r"reverse (.*): (\d)\?", question).groups()  # type: ignore[union-attr]
    return str(text.replace(" ", "")[::-1][int(place) - 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_agree_with_a_computation_from_the_question(family: str) -> None:
    for problem in some(family, 600):
        assert problem.answer == solved(family, problem.question("en")), problem


@pytest.mark.parametrize("family", FAMILIES)
def test_an_identity_is_a_problem_however_it_is_posed(family: str) -> None:
    every = list(FAMILIES[family].every(20))
    assert len({problem.id for problem in every}) == len(every)
    assert len({problem.question("en") for problem in every}) == len({problem.question("zh") for problem in every}) == len(every)
    generator = random.Random(0)
    for problem in every[:300]:
        for other in (problem.posed(generator) for _ in range(4)):
            assert (other.id, other.answer) == (problem.id, problem.answer)
    assert all(problem.id.startswith(f"{family}:") for problem in every)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_chains_are_true_and_end_with_the_answer(family: str) -> None:
    for problem in some(family):
        pieces, answer = problem.think()
        chain = write(pieces, "en")
        assert answer == problem.answer
        assert chain.split()[-1] == answer
        for left, right in FORMULA.findall(chain):
            assert eval(re.sub(r"\b0(?=\d)", "", left)) == int(right), (problem, chain)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_in_the_chain_leads_to_a_wrong_answer_which_the_chain_ends_with(family: str) -> None:
    generator = random.Random(1)
    for problem in some(family):
        right = write(problem.think()[0], "en")
        for _ in range(4):
            pieces, answer = problem.think(generator)
            assert answer != problem.answer, problem
            assert write(pieces, "en") != right
            assert write(pieces, "en").split()[-1] == answer


def test_known_chains() -> None:
    from r1mega.data.world.letters import Count, Letter, Reverse
    from r1mega.data.world.logic import Order, Truth
    from r1mega.data.world.numbers import Add, Countdown, Subtract

    known = {
        Add(17, 25): ("ones 7+5=12 tens 1+1+2=4 so 42", "个7+5=12十1+1+2=4故42"),
        Subtract(42, 17): ("ones 12-7=5 tens 4-1-1=2 so 25", "个12-7=5十4-1-1=2故25"),
        Countdown((3, 5, 8), 11): ("3+5=8 no 3+8=11 yes left 5", "3+5=8不3+8=11对余5"),
        Order(("K", "D", "H"), 1): ("see K above D above H so D", "看 K高 D高 H故 D"),
        Truth(("A", "B", "C"), True, (True, False)): ("see A is T so B is F so C is F", "看 A是 T故 B是 F故 C是 F"),
        Count(tuple("BACAB"), "A"): ("see B no A yes 1 C no A yes 2 B no so 2", "看 B不 A对1 C不 A对2 B不故2"),
        Letter(tuple("BADC"), 3): ("1 is B 2 is A 3 is D so D", "1是 B 2是 A 3是 D故 D"),
        Reverse(tuple("BADC"), 2): ("back C D A B so 2 is D", "倒 C D A B故2是 D")}
    for problem, (english, chinese) in known.items():
        assert write(problem.think()[0], "en") == english
        assert write(problem.think()[0], "zh") == chinese


@pytest.fixture(scope="module")
def accuracy() -> Accuracy:
    return Accuracy(AccuracyConfig())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_accuracy_reward_takes_the_right_answer_and_no_wrong_one(family: str, accuracy: Accuracy) -> None:
    generator = random.Random(2)
    for problem in some(family, 120):
        wrong = [problem.think(generator)[1], *(problem.near_miss(generator) for _ in range(3))]
        assert problem.answer not in wrong
        samples = [RewardSample(problem.question("en"), f"<think>x</think><answer>{answer}</answer>", problem.answer) for answer in (problem.answer, *wrong)]
        assert [score.value for score in accuracy.score(samples)] == [1.0, 0.0, 0.0, 0.0, 0.0], (problem, wrong)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_clean_chains_are_in_one_language_and_mixed_ones_in_two(family: str, language: str) -> None:
    generator = random.Random(3)
    for problem in some(family, 80):
        pieces, _ = problem.think()
        assert sum(isinstance(piece, Word) for piece in pieces) >= 2
        clean = write(pieces, language)
        assert language_share(clean, language, without_words=-1.0) == 1.0, clean
        assert bool(re.search(r"[一-鿿]", clean)) == (language == "zh")
        both = write_mixed(pieces, mixed(language, 0.3, generator))
        assert language_share(both, language) < 1.0, both


def test_languages_of_words() -> None:
    pieces = [word("so"), "4", word("is"), "2"]
    assert write(pieces, ["en", "zh"]) == "so 4是2"
    with pytest.raises(ValueError, match="1 languages for 2 words"):
        write(pieces, ["en"])
    with pytest.raises(KeyError):
        word("hitherto")


def test_the_share_of_words_in_the_other_language_is_as_asked() -> None:
    pieces, generator = [word("so")] * 100, random.Random(0)
    shares = [sum(language == "zh" for language in mixed("en", 0.3, generator)(len(pieces))) / 100 for _ in range(200)]
    assert abs(sum(shares) / 200 - 0.3) < 0.01
    assert all(mixed("en", 0.0, generator)(3).count("zh") == 1 for _ in range(20)), "a mixed text has a word in the other language"
