"""From an `Architecture` and a layout to Megatron-Core model chunks and their optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec, get_gpt_mtp_block_spec
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from r1mega.config import OptimizerConfig, ParallelConfig, PrecisionConfig
from r1mega.errors import ConfigError, UserError
from r1mega.policy.architecture import Architecture
from r1mega.policy.layers import adapt_spec
from r1mega.policy.layout import expert_tensor_parallel_size, pipeline_layout
from r1mega.policy.model import OutputOptions, PolicyModel
from r1mega.policy.platform import Platform, adopt_cpu_torch, mark_parameters

VOCAB_MULTIPLE = 64  # the vocabulary is padded to it whatever the layout, so that checkpoints do not depend on the layout
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TrainingTerms:
    """What training adds to the loss and moves besides the weights. The defaults are RL's: nothing."""

    moe_aux_loss_coeff: float = 0.0  # of the sequence-wise balance loss (`balance.py`)
    moe_router_bias_update_rate: float = 0.0  # 0 freezes the expert bias
    mtp_loss_scaling_factor: float = 0.0
    mtp_detach: bool = True  # keep the MTP loss out of the trunk, the embedding and the head


def transformer_engine_available() -> bool:
    """Whether Transformer Engine's PyTorch layers can be imported."""
    try:
        import transformer_engine.pytorch  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def use_transformer_engine(precision: PrecisionConfig, platform: Platform) -> bool:
    """Whether Transformer Engine layers are built. Raises `UserError` naming the missing extra where the configuration needs them."""
    wanted = precision.transformer_engine
    needs = [f"precision.fp8={precision.fp8}"] if precision.fp8 else []
    needs += [f"precision.exp_avg_dtype={precision.exp_avg_dtype}"] if precision.exp_avg_dtype != "fp32" else []
    needs += ["precision.transformer_engine=true"] if wanted else []
    if needs and not platform.is_cuda:
        raise UserError(f"{needs[0]} needs a CUDA GPU with Transformer Engine; this machine has no GPU that torch can use (r1mega doctor)")
    if needs and not transformer_engine_available():
        raise UserError(f"{needs[0]} needs Transformer Engine, which is not installed: pip install 'r1mega[te]'")
    if wanted is False and needs:
        raise UserError(f"{needs[0]} cannot be with precision.transformer_engine=false")
    return platform.is_cuda and wanted is not False and transformer_engine_available()


def initialize_parallel(parallel: ParallelConfig, seed: int) -> None:
    """Create Megatron's process groups and seed its random state trackers."""
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor_model_parallel_size,
            pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
            context_parallel_size=parallel.context_parallel_size,
            expert_model_parallel_size=parallel.expert_model_parallel_size,
            expert_tensor_parallel_size=expert_tensor_parallel_size(parallel))
    tensor_parallel.model_parallel_cuda_manual_seed(seed + 1, force_reset_rng=True)  # a process may build one policy after another


