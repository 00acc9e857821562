"""A small OpenAI-compatible server around a real transformers model, with vLLM's token ids and log-probs, and faults on request.

`serve(folder)` serves a model folder that `make_model` wrote. Sampling is plain: softmax of the logits over the temperature, one generator per
request, key/value cache. Log-probs are those of the tempered distribution (vLLM's `processed_logprobs`).
"""

from __future__ import annotations

import json
import string
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from loopback import serving

EOS = "</s>"


def make_model(folder: Path) -> None:
    """A two-layer Llama with random weights and one token per printable character."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = sorted(set(string.printable) - set("\r\x0b\x0c"))
    tokenizer = Tokenizer(models.WordLevel({EOS: 0, **{character: place + 1 for place, character in enumerate(characters)}}, unk_token=EOS))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, clean_up_tokenization_spaces=False)
    wrapped.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(characters) + 1, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.1, eos_token_id=0, bos_token_id=None, pad_token_id=0)
    LlamaForCausalLM(config).save_pretrained(folder)


@dataclass
class Served:
    """`requests` are the bodies that were answered; while `faults` has entries, each request takes the last one instead of an answer."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    faults: list[int | float] = field(default_factory=list)  # a status, or seconds of silence before the answer


class Model:
    """One sampled completion at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._lock = threading.Lock()

    def complete(self, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        """The choice of a completion, vLLM's fields included."""
        import torch

        generator = torch.Generator().manual_seed(body["seed"])
        tokens: list[int] = []
        logprobs: list[float] = []
        cache, step, reason = None, torch.tensor([prompt]), "length"
        stops = {self.tokenizer.eos_token_id, *body.get("stop_token_ids", [])}
        with self._lock, torch.no_grad():
            while len(tokens) < body["max_tokens"]:
                out = self.model(step, past_key_values=cache, use_cache=True)
                cache, distribution = out.past_key_values, torch.log_softmax(out.logits[0, -1] / (body["temperature"] or 1.0), 0)
                token = int(torch.multinomial(distribution.exp(), 1, generator=generator)) if body["temperature"] else int(distribution.argmax())
                tokens.append(token)
                logprobs.append(float(distribution[token]))
                step = torch.tensor([[token]])
                if token in stops or any(stop in self.tokenizer.decode(tokens) for stop in body.get("stop", [])):
                    reason = "stop"
                    break
        text = self.tokenizer.decode(tokens[:-1] if tokens[-1] in stops else tokens)
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        if body.get("logprobs") is not None:
            choice["logprobs"] = {"tokens": [self.tokenizer.decode([token]) for token in tokens], "token_logprobs": logprobs}
        if body.get("return_token_ids"):
            choice["token_ids"] = tokens
        return choice


@contextmanager
def serve(folder: Path, name: str = "tiny") -> Iterator[Served]:
    """The model of `folder` under `name`, at `Served.url`, until the block ends."""
    state, model, lock = Served(), Model(folder), threading.Lock()

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body.get("model") != name:
            return 404, {"error": {"message": f"The model `{body.get('model')}` does not exist."}}
        with lock:
            fault = state.faults.pop() if state.faults else None
            state.requests += [] if isinstance(fault, int) else [body]
        if isinstance(fault, int):
            return fault, {"error": {"message": "busy"}}
        time.sleep(fault or 0.0)
        if path.endswith("/chat/completions"):
            encoded = model.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=True)["input_ids"]
            choice = model.complete(encoded, body)
            return 200, {"choices": [{"index": 0, "finish_reason": choice["finish_reason"], "message": {"role": "assistant", "content": choice["text"]}}]}
        prompt = body["prompt"]
        return 200, {"choices": [model.complete(prompt if isinstance(prompt, list) else model.tokenizer(prompt)["input_ids"], body)]}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status, payload = answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            data = json.dumps(payload).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with serving(Handler) as address:
        state.url = f"{address}/v1"
        yield state
