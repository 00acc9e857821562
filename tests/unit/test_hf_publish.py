"""What `publish` hands to a receiver, against the files that an export of the same policy writes; and what its checksums catch. One process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import policy_models as models
import pytest
import torch
from r1mega_plugins.models.deepseek_v3 import DEEPSEEK_V3
from r1mega_plugins.models.llama import LLAMA
from r1mega_plugins.models.qwen2 import QWEN2
from r1mega_plugins.models.qwen3 import QWEN3
from r1mega_plugins.models.qwen3_moe import QWEN3_MOE
from safetensors.torch import load_file

from r1mega.config import OptimizerConfig
from r1mega.errors import R1MegaError, UserError
from r1mega.policy import artifact
from r1mega.policy.architecture import Architecture, MoE
from r1mega.policy.hugging_face import publish, regions
from r1mega.policy.hugging_face.buckets import Owned, plan_buckets
from r1mega.policy.hugging_face.checksum import Checksum, checksum_of, combined
from r1mega.policy.hugging_face.export import Export, export_weights
from r1mega.policy.hugging_face.family import Family
from r1mega.policy.hugging_face.mapping import Part, Unit
from r1mega.policy.hugging_face.publish import Bucket, Publisher
from r1mega.policy.hugging_face.published import rows_of
from r1mega.policy.policy import Policy
from r1mega.policy.weights import WeightSets

SOFTMAX = MoE(8, 16, 2, moe_router_score_function="softmax", moe_router_enable_expert_bias=False, first_dense_layers=0)
CASES: dict[str, tuple[Family, Architecture]] = {
    "llama": (LLAMA, models.gqa()),
    "qwen2-tied": (QWEN2, models.gqa(add_qkv_bias=True, kv_channels=None, tied_embeddings=True)),
    "qwen3": (QWEN3, models.gqa(qk_layernorm=True)),
    "qwen3-moe": (QWEN3_MOE, models.gqa(qk_layernorm=True, moe=SOFTMAX)),
    "deepseek-v3-prediction": (DEEPSEEK_V3, models.deepseek(mtp_num_layers=1)),
}
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def received(publisher: Publisher, *, verify: bool = True) -> tuple[publish.Published, dict[str, torch.Tensor], dict[str, Checksum]]:
    """One pass: what it reports, copies of the tensors, and their checksums."""
    tensors: dict[str, torch.Tensor] = {}
    checksums: dict[str, Checksum] = {}

    def receive(bucket: Bucket) -> None:
        if verify:
            bucket.verify()
        assert not tensors.keys() & dict(bucket.tensors).keys(), "a tensor came twice"
        tensors.update((name, tensor.clone()) for name, tensor in bucket.tensors)
        checksums.update(bucket.checksums)

    return publisher.publish(receive), tensors, checksums


def ignore(_: Bucket) -> None:
    """A receiver that wants nothing."""


def exported(policy: Policy, family: Family, folder: Path, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    artifact.export_artifact(policy, folder / "artifact")
    export_weights(Export(folder / "artifact", family, policy.architecture, models.VOCAB, 1, dtype), policy.ranks, folder / "hf", before_rename=lambda: None)
    return load_file(folder / "hf" / "model-00001-of-00001.safetensors")


def require_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], copies: set[str]) -> None:
    assert found.keys() == wanted.keys() - copies
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (wanted[name].dtype, wanted[name].shape), name
        assert torch.equal(tensor.view(torch.uint8), wanted[name].view(torch.uint8)), name


@pytest.mark.parametrize("case", CASES)
def test_the_tensors_are_those_of_an_export(case: str, tmp_path: Path) -> None:
    family, architecture = CASES[case]
    policy = models.build(architecture)
    publisher = Publisher(policy, family, bucket_bytes=20_000)
    done, tensors, checksums = received(publisher)
    copies = {name for unit in publisher._units for part in unit.parts for name in part.copies}
    require_same(tensors, exported(policy, family, tmp_path), copies)
    assert len(copies) == 2 * architecture.mtp_num_layers
    assert (done.version, done.tensors, done.bytes) == (0, len(tensors), sum(tensor.nbytes for tensor in tensors.values()))
    assert checksums == {name: checksum_of(tensor) for name, tensor in tensors.items()}, "a receiver elsewhere computes other checksums"
    assert done.checksum == combined(checksums)


@pytest.fixture(scope="module")
def deepseek() -> Policy:
    return models.build(models.deepseek(mtp_num_layers=1), optimizer=OptimizerConfig(lr=1e-3))


def test_a_cast_rounds_everything_but_the_expert_bias(deepseek: Policy, tmp_path: Path) -> None:
    _, tensors, _ = received(Publisher(deepseek, DEEPSEEK_V3, dtype=torch.bfloat16))
    wanted = exported(deepseek, DEEPSEEK_V3, tmp_path, torch.bfloat16)
    require_same(tensors, wanted, wanted.keys() - tensors.keys())
    assert {name for name, tensor in tensors.items() if tensor.dtype == torch.float32} == {BIAS, BIAS.replace(".1.", ".2.")}


def test_buckets_keep_to_their_size_and_do_not_change_the_content(deepseek: Policy) -> None:
    seen: list[tuple[int, int, int, int]] = []
    small = Publisher(deepseek, DEEPSEEK_V3, bucket_bytes=6000)
    done = small.publish(lambda bucket: seen.append((bucket.index, bucket.count, bucket.flat.numel(), len(bucket.tensors))))
    assert [index for index, *_ in seen] == list(range(len(seen)))
    assert {count for _, count, _, _ in seen} == {len(seen)}
    assert all(size <= 6000 or tensors == 1 for *_, size, tensors in seen)
    assert any(size > 6000 for *_, size, _ in seen), "no tensor is larger than a bucket"
    assert len(seen) > 10
    assert done == Publisher(deepseek, DEEPSEEK_V3).publish(ignore)


def test_an_update_is_a_new_version_with_new_checksums(deepseek: Policy) -> None:
    publisher = Publisher(deepseek, DEEPSEEK_V3)
    first, before, old = received(publisher)
    assert publisher.publish(ignore) == first, "nothing changed between two passes"
    deepseek.train_step([models.batch_of(models.sequences(20, 30))], models.likelihood)
    second, after, new = received(publisher)
    assert second.version == first.version + 1
    assert second.checksum != first.checksum
    changed = {name for name in old if old[name] != new[name]}
    assert changed == {name for name in before if not torch.equal(before[name], after[name])}
    assert changed >= {name for name in old if "self_attn" in name and ".2." not in name}, "the update left the attention as it was"


def test_parameters_that_moved_to_other_memory_are_found_again() -> None:
    policy = models.build(models.gqa(qk_layernorm=True))
    publisher = Publisher(policy, QWEN3)
    first = publisher.publish(ignore)
    for parameter in policy.chunks[0].parameters():
        parameter.data = parameter.data + 1
    second, tensors, _ = received(publisher)
    assert second.checksum != first.checksum, "old memory was sent"
    assert torch.equal(tensors["model.norm.weight"], policy.chunks[0].state_dict()["decoder.final_layernorm.weight"])


@pytest.mark.parametrize("case", ["qwen3", "deepseek-v3-prediction"])
def test_transformer_engine_and_local_names_give_the_same_tensors(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of which a table has two spellings is called by the one that it does not have here."""
    family, architecture = CASES[case]
    policy = models.build(architecture)
    wanted = received(Publisher(policy, family))[1]
    spellings = {row.ours for layer in range(2) for row in family.layer(architecture, layer) if len(row.ours) == 2}
    other = {one: two for pair in spellings for one, two in (pair, pair[::-1])}
    original, renamed = regions.model_state, set[str]()

    def with_other_names(*args: Any, **kwargs: Any) -> dict[str, Any]:
        states = original(*args, **kwargs)
        for state in states.values():
            for shard in state.values():
                if (of := next((name for name in other if shard.key.endswith(f".{name}")), None)) is not None:
                    shard.key = shard.key.removesuffix(of) + other[of]
                    renamed.add(of)
        return states

    monkeypatch.setattr("r1mega.policy.keys.model_state", with_other_names)
    monkeypatch.setattr("r1mega.policy.hugging_face.regions.model_state", with_other_names)
    require_same(received(Publisher(policy, family))[1], wanted, set())
    assert len(renamed) == len(spellings) >= 2


