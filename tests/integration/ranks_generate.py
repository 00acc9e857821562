"""One layout of `test_generate_layouts.py`: generate with the policy, score the same tokens with the trainer, print both."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np

from r1mega.config import ParallelConfig, PrecisionConfig
from r1mega.policy.architecture import MLA, Architecture, MoE
from r1mega.policy.generate import Engine
from r1mega.policy.policy import Policy
from r1mega.recipe.worker import leave
from r1mega.rollout.batching import make_microbatch, unpack
from r1mega.types import Completion, GenerationRequest, SamplingParams, TrainSequence

MODELS = {
    "moe": Architecture(num_layers=4, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4, max_position_embeddings=128, qk_layernorm=True,
                        init_method_std=0.1, mla=MLA(kv_lora_rank=16, q_lora_rank=32, qk_head_dim=8, qk_pos_emb_head_dim=8, v_head_dim=16),
                        moe=MoE(num_moe_experts=8, moe_ffn_hidden_size=32, moe_router_topk=2, moe_shared_expert_intermediate_size=32,
                                moe_router_num_groups=4, moe_router_group_topk=1, moe_router_topk_scaling_factor=2.5, moe_router_pre_softmax=True)),
    "dense": Architecture(num_layers=4, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4, num_query_groups=2, max_position_embeddings=128,
                          init_method_std=0.1),
}


def main() -> None:
    model, layout = sys.argv[1], json.loads(sys.argv[2])
    policy = Policy(MODELS[model], vocab_size=50, parallel=ParallelConfig(**layout), precision=PrecisionConfig(), seed=3)
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, 50, int(rng.integers(2, 9))).tolist()) for _ in range(8)]
    requests = [GenerationRequest(str(i), prompts[i // 3], SamplingParams(int(rng.integers(4, 20)), temperature=0.9, stop_token_ids=(1,)), seed=i * 7919)
                for i in range(24)]
    mine = requests[policy.ranks.dp_rank:: policy.ranks.dp_size]
    done: dict[str, Completion] = {}
    Engine(policy, max_slots=5).generate(mine, lambda tokens: " ".join(map(str, tokens)), lambda completion: done.__setitem__(completion.id, completion))
    sequences = [TrainSequence(r.id, np.array(r.prompt_tokens + done[r.id].tokens), np.ones(len(r.prompt_tokens) + len(done[r.id].tokens), np.float32))
                 for r in mine]
    batches = [make_microbatch(sequences[i::2], policy.pad_multiple) for i in range(2)]
    order = [request for i in range(2) for request in mine[i::2]]
    rows = [row for batch, (logprobs, _) in zip(batches, policy.logprobs(batches, temperature=0.9), strict=True) for row in unpack(logprobs, batch)]
    worst = max(float(np.abs(row[len(r.prompt_tokens):] - np.array(done[r.id].logprobs)).max()) for r, row in zip(order, rows, strict=True))
    everything = policy.ranks.gather_replicas(({r.id: done[r.id].tokens for r in mine}, worst))
    if policy.ranks.rank == 0:
        tokens = {key: value for part, _ in everything for key, value in part.items()}
        digest = hashlib.sha256(json.dumps(sorted(tokens.items())).encode()).hexdigest()
        print("RESULT", json.dumps({"worst": max(w for _, w in everything), "digest": digest, "count": len(tokens),
                                    "tokens": sum(map(len, tokens.values()))}), flush=True)


if __name__ == "__main__":
    main()
    leave(0)
