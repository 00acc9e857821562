"""What both sides of grpo_step.py share: the model's shape and weights, the tokenizer, the prompts, and how a child process talks to its parent."""

from __future__ import annotations

import json
import math
import os
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPTS, GROUP = 16, 16
MEAN_LENGTH = 48  # completion tokens
CAP = {"fixed": 48, "natural": 256}
CHARACTERS = (string.digits + string.ascii_letters)[:62]  # with <pad> and <eos> the vocabulary is 64
LEARNING_RATE = 1e-6
MAX_POSITIONS = 512
CONSTANT = 0  # the hidden coordinate that every embedding row holds at the same value
NEVER = -25.0  # a logit
PROBE = tuple(range(2, 34))  # tokens whose log-probs both sides must agree on


def prompts() -> list[str]:
    """16 different prompts of 8 to 12 characters."""
    return ["".join(CHARACTERS[(7 * i + 5 * k * (i + 1)) % len(CHARACTERS)] for k in range(8 + i % 5)) for i in range(PROMPTS)]


def serve(report: dict[str, Any], step: Callable[[], dict[str, Any]]) -> None:
    """Say `report`, then make one step for every line of input and say what it gave, until the input ends."""
    say(report)
    for _ in sys.stdin:
        say(step())


def say(message: dict[str, Any]) -> None:
    """One line to the parent, through the descriptor that libraries do not print to."""
    os.write(int(os.environ["GRPO_BENCH_REPLY"]), (json.dumps(message) + "\n").encode())


def prepare(folder: Path) -> None:
    """Write tokenizer.json and one Hugging Face model per mode to `folder`; the modes' weights differ in the end-of-sequence row of the head.

    A Qwen3 head has no bias. Instead one coordinate of all embedding rows holds the same value, so the final hidden state always has much
    of it, and the end-of-sequence row of the head reads that coordinate alone: a constant logit, set so that a completion ends after 48
    tokens on average (natural), or never (fixed).
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    _write_tokenizer(folder)
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                         head_dim=32, max_position_embeddings=MAX_POSITIONS, rms_norm_eps=1e-6, tie_word_embeddings=False, attention_dropout=0.0,
                         bos_token_id=None, eos_token_id=1, pad_token_id=0)
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, CONSTANT] = 0.2
        model.lm_head.weight[:, CONSTANT] = 0.0
        model.lm_head.weight[:2] = 0.0
        hidden = model.model(torch.randint(2, 64, (32, 64))).last_hidden_state.flatten(0, 1)
        constant = hidden[:, CONSTANT].mean().item()
        model.lm_head.weight[0, CONSTANT] = NEVER / constant  # padding is never drawn
        others = (hidden @ model.lm_head.weight[2:].T).logsumexp(-1)
        chance = 1 / MEAN_LENGTH
        for mode, logit in {"natural": others.mean().item() + math.log(chance / (1 - chance)), "fixed": NEVER}.items():
            model.lm_head.weight[1, CONSTANT] = logit / constant
            model.save_pretrained(folder / mode)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<pad>", "<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
