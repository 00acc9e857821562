"""Whether a model fits a parallel layout, checked before anything is launched. Free of torch."""

from __future__ import annotations

import re

from r1mega.config import ClusterConfig, ParallelConfig, PrecisionConfig
from r1mega.errors import ConfigError
from r1mega.policy.architecture import Architecture


def _divides(what: str, value: int, by_name: str, by: int) -> None:
    if value % by:
        fits = [n for n in range(1, min(value, max(64, by)) + 1) if value % n == 0]
        raise ConfigError(f"parallel.{by_name}={by} does not divide {what} ({value}); it may be one of {fits}")


def world_size(parallel: ParallelConfig) -> int:
    """Ranks of one stage: tensor x pipeline x context x data parallel."""
    return (parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
            * parallel.data_parallel_size)


def expert_tensor_parallel_size(parallel: ParallelConfig) -> int:
    """The expert-TP in force: as configured, else 1 with expert parallelism and the model's TP without."""
    if parallel.expert_tensor_parallel_size is not None:
        return parallel.expert_tensor_parallel_size
    return parallel.tensor_model_parallel_size if parallel.expert_model_parallel_size == 1 else 1


def pipeline_layout(architecture: Architecture, parallel: ParallelConfig) -> str | None:
    """Which layers each (virtual) stage holds, in Megatron's notation; None where they divide evenly, which Megatron does by itself.

    Where they do not, the stages with a layer less are the last, which has the head, the first, which has the embedding, and then the later ones.
    Raises `ConfigError` for a layout that does not have this model's layers.
    """
    layers, mtp, pp = architecture.num_layers, architecture.mtp_num_layers, parallel.pipeline_model_parallel_size
    stages = pp * (parallel.virtual_pipeline_model_parallel_size or 1)
    if parallel.pipeline_model_parallel_layout is not None:
        return _checked(parallel.pipeline_model_parallel_layout, layers, mtp, pp, stages)
    if layers % stages == 0:
        return None
    if layers < stages:
        raise ConfigError(f"model.num_layers={layers} cannot fill {stages} pipeline stages (parallel.pipeline_model_parallel_size={pp} x virtual stages)")
    light = [stages - 1, 0, *range(stages - 2, 0, -1)][: stages - layers % stages]
    counts = ["t" * (layers // stages + (stage not in light)) for stage in range(stages)]
    return "E" + "|".join(counts) + "m" * mtp + "L"


def _checked(text: str, layers: int, mtp: int, pp: int, stages: int) -> str:
    flat = text.replace(",", "").replace(" ", "")
    while (shorter := re.sub(r"(?:\(([^()]*)\)|([A-Za-z|]))\*(\d+)", lambda m: (m[1] or m[2] or "") * int(m[3]), flat)) != flat:
        flat = shorter
    found = {letter: flat.count(letter) for letter in "EtmL|"}
    wanted = {"E": 1, "t": layers, "m": mtp, "L": 1, "|": stages - 1}
    if sum(found.values()) != len(flat) or found != wanted or flat[0] != "E" or not flat.endswith("m" * mtp + "L"):
        raise ConfigError(f"parallel.pipeline_model_parallel_layout={text!r}: expected E, {layers} t (layers), then {mtp} m (MTP layers) and L in "
                          f"the last of {stages} stages divided by | (parallel.pipeline_model_parallel_size={pp} x virtual stages); found "
                          + ", ".join(f"{count} {letter}" for letter, count in found.items()))
    return text


def check_layout(architecture: Architecture, parallel: ParallelConfig, precision: PrecisionConfig, cluster: ClusterConfig) -> int:
    """The stage's world size. Raises `ConfigError` naming both values when the layout is impossible."""
    for name, value in vars(parallel).items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ConfigError(f"parallel.{name}={value}: must be at least 1")
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    _divides("model.num_attention_heads", architecture.num_attention_heads, "tensor_model_parallel_size", tp)
    if architecture.mla is None:
        _divides("model.num_query_groups", architecture.num_query_groups or architecture.num_attention_heads, "tensor_model_parallel_size", tp)
    _divides("model.ffn_hidden_size", architecture.ffn_hidden_size, "tensor_model_parallel_size", tp)
    if architecture.mla and architecture.mla.q_lora_rank:
        _divides("model.q_lora_rank", architecture.mla.q_lora_rank, "tensor_model_parallel_size", tp)
    pipeline_layout(architecture, parallel)
    if parallel.virtual_pipeline_model_parallel_size and pp == 1:
        raise ConfigError("parallel.virtual_pipeline_model_parallel_size needs parallel.pipeline_model_parallel_size of at least 2")
    world = world_size(parallel)
    _check_experts(architecture, parallel, world)
    if precision.fp8 and precision.params_dtype != "bf16":
        raise ConfigError(f"precision.fp8={precision.fp8} needs precision.params_dtype=bf16, got {precision.params_dtype}")
    if parallel.sequence_parallel is False and tp > 1 and (architecture.moe or architecture.mla):
        raise ConfigError("parallel.sequence_parallel=false cannot be with experts or latent attention and tensor_model_parallel_size > 1; leave it unset")
    _check_cluster(cluster, world)
    return world


def _check_experts(architecture: Architecture, parallel: ParallelConfig, world: int) -> None:
    ep, etp = parallel.expert_model_parallel_size, expert_tensor_parallel_size(parallel)
    if architecture.moe is None:
        if ep > 1:
            raise ConfigError(f"parallel.expert_model_parallel_size={ep} needs a model with experts; this one has none")
        return
    moe = architecture.moe
    _divides("model.num_moe_experts", moe.num_moe_experts, "expert_model_parallel_size", ep)
    _divides("model.moe_ffn_hidden_size", moe.moe_ffn_hidden_size, "expert_tensor_parallel_size", etp)
    per_stage = world // parallel.pipeline_model_parallel_size
    if per_stage % (ep * etp):
        raise ConfigError(f"parallel.expert_model_parallel_size={ep} x expert_tensor_parallel_size={etp} does not divide the {per_stage} ranks of a "
                          f"pipeline stage (world size {world} / pipeline {parallel.pipeline_model_parallel_size}); raise parallel.data_parallel_size "
                          "or lower the expert sizes")


def _check_cluster(cluster: ClusterConfig, world: int) -> None:
    if cluster.ranks_per_node is None:
        if cluster.kind == "slurm":
            raise ConfigError("cluster.ranks_per_node must be set when cluster.kind=slurm (usually the number of GPUs of a node)")
        return
    there = cluster.nodes * cluster.ranks_per_node
    if there != world:
        raise ConfigError(f"the layout needs {world} ranks (tensor x pipeline x context x data parallel) but cluster.nodes={cluster.nodes} x "
                          f"cluster.ranks_per_node={cluster.ranks_per_node} gives {there}; change parallel.data_parallel_size or the cluster")
