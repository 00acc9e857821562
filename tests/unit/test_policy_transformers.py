"""The policy against Hugging Face transformers: the same weights, packed here, one sequence at a time there."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import policy_models as models
import pytest
import torch

transformers = pytest.importorskip("transformers")
TOLERANCE = 1e-5
ATTENTION = {
    "linear_proj": "o_proj", "linear_q_down_proj": "q_a_proj", "linear_q_up_proj": "q_b_proj", "linear_kv_down_proj": "kv_a_proj_with_mqa",
    "linear_kv_up_proj": "kv_b_proj", "kv_layernorm": "kv_a_layernorm", "k_layernorm": "k_norm"}
TOP = {"embedding.word_embeddings.weight": "model.embed_tokens.weight", "output_layer.weight": "lm_head.weight",
       "decoder.final_layernorm.weight": "model.norm.weight"}


def to_transformers(policy: Any) -> dict[str, torch.Tensor]:
    """The policy's weights under the names that transformers has in memory."""
    model, found, experts = policy.chunks[0], {}, {}
    tensors = dict(model.named_parameters()) | {name: t for name, t in model.named_buffers() if name.endswith("expert_bias")}
    for name, tensor in tensors.items():
        tensor = tensor.detach().clone()
        if name in TOP:
            found[TOP[name]] = tensor[: models.VOCAB] if "norm" not in name else tensor
            continue
        layer, part = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name).groups()
        to = f"model.layers.{layer}."
        if match := re.fullmatch(r"mlp\.experts\.local_experts\.(\d+)\.linear_fc([12])\.weight", part):
            experts.setdefault((to, match[2]), {})[int(match[1])] = tensor
        elif part.startswith("self_attention.linear_qkv"):
            config, kind = model.config, part.rsplit(".", 1)[1]
            heads = tensor.view(config.num_query_groups, -1, config.kv_channels, *tensor.shape[1:])
            q, k, v = heads[:, :-2], heads[:, -2], heads[:, -1]
            for one, value in (("q", q), ("k", k), ("v", v)):
                found[f"{to}self_attn.{one}_proj.{kind}"] = value.reshape(-1, *tensor.shape[1:])
        elif part.startswith("self_attention.q_layernorm"):
            found[f"{to}self_attn.{'q_a_layernorm' if model.config.multi_latent_attention else 'q_norm'}.weight"] = tensor
        elif part.startswith("self_attention."):
            found[f"{to}self_attn.{ATTENTION[part.split('.')[1]]}.weight"] = tensor
        elif part.endswith("linear_fc1.weight"):
            found[to + part.replace("linear_fc1", "gate_proj")], found[to + part.replace("linear_fc1", "up_proj")] = tensor.chunk(2)
        else:
            part = part.replace("linear_fc2", "down_proj").replace("router.weight", "gate.weight").replace("pre_mlp", "post_attention")
            found[to + part.replace("router.expert_bias", "gate.e_score_correction_bias")] = tensor
    for (to, kind), parts in experts.items():
        found[f"{to}mlp.experts.{'gate_up_proj' if kind == '1' else 'down_proj'}"] = torch.stack([parts[i] for i in range(len(parts))])
    return found


def common_config(architecture: Any) -> dict[str, Any]:
    a = architecture
    return {"vocab_size": models.VOCAB, "hidden_size": a.hidden_size, "intermediate_size": a.ffn_hidden_size,
            "num_hidden_layers": a.num_layers, "num_attention_heads": a.num_attention_heads,
            "max_position_embeddings": a.max_position_embeddings, "rms_norm_eps": a.layernorm_epsilon,
            "tie_word_embeddings": a.tied_embeddings, "attn_implementation": "eager"}


def llama() -> tuple[Any, Any]:
    a = models.gqa()
    return a, transformers.LlamaForCausalLM(transformers.LlamaConfig(**common_config(a), num_key_value_heads=2, head_dim=16))


def qwen2() -> tuple[Any, Any]:
    a = models.gqa(add_qkv_bias=True, tied_embeddings=True, kv_channels=8)
    return a, transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**common_config(a), num_key_value_heads=2))


def qwen3() -> tuple[Any, Any]:
    a = models.gqa(qk_layernorm=True)
    return a, transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**common_config(a), num_key_value_heads=2, head_dim=16))


def deepseek_v3(*, yarn: bool) -> tuple[Any, Any]:
    a = models.deepseek(yarn=yarn)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if yarn:
        rope |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                 "mscale_all_dim": 0.8}
    config = transformers.DeepseekV3Config(
        **common_config(a), rope_parameters=rope, num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8,
        qk_rope_head_dim=4, v_head_dim=12, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, n_group=4, topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1, routed_scaling_factor=2.5, norm_topk_prob=True)
    return a, transformers.DeepseekV3ForCausalLM(config)


CASES = {"llama": llama, "qwen2-tied": qwen2, "qwen3": qwen3, "deepseek-v3": lambda: deepseek_v3(yarn=False),
         "deepseek-v3-yarn": lambda: deepseek_v3(yarn=True)}


@pytest.mark.parametrize("name", CASES)
def test_packed_logprobs_and_gradients_equal_transformers(name: str) -> None:
    """Log-probs, entropy, and the gradient that reaches the embedding through every layer."""
    architecture, reference = CASES[name]()
    policy = models.build(architecture)
    missing, unexpected = reference.load_state_dict(to_transformers(policy), strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if architecture.tied_embeddings else set())
    parts = models.sequences(40, 5, 17, 2, 33)
    logprobs, entropy = models.rows(policy, models.batch_of(parts))
    (logprobs.sum() + 0.3 * entropy.sum()).backward()
    start, total = 0, torch.zeros(())
    for part in parts:
        tokens = torch.from_numpy(part.tokens)
        theirs = reference(tokens[None]).logits[0].log_softmax(-1)
        labels = torch.cat([tokens[1:], torch.zeros(1, dtype=torch.int64)])  # the last prediction is of no token: label 0 in a packed row
        picked, spread = theirs.gather(-1, labels[:, None])[:, 0], torch.distributions.Categorical(logits=theirs).entropy()
        ours = slice(start, start + len(tokens))
        torch.testing.assert_close(logprobs[ours], picked, atol=TOLERANCE, rtol=0, msg=f"log-probs of the sequence of {len(part)} tokens")
        torch.testing.assert_close(entropy[ours], spread, atol=TOLERANCE, rtol=0)
        total = total + picked.sum() + 0.3 * spread.sum()
        start += len(tokens)
    total.backward()
    ours, theirs = policy.chunks[0].embedding.word_embeddings.weight.grad[: models.VOCAB], reference.model.embed_tokens.weight.grad
    assert float((ours - theirs).norm() / theirs.norm()) < TOLERANCE


def test_temperature_scales_the_logits() -> None:
    architecture, reference = llama()
    policy = models.build(architecture)
    reference.load_state_dict(to_transformers(policy))
    (part,) = models.sequences(12)
    ((logprobs, entropy),) = policy.logprobs([models.batch_of([part])], temperature=0.7)
    tokens = torch.from_numpy(part.tokens)
    theirs = (reference(tokens[None]).logits[0] / 0.7).log_softmax(-1)
    np.testing.assert_allclose(logprobs[:-1].numpy(), theirs[:-1].gather(-1, tokens[1:, None])[:, 0].detach().numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(entropy.numpy(), torch.distributions.Categorical(logits=theirs).entropy().detach().numpy(), atol=TOLERANCE)
    assert policy.options.temperature == 1.0, "the pass's temperature stays with the pass"
