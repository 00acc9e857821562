"""What one rank of `test_checkpoint.py` runs: `python ranks_checkpoint.py SCENARIO,... FOLDER`. Rank 0 writes what it saw to
FOLDER/SCENARIO.json."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from r1mega.config import OptimizerConfig, ParallelConfig, PrecisionConfig
from r1mega.errors import R1MegaError, StageFailed
from r1mega.policy import artifact, checkpoint, storage
from r1mega.policy.architecture import MLA, Architecture, MoE
from r1mega.policy.build import TrainingTerms
from r1mega.policy.policy import Policy
from r1mega.policy.weights import WeightSets
from r1mega.recipe.worker import leave
from r1mega.rollout.batching import make_microbatch
from r1mega.types import MicroBatch, TrainSequence

MODEL = Architecture(num_layers=2, hidden_size=32, ffn_hidden_size=64, num_attention_heads=2, max_position_embeddings=64, qk_layernorm=True,
                     mtp_num_layers=1, mla=MLA(kv_lora_rank=16, qk_head_dim=8, qk_pos_emb_head_dim=8, v_head_dim=16, q_lora_rank=32),
                     moe=MoE(num_moe_experts=4, moe_ffn_hidden_size=32, moe_router_topk=2, moe_shared_expert_intermediate_size=32))
OPTIMIZER = OptimizerConfig(lr=1e-2, lr_warmup_steps=4, lr_decay_style="linear")
LAYOUTS = {"tp": ParallelConfig(tensor_model_parallel_size=2), "pp": ParallelConfig(pipeline_model_parallel_size=2),
           "ep": ParallelConfig(expert_model_parallel_size=2, data_parallel_size=2), "dp": ParallelConfig(data_parallel_size=2),
           "cp": ParallelConfig(context_parallel_size=2)}


def make(parallel: ParallelConfig | None = None, *, model: Architecture = MODEL, optimizer: OptimizerConfig | None = OPTIMIZER,
         precision: PrecisionConfig | None = None, seed: int = 0) -> Policy:
    """A fresh policy; what an earlier one in this process left behind in Megatron goes."""
    parallel_state.destroy_model_parallel()
    tensor_parallel.random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False
    random.seed(seed)
    np.random.seed(seed)
    mtp = 0.1 if model.mtp_num_layers else 0.0
    return Policy(model, vocab_size=50, parallel=parallel or ParallelConfig(), precision=precision or PrecisionConfig(), seed=seed,
                  optimizer=optimizer, training_steps=20, terms=TrainingTerms(mtp_loss_scaling_factor=mtp, moe_router_bias_update_rate=1e-3))


def batches(policy: Policy) -> list[MicroBatch]:
    generator = np.random.default_rng(0)
    sequences = [TrainSequence(str(n), generator.integers(0, 50, n), np.ones(n, np.float32)) for n in (7, 12, 9, 15, 6, 10, 13, 8)]
    mine = sequences[policy.ranks.dp_rank::policy.ranks.dp_size]
    return [make_microbatch(mine[start::2], policy.pad_multiple) for start in range(2)]


def train(policy: Policy, steps: int) -> list[float]:
    data = batches(policy)
    return [policy.train_step(data, lambda logprob, _entropy, batch: (-(logprob * batch.weights).sum(), {})).loss for _ in range(steps)]


def live_digest(policy: Policy) -> str:
    """Of this rank's weights and buffers in memory."""
    digest = hashlib.sha256()
    for chunk in policy.chunks:
        for name, tensor in sorted(chunk.state_dict().items()):
            if torch.is_tensor(tensor):
                digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def saved_digest(policy: Policy, path: Path) -> dict[str, str]:
    """Of every whole tensor in a checkpoint: weights, optimizer state and weight sets."""
    about = FileSystemReader(path).read_metadata().state_dict_metadata
    names = sorted(name for name, stored in about.items() if isinstance(stored, TensorStorageMetadata))
    return storage.tensor_digests(policy.ranks, path, names[policy.ranks.rank::policy.ranks.world_size])


def draws() -> list[float]:
    with tensor_parallel.get_cuda_rng_tracker().fork():
        tracked = float(torch.rand(()))
    return [random.random(), float(np.random.rand()), float(torch.rand(())), tracked]


def error_of(action: Callable[[], Any]) -> list[str]:
    """The kind and words of the error that `action` must raise."""
    try:
        action()
    except R1MegaError as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def save(policy: Policy, folder: Path, step: int, **settings: Any) -> Path:
    return checkpoint.save(policy, folder, step, {"cursor": [step, 2]}, **{"keep_last": 9, "before_rename": lambda: None} | settings)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------------------------------------ scenarios


