"""One rank of our side of grpo_step.py: `python _grpo_ours.py FOLDER MODE MICRO_BATCH_TOKENS`. It makes rollouts and updates with the RL stage's own
`Learner`, ledger and reward workers included; only the weights come from the shared Hugging Face model."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _grpo_shared import CAP, GROUP, LEARNING_RATE, MAX_POSITIONS, PROBE, PROMPTS, prompts, serve
from safetensors.torch import load_file

from r1mega import config as c
from r1mega import plugins
from r1mega.policy.policy import Policy
from r1mega.recipe.context import StageContext
from r1mega.rewards.scorers import ModelTerms
from r1mega.rollout.batching import make_microbatch, unpack
from r1mega.rollout.curriculum import PromptStream
from r1mega.rollout.prompts import encode_prompt
from r1mega.types import Prompt, SamplingParams, TrainSequence


def main(folder: Path, mode: str, micro_batch_tokens: int) -> None:
    registry = plugins.load().registry
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from r1mega_plugins.algorithms.grpo import GRPOConfig
    from r1mega_plugins.models.qwen3 import Qwen3Config, qwen3
    from r1mega_plugins.rollouts.megatron import MegatronRolloutConfig
    from r1mega_plugins.stages._learner import Learner
    from r1mega_plugins.stages._setup import EvaluationConfig
    from r1mega_plugins.stages.rl import RLConfig
    from r1mega_plugins.tokenizers.huggingface import HuggingFaceConfig

    architecture = qwen3(Qwen3Config(num_layers=4, hidden_size=128, ffn_hidden_size=256, num_attention_heads=4, num_query_groups=2, kv_channels=32,
                                     max_position_embeddings=MAX_POSITIONS, tied_embeddings=False, rotary_base=10000.0))
    config = RLConfig(
        steps=100_000, prompts_per_rollout=PROMPTS, group_size=GROUP, updates_per_rollout=1, reference_every=0, micro_batch_tokens=micro_batch_tokens,
        samples_logged=0, parallel=c.ParallelConfig(data_parallel_size=world), checkpoint=c.CheckpointConfig(every=1_000_000),
        optimizer=c.OptimizerConfig(lr=LEARNING_RATE, weight_decay=0.0, adam_beta2=0.999),
        reward=c.RewardConfig(terms={"digit_share": c.RewardTerm("digit_share")}), evaluation=EvaluationConfig(metric="digit_share"))
    policy = Policy(architecture, vocab_size=64, parallel=config.parallel, precision=config.precision, seed=0, optimizer=config.optimizer,
                    training_steps=config.steps)
    copy_weights(policy, load_file(folder / mode / "model.safetensors"))
    tokenizer = registry.get("tokenizers", "huggingface").factory(HuggingFaceConfig(eos_token="<eos>"), folder=folder)
    place = folder / f"ours-{mode}-{world}-{os.environ['MASTER_PORT']}"
    place.mkdir(exist_ok=True)
    (place / "epoch").write_text("1")
    learner = Learner(
        config=config, policy=policy, context=StageContext("bench", config, place, place, {}, rank, world, rank, epoch=1),
        generator=registry.get("rollouts", "megatron").factory(MegatronRolloutConfig(max_tokens=CAP[mode]), policy=policy, tokenizer=tokenizer),
        algorithm=registry.get("algorithms", "grpo").factory(GRPOConfig(kl_coefficient=0.0, clip_ratio_low=0.2, clip_ratio_high=0.2)),
        stream=PromptStream([encode_prompt(Prompt(text, text), "{question}", tokenizer) for text in prompts()], {}, config.seed),
        model_terms=ModelTerms({}, {}, policy.ranks),
        sampling=SamplingParams(CAP[mode], stop_token_ids=(tokenizer.eos_id,)), seal=never)
    learner.resume()

    def step() -> dict[str, Any]:
        began = time.perf_counter()
        groups = learner.collect()
        (minibatch,) = learner.minibatches(groups)
        metrics = learner.update(minibatch)
        learner.end_rollout()
        lengths = policy.ranks.gather_replicas([len(completion.tokens) for group in groups for completion in group.group.completions])
        lengths = [length for part in lengths for length in part]
        assert not metrics["skipped"]
        return {"seconds": time.perf_counter() - began, "tokens": sum(lengths), "longest": max(lengths), "samples": len(lengths),
                **{name: metrics[name] for name in ("generate_seconds", "score_seconds", "train_seconds")}}

    with learner:
        serve({"probe": probe(policy), "threads": torch.get_num_threads()}, step)


def never(folder: Path) -> None:
    raise AssertionError(f"the benchmark exports no checkpoint, yet was asked to complete {folder}")


def probe(policy: Policy) -> list[float]:
    """The log-probs of the probe's tokens."""
    batch = make_microbatch([TrainSequence("probe", np.array(PROBE), np.ones(len(PROBE), np.float32))], policy.pad_multiple)
    values: list[float] = unpack(policy.logprobs([batch])[0][0], batch)[0][1:].tolist()
    return values


@torch.no_grad()
def copy_weights(policy: Policy, source: dict[str, torch.Tensor]) -> None:
    """Fill a dense policy on one rank with Qwen3's weights: per key head Megatron keeps its queries, the key and the value together."""
    targets = dict(policy.chunks[0].named_parameters())
    targets["embedding.word_embeddings.weight"].copy_(source["model.embed_tokens.weight"])
    targets["output_layer.weight"].copy_(source["lm_head.weight"])
    targets["decoder.final_layernorm.weight"].copy_(source["model.norm.weight"])
    groups = policy.config.num_query_groups
    for i in range(policy.config.num_layers):
        layer = {name.removeprefix(f"model.layers.{i}."): tensor for name, tensor in source.items() if name.startswith(f"model.layers.{i}.")}
        parts = [layer[f"self_attn.{x}_proj.weight"].view(groups, -1, policy.config.hidden_size) for x in "qkv"]
        ours = {
            "self_attention.linear_qkv.weight": torch.cat(parts, 1).flatten(0, 1), "self_attention.linear_proj.weight": layer["self_attn.o_proj.weight"],
            "self_attention.q_layernorm.weight": layer["self_attn.q_norm.weight"], "self_attention.k_layernorm.weight": layer["self_attn.k_norm.weight"],
            "input_layernorm.weight": layer["input_layernorm.weight"], "pre_mlp_layernorm.weight": layer["post_attention_layernorm.weight"],
            "mlp.linear_fc1.weight": torch.cat([layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"]]),
            "mlp.linear_fc2.weight": layer["mlp.down_proj.weight"]}
        for name, tensor in ours.items():
            targets[f"decoder.layers.{i}.{name}"].copy_(tensor)
    policy.optimizer.reload_model_params()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
