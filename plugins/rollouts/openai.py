"""Completions from any OpenAI-compatible server: a teacher to distil from, a model to measure, or a vLLM server that holds this policy's weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from r1mega import hookimpl
from r1mega.data.chat import render_response
from r1mega.errors import ConfigError, R1MegaError
from r1mega.hookspecs import Register, Tokenizer
from r1mega.remote.answers import Answer, read_chat, read_completion
from r1mega.remote.ask import with_extra
from r1mega.remote.client import Call, Client, Payload, RemoteError
from r1mega.remote.config import ServerConfig
from r1mega.types import Completion, FinishReason, GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from r1mega.policy.policy import Policy

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenAIRolloutConfig:
    """Which model, which endpoint, and what the server can tell beyond text."""

    model: str  # the name under which the server serves it
    server: ServerConfig = field(default_factory=ServerConfig)
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 32768
    stop: tuple[str, ...] = ()
    endpoint: Literal["completions", "chat"] = "completions"  # chat: the prompt is one user message (use template=plain), the server has the template
    dialect: Literal["openai", "vllm"] = "openai"  # vllm: prompts and completions travel as token ids; server and stage share one tokenizer
    logprobs: Literal["none", "raw", "processed"] = "none"  # which ones the server returns: vLLM's --logprobs-mode; raw ones ignore the temperature
    chat_response: str = "<think>{reasoning}</think>{response}"  # the completion of a chat answer whose reasoning comes apart
    extra_body: dict[str, Any] = field(default_factory=dict)  # further request fields, e.g. {top_k: 20}; null removes one

    def __post_init__(self) -> None:
        if self.endpoint == "chat" and (self.logprobs != "none" or self.dialect != "openai"):
            raise ConfigError("rollout.endpoint=chat: the server applies its own template, so its tokens and log-probs are not this prompt's; "
                              "set rollout.logprobs=none and rollout.dialect=openai, or rollout.endpoint=completions")

    def tells_logprobs(self, sampling: SamplingParams) -> bool:
        """Whether the server's log-probs are those `Completion` promises: at the sampling temperature, before top-p."""
        return {"none": False, "raw": sampling.temperature in (0.0, 1.0), "processed": sampling.top_p == 1.0}[self.logprobs]


