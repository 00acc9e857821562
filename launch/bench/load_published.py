"""Loading a Hugging Face checkpoint on TP2 x PP2: what memory each rank needs, and how long it takes beside safetensors reading the same bytes.

    python launch/bench/load_published.py [--json] [--gigabytes 2] [--rounds 5] [--folder FOLDER]

A synthetic Llama checkpoint in bf16, in several files, is written to a temporary folder; four ranks (`_load_rank.py`) of one thread each build the policy
in bf16 and load it with `load_published`. Memory is what a rank needs above its level right before the policy is built, by the kernel's own high-water
mark, for the whole of building, initialising and loading: mapped file pages count. The wanted limit is 1.2 times the rank's weights + 200 MB.

The reference is one process with one thread that reads all tensors with `safe_open(...).get_tensor` and copies each into memory that it has already, as
whoever loads a model must: `get_tensor` alone maps the file and reads nothing. The sides take turns, in one process each, all files in the page cache;
ours is the slowest rank's time, which comprises mapping the names and checking the folder. `ratio` is ours over the reference's, in seconds: less is
better. Before anything is timed each rank compares what it holds with the files. Linux, CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RANKS = 4
ALLOWED = (1.2, 200e6)  # of a rank's weights, and bytes beside
SHAPE = {"hidden_size": 2048, "ffn_hidden_size": 8192, "num_attention_heads": 32, "num_query_groups": 8, "kv_channels": 64}
VOCAB = 65536


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="about how large the checkpoint is; its number of layers follows")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side; the median counts")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made; default: the system's place for such")
    given = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # before torch is imported, and for the ranks
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    layers = max(1, round((given.gigabytes * 1e9 / 2 - 2 * VOCAB * 2048) / (2048 * (2 * 2048 + 2 * 512 + 3 * 8192)) / 2)) * 2
    with tempfile.TemporaryDirectory(prefix="load-published-", dir=given.folder) as name:
        size = write_checkpoint(Path(name), layers)
        result = measure(Path(name), layers, given.rounds) | {"bytes": size, "layers": layers}
    ok = all(rank["peak"] <= rank["allowed"] for rank in result["ranks"])
    for rank, about in enumerate(result["ranks"]):
        print(f"rank {rank}: weights {about['weights'] / 1e6:.0f} MB, peak {about['peak'] / 1e6:.0f} MB (building {about['peak_building'] / 1e6:.0f}, loading "
              f"{about['peak_loading'] / 1e6:.0f}; anonymous {about['peak_anonymous'] / 1e6:.0f}), allowed {about['allowed'] / 1e6:.0f}, "
              f"built in {about['seconds_building']:.1f} s")
    print(f"ratio {result['ratio']:.2f}   {size / 1e9:.2f} GB: ours {result['seconds']:.2f} s, reference {result['seconds_reference']:.2f} s   "
          f"memory {'within' if ok else 'ABOVE'} the limit   load {os.getloadavg()[0]:.1f}")
    if given.json:
        print(json.dumps({"benchmark": "load_published", **result, "within_memory": ok, "load": os.getloadavg()[0],
                          "versions": {name: version(name) for name in ("torch", "safetensors", "megatron-core")}}))
    return 0 if ok else 1


def write_checkpoint(folder: Path, layers: int) -> int:
    """A Llama checkpoint of random numbers in bf16, a file for every two layers and one for what is around them. Returns its bytes."""
    import torch
    from safetensors.torch import save_file

    hidden, ffn, groups = SHAPE["hidden_size"], SHAPE["ffn_hidden_size"], SHAPE["num_query_groups"] * SHAPE["kv_channels"]
    generator = torch.Generator().manual_seed(0)
    around = {"model.embed_tokens.weight": (VOCAB, hidden), "model.norm.weight": (hidden,), "lm_head.weight": (VOCAB, hidden)}
    layer = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (groups, hidden),
             "self_attn.v_proj": (groups, hidden), "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
             "mlp.down_proj": (hidden, ffn)}
    contents = [around, *({f"model.layers.{number}.{name}.weight": shape for number in (first, first + 1) for name, shape in layer.items()}
                          for first in range(0, layers, 2))]
    where, size = dict[str, str](), 0
    for number, content in enumerate(contents, 1):
        file = f"model-{number:05d}-of-{len(contents):05d}.safetensors"
        tensors = {name: torch.rand(shape, generator=generator, dtype=torch.bfloat16) for name, shape in content.items()}
        save_file(tensors, folder / file)
        where |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": where}))
    return size


def measure(folder: Path, layers: int, rounds: int) -> dict[str, Any]:
    """Start the ranks, take what they needed, and let the sides take turns."""
    ranks = [_start(folder, layers, rank, port) for port in [_free_port()] for rank in range(RANKS)]
    try:
        memory = [_reply(rank) for rank in ranks]
        reference = Reference(folder)
        ours, theirs = list[float](), list[float]()
        for _ in range(rounds):
            theirs.append(reference.timed())
            for rank in ranks:
                _ask(rank)
            ours.append(max(_reply(rank)["seconds"] for rank in ranks))
    finally:
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.close()
        for rank in ranks:
            try:
                rank.wait(timeout=30)
            except subprocess.TimeoutExpired:
                rank.kill()
    for about in memory:
        about["allowed"] = ALLOWED[0] * about["weights"] + ALLOWED[1]
    mine, other = statistics.median(ours), statistics.median(theirs)
    return {"ratio": mine / other, "seconds": mine, "seconds_reference": other, "rounds": {"ours": ours, "reference": theirs}, "ranks": memory}


class Reference:
    """One process, one thread: every tensor by the library, into memory that is there."""

    def __init__(self, folder: Path) -> None:
        import torch

        torch.set_num_threads(1)
        self._files = sorted(folder.glob("*.safetensors"))
        largest = VOCAB * SHAPE["hidden_size"]
        self._place = torch.zeros(largest, dtype=torch.bfloat16)

    def timed(self) -> float:
        from safetensors import safe_open

        began = time.perf_counter()
        for path in self._files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    tensor = file.get_tensor(name)
                    self._place[: tensor.numel()].copy_(tensor.view(-1))
        return time.perf_counter() - began


def _start(folder: Path, layers: int, rank: int, port: int) -> subprocess.Popen[str]:
    env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-W", "ignore", str(HERE / "_load_rank.py"), str(folder), str(layers)]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(rank: subprocess.Popen[str]) -> None:
    assert rank.stdin is not None
    rank.stdin.write("load\n")
    rank.stdin.flush()


def _reply(rank: subprocess.Popen[str]) -> dict[str, Any]:
    """What a rank says next; one that has ended ends the benchmark."""
    assert rank.stdout is not None
    for line in rank.stdout:
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    sys.exit(f"a rank ended with status {rank.wait()}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


if __name__ == "__main__":
    sys.exit(main())
