"""One rank of load_published.py: `python _load_rank.py FOLDER LAYERS`. It builds and loads the policy once, says what memory that took, and then loads it
again for every line on its standard input."""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from load_published import SHAPE, VOCAB
from r1mega_plugins.models.llama import LLAMA
from safetensors import safe_open

from r1mega.config import ParallelConfig, PrecisionConfig
from r1mega.policy.architecture import Architecture
from r1mega.policy.hugging_face.load import load_published
from r1mega.policy.hugging_face.mapping import map_tensors
from r1mega.policy.hugging_face.published import PublishedWeights
from r1mega.policy.hugging_face.regions import regions
from r1mega.policy.keys import own_tensors
from r1mega.policy.platform import get_platform, initialize_distributed
from r1mega.policy.policy import Policy


class Memory:
    """This process's memory in bytes above its level when the object was made."""

    def __init__(self) -> None:
        gc.collect()
        self._level, self._anonymous_level = _status("VmRSS"), _status("RssAnon")
        self.anonymous = 0
        threading.Thread(target=self._sample, daemon=True).start()
        self.peak()

    def peak(self) -> int:
        """The largest since this was last asked, by the kernel's high-water mark, which is reset."""
        found = _status("VmHWM") - self._level
        Path("/proc/self/clear_refs").write_text("5")
        return found

    def _sample(self) -> None:
        while True:
            self.anonymous = max(self.anonymous, _status("RssAnon") - self._anonymous_level)
            time.sleep(0.003)


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def check(policy: Policy, folder: Path) -> None:
    """Compare what this rank holds with the files, by the library, for all tensors that are one to one."""
    units = map_tensors(LLAMA, policy.architecture, VOCAB, own_tensors(policy), "this model")
    files, compared = PublishedWeights(folder).files, 0
    for region in regions(policy, units):
        parts = units[region.unit].parts
        if len(parts) > 1:
            continue
        rows = slice(region.row, region.row + region.data.shape[0])
        with safe_open(folder / files[parts[0].name], framework="pt") as file:
            tensor = file.get_slice(parts[0].name)
            theirs = tensor[rows] if region.data.dim() == 1 else tensor[rows, region.column:region.column + region.data.shape[1]]
            if not torch.equal(region.data, theirs.to(region.data.dtype)):
                sys.exit(f"{parts[0].name} is not what the file holds")
        compared += 1
    if not compared:
        sys.exit("nothing was compared")


def main(folder: Path, layers: int) -> None:
    initialize_distributed(get_platform(), 10)
    architecture = Architecture(num_layers=layers, max_position_embeddings=2048, **SHAPE)
    parallel = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    dist.barrier()
    memory = Memory()
    began = time.perf_counter()
    policy = Policy(architecture, vocab_size=VOCAB, parallel=parallel, precision=PrecisionConfig(params_dtype="bf16"), seed=1)
    built, peak_building = time.perf_counter() - began, memory.peak()
    load_published(policy, folder, LLAMA)
    peak_loading = memory.peak()
    found: dict[str, Any] = {
        "weights": sum(tensor.nbytes for chunk in policy.chunks for tensor in [*chunk.parameters(), *chunk.buffers()]),
        "peak": max(peak_building, peak_loading), "peak_building": peak_building, "peak_loading": peak_loading, "peak_anonymous": memory.anonymous,
        "seconds_building": built}
    check(policy, folder)
    print(json.dumps(found), flush=True)
    for _ in sys.stdin:
        dist.barrier()
        began = time.perf_counter()
        load_published(policy, folder, LLAMA)
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
