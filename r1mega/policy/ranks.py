"""Who this rank is, and the few small collectives between ranks. Each is a plain function that returns when every rank is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from r1mega.policy.platform import Platform


@dataclass(frozen=True)
class Ranks:
    """This rank's place. A *replica* is all ranks that work on the same micro-batches: one tensor x context x pipeline group.

    Small data travels over `control`, a gloo group of all ranks on the CPU, whatever the backend of the bulk data.
    """

    rank: int
    world_size: int
    dp_rank: int  # which replica
    dp_size: int
    tp_rank: int
    pp_rank: int
    cp_rank: int
    cp_size: int
    is_last_stage: bool
    replica_ranks: tuple[int, ...]
    peers: tuple[int, ...]  # global ranks in this rank's place in each replica, by dp_rank
    lead: int  # global rank of this replica's lead: tensor and context rank 0 of the last pipeline stage
    control: Any = field(repr=False)
    replica_control: Any = field(repr=False)

    @property
    def is_lead(self) -> bool:
        """One rank per replica, on the last pipeline stage: the one that scores and counts."""
        return self.rank == self.lead

    def sum_over_replicas(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum of each value over all replicas; every rank passes the same keys, only the replicas' leads count. Exact in float64."""
        names = sorted(values)
        vector = torch.tensor([float(values[name]) if self.is_lead else 0.0 for name in names], dtype=torch.float64)
        dist.all_reduce(vector, group=self.control)
        return dict(zip(names, vector.tolist(), strict=True))

    def max_over_ranks(self, value: float) -> float:
        """The largest value over all ranks."""
        tensor = torch.tensor(float(value), dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return float(tensor)

    def from_lead(self, value: Any) -> Any:
        """The lead's value, on every rank of its replica."""
        if len(self.replica_ranks) == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=self.lead, group=self.replica_control)
        return box[0]

    def gather_context(self, value: Any) -> list[Any]:
        """The values of the replica's context-parallel ranks in order, on every rank of the replica; its other ranks hold copies."""
        if self.cp_size == 1:
            return [value]
        boxes: list[Any] = [None] * len(self.replica_ranks)
        dist.all_gather_object(boxes, (self.cp_rank, value) if self.is_last_stage and self.tp_rank == 0 else None, group=self.replica_control)
        return [value for _, value in sorted((box for box in boxes if box is not None), key=lambda box: box[0])]

    def gather_replicas(self, value: Any) -> list[Any]:
        """The leads' values of all replicas in order, on every rank. For small data only."""
        if self.world_size == 1:
            return [value]
        boxes: list[Any] = [None] * self.world_size
        dist.all_gather_object(boxes, (self.dp_rank, value) if self.is_lead else None, group=self.control)
        return [value for _, value in sorted((box for box in boxes if box is not None), key=lambda box: box[0])]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier(group=self.control)


def find_ranks(platform: Platform, timeout_minutes: float) -> Ranks:
    """After `initialize_parallel`. A collective: it creates the control groups, whose collectives fail after `timeout_minutes`."""
    timeout = timedelta(minutes=timeout_minutes)
    control = dist.new_group(backend="gloo", timeout=timeout) if platform.is_cuda else dist.group.WORLD
    tp_rank, cp_rank = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_context_parallel_rank()
    dp_rank, is_last_stage = parallel_state.get_data_parallel_rank(), parallel_state.is_pipeline_last_stage(ignore_virtual=True)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (dp_rank, is_last_stage and tp_rank == cp_rank == 0), group=control)
    replicas = {replica: tuple(rank for rank, (of, _) in enumerate(everyone) if of == replica) for replica in sorted({of for of, _ in everyone})}
    mine = replicas[dp_rank]
    replica_control: Any = control
    if len(replicas) > 1:
        for ranks in replicas.values():  # every rank takes part in creating every group
            group = dist.new_group(list(ranks), backend="gloo", timeout=timeout)
            if ranks == mine:
                replica_control = group
    return Ranks(
        rank=dist.get_rank(), world_size=dist.get_world_size(), dp_rank=dp_rank, dp_size=len(replicas), tp_rank=tp_rank,
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(), cp_rank=cp_rank, cp_size=parallel_state.get_context_parallel_world_size(),
        is_last_stage=is_last_stage, replica_ranks=mine, peers=tuple(dist.get_process_group_ranks(parallel_state.get_data_parallel_group())),
        lead=next(rank for rank in mine if everyone[rank][1]), control=control, replica_control=replica_control)