# ------------------------------------------------------------------------------------------------------------------------------------ checksums


def swap_rows(tensor: torch.Tensor) -> None:
    tensor[[2, 5]] = tensor[[5, 2]]


def swap_columns(tensor: torch.Tensor) -> None:
    tensor[:, [2, 5]] = tensor[:, [5, 2]]


def flip_two_signs(tensor: torch.Tensor) -> None:
    tensor[0, 0] *= -1
    tensor[2, 2] *= -1


def zero_half(tensor: torch.Tensor) -> None:
    tensor[16:] = 0


def drift(tensor: torch.Tensor) -> None:
    tensor.mul_(1.0001)


def flip_a_bit(tensor: torch.Tensor) -> None:
    tensor.view(torch.int32)[7, 7] ^= 1


DAMAGES: dict[str, Callable[[torch.Tensor], None]] = {
    "a shard missing": zero_half,
    "rows swapped": swap_rows, "columns swapped": swap_columns, "signs flipped": flip_two_signs,
    "of an earlier step": drift, "one bit": flip_a_bit,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_named(deepseek: Policy, damage: str) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"

    def receive(bucket: Bucket) -> None:
        tensor = dict(bucket.tensors)[name]
        DAMAGES[damage](tensor)
        assert checksum_of(tensor) != bucket.checksums[name], "a receiver elsewhere would not notice"
        bucket.verify()

    with pytest.raises(R1MegaError, match=rf"{name} of version {deepseek.version} is not what was sent: its checksum is \('float32', \(32, 48\)"):
        Publisher(deepseek, DEEPSEEK_V3).publish(receive)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_shares_of_shards_add_up_to_the_checksum_of_the_whole(dtype: torch.dtype) -> None:
    """Against sums that NumPy's integers give, on a tensor that is larger than what is summed in one go."""
    tensor = torch.randn(700, 450, generator=torch.Generator().manual_seed(0)).to(dtype)
    bits = tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]).numpy().astype("int64")
    rows, columns = bits.sum(1), bits.sum(0)
    wanted = [int(of) for of in (bits.sum(), (rows * range(1, 701)).sum(), (columns * range(1, 451)).sum())]
    assert checksum_of(tensor) == (str(dtype).removeprefix("torch."), (700, 450), *wanted)
    assert checksum_of(tensor.t().contiguous().t()) == checksum_of(tensor), "strides matter"
    assert checksum_of(tensor[:699]) != checksum_of(tensor)


