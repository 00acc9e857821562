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
from r1mega.policy.direct import DirectDecoder, runs_directly
from r1mega.policy.packed import DecodeBatch, PrefillBatch, plan_pack
from r1mega.policy.policy import Policy, expert_parallel_group
from r1mega.policy.sampling import draw, uniforms
from r1mega.types import Completion, FinishReason, GenerationRequest

Decode = Callable[[Sequence[int]], str]


@dataclass
class _Slots:
    """What each of the B slots is doing. Arrays are indexed by slot."""

    request: list[GenerationRequest | None]
    busy: np.ndarray  # bool: whether there is a request
    position: np.ndarray  # int64: where the next token will stand
    start: np.ndarray  # int64: length of the prompt
    last: np.ndarray  # int64: the newest token, not yet in the cache
    tokens: np.ndarray  # int64 [B, longest completion]
    logprobs: np.ndarray  # float64 [B, longest completion]
    temperature: np.ndarray
    top_p: np.ndarray
    seed: np.ndarray  # uint64
    limit: np.ndarray  # int64: most tokens of the completion
    stops: np.ndarray  # int64 [B, most stop tokens of a request], -1 where there are fewer
    listens: np.ndarray  # bool: whether there are stop strings

    @classmethod
    def empty(cls, count: int, longest: int, most_stops: int) -> _Slots:
        def zeros() -> np.ndarray:
            return np.zeros(count, np.int64)

        return cls(
            request=[None] * count, busy=np.zeros(count, bool), position=zeros(), start=zeros(), last=zeros(),
            tokens=np.zeros((count, longest), np.int64), logprobs=np.zeros((count, longest)), temperature=np.ones(count), top_p=np.ones(count),
            seed=np.zeros(count, np.uint64), limit=zeros(), stops=np.full((count, most_stops), -1), listens=np.zeros(count, bool))

    def active(self) -> np.ndarray:
        return np.flatnonzero(self.busy)

    def admit(self, slot: int, request: GenerationRequest) -> None:
        sampling = request.sampling
        self.request[slot], self.busy[slot] = request, True
        self.start[slot] = self.position[slot] = len(request.prompt_tokens)
        self.temperature[slot], self.top_p[slot], self.limit[slot] = sampling.temperature, sampling.top_p, sampling.max_tokens
        self.seed[slot] = request.seed & 0xFFFFFFFFFFFFFFFF
        self.stops[slot], self.listens[slot] = -1, bool(sampling.stop)
        self.stops[slot, : len(sampling.stop_token_ids)] = sampling.stop_token_ids

    def release(self, slot: int) -> None:
        self.request[slot], self.busy[slot] = None, False

    def move(self, sources: np.ndarray, targets: np.ndarray) -> None:
        for array in (self.position, self.start, self.last, self.tokens, self.logprobs, self.temperature, self.top_p, self.seed, self.limit,
                      self.stops, self.listens):
            array[targets] = array[sources]
        self.busy[targets], self.busy[sources] = True, False
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
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
    def generate(self, requests: Sequence[GenerationRequest], decode: Decode, on_finish: Callable[[Completion], None],
                 on_token: Callable[[str, int], None] | None = None) -> None:
        """Make every request's completion; see `hookspecs.Generator` for who calls it with what. A collective.

        `on_token` is called with a request's id and each of its tokens as soon as it is drawn, the last one before `on_finish`.

        Context-parallel ranks share the requests out; what the others made is handed on at the end.
        """
        policy, ranks = self.policy, self.policy.ranks
        made = list[Completion]()

        def finish(completion: Completion) -> None:
            made.append(completion)
            on_finish(completion)

        requests = requests[ranks.cp_rank:: ranks.cp_size]
        for chunk in policy.chunks:
            chunk.eval()
        self._waiting = deque(requests)
        self._decode_text, self._on_finish, self._on_token = decode, finish, on_token
        count = min(self.max_slots, max(1, len(requests)))
        longest = max((request.sampling.max_tokens for request in requests), default=1)
        capacity = max((len(r.prompt_tokens) + r.sampling.max_tokens for r in requests), default=2)
        most_stops = max((len(r.sampling.stop_token_ids) for r in requests), default=0)
        self._slots = _Slots.empty(count, longest, most_stops)
        self._direct = DirectDecoder(policy) if runs_directly(policy) else None
        self._cache = self._fitting_cache(count, capacity)
        while True:
            free = count - int(self._slots.busy.sum())
            prefill = bool(self._waiting) and (free == count or free >= min(self.refill, len(self._waiting)))
            prefill, running = self._agree(prefill, free < count)
            if not (prefill or running):
                break
            if prefill:
                self._prefill()
            if self._agree(False, bool(self._slots.busy.any()))[1]:
                self._decode()
        for chunk in policy.chunks:
            chunk.train()
        for place, share in enumerate(ranks.gather_context(made)):
            for completion in share if place != ranks.cp_rank else ():
                on_finish(completion)

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
        targets = np.flatnonzero(~slots.busy)[: len(self._waiting)]
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
        cache.targets = torch.from_numpy(targets).to(device)
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
        batch = PrefillBatch(qkv_format="sbhd", max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths), positions=positions,
                             plan=plan_pack(lengths, device, growth=math.inf), cache=cache, logit_rows=rows)
        tokens = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.int64, device=device)
        logits = self._forward(batch, tokens, positions)
        for slot, request in zip(targets.tolist(), admitted, strict=True):
            slots.admit(slot, request)
        self._advance(targets, None if logits is None else logits[cache.sources])

    # ----------------------------------------------------------------------------------------------------------------------------- decode

    def _decode(self) -> None:
        """One more token for every active slot."""
        slots, device = self._slots, self.policy.platform.device
        active = slots.active()
        if not self._waiting and len(active) and len(active) <= 0.7 * (active[-1] + 1):
            self._compact(active)
            active = slots.active()
        rows = int(active[-1]) + 1 if len(active) else 1
        padded = -(-rows // self.policy.pad_multiple) * self.policy.pad_multiple
        position, last = np.zeros(padded, np.int64), np.zeros(padded, np.int64)
        position[active], last[active] = slots.position[active], slots.last[active]
        longest = int(position.max()) + 1
        positions = torch.from_numpy(position).to(device)
        cache = self._cache
        assert cache is not None
        cache.begin_decode(positions, longest)
        batch = DecodeBatch(qkv_format="sbhd", max_seqlen_q=longest, max_seqlen_kv=longest, positions=positions, cache=cache)
        tokens = torch.from_numpy(last).to(device)
        logits = self._direct(batch, tokens) if self._direct is not None else self._forward(batch, tokens, positions)
        slots.position[active] += 1
        if logits is not None:
            logits = logits[:rows] if len(active) == rows else logits[torch.from_numpy(active).to(device)]
        self._advance(active, logits)

    def _compact(self, active: np.ndarray) -> None:
        """Move the active slots to the front."""
        targets = np.flatnonzero(~self._slots.busy[: len(active)])
        sources = active[len(active) - len(targets):]
        self._slots.move(sources, targets)
        assert self._cache is not None
        self._cache.move(torch.from_numpy(sources), torch.from_numpy(targets))

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
        made = count + 1
        if self._on_token is not None:
            for slot, token in zip(index.tolist(), tokens.tolist(), strict=True):
                request = slots.request[slot]
                assert request is not None
                self._on_token(request.id, token)
        stopped = (tokens[:, None] == slots.stops[index]).any(1)
        for row in np.flatnonzero(slots.listens[index] & ~stopped).tolist():
            stopped[row] = self._stopped(int(index[row]), int(made[row]))
        for row in np.flatnonzero(stopped | (made == slots.limit[index])).tolist():
            self._finish(int(index[row]), int(made[row]), "stop" if stopped[row] else "length")

    def _draw(self, index: np.ndarray, logits: torch.Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        slots, device = self._slots, self.policy.platform.device
        drawn = torch.empty(2, len(index), dtype=torch.float64, device=device)
        if logits is not None:
            logits = self._gather_vocabulary(logits)
            top_p = slots.top_p[index]
            uniform = uniforms(slots.seed[index], slots.position[index])
            truncation = torch.from_numpy(top_p).float().to(device) if (top_p < 1).any() else None
            tokens, logprobs = draw(logits, torch.from_numpy(slots.temperature[index]).float().to(device), truncation,
                                    torch.from_numpy(uniform).to(device))
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

    def _stopped(self, slot: int, made: int) -> bool:
        """Whether the text now ends a stop string. Only the tail is decoded: a stop string of n characters spans at most n tokens' text."""
        request = self._slots.request[slot]
        assert request is not None
        stop = request.sampling.stop
        longest = max(map(len, stop))
        tail = self._decode_text(self._slots.tokens[slot, max(0, made - longest - 4): made].tolist())
        return any(text in tail for text in stop)

    def _finish(self, slot: int, made: int, reason: FinishReason) -> None:
        slots = self._slots
        request = slots.request[slot]
        assert request is not None
        tokens = tuple(slots.tokens[slot, :made].tolist())
        logprobs = tuple(slots.logprobs[slot, :made].tolist())
        visible = tokens[:-1] if reason == "stop" and tokens[-1] in request.sampling.stop_token_ids else tokens
        slots.release(slot)
        self._on_finish(Completion(request.id, tokens, logprobs, self._decode_text(visible), reason, self.policy.version))

    # -------------------------------------------------------------------------------------------------------------------------- the model

    def _forward(self, batch: PrefillBatch | DecodeBatch, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
        """One pass through all pipeline stages; logits [rows, V / TP] on the last one."""
        policy = self.policy
        stages = parallel_state.get_pipeline_model_parallel_group()
        output: Any = None
        for number, chunk in enumerate(policy.chunks):
            if stages.size() > 1 and not (number == 0 and parallel_state.is_pipeline_first_stage(ignore_virtual=True)):
                shares = policy.parallel.tensor_model_parallel_size if policy.config.sequence_parallel else 1
                shape = (len(tokens) // shares, 1, policy.config.hidden_size)
                received = torch.empty(shape, dtype=policy.config.params_dtype, device=policy.platform.device)
                dist.recv(received, src=parallel_state.get_pipeline_model_parallel_prev_rank(), group=stages)
                chunk.set_input_tensor(received)
            output = chunk(tokens[None], positions[None], None, packed_seq_params=batch)
            last = number == len(policy.chunks) - 1 and parallel_state.is_pipeline_last_stage(ignore_virtual=True)
            if not last and stages.size() > 1:
                dist.send(output.contiguous(), dst=parallel_state.get_pipeline_model_parallel_next_rank(), group=stages)
                output = None
        logits: torch.Tensor | None = output
        return logits
