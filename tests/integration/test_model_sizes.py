"""The models of conf/model at full size: their config.json field by field, and their parameters over every shard of a layout, without the memory.

Each is composed, laid out and built rank by rank on the meta device (`meta_sizes.py`); Megatron's own validation shows that the ranks' shards tile every
tensor. The counts are compared with those of the releases and with transformers' model of the same config.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from r1mega.policy.architecture import Architecture
from r1mega.policy.hugging_face.config_json import read_published

pytestmark = pytest.mark.timeout(600)  # the whole file takes about 50 s on two free cores
SCRIPT = Path(__file__).with_name("meta_sizes.py")
MEMORY_MB = 1000  # of a process that builds models of up to 671e9 parameters; importing Megatron takes 400
TP, PP, VPP, EP, ETP, DP = (f"parallel.{name}_size=" for name in (
    "tensor_model_parallel", "pipeline_model_parallel", "virtual_pipeline_model_parallel", "expert_model_parallel", "expert_tensor_parallel",
    "data_parallel"))


@dataclass(frozen=True)
class Release:
    """A published model. `config` is its config.json as far as it says what is built."""

    config: dict[str, Any]
    parameters: int  # half of total_size in the index of its bfloat16 weights, in bytes
    named: float  # billions, as on its model card
    layout: tuple[str, ...]
    differs: dict[str, Any]  # what conf/model has on purpose as the release has not


def config(kind: str, name: str, **given: Any) -> dict[str, Any]:
    return {"model_type": kind, "architectures": [f"{name}ForCausalLM"], "hidden_act": "silu", "torch_dtype": "bfloat16", "tie_word_embeddings": False, **given}


def sizes(layers: int, hidden: int, ffn: int, heads: int, groups: int, vocabulary: int, positions: int, epsilon: float, theta: float) -> dict[str, Any]:
    return {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads, "num_key_value_heads": groups,
            "vocab_size": vocabulary, "max_position_embeddings": positions, "rms_norm_eps": epsilon, "rope_theta": theta}


QWEN3_MOE: dict[str, Any] = {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
                             "mlp_only_layers": [], "attention_bias": False, "use_sliding_window": False}
LLAMA: dict[str, Any] = {"attention_bias": False, "mlp_bias": False, "rope_scaling": {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}}
LONGER = {"max_position_embeddings": 131072}  # as DeepSeek's distilled releases
RELEASES = {
    "deepseek_v3_671b": Release(
        config("deepseek_v3", "DeepseekV3", **sizes(61, 7168, 18432, 128, 128, 129280, 163840, 1e-6, 10000), q_lora_rank=1536, kv_lora_rank=512,
               qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8,
               moe_intermediate_size=2048, first_k_dense_replace=3, moe_layer_freq=1, n_group=8, topk_group=4, topk_method="noaux_tc",
               scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.5, num_nextn_predict_layers=1, attention_bias=False,
               rope_scaling={"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                             "mscale_all_dim": 1.0}),
        671_026_404_352, 671, ("parallel=h800_512",), {"init_method_std": 0.006}),  # V3 report section 4.2; its config.json has 0.02
    "qwen3_30b_a3b": Release(
        config("qwen3_moe", "Qwen3Moe", **sizes(48, 2048, 6144, 32, 4, 151936, 40960, 1e-6, 1e6), moe_intermediate_size=768, **QWEN3_MOE),
        61_064_245_248 // 2, 30.5, (TP + "2", PP + "2", EP + "8", ETP + "2", DP + "8"), {}),
    "qwen3_235b_a22b": Release(
        config("qwen3_moe", "Qwen3Moe", **sizes(94, 4096, 12288, 64, 4, 151936, 40960, 1e-6, 1e6), moe_intermediate_size=1536, **QWEN3_MOE),
        470_187_269_120 // 2, 235, (TP + "4", PP + "4", EP + "8", DP + "4"), {}),
    "qwen2_5_math_1_5b": Release(
        config("qwen2", "Qwen2", **sizes(28, 1536, 8960, 12, 2, 151936, 4096, 1e-6, 10000)) | {"tie_word_embeddings": True},
        3_087_428_608 // 2, 1.54, ("parallel=tp2_pp2",), LONGER),
    "qwen2_5_math_7b": Release(
        config("qwen2", "Qwen2", **sizes(28, 3584, 18944, 28, 4, 152064, 4096, 1e-6, 10000)), 15_231_233_024 // 2, 7.62, ("parallel=gpu8_tp2",), LONGER),
    "qwen2_5_14b": Release(
        config("qwen2", "Qwen2", **sizes(48, 5120, 13824, 40, 8, 152064, 131072, 1e-5, 1e6)), 29_540_067_328 // 2, 14.8, ("parallel=gpu16_tp4",), {}),
    "qwen2_5_32b": Release(
        config("qwen2", "Qwen2", **sizes(64, 5120, 27648, 40, 8, 152064, 131072, 1e-5, 1e6)), 65_527_752_704 // 2, 32.8, ("parallel=gpu32_tp8",), {}),
    "llama_3_1_8b": Release(
        config("llama", "Llama", **sizes(32, 4096, 14336, 32, 8, 128256, 131072, 1e-5, 500000.0), **LLAMA), 16_060_522_496 // 2, 8.03,
        ("parallel=gpu8_tp2",), {}),
    "llama_3_3_70b": Release(
        config("llama", "Llama", **sizes(80, 8192, 28672, 64, 8, 128256, 131072, 1e-5, 500000.0), **LLAMA), 141_107_412_992 // 2, 70.6,
        (TP + "8", PP + "4", VPP + "2"), {}),
}
RANKS = {"deepseek_v3_671b": 512, "qwen3_30b_a3b": 32, "qwen3_235b_a22b": 32, "qwen2_5_math_1_5b": 4, "qwen2_5_math_7b": 2, "qwen2_5_14b": 4,
         "qwen2_5_32b": 8, "llama_3_1_8b": 2, "llama_3_3_70b": 32}  # those that hold something of their own
# DeepSeek-V3's release holds, by format: bfloat16, FP8, and float32, the scales of FP8 and the router's biases
DEEPSEEK_FILES = {"BF16": 3_918_786_560, "F8_E4M3": 680_571_043_840, "F32": 41_555_600}
HOLE = "with a rank left out"


def job(name: str, **more: Any) -> dict[str, Any]:
    release = RELEASES[name]
    return {"model": name, "layout": ["parallel=single", *release.layout], "vocab_size": release.config["vocab_size"], **more}


def measured_in_a_process(folder: Path, jobs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    folder.mkdir()
    settings, out = folder / "settings.json", folder / "out.json"
    settings.write_text(json.dumps({"out": str(out), "models": jobs}))
    done = subprocess.run([sys.executable, str(SCRIPT), str(settings)], capture_output=True, text=True, timeout=500, check=False, cwd=folder,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["peak_mb"] < MEMORY_MB, f"building {', '.join(jobs)} took {found['peak_mb']:,.0f} MB: something is not on the meta device"
    results: dict[str, Any] = found["results"]
    return results


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `meta_sizes.py` found, by model: half of the work in each of two processes."""
    folder = tmp_path_factory.mktemp("sizes")
    largest, *others = RELEASES
    halves = [{largest: job(largest)}, {name: job(name) for name in others} | {HOLE: job("qwen2_5_math_1_5b", absent=[3])}]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(measured_in_a_process, (folder / "largest", folder / "others"), halves)
    return first | second