def transformer_config(architecture: Architecture, parallel: ParallelConfig, precision: PrecisionConfig, terms: TrainingTerms, *,
                       transformer_engine: bool) -> TransformerConfig:
    """Megatron's configuration of this model on this layout (R1_RECIPE section 8 names the fields)."""
    a, tp, virtual = architecture, parallel.tensor_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    dtype = DTYPES[precision.params_dtype]
    fields: dict[str, Any] = {
        "num_layers": a.num_layers, "hidden_size": a.hidden_size, "ffn_hidden_size": a.ffn_hidden_size, "num_attention_heads": a.num_attention_heads,
        "num_query_groups": a.num_query_groups or a.num_attention_heads, "kv_channels": a.kv_channels or a.hidden_size // a.num_attention_heads,
        "qk_layernorm": a.qk_layernorm, "add_qkv_bias": a.add_qkv_bias, "layernorm_epsilon": a.layernorm_epsilon, "init_method_std": a.init_method_std,
        "normalization": "RMSNorm", "gated_linear_unit": True, "activation_func": F.silu, "add_bias_linear": False,
        "attention_dropout": 0.0, "hidden_dropout": 0.0, "params_dtype": dtype, "pipeline_dtype": dtype, "bf16": precision.params_dtype == "bf16",
        "tensor_model_parallel_size": tp, "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        **_stage_fields(a, parallel),
        "context_parallel_size": parallel.context_parallel_size, "expert_model_parallel_size": parallel.expert_model_parallel_size,
        "expert_tensor_parallel_size": expert_tensor_parallel_size(parallel),
        "sequence_parallel": tp > 1 if parallel.sequence_parallel is None else parallel.sequence_parallel and tp > 1,
        "variable_seq_lengths": True,  # packed rows differ in length
        "moe_token_dispatcher_type": "alltoall",  # the one that can have them; checked even without experts
        # With two stages the interleaved schedule's batched exchange would match messages of both directions by their order alone.
        "overlap_p2p_comm": virtual is not None, "batch_p2p_comm": virtual is None,
        "calculate_per_token_loss": True,  # losses are sums; one global count divides once
        "gradient_accumulation_fusion": False, "bias_activation_fusion": False, "bias_dropout_fusion": False, "masked_softmax_fusion": False,
        "persist_layer_norm": transformer_engine, "apply_rope_fusion": False, "use_cpu_initialization": not transformer_engine,
        "mtp_num_layers": a.mtp_num_layers or None, "mtp_loss_scaling_factor": terms.mtp_loss_scaling_factor,
        "recompute_granularity": precision.recompute_granularity, "finalize_model_grads_func": finalize_model_grads,
    }
    if precision.recompute_granularity == "full":
        fields |= {"recompute_method": "uniform", "recompute_num_layers": precision.recompute_num_layers}
    elif precision.recompute_granularity == "selective":
        fields["recompute_modules"] = list(precision.recompute_modules) or ["core_attn"]
    if precision.fp8:
        fields |= {"fp8": precision.fp8, "fp8_recipe": precision.fp8_recipe}
    if transformer_engine:
        fields["attention_backend"] = AttnBackend.auto
    if a.moe:
        _check_balance(parallel, precision, terms)
        fields |= _moe_fields(a, terms, transformer_engine=transformer_engine)
    if a.mla is None:
        return TransformerConfig(**fields)
    m, r = a.mla, a.rope
    fields |= {"multi_latent_attention": True, "q_lora_rank": m.q_lora_rank, "kv_lora_rank": m.kv_lora_rank, "qk_head_dim": m.qk_head_dim,
               "qk_pos_emb_head_dim": m.qk_pos_emb_head_dim, "v_head_dim": m.v_head_dim, "rope_type": r.rope_type, "rotary_base": r.rotary_base,
               "kv_channels": m.v_head_dim}
    if r.rope_type == "yarn":
        fields |= {"rotary_scaling_factor": r.rotary_scaling_factor, "original_max_position_embeddings": r.original_max_position_embeddings,
                   "beta_fast": r.beta_fast, "beta_slow": r.beta_slow, "mscale": r.mscale, "mscale_all_dim": r.mscale_all_dim}
    return MLATransformerConfig(**fields)


