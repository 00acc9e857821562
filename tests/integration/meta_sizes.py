"""Models of conf/model at full size, shard by shard on the meta device, one rank of a layout after another in one process. Not a test itself.

    python meta_sizes.py <settings.json>     {out, models: {name: {model, layout, vocab_size, absent}}}; writes {name: result}

`layout` are overrides as on the command line, `absent` ranks that are left out. The process groups are torch's fake ones: they have the layout's ranks
and sizes and communicate nothing. Everything else is what a run on a CPU builds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica
from megatron.core.dist_checkpointing.utils import nested_values
from megatron.core.dist_checkpointing.validation import validate_sharding_integrity
from torch.testing._internal.distributed.fake_pg import FakeStore

from r1mega import plugins
from r1mega.compose import compose_recipe
from r1mega.config import ParallelConfig, PrecisionConfig
from r1mega.policy import build
from r1mega.policy.architecture import Architecture
from r1mega.policy.keys import METADATA, is_mtp
from r1mega.policy.layout import expert_tensor_parallel_size, world_size
from r1mega.policy.model import OutputOptions
from r1mega.policy.platform import Platform, building_on_cpu, get_platform

META = Platform(torch.device("meta"), "fake")
VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
BIAS = ".expert_bias"  # of the router: in checkpoints, and no parameter


def compose(model: str, layout: Sequence[str]) -> tuple[Architecture, ParallelConfig]:
    """The model and the layout as a stage gets them; the composition has checked that they fit."""
    host = plugins.load()
    config = compose_recipe(["recipe=r1_zero_tiny", f"model={model}", *layout], host).nodes["base"].config
    return host.registry.get("models", config.model.name).factory(config.model.config), config.parallel


def distinct_ranks(parallel: ParallelConfig) -> list[int]:
    """Of each pipeline stage, the ranks that hold something no rank before them holds: of the others, data and context parallelism make copies."""
    stage = world_size(parallel) // parallel.pipeline_model_parallel_size
    distinct = max(parallel.tensor_model_parallel_size, expert_tensor_parallel_size(parallel) * parallel.expert_model_parallel_size)
    return [start + rank for start in range(0, world_size(parallel), stage) for rank in range(distinct)]


@contextlib.contextmanager
def as_rank(rank: int, parallel: ParallelConfig) -> Iterator[None]:
    """This process in the place of one rank of the layout."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size(parallel))
    try:
        build.initialize_parallel(parallel, 0)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def shards_here(architecture: Architecture, parallel: ParallelConfig, vocab_size: int) -> list[ShardedTensor]:
    """What this rank holds, by its checkpoint metadata, without the tensors."""
    config = build.transformer_config(architecture, parallel, PrecisionConfig(), build.TrainingTerms(), transformer_engine=False)
    config.perform_initialization = False  # there are no numbers to draw
    with building_on_cpu(META), META.device:
        chunks = build.build_chunks(config, architecture, OutputOptions(vocab_size=vocab_size), META, transformer_engine=False)
    found: list[ShardedTensor] = []
    for chunk in chunks:
        real = [name for name, tensor in (*chunk.named_parameters(), *chunk.named_buffers()) if not tensor.is_meta]
        assert not real, f"{real[0]} and {len(real) - 1} more have memory"
        state = chunk.sharded_state_dict(prefix="", metadata=dict(METADATA))
        apply_factories(state)
        shards = [shard for shard in nested_values(state) if isinstance(shard, ShardedTensor)]
        stated, held = sum(size(shard) for shard in shards if not shard.key.endswith(BIAS)), sum(parameter.numel() for parameter in chunk.parameters())
        assert stated == held, f"the chunk has {held:,} parameters, its checkpoint metadata {stated:,}"
        found += [shard.without_data() for shard in shards]
    return found


def size(shard: ShardedTensor) -> int:
    return math.prod(shard.local_shape)


def measure(model: str, layout: Sequence[str], vocab_size: int, absent: Sequence[int] = ()) -> dict[str, Any]:
    """Parameters of the whole model, from shards that are shown to tile it: {architecture, ranks, world_size, main, main_biases, mtp, mtp_biases}.

    Where Megatron's validation finds a hole or an overlap: {error}.
    """
    architecture, parallel = compose(model, layout)
    ranks = [rank for rank in distinct_ranks(parallel) if rank not in absent]
    by_rank = []
    for rank in ranks:
        with as_rank(rank, parallel):
            by_rank.append(shards_here(architecture, parallel, vocab_size))
    shards = [shard for held in by_rank for shard in held]
    assert all(shard.has_regular_grid for shard in shards), "Megatron's validation would pass over these"
    with as_rank(0, ParallelConfig()):
        try:
            validate_sharding_integrity(by_rank)
        except CheckpointingException as error:
            return {"error": str(error)[:200]}
    wholes = {shard.key: tuple(shard.global_shape) for shard in shards}
    counts = dict.fromkeys(("main", "main_biases", "mtp", "mtp_biases"), 0)
    for key, shape in wholes.items():
        rows = vocab_size if key in VOCABULARY else shape[0]  # without the padding
        counts[("mtp" if is_mtp(key) else "main") + ("_biases" if key.endswith(BIAS) else "")] += rows * math.prod(shape[1:])
    owned, whole = sum(size(shard) for shard in shards if is_main_replica(shard.replica_id)), sum(map(math.prod, wholes.values()))
    assert owned == whole, f"the ranks own {owned:,} elements of {whole:,}"
    return {"architecture": dataclasses.asdict(architecture), "ranks": len(ranks), "world_size": world_size(parallel), **counts}


def main(settings: dict[str, Any]) -> None:
    get_platform()
    # Megatron's second set of groups, on gloo, is for optimizers and checkpoints; gloo would look for the other ranks
    parallel_state.initialize_model_parallel = functools.partial(parallel_state.initialize_model_parallel, create_gloo_process_groups=False)
    results = {name: measure(**about) for name, about in settings["models"].items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path(settings["out"]).write_text(json.dumps({"results": results, "peak_mb": peak}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