def resume(folder: Path) -> dict[str, Any]:
    """One rank: train 3, save, train 3 more; then the same from the checkpoint. Then everything that needs only one rank."""
    policy = make()
    sets = WeightSets(policy)
    sets.capture("reference")
    reference = live_digest(policy)
    train(policy, 3)
    save(policy, folder / "resume", 3, sets=sets)
    straight = {"losses": train(policy, 3), "draws": draws(), "weights": live_digest(policy), "version": policy.version}
    after = save(policy, folder / "resume", 6, sets=sets)
    again = make(seed=1)
    sets = WeightSets(again)
    loaded = checkpoint.load(again, folder / "resume" / "step_00000003", sets)
    resumed = {"losses": train(again, 3), "draws": draws(), "weights": live_digest(again), "version": again.version}
    with sets.use("reference"):
        kept = live_digest(again)
    save(again, folder / "again", 6, sets=sets)
    found = {"straight": straight, "resumed": resumed, "extra": loaded.extra, "step": loaded.step, "reference": [reference, kept],
             "same_files": saved_digest(again, folder / "again" / "step_00000006") == saved_digest(again, after)}
    started = time.perf_counter()
    save(again, folder / "again", 7)
    return found | {"save_s": time.perf_counter() - started}


def folders(folder: Path) -> dict[str, Any]:
    """Retention, interrupted saves, saving in the background, and damage."""
    policy = make()
    where = folder / "kept"
    left = where / "step_00000001.tmp-left"
    left.mkdir(parents=True)
    for step in (1, 2, 3):
        save(policy, where, step, keep_last=2)
    kept = names(where)

    def superseded() -> None:
        raise StageFailed("attempt 1 has been superseded")

    stale = error_of(lambda: save(policy, where, 4, before_rename=superseded))
    asked: list[int] = []

    def superseded_later() -> None:
        asked.append(1)
        if len(asked) > 1:
            superseded()

    late = error_of(lambda: save(policy, where, 4, before_rename=superseded_later))
    untouched = names(where)
    before = live_digest(policy)
    pending = checkpoint.begin_save(policy, where, 5, {}, keep_last=2, before_rename=lambda: None)
    train(policy, 1)
    pending.finish()
    checkpoint.load(policy, where / "step_00000005")
    found = {"kept": kept, "stale": stale, "late": late, "untouched": untouched, "background": [before, live_digest(policy)]}
    file = where / "step_00000005" / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    flipped = checkpoint.load_latest(policy, where)
    file.unlink()
    gone = checkpoint.load_latest(policy, where)
    (where / "step_00000005" / "checksums.json").write_text("{")
    unreadable = checkpoint.load_latest(policy, where)
    assert flipped
    assert gone
    assert unreadable
    found["damage"] = [[state.step, *state.skipped] for state in (flipped, gone, unreadable)]
    (where / "step_00000003" / ".metadata").unlink()
    found["all_damaged"] = error_of(lambda: checkpoint.load_latest(policy, where))
    found["none"] = checkpoint.load_latest(policy, folder / "nothing here") is None
    return found


def artifacts(folder: Path) -> dict[str, Any]:
    """Weights handed to another model object, another optimizer, another precision; and what does not fit."""
    policy = make()
    train(policy, 2)
    path = folder / "weights"
    digest = artifact.export_artifact(policy, path)
    first = live_digest(policy)
    artifact.export_artifact(policy, path)
    train(policy, 1)
    changed = artifact.export_artifact(policy, folder / "changed")
    other = make(seed=1)
    artifact.load_artifact(other, path)
    found: dict[str, Any] = {"digests": [digest, changed, (path / "content.sha256").read_text().strip()], "loaded": [first, live_digest(other)],
                             "left": names(folder)}
    wider = make(model=replace(MODEL, ffn_hidden_size=96, max_position_embeddings=128), optimizer=None)
    found["wider"] = error_of(lambda: artifact.load_artifact(wider, path))
    found["wider_checkpoint"] = error_of(lambda: checkpoint.load_weights(wider, path))
    plain = make(model=replace(MODEL, mtp_num_layers=0))
    found["mtp"] = error_of(lambda: artifact.load_artifact(plain, path))
    artifact.load_artifact(plain, path, mtp_optional=True)
    without = artifact.export_artifact(plain, folder / "without_mtp")
    with_mtp = make(seed=1)
    artifact.load_artifact(with_mtp, folder / "without_mtp", mtp_optional=True)
    embeddings = [one.chunks[0].embedding.word_embeddings.weight for one in (with_mtp, plain)]
    found["embedding"] = bool(torch.equal(*embeddings))
    return found | {"without": without}


def optimizers(folder: Path) -> dict[str, Any]:
    """Resuming bit-equal with bfloat16 weights beside float32 main weights, and without the distributed optimizer."""
    found: dict[str, Any] = {}
    choices = {"bf16": (OPTIMIZER, PrecisionConfig(params_dtype="bf16")),
               "sgd": (replace(OPTIMIZER, optimizer="sgd", use_distributed_optimizer=False), PrecisionConfig()),
               "adam": (replace(OPTIMIZER, use_distributed_optimizer=False), PrecisionConfig())}
    for name, (optimizer, precision) in choices.items():
        policy = make(optimizer=optimizer, precision=precision)
        train(policy, 2)
        path = save(policy, folder / name, 2)
        train(policy, 2)
        again = make(optimizer=optimizer, precision=precision, seed=1)
        checkpoint.load(again, path)
        train(again, 2)
        found[name] = [live_digest(policy), live_digest(again)]
    bf16 = make(precision=PrecisionConfig(params_dtype="bf16"), seed=1)
    checkpoint.load(bf16, folder / "bf16" / "step_00000002", weights_only=True)
    before = live_digest(bf16)
    for part in bf16.optimizer.chained_optimizers:
        part._copy_main_params_to_model_params()
    found["main_weights"] = [before, live_digest(bf16)]
    return found