def test_the_table_has_every_model_of_conf(repo: Path) -> None:
    files = {path.stem for path in (repo / "conf" / "model").glob("*.yaml")}
    assert {name for name in files if not name.startswith("tiny_")} - {"released"} == RELEASES.keys() == RANKS.keys()


@pytest.mark.parametrize("name", RELEASES)
def test_the_file_says_what_the_release_says(name: str, measured: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASES[name].config))
    released = read_published(tmp_path).architecture
    assert Architecture.from_dict(measured[name]["architecture"]).canonical() == replace(released, **RELEASES[name].differs).canonical()


@pytest.mark.parametrize("name", RELEASES)
def test_the_shards_of_all_ranks_are_the_released_parameters(name: str, measured: dict[str, Any]) -> None:
    found, release = measured[name], RELEASES[name]
    assert found["ranks"] == RANKS[name]
    assert found["main"] == release.parameters
    digits = len(f"{release.named}".partition(".")[2])
    assert round(found["main"] / 1e9, digits) == release.named, "the model card"


@pytest.mark.parametrize("name", RELEASES)
def test_transformers_builds_as_many(name: str, measured: dict[str, Any], tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(RELEASES[name].config))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    assert sum(parameter.numel() for parameter in model.parameters()) == measured[name]["main"]
    assert sum(buffer.numel() for key, buffer in model.named_buffers() if key.endswith("e_score_correction_bias")) == measured[name]["main_biases"]


def test_deepseek_v3_with_its_prediction_layer_is_all_that_the_release_holds(measured: dict[str, Any]) -> None:
    found, values = measured["deepseek_v3_671b"], RELEASES["deepseek_v3_671b"].config
    repeated = 2 * values["vocab_size"] * values["hidden_size"]  # the prediction layer's embedding and head are the model's, stored again
    assert found["main"] + found["mtp"] + repeated == DEEPSEEK_FILES["BF16"] + DEEPSEEK_FILES["F8_E4M3"]
    biases = found["main_biases"] + found["mtp_biases"]
    assert DEEPSEEK_FILES["F32"] - biases == pytest.approx(DEEPSEEK_FILES["F8_E4M3"] / 128**2, rel=1e-3), "one scale for 128 x 128 values"


def test_a_missing_shard_is_noticed(measured: dict[str, Any]) -> None:
    assert "Invalid access pattern" in measured[HOLE]["error"]
