"""A checkpoint that answers: its weights in this one process, its tokens as they are drawn."""

from __future__ import annotations

from collections.abc import Callable

from r1mega.config import ParallelConfig, PrecisionConfig
from r1mega.policy.artifact import load_artifact
from r1mega.policy.generate import Engine
from r1mega.policy.hugging_face.load import load_published
from r1mega.policy.platform import get_platform
from r1mega.policy.policy import Policy
from r1mega.talk_checkpoint import Checkpoint
from r1mega.types import Completion, GenerationRequest, SamplingParams


class Speaker:
    """Loads on construction. Raises `UserError` and `R1MegaError` as the loaders do."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        precision = checkpoint.precision or PrecisionConfig(params_dtype="bf16" if get_platform().device.type == "cuda" else "fp32")
        policy = Policy(checkpoint.architecture, vocab_size=checkpoint.vocab_size, parallel=ParallelConfig(), precision=precision, seed=0, draw=False)
        if checkpoint.family is None:
            load_artifact(policy, checkpoint.folder)
        else:
            load_published(policy, checkpoint.folder, checkpoint.family)
        self._engine, self._decode = Engine(policy, max_slots=1), checkpoint.tokenizer.decode

    def answer(self, prompt: tuple[int, ...], sampling: SamplingParams, seed: int, on_token: Callable[[int], None]) -> Completion:
        """Continue the prompt; `on_token` is called with every token as it is drawn, and may raise to end it there."""
        made = list[Completion]()
        self._engine.generate([GenerationRequest("answer", prompt, sampling, seed)], self._decode, made.append, lambda _, token: on_token(token))
        return made[0]
