"""A model behind an OpenAI-compatible server as the judge of preferences; the paper's is DeepSeek-V3 (R1_RECIPE 2.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from r1mega import hookimpl
from r1mega.config import RewardConfig
from r1mega.data.preferences import Assessment, Comparison
from r1mega.hookspecs import Register
from r1mega.remote.ask import ChatConfig
from r1mega.remote.pairwise import PairwiseJudge
from r1mega.remote.pointwise import PointwiseJudge


@dataclass(frozen=True)
class OpenAIAnnotatorConfig(ChatConfig):
    """Which model judges; see `ChatConfig`."""


class OpenAIAnnotator:
    """Has a model behind an OpenAI-compatible server compare two responses, or say whether one is safe."""

    version: ClassVar[str] = "1"

    def __init__(self, config: OpenAIAnnotatorConfig, *, reward: RewardConfig) -> None:  # noqa: ARG002 - of rules
        self.provenance: Mapping[str, Any] = {"annotator_model": config.model}
        self._compare = PairwiseJudge(config)
        self._assess = PointwiseJudge(config)

    def compare(self, comparisons: Sequence[Comparison]) -> Sequence[str | None]:
        return self._compare(comparisons)

    def assess(self, assessments: Sequence[Assessment]) -> Sequence[bool | None]:
        return self._assess(assessments)

    def close(self) -> None:
        """Nothing is kept open."""


@hookimpl
def register_annotators(register: Register) -> None:
    register("openai", OpenAIAnnotator, config=OpenAIAnnotatorConfig)
