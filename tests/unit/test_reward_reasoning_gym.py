"""The reasoning_gym reward against reasoning-gym's own datasets."""

from __future__ import annotations

import pytest
import reasoning_gym
from r1mega_plugins.rewards.reasoning_gym import ReasoningGym, ReasoningGymConfig

from r1mega.types import RewardSample


def sample(family: str, entry: dict[str, object], answer: str) -> RewardSample:
    return RewardSample(str(entry["question"]), f"<think>t</think><answer>{answer}</answer>", metadata={"dataset": family, "entry": entry})


@pytest.mark.parametrize("family", ["chain_sum", "leg_counting", "countdown", "number_sorting"])
def test_the_value_is_the_familys_own_score(family: str) -> None:
    dataset = reasoning_gym.create_dataset(family, size=5, seed=3)
    reward = ReasoningGym(ReasoningGymConfig())
    for entry in dataset:
        for answer in (str(entry["answer"]), "0", "no idea"):
            assert reward.score([sample(family, entry, answer)])[0].value == float(dataset.score_answer(answer, entry))


def test_a_right_answer_in_the_wrong_place_scores_0() -> None:
    entry = reasoning_gym.create_dataset("chain_sum", size=1, seed=3)[0]
    right = sample("chain_sum", entry, str(entry["answer"]))
    wrong = RewardSample(right.prompt, f"<think>t</think> {entry['answer']}", metadata=right.metadata)
    scores = ReasoningGym(ReasoningGymConfig()).score([right, wrong])
    assert [score.value for score in scores] == [1.0, 0.0]
    assert "<answer>" in scores[1].explanation


def test_a_sample_of_another_task_is_an_error() -> None:
    with pytest.raises(ValueError, match="metadata has no 'dataset'"):
        ReasoningGym(ReasoningGymConfig()).score([RewardSample("q", "<answer>1</answer>")])