class OpenAIRollout:
    """Completions from an OpenAI-compatible server (vLLM, SGLang, llama.cpp, transformers serve, a provider).

    Log-probs the server does not tell are NaN: enough to sample, evaluate and teach; training refuses them. With `dialect=openai` the tokens are
    the stage tokenizer's encoding of the text, and the server's log-probs are used only where its tokens are the same, one by one.

    `policy` may be None where no model is held: then every rank sends the requests it is given. With a policy each replica's lead sends, and its
    other ranks receive the results.
    """

    version = "1"

    def __init__(self, config: OpenAIRolloutConfig, *, policy: Policy | None, tokenizer: Tokenizer) -> None:
        """Raises `ConfigError` in training without log-probs, `UserError` without the HTTP library or the API key's variable."""
        self._config, self._tokenizer = config, tokenizer
        self.served_model = config.model
        self._ranks = policy.ranks if policy is not None else None
        self._training = policy is not None and policy.optimizer is not None
        self._client = Client(config.server)
        if self._training:
            self._check_training()

    def generate(self, requests: Sequence[GenerationRequest], on_finish: Callable[[Completion], Any]) -> None:
        """See `hookspecs.Generator`. Raises `RemoteError` or `RemoteRefusedError` on every rank of a replica whose server fails."""
        ranks = self._ranks
        if ranks is None:
            self._send(requests, on_finish)
            return
        made: list[Completion] = []

        def finish(completion: Completion) -> None:
            made.append(completion)
            on_finish(completion)

        failure: R1MegaError | None = None
        if ranks.is_lead:
            try:
                self._send(requests, finish)
            except R1MegaError as error:  # the other ranks wait for the result: they must hear of it
                failure = error
        shared, failure = ranks.from_lead((made, failure))
        if failure is not None:
            raise failure
        if not ranks.is_lead:
            for completion in shared:
                on_finish(completion)
        ranks.barrier()

    # ------------------------------------------------------------------------------------------------------------------------ one replica's lead

    def _send(self, requests: Sequence[GenerationRequest], on_finish: Callable[[Completion], Any]) -> None:
        read = read_chat if self._config.endpoint == "chat" else read_completion

        def on_answer(index: int, payload: Payload) -> None:
            try:
                completion = self._completion(requests[index], read(payload))
            except RemoteError as error:
                raise RemoteError(f"{self._config.server.base_url}, request '{requests[index].id}': {error}") from error
            on_finish(completion)

        self._client.each([self._call(request) for request in requests], on_answer)

    def _call(self, request: GenerationRequest) -> Call:
        """The request's body. Stop strings go to vLLM alone, which says whether one was met; elsewhere the text is cut here, because a server
        that leaves the stop string out of its text does not say whether it met it or the end of the sequence."""
        config, sampling = self._config, request.sampling
        body: dict[str, Any] = {"model": config.model, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
                                "seed": request.seed >> 33}  # 31 bits, which every server takes
        if config.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": self._tokenizer.decode(request.prompt_tokens)}]
            return Call("chat/completions", with_extra(body, config.extra_body))
        if config.dialect == "vllm":
            body |= {"prompt": list(request.prompt_tokens), "return_token_ids": True, "stop_token_ids": list(sampling.stop_token_ids),
                     "stop": list(sampling.stop), "include_stop_str_in_output": True, "skip_special_tokens": False}
        else:
            body["prompt"] = self._tokenizer.decode(request.prompt_tokens)
        if config.logprobs != "none":
            body["logprobs"] = 1
        return Call("completions", with_extra(body, config.extra_body))

    def _completion(self, request: GenerationRequest, answer: Answer) -> Completion:
        sampling = request.sampling
        if self._config.dialect == "vllm":
            tokens = answer.token_ids
            if tokens is None:
                raise RemoteError("the answer has no choices[0].token_ids; rollout.dialect=vllm needs vLLM 0.10.2 or newer, "
                                  "any other server rollout.dialect=openai")
            ended = tokens[-1:] and tokens[-1] in sampling.stop_token_ids
            text, reason = _cut(self._tokenizer.decode(tokens[:-1] if ended else tokens), answer.finish_reason, sampling.stop)
            logprobs = answer.logprobs if answer.logprobs is not None and len(answer.logprobs) == len(tokens) else None
        else:
            said = render_response(self._config.chat_response, answer.reasoning, answer.text) if answer.reasoning else answer.text
            text, reason = _cut(said, answer.finish_reason, sampling.stop)
            tokens = tuple(self._tokenizer.encode(text))
            logprobs = self._aligned(tokens, answer, ended := reason == "stop" and not text.endswith(sampling.stop or ("\0",)))
            tokens += sampling.stop_token_ids[:1] if ended else ()
        if not self._config.tells_logprobs(sampling):
            logprobs = None
        elif logprobs is None and self._training:
            raise RemoteError("the answer has no log-prob for each of its tokens, and training needs them: serve with vLLM and set rollout.dialect=vllm")
        return Completion(request.id, tokens, logprobs if logprobs is not None else (math.nan,) * len(tokens), text, reason, weights_version=0)

    def _aligned(self, tokens: tuple[int, ...], answer: Answer, ended: bool) -> tuple[float, ...] | None:
        """The server's log-probs of `tokens`, and of the end-of-sequence token if `ended`; None unless the server cut the text into the same tokens."""
        count = len(tokens) + ended
        if answer.token_texts is None or answer.logprobs is None or min(len(answer.token_texts), len(answer.logprobs)) < count:
            return None
        same = all(self._tokenizer.decode([token]) == text for token, text in zip(tokens, answer.token_texts, strict=False))
        return answer.logprobs[:count] if same else None

    def _check_training(self) -> None:
        config = self._config
        sampling = SamplingParams(config.max_tokens, config.temperature, config.top_p)
        if not config.tells_logprobs(sampling):
            raise ConfigError(
                f"rollout=openai with rollout.logprobs={config.logprobs}, temperature={config.temperature:g}, top_p={config.top_p:g} gives no log-probs "
                "at the sampling temperature, and reinforcement learning needs them. Use rollout=megatron, or a vLLM server with "
                "--logprobs-mode processed_logprobs and rollout.dialect=vllm rollout.logprobs=processed rollout.top_p=1")
        _log.warning("rollout=openai in training: the server at %s keeps its own weights and does not follow the policy; the mismatch figures say "
                     "how far apart the two are", config.server.base_url)


def _cut(text: str, reason: FinishReason, stop: Sequence[str]) -> tuple[str, FinishReason]:
    """The text up to and with the first stop string in it, and how it ended."""
    ends = [place + len(mark) for mark in stop if mark and (place := text.find(mark)) >= 0]
    return (text[: min(ends)], "stop") if ends else (text, reason)


@hookimpl
def register_rollouts(register: Register) -> None:
    register("openai", OpenAIRollout, config=OpenAIRolloutConfig)
