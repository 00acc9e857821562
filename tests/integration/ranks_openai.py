"""One rank of `test_openai_server.py`: generate through the server with a real policy's ranks, and say what this rank received."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from r1mega_plugins.rollouts.openai import OpenAIRollout, OpenAIRolloutConfig
from r1mega_plugins.tokenizers.huggingface import HuggingFace, HuggingFaceConfig

from r1mega.config import OptimizerConfig, ParallelConfig, PrecisionConfig
from r1mega.errors import ConfigError
from r1mega.policy.architecture import Architecture
from r1mega.policy.policy import Policy
from r1mega.recipe.worker import leave
from r1mega.remote.client import RemoteRefusedError
from r1mega.remote.config import ServerConfig
from r1mega.types import Completion, GenerationRequest, SamplingParams

MODEL = Architecture(num_layers=1, hidden_size=32, ffn_hidden_size=64, num_attention_heads=4, max_position_embeddings=256)


def main() -> None:
    url, folder, layout = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    tokenizer = HuggingFace(HuggingFaceConfig(eos_token="</s>"), folder=Path(folder))
    policy = Policy(MODEL, vocab_size=tokenizer.vocab_size, parallel=ParallelConfig(**layout), precision=PrecisionConfig(), seed=0,
                    optimizer=OptimizerConfig(lr=1e-3), training_steps=1)
    server = ServerConfig(base_url=url)
    said = {}
    try:
        OpenAIRollout(OpenAIRolloutConfig("tiny", server), policy=policy, tokenizer=tokenizer)
    except ConfigError as error:
        said["refused"] = str(error)

    rollout = OpenAIRollout(OpenAIRolloutConfig("tiny", server, dialect="vllm", logprobs="processed"), policy=policy, tokenizer=tokenizer)
    requests = [GenerationRequest(f"r{i}", tuple(tokenizer.encode(f"{i}+1=")), SamplingParams(8, stop_token_ids=(0,)), i << 40) for i in range(8)]
    done: dict[str, Completion] = {}
    rollout.generate(requests[policy.ranks.dp_rank:: policy.ranks.dp_size], lambda completion: done.__setitem__(completion.id, completion))
    said["ids"] = sorted(done)
    said["digest"] = hashlib.sha256(repr(sorted(done.items())).encode()).hexdigest()

    wrong = OpenAIRollout(OpenAIRolloutConfig("tinny", server, dialect="vllm", logprobs="processed"), policy=policy, tokenizer=tokenizer)
    try:
        wrong.generate(requests, lambda _: None)
    except RemoteRefusedError as error:
        said["failed"] = str(error)
    everything = [said] if policy.ranks.world_size == 1 else _all(said)
    if policy.ranks.rank == 0:
        print("RESULT", json.dumps(everything), flush=True)


def _all(value: object) -> list[object]:
    import torch.distributed as dist

    boxes: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(boxes, value)
    return boxes


if __name__ == "__main__":
    main()
    leave(0)
