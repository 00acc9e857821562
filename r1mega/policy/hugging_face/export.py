"""From a checkpoint to a folder that the Hugging Face libraries and serving engines read. No model is built, and no rank holds more than one file.

    FOLDER/  model-<i>-of-<n>.safetensors  model.safetensors.index.json  config.json  and what the caller adds: the tokenizer's files
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from r1mega.config import ParallelConfig
from r1mega.errors import R1MegaError
from r1mega.policy import storage
from r1mega.policy.architecture import Architecture
from r1mega.policy.build import initialize_parallel
from r1mega.policy.hugging_face.config_json import restated
from r1mega.policy.hugging_face.family import Family
from r1mega.policy.hugging_face.mapping import Unit, map_tensors
from r1mega.policy.hugging_face.published import INDEX, PublishedWeights, Shard, plan_shards, rows_of, write_shard
from r1mega.policy.hugging_face.stored import StoredWeights
from r1mega.policy.platform import get_platform, initialize_distributed
from r1mega.policy.ranks import Ranks, find_ranks
from r1mega.recipe import files


@dataclass(frozen=True)
class Export:
    """What is exported, and as what."""

    source: Path  # a checkpoint artifact
    family: Family
    architecture: Architecture
    vocab_size: int  # without padding
    eos_id: int
    dtype: torch.dtype | None = None  # None: as stored
    shard_bytes: int = 5_000_000_000
    reward: bool = False  # a reward model: the scalar head in place of the vocabulary's


def join(parallel: ParallelConfig, seed: int, timeout_minutes: float) -> Ranks:
    """This rank's place among those of the stage, without a model. A collective."""
    platform = get_platform()
    initialize_distributed(platform, timeout_minutes)
    initialize_parallel(parallel, seed)
    return find_ranks(platform, timeout_minutes)


def export_weights(export: Export, ranks: Ranks, folder: Path, *, before_rename: Callable[[], None], extra: Callable[[Path], None] = lambda _: None,
                   check: Callable[[Path], None] = lambda _: None) -> dict[str, int]:
    """Write the folder under a temporary name, check what was written, rename it. A collective; the ranks share the files.

    `extra(folder)` runs on rank 0 and writes what is neither weight nor config.json. `check(folder)` is a collective of the caller's, after every byte has
    been compared. Returns counts. Raises `UserError` for weights that the family's table does not fit, `R1MegaError` naming the tensor whose written bytes
    are not the checkpoint's. On any error the temporary folder is gone and an earlier export is as it was.
    """
    stored = storage.on_every_rank(ranks, f"cannot read {export.source}", None, lambda: StoredWeights(export.source))
    units = map_tensors(export.family, export.architecture, export.vocab_size, stored.shapes, str(export.source), reward=export.reward)

    def dtype_of(unit: Unit) -> torch.dtype:
        return torch.float32 if unit.fp32 else export.dtype or stored.dtype(unit.key)

    def read(unit: Unit) -> torch.Tensor:
        return stored.read(unit).to(dtype_of(unit))

    shards, index = plan_shards(units, dtype_of, export.shard_bytes)
    mine, what = shards[ranks.rank::ranks.world_size], f"cannot write {folder}"

    def write() -> None:
        for shard in mine:
            write_shard(temporary, shard, read)

    def complete() -> None:
        main = Counter(dtype_of(unit) for unit in units).most_common(1)[0][0]
        files.write_json(temporary / INDEX, index)
        files.write_json(temporary / "config.json", model_config(export, str(main).removeprefix("torch.")))
        extra(temporary)

    def publish() -> None:
        for path in temporary.iterdir():
            files.sync(path)
        files.sync(temporary)
        storage.put_in_place(temporary, folder, before_rename)

    temporary = storage.on_first_rank(ranks, what, folder, lambda: storage.fresh_folder(folder, f"{folder.name}.tmp-*", before_rename))
    with storage.removed_on_error(ranks, temporary):
        storage.on_every_rank(ranks, what, temporary, write)
        storage.on_first_rank(ranks, what, temporary, complete)
        storage.on_every_rank(ranks, f"the export to {folder} is not what the checkpoint holds", temporary,
                              lambda: check_written(temporary, shards, mine, read))
        check(temporary)
        storage.on_first_rank(ranks, what, temporary, publish)
    return {"tensors": len(index["weight_map"]), "parameters": index["metadata"]["total_parameters"], "bytes": index["metadata"]["total_size"],
            "files": len(shards)}


def model_config(export: Export, dtype: str) -> dict[str, Any]:
    """The content of config.json."""
    a = replace(export.architecture, mtp_num_layers=0) if export.reward else export.architecture
    common = {
        "architectures": [export.family.causal_class], "model_type": export.family.model_type, "torch_dtype": dtype, "vocab_size": export.vocab_size,
        "hidden_size": a.hidden_size, "intermediate_size": a.ffn_hidden_size, "num_hidden_layers": a.num_layers, "num_attention_heads": a.num_attention_heads,
        "max_position_embeddings": a.max_position_embeddings, "rms_norm_eps": a.layernorm_epsilon, "hidden_act": "silu", "attention_dropout": 0.0,
        "initializer_range": a.init_method_std, "tie_word_embeddings": a.tied_embeddings, "use_cache": True,
        "bos_token_id": None, "eos_token_id": export.eos_id, "pad_token_id": None}
    if export.reward:
        # No padding token: transformers takes the value at the last token that is not one, and what is judged ends with the end of sequence itself.
        common |= {"architectures": [export.family.reward_class], "num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return restated(export.source / "tokenizer" / "config.json", export.family, a, common | export.family.settings(a))


def check_written(folder: Path, shards: Sequence[Shard], mine: Sequence[Shard], read: Callable[[Unit], torch.Tensor]) -> None:
    """Read some of the files back as a loader does and compare them with `read`, bit for bit; all names must be the plan's and no others.

    Raises `R1MegaError` naming the first tensor that differs.
    """
    weights = PublishedWeights(folder)
    planned = {name: shard.file for shard in shards for unit in shard.units for name in unit.names}
    if wrong := sorted({name for name, _ in planned.items() ^ weights.files.items()} | (planned.keys() ^ weights.names)):
        raise R1MegaError(f"{folder / INDEX}: {wrong[0]} is not where it was planned to be")
    for shard in mine:
        for unit in shard.units:
            expected, found = read(unit), weights.region(unit)
            for part in unit.parts:
                wanted = rows_of(expected, part)
                written = {part.name: rows_of(found, part)} | {name: weights.tensor(name) for name in part.copies}
                for name, tensor in written.items():
                    if not _same_bits(wanted, tensor):
                        raise R1MegaError(f"{folder / shard.file}: {name} differs from {unit.key}{list(unit.index) or ''} of the checkpoint")


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