def sets(folder: Path) -> dict[str, Any]:
    """Weight sets: exact there and back, also after an exception; what is refused meanwhile."""
    policy = make()
    kept = WeightSets(policy)
    kept.capture("initial")
    initial = live_digest(policy)
    train(policy, 2)
    trained, inside = live_digest(policy), ""
    broken = "nothing"
    try:
        with kept.use("initial"):
            inside = live_digest(policy)
            refused = {"train": error_of(lambda: train(policy, 1)), "save": error_of(lambda: save(policy, folder / "foreign", 1)),
                       "export": error_of(lambda: artifact.export_artifact(policy, folder / "foreign")),
                       "use": error_of(lambda: kept.use("initial").__enter__()), "capture": error_of(lambda: kept.capture("second")),
                       "drop": error_of(lambda: kept.drop("initial"))}
            raise ZeroDivisionError
    except ZeroDivisionError:
        broken = live_digest(policy)
    after = train(policy, 1)
    straight = make()
    expected = train(straight, 3)[2:]
    listed = kept.names()
    kept.drop("initial")
    return {"initial": [initial, inside], "trained": [trained, broken], "losses": [after, expected],
            "weights": [live_digest(policy), live_digest(straight)], "names": [listed, kept.names()], "refused": refused,
            "unknown": error_of(lambda: kept.drop("initial")), "nothing_written": not (folder / "foreign").exists()}


def reshard(folder: Path) -> dict[str, Any]:
    """Two ranks: the one-rank checkpoint on four layouts. What each then saves, and how it trains on."""
    found: dict[str, Any] = {}
    for name, layout in LAYOUTS.items():
        policy = make(layout, seed=1)
        sets = WeightSets(policy)
        path = folder / "resume" / "step_00000003"
        loaded = checkpoint.load(policy, path, sets)
        saved = checkpoint.save(policy, folder / name, 3, loaded.extra, keep_last=1, before_rename=lambda: None, sets=sets)
        original, mine = saved_digest(policy, path), saved_digest(policy, saved)
        digest = artifact.content_digest(policy, saved)
        strict = error_of(partial(checkpoint.load, policy, path, strict_rng=True))
        sizes = [file.stat().st_size for file in sorted(saved.glob("__*.distcp"))]
        found[name] = {"bytes": sizes, "differ": sorted(key for key in {*original, *mine} if original.get(key) != mine.get(key)),
                       "tensors": len(original), "content": digest, "strict_rng": strict, "losses": train(policy, 3)}
    return found


def poison(_folder: Path) -> dict[str, Any]:
    """Two replicas, of which one has a loss that is not a number in its second step."""
    policy = make(LAYOUTS["dp"])
    seen: list[Any] = []
    for step in range(3):
        bad = step == 1 and policy.ranks.rank == 1
        result = policy.train_step(batches(policy), lambda logprob, _entropy, batch, bad=bad: (
            -(logprob * batch.weights).sum() * (float("nan") if bad else 1.0), {}))
        seen.append([result.updated, live_digest(policy)])
    of_all: list[Any] = [None] * policy.ranks.world_size
    dist.all_gather_object(of_all, seen, group=policy.ranks.control)
    return {"ranks": of_all, "skipped": policy.skipped_updates}


def back(folder: Path) -> dict[str, Any]:
    """One rank again: each of those checkpoints."""
    found: dict[str, Any] = {}
    for name in LAYOUTS:
        policy = make(seed=1)
        sets = WeightSets(policy)
        checkpoint.load(policy, folder / name / "step_00000003", sets)
        train(policy, 3)
        found[name] = live_digest(policy)
    return found


def full_disk(folder: Path) -> dict[str, Any]:
    """Two ranks on a file system with room for one checkpoint and not for two. The others must not hang."""
    policy = make(LAYOUTS["tp"])
    where = folder / "small" / "checkpoints"
    save(policy, where, 1)
    started = time.perf_counter()
    words = error_of(lambda: save(policy, where, 2))
    left = names(where)  # all ranks know by now, so rank 0 has cleaned up
    words_of_all: list[Any] = [None] * policy.ranks.world_size
    dist.all_gather_object(words_of_all, words, group=policy.ranks.control)
    state = checkpoint.load_latest(policy, where)
    assert state
    return {"errors": words_of_all, "seconds": time.perf_counter() - started, "left": left, "step": state.step, "skipped": state.skipped}


def main() -> None:
    torch.set_num_threads(1)
    scenarios, folder = sys.argv[1].split(","), Path(sys.argv[2])
    for name in scenarios:
        found = globals()[name](folder)
        if os.environ["RANK"] == "0":
            (folder / f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    leave(0)
