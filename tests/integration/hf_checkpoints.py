"""Tiny Hugging Face folders, made by transformers alone: random weights, norms, biases and routing biases, and the logits that it computes with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

VOCAB = 101  # odd, so that every layout pads it
_COMMON: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
                           "num_key_value_heads": 2, "max_position_embeddings": 256, "eos_token_id": 1, "bos_token_id": None, "tie_word_embeddings": False}
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
_YARN: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1,
                         "mscale": 0.707, "mscale_all_dim": 0.5}
_LLAMA3: dict[str, Any] = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                           "original_max_position_embeddings": 8192}
_EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16, "rope_parameters": _ROPE}
_DEEPSEEK: dict[str, Any] = {"num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 4, "n_group": 4,
                             "topk_group": 2, "n_shared_experts": 2, "first_k_dense_replace": 1, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
                             "qk_rope_head_dim": 4, "v_head_dim": 12, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 0}
# name -> (transformers' configuration class, what differs from the common settings)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3": ("LlamaConfig", {"rope_parameters": _ROPE, "rms_norm_eps": 1e-5}),
    "llama-3.1": ("LlamaConfig", {"rope_parameters": _LLAMA3}),
    "qwen2": ("Qwen2Config", {"rope_parameters": _ROPE}),
    "qwen2-tied": ("Qwen2Config", {"rope_parameters": _ROPE, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "rope_parameters": _ROPE}),
    "qwen3-moe": ("Qwen3MoeConfig", _EXPERTS | {"norm_topk_prob": True}),
    "qwen3-moe-unnormalised": ("Qwen3MoeConfig", _EXPERTS | {"norm_topk_prob": False, "mlp_only_layers": [0]}),
    "deepseek-v3-yarn-mtp": ("DeepseekV3Config", _DEEPSEEK | {"q_lora_rank": 24, "rope_parameters": _YARN, "num_nextn_predict_layers": 1}),
    "deepseek-v3-no-q-lora": ("DeepseekV3Config", _DEEPSEEK | {"q_lora_rank": None, "rope_parameters": _ROPE}),
}
EXPERTS = [name for name in MODELS if "moe" in name or "deepseek" in name]


def tokens() -> torch.Tensor:
    """One random sequence [96]."""
    return torch.randint(0, VOCAB, (96,), generator=torch.Generator().manual_seed(5))


def make(name: str, folder: Path, **changes: Any) -> torch.Tensor:
    """Write the folder and return transformers' logits [96, V] in fp32."""
    kind, settings = MODELS[name]
    config = getattr(transformers, kind)(**_COMMON | settings | changes)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for tensor_name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            tensor_shape = torch.randn(tensor.shape)
            if "norm" in tensor_name:
                tensor.copy_(1 + 0.2 * tensor_shape)
            elif tensor_name.endswith(("bias", "e_score_correction_bias")):
                tensor.copy_(0.2 * tensor_shape)
            elif tensor.is_floating_point() and "inv_freq" not in tensor_name:
                tensor.copy_(0.15 * tensor_shape)
    model.save_pretrained(folder)
    if settings.get("num_nextn_predict_layers"):
        _add_prediction(folder)
    return logits(folder)


def logits(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Those of transformers for `tokens()`, [96, V] in float32. Every tensor of the model must be there; only multi-token prediction may be left over."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert all(f".layers.{_COMMON['num_hidden_layers']}." in name for name in info["unexpected_keys"]), info["unexpected_keys"]
    with torch.no_grad():
        found: torch.Tensor = model.eval()(tokens()[None]).logits[0].float()
    return found


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of all files."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def _add_prediction(folder: Path) -> None:
    """A multi-token-prediction layer as the releases have it, which transformers does not: a block like the last, its norms and projection, and copies of
    the embedding and the head."""
    held, layer, hidden = tensors(folder), _COMMON["num_hidden_layers"], _COMMON["hidden_size"]
    draw = torch.Generator().manual_seed(4)
    ours = f"model.layers.{layer}."
    for name, tensor in [*held.items()]:
        if name.startswith(last := f"model.layers.{layer - 1}."):
            held[ours + name.removeprefix(last)] = tensor + 0.1 * torch.randn(tensor.shape, generator=draw)
    for name in ("enorm", "hnorm", "shared_head.norm"):
        held[f"{ours}{name}.weight"] = 1 + 0.2 * torch.randn(hidden, generator=draw)
    held[f"{ours}eh_proj.weight"] = 0.15 * torch.randn(hidden, 2 * hidden, generator=draw)
    held[f"{ours}embed_tokens.weight"] = held["model.embed_tokens.weight"].clone()
    held[f"{ours}shared_head.head.weight"] = held["lm_head.weight"].clone()
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))


def add_tokenizer(folder: Path) -> None:
    """A tokenizer of single characters with the marks of the tiny recipes, in the files of a release."""
    from tokenizers import Tokenizer, decoders, models

    marks = ["<think>", "</think>", "<answer>", "</answer>"]
    characters = ["\n", "<eos>", *map(chr, range(32, 32 + 95))][: VOCAB - len(marks)]
    tokenizer = Tokenizer(models.BPE({text: place for place, text in enumerate(characters)}, []))
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.add_tokens(marks)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}))
