"""Sequences that move between replicas arrive exactly, whatever arrays they have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
import numpy as np
import torch.distributed as dist
from r1mega.rollout.exchange import exchange
from r1mega.types import TrainSequence

dist.init_process_group("gloo")
me, size = dist.get_rank(), dist.get_world_size()
rng = np.random.default_rng(0)
lengths = [int(n) for n in rng.integers(1, 9, 12)]
everything = [TrainSequence(str(i), rng.integers(0, 2**40, n), rng.random(n).astype(np.float32), advantages=rng.normal(size=n).astype(np.float32),
                            behaviour_logprobs=rng.normal(size=n).astype(np.float32)) for i, n in enumerate(lengths)]
for case in ("mixed", "one owner", "stay"):
    owners = {"mixed": [i % size for i in range(12)], "one owner": [0] * 12, "stay": [i // 4 for i in range(12)]}[case]
    homes = owners if case == "stay" else [(i * 5 + 1) % size for i in range(12)]
    got = exchange([s for s, owner in zip(everything, owners) if owner == me], owners=owners, lengths=lengths, homes=homes, me=me,
                   peers=list(range(size)), group=dist.group.WORLD)
    assert sorted(got) == [i for i, home in enumerate(homes) if home == me], (case, sorted(got))
    for index, sequence in got.items():
        for name in ("tokens", "weights", "advantages", "behaviour_logprobs"):
            want = getattr(everything[index], name)
            have = getattr(sequence, name)
            assert have.dtype == want.dtype and np.array_equal(have, want), (case, index, name)
        assert sequence.old_logprobs is None and sequence.ref_logprobs is None
print("rank", me, "ok")
dist.destroy_process_group()
"""


def test_sequences_arrive_bit_equal(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "--standalone", str(tmp_path / "ranks.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("ok") == 3
