"""In-process generation with the training weights themselves, at any tensor, pipeline and expert-parallel layout.

The state of all slots is known to every rank of a replica: the last pipeline stage draws the tokens and broadcasts them. A slot whose sequence
ends is refilled from the waiting requests, so the batch never waits for its longest member. Prompts shared by several requests (a group)
are computed once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from r1mega.policy.cache import SlotCache
from r1mega.policy.packed import DecodeBatch, PrefillBatch, plan_pack
from r1mega.policy.policy import Policy, expert_parallel_group
from r1mega.policy.sampling import draw, uniforms
from r1mega.types import Completion, FinishReason, GenerationRequest

Decode = Callable[[Sequence[int]], str]


@dataclass
class _Slots:
    """What each of the B slots is doing. Arrays are indexed by slot."""

    request: list[GenerationRequest | None]
    position: np.ndarray  # int64: where the next token will stand
    start: np.ndarray  # int64: length of the prompt
    last: np.ndarray  # int64: the newest token, not yet in the cache
    tokens: np.ndarray  # int64 [B, longest completion]
    logprobs: np.ndarray  # float64 [B, longest completion]
    temperature: np.ndarray
    top_p: np.ndarray
    seed: np.ndarray  # uint64

    @classmethod
    def empty(cls, count: int, longest: int) -> _Slots:
        integers = [np.zeros(count, np.int64) for _ in range(3)]
        return cls([None] * count, *integers, np.zeros((count, longest), np.int64), np.zeros((count, longest)), np.ones(count), np.ones(count),
                   np.zeros(count, np.uint64))

    def active(self) -> list[int]:
        return [slot for slot, request in enumerate(self.request) if request is not None]

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        for array in (self.position, self.start, self.last, self.tokens, self.logprobs, self.temperature, self.top_p, self.seed):
            array[targets] = array[sources]
        for source, target in zip(sources, targets, strict=True):
            self.request[target], self.request[source] = self.request[source], None


class Engine:
    """Generates for one policy. The cache is kept between calls."""

    def __init__(self, policy: Policy, *, max_slots: int = 256, refill_fraction: float = 1 / 16) -> None:
        """`max_slots` sequences are generated at once on each replica; free slots are refilled once they are this fraction of all."""
        self.policy = policy
        self.max_slots = max_slots
        self.refill = max(1, int(max_slots * refill_fraction))
        self._cache: SlotCache | None = None
        self._together = expert_parallel_group()

    @torch.no_grad()
    def generate(self, requests: Sequence[GenerationRequest], decode: Decode, on_finish: Callable[[Completion], None]) -> None:
        """Make every request's completion; see `hookspecs.Generator` for who calls it with what. A collective."""
        policy = self.policy
        for chunk in policy.chunks:
            chunk.eval()
        self._waiting = deque(requests)
        self._decode_text, self._on_finish = decode, on_finish
        count = min(self.max_slots, max(1, len(requests)))
        longest = max((request.sampling.max_tokens for request in requests), default=1)
        capacity = max((len(r.prompt_tokens) + r.sampling.max_tokens for r in requests), default=2)
        self._slots = _Slots.empty(count, longest)
        self._cache = self._fitting_cache(count, capacity)
        while True:
            free = self._slots.request.count(None)
            prefill = bool(self._waiting) and (free == count or free >= min(self.refill, len(self._waiting)))
            prefill, running = self._agree(prefill, free < count)
            if not (prefill or running):
                break
            if prefill:
                self._prefill()
            if self._agree(False, self._slots.request.count(None) < count)[1]:
                self._decode()
        for chunk in policy.chunks:
            chunk.train()

    def _fitting_cache(self, count: int, capacity: int) -> SlotCache:
        slots = count + self.policy.pad_multiple
        if self._cache is not None and self._cache.slots >= slots and self._cache.capacity >= capacity:
            return self._cache
        return SlotCache(slots, math.ceil(capacity / 32) * 32)

    def _agree(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any replica that shares experts with this one wants each thing: then all run the pass together."""
        if self._together is None:
            return flags
        tensor = torch.tensor(flags, dtype=torch.int32, device=self.policy.platform.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._together)
        return tuple(bool(flag) for flag in tensor.tolist())

    # ---------------------------------------------------------------------------------------------------------------------------- prefill

    def _prefill(self) -> None:
        """Admit waiting requests to the free slots: compute their prompts, draw their first tokens."""
        slots, device = self._slots, self.policy.platform.device
        targets = [slot for slot, request in enumerate(slots.request) if request is None][: len(self._waiting)]
        admitted = [self._waiting.popleft() for _ in targets]
        prompts = list(dict.fromkeys(request.prompt_tokens for request in admitted)) or [(0,)]
        place = {prompt: index for index, prompt in enumerate(prompts)}
        lengths = [len(prompt) for prompt in prompts]
        rows = torch.tensor(lengths, device=device).cumsum(0) - 1
        short = -sum(lengths) % self.policy.pad_multiple
        if short:
            prompts.append((0,) * short)
            lengths.append(short)
        cache = self._cache
        assert cache is not None
        sources = [place[request.prompt_tokens] for request in admitted]
        cache.sources = torch.tensor(sources, dtype=torch.int64, device=device)
        cache.targets = torch.tensor(targets, dtype=torch.int64, device=device)
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
        batch = PrefillBatch(qkv_format="sbhd", max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths), positions=positions,
                             plan=plan_pack(lengths, device, growth=math.inf), cache=cache, logit_rows=rows)
        tokens = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.int64, device=device)
        logits = self._forward(batch, tokens, positions)
        for slot, request in zip(targets, admitted, strict=True):
            slots.request[slot] = request
            slots.start[slot] = slots.position[slot] = len(request.prompt_tokens)
            slots.temperature[slot], slots.top_p[slot] = request.sampling.temperature, request.sampling.top_p
            slots.seed[slot] = request.seed & 0xFFFFFFFFFFFFFFFF
        self._advance(np.array(targets, np.int64), None if logits is None else logits[cache.sources])

    # ----------------------------------------------------------------------------------------------------------------------------- decode

    def _decode(self) -> None:
        """One more token for every active slot."""
        slots, device = self._slots, self.policy.platform.device
        active = slots.active()
        if not self._waiting and active and len(active) <= 0.7 * (active[-1] + 1):
            self._compact(active)
            active = slots.active()
        rows = active[-1] + 1 if active else 1
        padded = -(-rows // self.policy.pad_multiple) * self.policy.pad_multiple
        position, last = np.zeros(padded, np.int64), np.zeros(padded, np.int64)
        position[active], last[active] = slots.position[active], slots.last[active]
        longest = int(position.max()) + 1
        positions = torch.from_numpy(position).to(device)
        cache = self._cache
        assert cache is not None
        cache.begin_decode(positions, longest)
        batch = DecodeBatch(qkv_format="sbhd", max_seqlen_q=longest, max_seqlen_kv=longest, positions=positions, cache=cache)
        logits = self._forward(batch, torch.from_numpy(last).to(device), positions)
        slots.position[active] += 1
        full = len(active) == rows
        index = np.array(active, np.int64)
        self._advance(index, None if logits is None else logits[:rows] if full else logits[torch.from_numpy(index).to(device)])

    def _compact(self, active: list[int]) -> None:
        """Move the active slots to the front."""
        count = len(active)
        targets = [slot for slot in range(count) if self._slots.request[slot] is None]
        sources = active[count - len(targets):]
        self._slots.move(sources, targets)
        assert self._cache is not None
        self._cache.move(torch.tensor(sources), torch.tensor(targets))

    # ----------------------------------------------------------------------------------------------------------------- tokens and their end

    def _advance(self, index: np.ndarray, logits: torch.Tensor | None) -> None:
        """Draw a token for each of these slots from its logits (on the last stage), record it, finish what is whole."""
        if not len(index):
            return
        slots = self._slots
        tokens, logprobs = self._draw(index, logits)
        count = slots.position[index] - slots.start[index]
        slots.last[index] = tokens
        slots.tokens[index, count], slots.logprobs[index, count] = tokens, logprobs
        for slot, token, made in zip(index.tolist(), tokens.tolist(), (count + 1).tolist(), strict=True):
            request = slots.request[slot]
            assert request is not None
            sampling = request.sampling
            if token in sampling.stop_token_ids or (sampling.stop and self._stopped(slot, made, sampling.stop)):
                self._finish(slot, request, made, "stop")
            elif made == sampling.max_tokens:
                self._finish(slot, request, made, "length")

    def _draw(self, index: np.ndarray, logits: torch.Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        slots, device = self._slots, self.policy.platform.device
        drawn = torch.empty(2, len(index), dtype=torch.float64, device=device)
        if logits is not None:
            logits = self._gather_vocabulary(logits)
            top_p = slots.top_p[index]
            uniform = uniforms(slots.seed[index], slots.position[index])
            tokens, logprobs = draw(logits, torch.from_numpy(slots.temperature[index]).float().to(device),
                                    torch.from_numpy(top_p).float().to(device) if (top_p < 1).any() else None, torch.from_numpy(uniform).to(device))
            drawn[0], drawn[1] = tokens, logprobs
        stages = parallel_state.get_pipeline_model_parallel_group()
        if stages.size() > 1:
            dist.broadcast(drawn, src=dist.get_process_group_ranks(stages)[-1], group=stages)
        values = drawn.cpu().numpy()
        return values[0].astype(np.int64), values[1]

    def _gather_vocabulary(self, logits: torch.Tensor) -> torch.Tensor:
        """[B, V / TP] on each rank -> [B, V] on all, without padding. Every tensor rank then draws the same token."""
        group = parallel_state.get_tensor_model_parallel_group()
        if group.size() > 1:
            parts = [torch.empty_like(logits) for _ in range(group.size())]
            dist.all_gather(parts, logits.contiguous(), group=group)
            logits = torch.cat(parts, dim=-1)
        return logits[:, : self.policy.options.vocab_size]

    def _stopped(self, slot: int, made: int, stop: tuple[str, ...]) -> bool:
        """Whether the text now ends a stop string. Only the tail is decoded: a stop string of n characters spans at most n tokens' text."""
        longest = max(map(len, stop))
        tail = self._decode_text(self._slots.tokens[slot, max(0, made - longest - 4): made].tolist())
        return any(text in tail for text in stop)

    def _finish(self, slot: int, request: GenerationRequest, made: int, reason: FinishReason) -> None:
        slots = self._slots
        tokens = tuple(slots.tokens[slot, :made].tolist())
        logprobs = tuple(slots.logprobs[slot, :made].tolist())
        visible = tokens[:-1] if reason == "stop" and tokens[-1] in request.sampling.stop_token_ids else tokens
        slots.request[slot] = None
        self._on_finish(Completion(request.id, tokens, logprobs, self._decode_text(visible), reason, self.policy.version))

    # -------------------------------------------------------------------------------------------------------------------------- the model

    def _forward(self, batch: PrefillBatch | DecodeBatch, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
        """One pass through all pipeline stages; logits [rows, V / TP] on the last one."""
        policy = self.policy
        stages = parallel_state.get_pipeline_model_parallel_group()
        output: Any = None
        for number, chunk in enumerate(policy.chunks):
            if stages.size() > 1 and not (number == 0 and parallel_state.is_pipeline_first_stage(ignore_virtual=True)):
                shape = (len(tokens) // (policy.parallel.tensor_model_parallel_size if policy.config.sequence_parallel else 1), 1, policy.config.hidden_size)
                received = torch.empty(shape, dtype=policy.config.params_dtype, device=policy.platform.device)
                dist.recv(received, src=parallel_state.get_pipeline_model_parallel_prev_rank(), group=stages)
                chunk.set_input_tensor(received)
            output = chunk(tokens[None], positions[None], None, packed_seq_params=batch)
            last = number == len(policy.chunks) - 1 and parallel_state.is_pipeline_last_stage(ignore_virtual=True)
            if not last and stages.size() > 1:
                dist.send(output.contiguous(), dst=parallel_state.get_pipeline_model_parallel_next_rank(), group=stages)
                output = None
        return output
