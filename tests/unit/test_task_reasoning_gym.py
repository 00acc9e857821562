"""The reasoning-gym task against the library itself: its problems, and its own scorer on what travels along."""

import pickle

import pytest
import reasoning_gym
from r1mega_plugins.tasks.reasoning_gym import ReasoningGym, ReasoningGymConfig

from r1mega.errors import ConfigError, UserError


def both(task: ReasoningGym) -> list:
    return [*task.prompts("train"), *task.prompts("test")]


def test_problems_are_the_librarys_own_and_split_without_a_leak():
    task = ReasoningGym(ReasoningGymConfig(family="chain_sum", size=300, seed=5, parameters={"max_terms": 3}), seed=99)
    dataset = reasoning_gym.create_dataset("chain_sum", size=300, seed=5, max_terms=3)
    answers = {entry["question"]: entry["answer"] for entry in dataset}
    prompts = both(task)
    assert {prompt.question: prompt.answer for prompt in prompts} == answers
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert 30 < len(task.prompts("test")) < 90
    assert {prompt.task for prompt in prompts} == {"reasoning_gym"}


@pytest.mark.parametrize("family", ["countdown", "spell_backward", "letter_counting", "leg_counting"])
def test_metadata_is_what_the_familys_scorer_needs_after_a_trip_to_another_process(family):
    for prompt in both(ReasoningGym(ReasoningGymConfig(family=family, size=20, test_fraction=0.5))):
        metadata = pickle.loads(pickle.dumps(prompt.metadata))
        score = reasoning_gym.get_score_answer_fn(metadata["dataset"])
        assert score(prompt.answer, metadata["entry"]) == 1.0
        assert score("certainly not", metadata["entry"]) < 1.0


def test_repeated_problems_are_dropped():
    task = ReasoningGym(ReasoningGymConfig(family="basic_arithmetic", size=300, parameters={
        "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "allow_parentheses": False}))
    prompts = both(task)
    assert task.split.duplicates == 300 - len(prompts) > 0
    assert len({prompt.question for prompt in prompts}) == len(prompts)


def test_lists_become_tuples_only_where_the_family_has_tuples():
    task = ReasoningGym(ReasoningGymConfig(family="basic_arithmetic", size=30, parameters={"operators": ["+"], "allow_parentheses": False}))
    assert all("+" in p.question and "*" not in p.question for p in both(task))


def test_documents_state_answers_of_training_problems_alone():
    task = ReasoningGym(ReasoningGymConfig(size=60))
    training = {prompt.question: f"<think>{prompt.answer}</think><answer>{prompt.answer}</answer>" for prompt in task.prompts("train")}
    assert dict(task.documents(len(training), seed=0)) == training


@pytest.mark.parametrize(("settings", "error", "message"), [
    ({"family": "chain_sumn"}, UserError, r"no family 'chain_sumn'\. Did you mean 'chain_sum'\?"),
    ({"parameters": {"max_term": 3}}, ConfigError, r"no parameter 'max_term'\. Did you mean 'max_terms'\?"),
    ({"parameters": {"seed": 3}}, ConfigError, r"Set task\.seed itself instead"),
    ({"parameters": {"min_terms": 9, "max_terms": 3}}, ConfigError, r"family 'chain_sum' cannot make 2000 problems with"),
    ({"parameters": {"min_terms": "many"}}, ConfigError, r"family 'chain_sum' cannot make"),
])
def test_wrong_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        ReasoningGym(ReasoningGymConfig(**settings))
