"""One rank of test_hf_layouts.py: loads Hugging Face folders on one layout after another, computes logits, exports. Not a test itself.

    python ranks_hf.py <settings.json>      {out, runs: [{name, folder, parallel, dtype, export}]}; the rank is in the environment

Rank 0 writes run<number>.pt: the logits [T, V] of the whole vocabulary in float32, and the folder of the export.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

import hf_checkpoints
import numpy as np
import torch
from megatron.core import parallel_state

from r1mega.config import ParallelConfig, PrecisionConfig
from r1mega.policy import artifact, storage
from r1mega.policy.hugging_face.config_json import Published, read_published
from r1mega.policy.hugging_face.export import Export, export_weights
from r1mega.policy.hugging_face.imported import check_imported
from r1mega.policy.hugging_face.load import load_published
from r1mega.policy.policy import Policy
from r1mega.recipe.worker import leave
from r1mega.rollout.batching import make_microbatch
from r1mega.types import TrainSequence


def whole_logits(policy: Policy, vocab_size: int) -> torch.Tensor | None:
    """The logits [T, V] of `hf_checkpoints.tokens()`, caught at the output layer and put together on rank 0; None elsewhere."""
    caught: list[torch.Tensor] = []
    ids = hf_checkpoints.tokens().numpy()
    handles = [chunk.output_layer.register_forward_hook(lambda _, __, output: caught.append(output[0][:, 0].detach().float().clone()))
               for chunk in policy.chunks if chunk.post_process]
    policy.logprobs([make_microbatch([TrainSequence("0", ids, np.ones(len(ids), np.float32))], policy.pad_multiple)])
    for handle in handles:
        handle.remove()
    mine = (policy.ranks.tp_rank, caught[0]) if caught and policy.ranks.dp_rank == 0 else None
    found = [part for part in storage.gather(policy.ranks, mine) if part is not None]
    whole = torch.cat([logits for _, logits in sorted(found, key=lambda part: part[0])], dim=1)
    return whole[: len(ids), :vocab_size] if policy.ranks.rank == 0 else None


def export(policy: Policy, published: Published, out: Path) -> Path:
    """By way of an artifact, as stages do it. The artifact is compared with the source too."""
    def check(written: Path) -> None:
        check_imported(policy.ranks, written, published.path.parent, published.family, published.architecture, published.vocab_size)

    artifact.export_artifact(policy, out / "artifact", check=check)
    how = Export(out / "artifact", published.family, published.architecture, published.vocab_size, eos_id=1, shard_bytes=40_000)
    export_weights(how, policy.ranks, out / "hf", before_rename=lambda: None)
    return out / "hf"


def main(settings: dict[str, Any]) -> None:
    for number, run in enumerate(settings["runs"]):
        published = read_published(Path(run["folder"]))
        policy = Policy(published.architecture, vocab_size=published.vocab_size, parallel=ParallelConfig(**run["parallel"]), seed=number,
                        precision=PrecisionConfig(params_dtype=run["dtype"]))
        load_published(policy, Path(run["folder"]), published.family)
        logits = whole_logits(policy, published.vocab_size)
        folder = export(policy, published, Path(settings["out"]) / f"run{number}") if run["export"] else None
        if logits is not None:
            torch.save({"logits": logits, "export": folder}, Path(settings["out"]) / f"run{number}.pt")
        policy.ranks.barrier()
        parallel_state.destroy_model_parallel()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(280, exit=True)
    torch.set_num_threads(1)
    assert os.environ["RANK"]
    main(json.loads(Path(sys.argv[1]).read_text()))
    faulthandler.cancel_dump_traceback_later()
    leave(0)
