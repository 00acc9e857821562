"""config.json of released models: what is read, what is refused, in the spellings of transformers 4 and 5."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import hf_models as export_cases
import pytest
import torch
from r1mega_plugins.models.released import ReleasedConfig, released

from r1mega.errors import ConfigError, DataError
from r1mega.policy.architecture import MLA, Architecture, MoE, Rope
from r1mega.policy.hugging_face.config_json import is_half_precision, read_published

# As the releases state them, every key.
RELEASED: dict[str, tuple[dict[str, Any], Architecture, int]] = {
    "DeepSeek-V3": (
        {"architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
         "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "aux_loss_alpha": 0.001, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
         "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
         "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8,
         "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8,
         "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "pretraining_tp": 1, "q_lora_rank": 1536,
         "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
         "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
         "rms_norm_eps": 1e-06, "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "seq_aux": True, "tie_word_embeddings": False,
         "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                          "type": "yarn"},
         "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": True, "v_head_dim": 128,
         "vocab_size": 129280},
        Architecture(61, 7168, 18432, 128, 163840, qk_layernorm=True, mtp_num_layers=1, rope=Rope("yarn"), mla=MLA(512, 128, 64, 128, 1536),
                     moe=MoE(256, 2048, 8, 2048, "sigmoid", 8, 4, 2.5, True, True, 3)), 129280),
    "Qwen2.5-Math-1.5B": (
        {"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu",
         "hidden_size": 1536, "initializer_range": 0.02, "intermediate_size": 8960, "max_position_embeddings": 4096, "max_window_layers": 21,
         "model_type": "qwen2", "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 10000,
         "sliding_window": 4096, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.44.0", "use_cache": True,
         "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936},
        Architecture(28, 1536, 8960, 12, 4096, 2, 128, add_qkv_bias=True, tied_embeddings=True), 151936),
    "Llama-3.1-8B": (
        {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001,
         "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072,
         "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
         "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0",
         "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
         "use_cache": True, "vocab_size": 128256},
        Architecture(32, 4096, 14336, 32, 131072, 8, 128, layernorm_epsilon=1e-5, rope=Rope(rotary_base=5e5, llama3_scaling_factor=8.0)), 128256),
    "Qwen3-30B-A3B": (
        {"architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "decoder_sparse_step": 1,
         "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
         "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
         "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
         "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0,
         "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
         "use_cache": True, "use_sliding_window": False, "vocab_size": 151936},
        Architecture(48, 2048, 6144, 32, 40960, 4, 128, True, rope=Rope(rotary_base=1e6),
                     moe=MoE(128, 768, 8, None, "softmax", None, None, None, False, False, 0)), 151936),
}


def write(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("name", RELEASED)
def test_a_release_says_what_it_is(name: str, tmp_path: Path) -> None:
    values, architecture, vocab_size = RELEASED[name]
    published = read_published(write(tmp_path, values))
    assert published.architecture == architecture
    assert published.vocab_size == vocab_size
    assert published.dtype == "bfloat16"
    assert released(ReleasedConfig(path=str(tmp_path))) == architecture


@pytest.mark.parametrize("case", export_cases.CASES)
def test_what_an_export_states_is_read_as_the_same_model_in_both_spellings(case: str, tmp_path: Path) -> None:
    """Ours, as transformers 4 spells it, and what transformers 5 makes of that."""
    from transformers import AutoConfig

    from r1mega.policy.hugging_face.export import Export, model_config

    family, architecture = export_cases.CASES[case]
    if architecture.rope.rope_type == "yarn":
        reach = round(architecture.rope.rotary_scaling_factor * architecture.rope.original_max_position_embeddings)
        architecture = replace(architecture, max_position_embeddings=reach)
    values = model_config(Export(tmp_path, family, architecture, 50, 1), "float32")
    wanted = architecture.canonical()
    assert read_published(write(tmp_path, values)).architecture.canonical() == wanted
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    newer = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in newer
    assert "rope_theta" not in newer
    assert read_published(tmp_path).architecture.canonical() == wanted


@pytest.mark.parametrize(("name", "change", "told"), [
    ("DeepSeek-V3", {"norm_topk_prob": False}, "norm_topk_prob=False"),
    ("DeepSeek-V3", {"scoring_func": "softmax"}, "scoring_func=softmax"),
    ("DeepSeek-V3", {"topk_method": "greedy"}, "topk_method=greedy"),
    ("DeepSeek-V3", {"rope_interleave": False}, "rope_interleave=False"),
    ("DeepSeek-V3", {"moe_layer_freq": 2}, "moe_layer_freq=2"),
    ("DeepSeek-V3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type 'linear'"),
    ("DeepSeek-V3", {"rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0}}, "rope mscale_all_dim=None"),
    ("DeepSeek-V3", {"num_experts_per_tok": 6}, "topk must be twice group_topk"),
    ("DeepSeek-V3", {"kv_lora_rank": None}, "kv_lora_rank=None"),
    ("DeepSeek-V3", {"n_group": None}, "n_group=None"),
    ("DeepSeek-V3", {"routed_scaling_factor": float("inf")}, "routed_scaling_factor=inf"),
    ("DeepSeek-V3", {"rope_scaling": "linear"}, "rope_scaling='linear'"),
    ("Qwen2.5-Math-1.5B", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 2]}}, r"rope mrope_section=\[1, 2\]"),
    ("Qwen2.5-Math-1.5B", {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
    ("Qwen2.5-Math-1.5B", {"num_key_value_heads": 5}, "num_key_value_heads=5, which does not divide num_attention_heads=12"),
    ("Qwen2.5-Math-1.5B", {"layer_types": 5}, "layer_types=5"),
    ("Qwen3-30B-A3B", {"num_experts_per_tok": 200}, "num_experts_per_tok=200 of 128 experts"),
    ("Qwen3-30B-A3B", {"mlp_only_layers": 3}, "mlp_only_layers=3"),
    ("Qwen3-30B-A3B", {"model_type": ["qwen3_moe"]}, "of no known family"),
    ("Qwen2.5-Math-1.5B", {"use_sliding_window": True}, "use_sliding_window=True"),
    ("Qwen2.5-Math-1.5B", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
    ("Qwen2.5-Math-1.5B", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, "rope type 'yarn'"),
    ("Qwen2.5-Math-1.5B", {"rope_scaling": {"mrope_section": [1, 2], "type": "mrope"}}, "rope type 'mrope'"),
    ("Qwen2.5-Math-1.5B", {"hidden_act": "gelu"}, "hidden_act=gelu"),
    ("Qwen2.5-Math-1.5B", {"logit_scale": 0.5}, r"logit_scale=0.5 \(unknown.*model.ignore"),
    ("Qwen2.5-Math-1.5B", {"rms_norm_eps": "small"}, "rms_norm_eps='small'"),
    ("Llama-3.1-8B", {"rope_scaling": {"factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
                                       "rope_type": "llama3"}}, "rope low_freq_factor=2.0"),
    ("Llama-3.1-8B", {"mlp_bias": True}, "mlp_bias=True"),
    ("Llama-3.1-8B", {"attention_bias": True}, "attention_bias=True"),
    ("Llama-3.1-8B", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ("Qwen3-30B-A3B", {"mlp_only_layers": [1]}, r"mlp_only_layers=\[1\]"),
    ("Qwen3-30B-A3B", {"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
    ("Qwen3-30B-A3B", {"model_type": "qwen2_moe"}, "model_type='qwen2_moe' is of no known family. Did you mean 'qwen3_moe'"),
])
def test_what_cannot_be_expressed_is_refused_by_name(name: str, change: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        read_published(write(tmp_path, RELEASED[name][0] | change))
    assert str(tmp_path / "config.json") in str(caught.value)


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    values = RELEASED["Llama-3.1-8B"][0] | {"mlp_bias": True, "hidden_act": "relu", "extra": 3}
    del values["hidden_size"]
    with pytest.raises(ConfigError) as caught:
        read_published(write(tmp_path, values))
    for told in ("mlp_bias=True", "hidden_act=relu", "extra=3", "hidden_size is missing"):
        assert told in str(caught.value)


def test_where_both_spellings_of_the_rope_are_there_the_older_counts_as_in_transformers(tmp_path: Path) -> None:
    values, architecture, _ = RELEASED["Llama-3.1-8B"]
    both = values | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    assert read_published(write(tmp_path, both)).architecture == architecture


@pytest.mark.parametrize(("formats", "half"), [((torch.bfloat16,), True), ((torch.bfloat16, torch.float8_e4m3fn), True), ((torch.float16,), False),
                                               ((torch.bfloat16, torch.float32), False)])
def test_the_format_of_the_weights_is_that_of_the_files(formats: tuple[torch.dtype, ...], half: bool, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {f"w{number}": torch.ones(2, 3).to(dtype) for number, dtype in enumerate(formats)}
    save_file(tensors | {"w0_scale_inv": torch.ones(1, 1), "bias": torch.ones(3)}, tmp_path / "model.safetensors")
    assert is_half_precision(tmp_path) == half
    (tmp_path / "model.safetensors").write_bytes(b"123456789")
    with pytest.raises(DataError, match="not a whole safetensors file"):
        is_half_precision(tmp_path)


def test_a_key_may_be_declared_harmless(tmp_path: Path) -> None:
    write(tmp_path, RELEASED["Llama-3.1-8B"][0] | {"training_note": "long"})
    with pytest.raises(ConfigError, match="training_note=long"):
        read_published(tmp_path)
    assert released(ReleasedConfig(path=str(tmp_path), ignore=["training_note"])) == RELEASED["Llama-3.1-8B"][1]


def test_changes_that_a_user_may_make(tmp_path: Path) -> None:
    write(tmp_path, RELEASED["DeepSeek-V3"][0])
    changed = released(ReleasedConfig(path=str(tmp_path), max_position_embeddings=8192, mtp_num_layers=0))
    assert changed == replace(RELEASED["DeepSeek-V3"][1], max_position_embeddings=8192, mtp_num_layers=0)
    with pytest.raises(ConfigError, match=r"model.mtp_num_layers=3: .* has 1"):
        released(ReleasedConfig(path=str(tmp_path), mtp_num_layers=3))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; expected the folder of a Hugging Face model"):
        read_published(tmp_path)
    with pytest.raises(ConfigError, match=r"model.path: .* holds neither config.json nor architecture.json"):
        ReleasedConfig(path=str(tmp_path))
    for content, told in (("{", "not valid JSON"), ("[]", "expected a JSON object, got list")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(DataError, match=told):
            read_published(tmp_path)
    (tmp_path / "architecture.json").write_text('{"architecture": {"num_layers": 2}}')
    with pytest.raises(DataError, match="not the architecture of a checkpoint"):
        released(ReleasedConfig(path=str(tmp_path / "architecture.json")))


def test_prediction_layers_may_be_left_out(tmp_path: Path) -> None:
    import policy_models as models

    from r1mega.policy.hugging_face.load import load_published

    family, architecture = export_cases.CASES["deepseek-v3-yarn-prediction"]
    whole = models.build(architecture)
    folder = export_cases.exported(whole, family, tmp_path)
    without = models.build(replace(architecture, mtp_num_layers=0))
    load_published(without, folder, family)
    tokens = torch.arange(40)
    assert torch.equal(export_cases.our_logits(without, tokens), export_cases.our_logits(whole, tokens))


def test_an_export_keeps_the_releases_own_keys(tmp_path: Path) -> None:
    from r1mega.policy.hugging_face.config_json import restated

    values, architecture, _ = RELEASED["DeepSeek-V3"]
    family = read_published(write(tmp_path, values | {"note": "kept"}), ignore=["note"]).family
    settings = {"vocab_size": 129280, "torch_dtype": "float32", "architectures": ["DeepseekV3ForCausalLM"], "num_nextn_predict_layers": 0,
                "max_position_embeddings": 163840}
    source = tmp_path / "config.json"
    made = restated(source, family, replace(architecture, mtp_num_layers=0), settings)
    kept = {key: value for key, value in values.items() if key not in ("quantization_config", "auto_map")}
    assert made == {**kept, "note": "kept", "torch_dtype": "float32", "num_nextn_predict_layers": 0}
    assert restated(source, family, architecture, settings | {"eos_token_id": 7})["eos_token_id"] == 7
    scored = restated(source, family, architecture, settings | {"num_labels": 1, "pad_token_id": None, "eos_token_id": 1})
    assert (scored["num_labels"], scored["pad_token_id"]) == (1, None)
    assert restated(source, family, replace(architecture, num_layers=60), settings) == settings, "another model is described anew"
    assert restated(source, family, architecture, settings | {"vocab_size": 7})["vocab_size"] == 7
    assert restated(tmp_path / "none.json", family, architecture, settings) == settings
