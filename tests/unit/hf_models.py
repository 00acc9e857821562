"""Tiny models of every Hugging Face family, exported, and their logits on both sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import policy_models as models
import pytest
import torch
from r1mega_plugins.models.deepseek_v3 import DEEPSEEK_V3
from r1mega_plugins.models.llama import LLAMA
from r1mega_plugins.models.qwen2 import QWEN2
from r1mega_plugins.models.qwen3 import QWEN3
from r1mega_plugins.models.qwen3_moe import QWEN3_MOE

from r1mega.policy import artifact
from r1mega.policy.architecture import MLA, Architecture, MoE, Rope
from r1mega.policy.hugging_face.export import Export, export_weights
from r1mega.policy.hugging_face.family import Family
from r1mega.policy.policy import Policy

transformers = pytest.importorskip("transformers")
TOLERANCE = 1e-5
SOFTMAX = MoE(8, 16, 2, moe_router_score_function="softmax", moe_router_enable_expert_bias=False, first_dense_layers=0)


def softmax_moe(**changes: Any) -> Architecture:
    return models.gqa(qk_layernorm=True, moe=MoE(**vars(SOFTMAX) | changes))


def no_q_lora() -> Architecture:
    return models.deepseek(mla=MLA(kv_lora_rank=16, qk_head_dim=8, qk_pos_emb_head_dim=4, v_head_dim=12))


def two_shared_experts() -> Architecture:
    return models.deepseek(moe=MoE(8, 16, 4, moe_shared_expert_intermediate_size=32, moe_router_num_groups=4, moe_router_group_topk=2, first_dense_layers=0,
                                   moe_router_topk_scaling_factor=1.5), num_layers=3)


CASES: dict[str, tuple[Family, Architecture]] = {
    "llama": (LLAMA, models.gqa()),
    "llama-3.1-tied": (LLAMA, models.gqa(tied_embeddings=True, layernorm_epsilon=1e-5, rope=Rope(rotary_base=500000.0, llama3_scaling_factor=8.0))),
    "qwen2": (QWEN2, models.gqa(add_qkv_bias=True, kv_channels=None, rope=Rope(rotary_base=1e6))),
    "qwen2-tied": (QWEN2, models.gqa(add_qkv_bias=True, kv_channels=None, tied_embeddings=True)),
    "qwen3": (QWEN3, models.gqa(qk_layernorm=True)),
    "qwen3-moe": (QWEN3_MOE, softmax_moe()),
    "qwen3-moe-unnormalised-one-dense": (QWEN3_MOE, softmax_moe(moe_router_pre_softmax=True, first_dense_layers=1)),
    "deepseek-v3": (DEEPSEEK_V3, models.deepseek()),
    "deepseek-v3-yarn-prediction": (DEEPSEEK_V3, models.deepseek(yarn=True, mtp_num_layers=1)),
    "deepseek-v3-no-q-lora": (DEEPSEEK_V3, no_q_lora()),
    "deepseek-v3-two-shared-experts": (DEEPSEEK_V3, two_shared_experts()),
}


def exported(policy: Policy, family: Family, folder: Path, **changes: Any) -> Path:
    artifact.export_artifact(policy, folder / "artifact")
    settings = {"eos_id": 1, "shard_bytes": 30_000} | changes
    export = Export(folder / "artifact", family, policy.architecture, models.VOCAB, reward=policy.reward_head == "train", **settings)
    export_weights(export, policy.ranks, folder / "hf", before_rename=lambda: None)
    return folder / "hf"


def our_logits(policy: Policy, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] of one sequence, caught at the output layer."""
    caught: list[torch.Tensor] = []

    def catch(_: Any, __: Any, output: Any) -> None:
        caught.append(output[0][:, 0].detach().clone())

    handle = policy.chunks[0].output_layer.register_forward_hook(catch)
    (part,) = models.sequences(len(tokens))
    policy.logprobs([models.batch_of([replace(part, tokens=tokens.numpy())])])
    handle.remove()
    return caught[0][:, : models.VOCAB]


def their_model(folder: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert all(".2." in name for name in info["unexpected_keys"]), "only a multi-token-prediction layer (the third) may be left over"
    return model.eval()
