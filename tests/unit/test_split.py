"""The split by problem identity: stable, balanced, and impossible to leak through."""

import random
import subprocess
import sys

import pytest

from r1mega.errors import ConfigError, UserError
from r1mega.split import Split, given_split, split_of, split_prompts, stable_fraction, text_id
from r1mega.types import Prompt


def prompt(identity: str, question: str = "q") -> Prompt:
    return Prompt(id=identity, question=question)


def test_side_is_the_same_in_another_process_whatever_its_hash_seed():
    ids = [f"problem {i}" for i in range(50)]
    code = f"from r1mega.split import split_of; print([split_of(i, 0.4, 3) for i in {ids}])"
    other = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "77"}, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str([split_of(i, 0.4, 3) for i in ids])


def test_pinned_values_never_change():
    """A changed hash would move test problems of old runs into the training set of new ones."""
    assert [split_of(i, 0.5, 0) for i in ("3+5", "17+25", "a", "b", "")] == ["test", "train", "test", "train", "train"]
    assert text_id("What is 2+2?") == "7cdae455ce6bc279af3a29c82fc43b80"


def test_fraction_is_uniform_and_depends_on_the_seed():
    ids = [str(i) for i in range(4000)]
    share = sum(split_of(i, 0.25, 0) == "test" for i in ids) / len(ids)
    assert abs(share - 0.25) < 0.03  # more than 4 standard deviations
    moved = sum(split_of(i, 0.5, 0) != split_of(i, 0.5, 1) for i in ids) / len(ids)
    assert abs(moved - 0.5) < 0.04
    assert all(0 <= stable_fraction(i, 0) < 1 for i in ids)


def test_raising_the_fraction_only_moves_problems_to_test():
    ids = [str(i) for i in range(500)]
    small, large = ({i for i in ids if split_of(i, fraction, 5) == "test"} for fraction in (0.1, 0.3))
    assert small < large
    assert {split_of(i, 0.0, 5) for i in ids} == {"train"}
    assert {split_of(i, 1.0, 5) for i in ids} == {"test"}


def test_impossible_fraction_is_refused():
    with pytest.raises(ConfigError, match=r"between 0 and 1, got 1\.5"):
        split_of("a", 1.5, 0)


@pytest.mark.parametrize("other", ["what IS  2+2?", " What is\n2+2? ", "What is 2＋2？", "What\u00a0is 2+2?"])
def test_different_looking_rows_of_one_problem_share_an_id(other):
    assert text_id(other) == text_id("What is 2+2?")


def test_different_problems_have_different_ids():
    questions = ["What is 2+2?", "What is 2+3?", "What is 22?", "Whatis 2+2?"]
    assert len({text_id(question) for question in questions}) == len(questions)


def test_split_does_not_depend_on_row_order_or_pool():
    prompts = [prompt(str(i)) for i in range(300)]
    shuffled = random.Random(0).sample(prompts, 200)
    whole, part = split_prompts(prompts, 0.3, 0), split_prompts(shuffled, 0.3, 0)
    assert {p.id for p in part.test} == {p.id for p in whole.test} & {p.id for p in shuffled}
    assert [p.id for p in part.train] == [p.id for p in shuffled if p.id not in {q.id for q in part.test}], "input order is kept"


def test_rows_of_one_problem_are_one_prompt_on_one_side():
    split = split_prompts([prompt("a", "first"), prompt("b"), prompt("a", "second")], 0.5, 0)
    assert split.duplicates == 1
    assert [p.question for p in (*split.train, *split.test) if p.id == "a"] == ["first"]


def test_given_split_removes_test_problems_from_train_and_counts_them():
    split = given_split([prompt("a"), prompt("b"), prompt("b"), prompt("c")], [prompt("c"), prompt("b"), prompt("c")])
    assert [p.id for p in split.train] == ["a"]
    assert [p.id for p in split.test] == ["c", "b"]
    assert (split.leaked, split.duplicates) == (2, 2)


def test_a_leaking_split_cannot_be_constructed():
    with pytest.raises(ValueError, match=r"both train and test: \['a'\]"):
        Split((prompt("a"),), (prompt("a"),))
    with pytest.raises(ValueError, match="twice"):
        Split((prompt("a"), prompt("a")), ())


def test_unknown_and_empty_sides_are_named():
    split = Split((prompt("a"),), ())
    with pytest.raises(UserError, match=r"'tset'\. Did you mean 'test'\?"):
        split.side("tset")
    with pytest.raises(UserError, match=r"test split has no problems \(1 train, 0 test\)"):
        split.side("test")