def _stage_fields(a: Architecture, parallel: ParallelConfig) -> dict[str, Any]:
    """Megatron takes the number of virtual stages from a layout where there is one."""
    layout = pipeline_layout(a, parallel)
    return {"pipeline_model_parallel_layout": layout} if layout else {"virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size}


def _check_balance(parallel: ParallelConfig, precision: PrecisionConfig, terms: TrainingTerms) -> None:
    """Recomputing an MoE layer alone, while other micro-batches are under way, does not tell its router which sequences it sees."""
    if terms.moe_aux_loss_coeff and parallel.pipeline_model_parallel_size > 1 and "moe" in precision.recompute_modules \
            and precision.recompute_granularity == "selective":
        raise ConfigError("precision.recompute_modules=[..., moe] cannot be with moe_aux_loss_coeff above 0 and parallel.pipeline_model_parallel_size above 1; "
                          "set precision.recompute_granularity=full, leave out 'moe', or set moe_aux_loss_coeff=0")


def _moe_fields(a: Architecture, terms: TrainingTerms, *, transformer_engine: bool) -> dict[str, Any]:
    assert a.moe is not None
    moe = a.moe
    return {
        "num_moe_experts": moe.num_moe_experts, "moe_ffn_hidden_size": moe.moe_ffn_hidden_size, "moe_router_topk": moe.moe_router_topk,
        "moe_shared_expert_intermediate_size": moe.moe_shared_expert_intermediate_size, "moe_layer_freq": a.moe_layer_freq,
        "moe_router_score_function": moe.moe_router_score_function, "moe_router_num_groups": moe.moe_router_num_groups,
        "moe_router_group_topk": moe.moe_router_group_topk, "moe_router_topk_scaling_factor": moe.moe_router_topk_scaling_factor,
        "moe_router_enable_expert_bias": moe.moe_router_enable_expert_bias, "moe_router_bias_update_rate": terms.moe_router_bias_update_rate,
        "moe_router_pre_softmax": moe.moe_router_pre_softmax, "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "seq_aux_loss" if terms.moe_aux_loss_coeff else "none", "moe_aux_loss_coeff": terms.moe_aux_loss_coeff,
        "moe_grouped_gemm": transformer_engine,
    }


def padded_vocab_size(vocab_size: int, tensor_parallel_size: int) -> int:
    """The vocabulary rounded up to a multiple that every usual tensor-parallel size divides."""
    multiple = math.lcm(VOCAB_MULTIPLE, tensor_parallel_size)
    return -(-vocab_size // multiple) * multiple


def build_chunks(config: TransformerConfig, architecture: Architecture, options: OutputOptions, platform: Platform, *,
                 transformer_engine: bool) -> list[PolicyModel]:
    """This rank's pipeline chunks (one, or one per virtual stage), on the device."""
    chunks = []
    virtual = config.virtual_pipeline_model_parallel_size
    for stage in range(virtual or 1):
        vp_stage = stage if virtual else None
        spec = get_gpt_decoder_block_spec(config, use_transformer_engine=transformer_engine, normalization="RMSNorm", vp_stage=vp_stage)
        spec = adapt_spec(spec)
        mtp = None
        if config.mtp_num_layers:
            mtp = get_gpt_mtp_block_spec(config, spec, use_transformer_engine=transformer_engine, vp_stage=vp_stage)
            mtp = adapt_spec(mtp) if mtp is not None else None
        model = PolicyModel(
            config, spec, vocab_size=padded_vocab_size(options.vocab_size, config.tensor_model_parallel_size),
            max_sequence_length=architecture.max_position_embeddings, position_embedding_type="rope", rotary_base=architecture.rope.rotary_base,
            rope_scaling=architecture.rope.llama3_scaling_factor is not None, rope_scaling_factor=architecture.rope.llama3_scaling_factor or 1.0,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            share_embeddings_and_output_weights=architecture.tied_embeddings, parallel_output=True, mtp_block_spec=mtp, vp_stage=vp_stage,
            options=options)
        chunks.append(model.to(platform.device))
    if not platform.is_cuda:
        adopt_cpu_torch()
        for chunk in chunks:
            mark_parameters(chunk)
    return chunks


def wrap_data_parallel(config: TransformerConfig, chunks: list[PolicyModel], optimizer: OptimizerConfig) -> list[DistributedDataParallel]:
    """Megatron's data-parallel wrapper: gradient buffers, reduced once at the end of a step."""
    if optimizer.optimizer == "sgd" and optimizer.use_distributed_optimizer:
        raise ConfigError("optimizer.optimizer=sgd cannot be with optimizer.use_distributed_optimizer=true (Megatron shards Adam's state alone); "
                          "set optimizer.use_distributed_optimizer=false")
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=optimizer.use_distributed_optimizer, overlap_grad_reduce=False,
                                        grad_reduce_in_fp32=True)
    return [DistributedDataParallel(config, ddp, chunk, disable_bucketing=index > 0) for index, chunk in enumerate(chunks)]


def build_optimizer(wrapped: list[DistributedDataParallel], optimizer: OptimizerConfig, precision: PrecisionConfig) -> Any:
    """Megatron's mixed-precision, distributed optimizer over the wrapped chunks."""
    extra: dict[str, Any] = {}
    if precision.exp_avg_dtype == "bf16":
        extra = {"use_precision_aware_optimizer": True, "exp_avg_dtype": torch.bfloat16, "exp_avg_sq_dtype": torch.bfloat16}
    config = MegatronOptimizerConfig(
        optimizer=optimizer.optimizer, lr=optimizer.lr, min_lr=optimizer.min_lr, weight_decay=optimizer.weight_decay, adam_beta1=optimizer.adam_beta1,
        adam_beta2=optimizer.adam_beta2, adam_eps=optimizer.adam_eps, sgd_momentum=0.0, clip_grad=optimizer.clip_grad,
        bf16=precision.params_dtype == "bf16", params_dtype=DTYPES[precision.params_dtype],
        use_distributed_optimizer=optimizer.use_distributed_optimizer, **extra)
    return get_megatron_optimizer(config, wrapped)
