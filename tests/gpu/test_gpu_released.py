"""Released weights on one GPU: Transformer Engine's layer names through export, load and publish.

These tests have been run by nobody on a GPU yet; their logic was run on a CPU with the local layers.
"""

from __future__ import annotations

from pathlib import Path

import gpu_policies as policies
import pytest
import torch
from r1mega_plugins.models.deepseek_v3 import DEEPSEEK_V3
from safetensors.torch import load_file

from r1mega.config import PrecisionConfig
from r1mega.policy import artifact
from r1mega.policy.hugging_face.export import Export, export_weights
from r1mega.policy.hugging_face.load import load_published
from r1mega.policy.hugging_face.publish import Bucket, Publisher
from r1mega.policy.policy import Policy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")]
LOCAL = PrecisionConfig(params_dtype="bf16", transformer_engine=False)


def _exported(policy: Policy, folder: Path) -> Path:
    artifact.export_artifact(policy, folder / "artifact")
    export_weights(Export(folder / "artifact", DEEPSEEK_V3, policy.architecture, policies.VOCAB, eos_id=1), policy.ranks, folder / "hf",
                   before_rename=lambda: None)
    return folder / "hf"


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("source", "target"), [("local", "engine"), ("engine", "local")])
def test_weights_go_from_one_set_of_layers_to_the_other_and_compute_the_same(source: str, target: str, tmp_path: Path) -> None:
    pytest.importorskip("transformer_engine", reason="Transformer Engine is not installed")
    kinds = {"local": LOCAL, "engine": policies.BF16}
    first = policies.build(kinds[source])
    (batch,) = policies.batches(first, (130, 70, 55))
    expected, folder = first.logprobs([batch])[0][0], _exported(first, tmp_path)
    second = policies.build(kinds[target], seed=1)
    assert policies.mean_difference(second.logprobs([batch])[0][0], expected, batch) > 0.1, "before the load it must be another model"
    load_published(second, folder, DEEPSEEK_V3)
    assert policies.mean_difference(second.logprobs([batch])[0][0], expected, batch) < 0.02
    there, back = _tensors(folder), _tensors(_exported(second, tmp_path / "again"))
    assert there.keys() == back.keys()
    assert all(torch.equal(there[name].view(torch.uint8), back[name].view(torch.uint8)) for name in there)


def test_publish_from_the_gpu_is_what_an_export_holds(tmp_path: Path) -> None:
    policy = policies.build(policies.BF16 if _engine() else LOCAL)
    there, received = _tensors(_exported(policy, tmp_path)), dict[str, torch.Tensor]()

    def receive(bucket: Bucket) -> None:
        assert bucket.flat.is_cuda == policy.platform.is_cuda
        bucket.verify()
        received.update((name, tensor.cpu().clone()) for name, tensor in bucket.tensors)

    published = Publisher(policy, DEEPSEEK_V3, bucket_bytes=1 << 20).publish(receive)
    assert published.tensors == len(received)
    assert all(torch.equal(tensor.view(torch.uint8), there[name].view(torch.uint8)) for name, tensor in received.items())


def _engine() -> bool:
    from importlib.util import find_spec

    return find_spec("transformer_engine") is not None