def test_a_truncated_tensor_of_zeros_has_another_checksum() -> None:
    assert checksum_of(torch.zeros(4, 3)) != checksum_of(torch.zeros(3, 3))
    assert checksum_of(torch.zeros(0, 3))[2:] == checksum_of(torch.tensor(0.0))[2:] == (0, 0, 0)


# --------------------------------------------------------------------------------------------------------------------------------------- errors


def test_errors(deepseek: Policy) -> None:
    publisher = Publisher(deepseek, DEEPSEEK_V3, bucket_bytes=6000)
    calls: list[int] = []

    def fail(bucket: Bucket) -> None:
        calls.append(bucket.index)
        if bucket.index == 1:
            raise ValueError("the engine is gone")

    with pytest.raises(R1MegaError, match=f"version {deepseek.version} of the weights was not received: ValueError: the engine is gone") as caught:
        publisher.publish(fail)
    assert isinstance(caught.value.__cause__, ValueError)
    assert calls == [0, 1], "a receiver that failed is called again"
    with pytest.raises(UserError, match="give it a receiver"):
        publisher.publish(None)
    sets = WeightSets(deepseek)
    sets.capture("old")
    with sets.use("old"), pytest.raises(R1MegaError, match="cannot publish while weight set 'old' stands in"):
        publisher.publish(ignore)
    with pytest.raises(UserError, match=r"the weights in this model do not fit the Qwen3 table"):
        Publisher(deepseek, QWEN3)
    with pytest.raises(UserError, match="bucket_bytes is 0"):
        Publisher(deepseek, DEEPSEEK_V3, bucket_bytes=0)


# ----------------------------------------------------------------------------------------------------------------------------------------- plans


def test_regions_may_be_cut_anywhere() -> None:
    """Three ranks: the queries, keys and values of two groups are cut inside a group, the last rank owns padding alone of the embedding."""
    groups = Unit("qkv", (), (24, 4), tuple(Part(name, ((start, stop), (start + 12, stop + 12)))
                                            for name, start, stop in (("q", 0, 8), ("k", 8, 10), ("v", 10, 12))))
    embedding = Unit("embedding", (), (9, 4), (Part("e", ((0, 5),)),))
    norms = [Unit(f"norm{i}", (), (4,), (Part(f"n{i}", ((0, 4),)),)) for i in range(2)]
    units, whole = [norms[0], groups, embedding, norms[1]], [torch.randn(unit.shape) for unit in (norms[0], groups, embedding, norms[1])]
    owned = [[Owned(*place, torch.float32) for place in places] for places in (
        [(0, 0, 4, 0, 1), (1, 0, 11, 0, 4), (2, 0, 3, 0, 4)], [(1, 11, 13, 0, 3), (1, 11, 13, 3, 1), (2, 3, 3, 0, 4)], [(2, 6, 3, 0, 4), (3, 0, 4, 0, 1)])]
    plans = plan_buckets(units, owned, None, 10**6)
    assert [(tuple(slot.name for slot in plan.slots), plan.senders, plan.assembled) for plan in plans] == [
        (("n0",), (0,), False), (("q", "k", "v", "e"), (0, 1), True), (("n1",), (2,), False)], "tensors with the same senders share a bucket"
    assert [piece.source for piece in plans[1].pieces if (piece.sender, piece.block.tensor) == (1, 2)] == [((0, 1), (11, 13))] * 2
    for plan in plans:
        flat, travelling = (torch.zeros(max(plan.bytes, plan.segments[-1][2]), dtype=torch.uint8) for _ in range(2))
        tensors = [publish._view(flat, slot) for slot in plan.slots]
        for piece in plan.pieces:
            unit, row, rows, column, columns, _ = owned[piece.sender][piece.owned]
            region = whole[unit][row: row + rows] if whole[unit].dim() == 1 else whole[unit][row: row + rows, column: column + columns]
            torch._foreach_copy_(publish._targets(travelling, piece), publish._rows(region, piece.source))
            publish._place(tensors[piece.block.tensor], piece).copy_(publish._numbers(travelling, piece))
        parts = {part.name: rows_of(of, part) for unit, of in zip(units, whole, strict=True) for part in unit.parts}
        require_same({slot.name: tensor for slot, tensor in zip(plan.slots, tensors, strict=True)}, parts, parts.keys() - {slot.name for slot in plan.slots})
    with pytest.raises(R1MegaError, match="q: the ranks own 32 of its 64 numbers"):
        plan_buckets(units, [owned[0], [], owned[2]], None, 10**6)
