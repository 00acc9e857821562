"""The in-process engine on one rank: what a completion is does not depend on slots, neighbours or the decode path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from r1mega.config import ParallelConfig, PrecisionConfig
from r1mega.policy import generate
from r1mega.policy.architecture import MLA, Architecture, MoE
from r1mega.policy.generate import Engine
from r1mega.policy.policy import Policy
from r1mega.rollout.batching import make_microbatch, unpack
from r1mega.types import Completion, GenerationRequest, SamplingParams, TrainSequence

VOCAB, EOS = 40, 1
SHAPES = {
    "grouped": Architecture(num_layers=2, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=2, kv_channels=8,
                            max_position_embeddings=128, qk_layernorm=True, init_method_std=0.2),
    "biased": Architecture(num_layers=2, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=1, kv_channels=8,
                           max_position_embeddings=128, add_qkv_bias=True, tied_embeddings=True, init_method_std=0.2),
    "latent": Architecture(num_layers=3, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, max_position_embeddings=128, qk_layernorm=True,
                           init_method_std=0.2, mla=MLA(kv_lora_rank=16, qk_head_dim=8, qk_pos_emb_head_dim=4, v_head_dim=8, q_lora_rank=16),
                           moe=MoE(8, 16, 2, 16, moe_router_num_groups=4, moe_router_group_topk=2, moe_router_topk_scaling_factor=2.5)),
    "softmax": Architecture(num_layers=2, hidden_size=32, ffn_hidden_size=48, num_attention_heads=2, max_position_embeddings=128, init_method_std=0.2,
                            mla=MLA(kv_lora_rank=16, qk_head_dim=8, qk_pos_emb_head_dim=4, v_head_dim=12),
                            moe=MoE(4, 16, 2, moe_router_score_function="softmax", moe_router_enable_expert_bias=False, moe_router_pre_softmax=True)),
}


@pytest.fixture(scope="module")
def make_policy() -> Callable[[str], Policy]:
    """One policy per shape, its norms and expert biases away from their neutral initial values."""
    made: dict[str, Policy] = {}

    def make(shape: str) -> Policy:
        if shape not in made:
            policy = made[shape] = Policy(SHAPES[shape], vocab_size=VOCAB, parallel=ParallelConfig(), precision=PrecisionConfig(), seed=0)
            random = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for name, tensor in (*policy.chunks[0].named_parameters(), *policy.chunks[0].named_buffers()):
                    if tensor.is_floating_point() and (tensor.dim() == 1 and ("norm" in name or name.endswith(("bias", "expert_bias")))):
                        tensor.add_(torch.randn(tensor.shape, generator=random) * 0.2)
        return made[shape]

    return make


def text_of(tokens: Sequence[int]) -> str:
    return "".join(chr(ord("A") + token) for token in tokens)


def requests_of(count: int, **sampling: object) -> list[GenerationRequest]:
    """Groups of 4 with prompts of 2 to 9 tokens."""
    params = SamplingParams(**{"max_tokens": 12, "stop_token_ids": (EOS,), **sampling})  # type: ignore[arg-type]
    random = np.random.default_rng(3)
    prompts = [tuple(random.integers(2, VOCAB, 2 + i % 8).tolist()) for i in range(-(-count // 4))]
    return [GenerationRequest(str(i), prompts[i // 4], params, seed=1000 + 77 * i) for i in range(count)]


def run(policy: Policy, requests: Sequence[GenerationRequest], **engine: object) -> dict[str, Completion]:
    found: dict[str, Completion] = {}

    def on_finish(completion: Completion) -> None:
        assert completion.id not in found, f"request {completion.id} finished twice"
        found[completion.id] = completion

    Engine(policy, **engine).generate(requests, text_of, on_finish)  # type: ignore[arg-type]
    assert set(found) == {request.id for request in requests}
    return found


def same(one: dict[str, Completion], other: dict[str, Completion]) -> None:
    for key, completion in one.items():
        assert completion.tokens == other[key].tokens, f"request {key} has other tokens"
        np.testing.assert_allclose(completion.logprobs, other[key].logprobs, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_logprobs_equal_the_trainers(shape: str, make_policy: Callable[[str], Policy]) -> None:
    policy, requests = make_policy(shape), requests_of(20)
    found = run(policy, requests, max_slots=6)
    sequences = [np.array(request.prompt_tokens + found[request.id].tokens) for request in requests]
    batch = make_microbatch([TrainSequence(str(i), s, np.ones(len(s), np.float32)) for i, s in enumerate(sequences)], policy.pad_multiple)
    trainer = unpack(policy.logprobs([batch])[0][0], batch)
    for request, values in zip(requests, trainer, strict=True):
        np.testing.assert_allclose(found[request.id].logprobs, values[len(request.prompt_tokens):], atol=1e-5)
    assert len({len(completion.tokens) for completion in found.values()}) > 2, "all completions have much the same length: nothing was refilled"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_direct_decoder_agrees_with_megatrons_layers(shape: str, make_policy: Callable[[str], Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    policy, requests = make_policy(shape), requests_of(12)
    assert generate.runs_directly(policy)
    direct = run(policy, requests)
    monkeypatch.setattr(generate, "runs_directly", lambda _: False)
    same(direct, run(policy, requests))


@pytest.mark.parametrize("engine", [{"max_slots": 1}, {"max_slots": 3}, {"max_slots": 5, "refill_fraction": 1.0}])
def test_few_slots_give_what_many_give(engine: dict[str, object], make_policy: Callable[[str], Policy]) -> None:
    policy, requests = make_policy("grouped"), requests_of(22)
    same(run(policy, requests), run(policy, requests, **engine))
    reordered = [requests[i] for i in np.random.default_rng(0).permutation(len(requests))]
    same(run(policy, requests), run(policy, reordered, **engine))


def test_a_kept_cache_leaves_no_trace(make_policy: Callable[[str], Policy]) -> None:
    policy, engine, twice = make_policy("grouped"), Engine(make_policy("grouped"), max_slots=4), []
    for requests in (requests_of(4, max_tokens=30), requests_of(9)):
        found: dict[str, Completion] = {}
        engine.generate(requests, text_of, lambda completion, found=found: found.__setitem__(completion.id, completion))
        twice.append(found)
    same(twice[1], run(policy, requests_of(9)))


def test_completions_end_at_max_tokens_or_with_the_stop_token(make_policy: Callable[[str], Policy]) -> None:
    found = run(make_policy("grouped"), requests_of(24))
    reasons = {completion.finish_reason for completion in found.values()}
    assert reasons == {"stop", "length"}, "the sample no longer covers both ends"
    for completion in found.values():
        assert EOS not in completion.tokens[:-1]
        if completion.finish_reason == "stop":
            assert completion.tokens[-1] == EOS
            assert completion.text == text_of(completion.tokens[:-1])
        else:
            assert len(completion.tokens) == 12
            assert completion.text == text_of(completion.tokens)


def test_a_stop_string_ends_the_completion_and_stays_in_the_text(make_policy: Callable[[str], Policy]) -> None:
    policy = make_policy("grouped")
    free = run(policy, requests_of(12, stop_token_ids=()))
    stop = free["5"].text[3:5]
    stopped = run(policy, requests_of(12, stop_token_ids=(), stop=(stop, "not there")))
    for key, completion in stopped.items():
        end = free[key].text.find(stop)
        assert completion.text == (free[key].text if end < 0 else free[key].text[: end + len(stop)])
        assert completion.finish_reason == ("length" if end < 0 else "stop")


def test_each_request_has_its_own_sampling(make_policy: Callable[[str], Policy]) -> None:
    policy, requests = make_policy("grouped"), requests_of(3, stop_token_ids=())
    own = [SamplingParams(5, temperature=0.0), SamplingParams(9, stop_token_ids=(2, 3, 4)), SamplingParams(1, top_p=0.5)]
    mixed = [GenerationRequest(r.id, r.prompt_tokens, sampling, r.seed) for r, sampling in zip(requests, own, strict=True)]
    together = run(policy, mixed)
    for request in mixed:
        same(run(policy, [request]), {request.id: together[request.id]})
    assert len(together["0"].tokens) == 5
    assert len(together["2"].tokens) == 1


def test_completions_are_handed_on_while_others_still_run(make_policy: Callable[[str], Policy]) -> None:
    policy, requests = make_policy("grouped"), requests_of(4, stop_token_ids=())
    requests[2] = GenerationRequest("2", requests[2].prompt_tokens, SamplingParams(2), 5)
    engine, unfinished = Engine(policy), []
    engine.generate(requests, text_of, lambda completion: unfinished.append((completion.id, int(engine._slots.busy.sum()))))
    assert unfinished[0] == ("2", 3), f"the short one should finish first, with three others under way: {unfinished}"


def test_no_requests_give_nothing(make_policy: Callable[[str], Policy]) -> None:
    assert run(make_policy("grouped"), []) == {}
