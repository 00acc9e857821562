"""`r1mega chat` as a process: a Hugging Face folder and an artifact made of it say what transformers says, also in a conversation on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

from r1mega.config import ParallelConfig, PrecisionConfig
from r1mega.policy.artifact import export_artifact
from r1mega.policy.hugging_face.config_json import read_published
from r1mega.policy.hugging_face.load import load_published
from r1mega.policy.policy import Policy

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.timeout(200)
TOKENS = 40
TEMPLATE = """\
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2 whose vocabulary is larger than its tokenizer, and which all but never ends an answer by itself."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("chat") / "published"
    folder.mkdir()
    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer, built.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    built.train_from_iterator(["what is seventeen"], trainers.BpeTrainer(vocab_size=280, initial_alphabet=letters, show_progress=False))
    built.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>", "<think>", "</think>")])
    built.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}))
    torch.manual_seed(3)
    config = transformers.Qwen2Config(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                      max_position_embeddings=8192, tie_word_embeddings=False, eos_token_id=built.token_to_id("<|im_end|>"),
                                      bos_token_id=None, initializer_range=0.3)
    model = transformers.Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[built.get_vocab_size():] = 0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def artifact(published: Path) -> Path:
    """The same weights as a stage's checkpoint."""
    about, folder = read_published(published), published.parent / "run/stages/base/0123/artifacts/checkpoint"
    policy = Policy(about.architecture, vocab_size=about.vocab_size, parallel=ParallelConfig(), precision=PrecisionConfig(), seed=0)
    load_published(policy, published, about.family)

    def tokenizer(inside: Path) -> None:
        (inside / "tokenizer").mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            (inside / "tokenizer" / name).write_bytes((published / name).read_bytes())

    folder.parent.mkdir(parents=True)
    export_artifact(policy, folder, complete=tokenizer)
    return folder


def expected(published: Path, *conversation: str) -> str:
    """What transformers answers greedily: the roles are user and assistant in turn."""
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(published), transformers.AutoTokenizer.from_pretrained(published)
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(conversation)]
    prompt = tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False), add_special_tokens=False)
    made = model.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)[0, len(prompt):].tolist()
    return str(tokenizer.decode([token for token in made if token != tokenizer.eos_token_id], clean_up_tokenization_spaces=False))


def chat(folder: Path, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "r1mega", "chat", str(folder), "--temperature", "0", "--max-tokens", str(TOKENS), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, input=typed.encode(), capture_output=True, timeout=90, check=False)


@pytest.mark.parametrize("kind", ["published", "artifact"])
def test_one_question_in_a_pipe(kind: str, request: pytest.FixtureRequest, published: Path) -> None:
    done = chat(request.getfixturevalue(kind), "--prompt", "what is 17?")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == expected(published, "what is 17?") + "\n"
    assert "template: the chat template in" in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1, done.stderr.decode()


def test_a_conversation_goes_on_until_it_is_reset(published: Path, artifact: Path) -> None:
    first = expected(published, "hi")
    visible = first.rpartition("</think>")[2].strip()
    assert "<think>" not in first  # else the second question would have another history
    done = chat(artifact, typed="hi\nand?\n/reset\nhi\n/exit\nnot read\n")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == "".join(f"{text}\n" for text in (first, expected(published, "hi", visible, "and?"), first))


class Terminal:
    """A chat on a pseudo-terminal, read until a text is there."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.screen, inner = pty.openpty()
        command = [sys.executable, "-m", "r1mega", "chat", str(folder), "--temperature", "0", *arguments]
        self.process = subprocess.Popen(command, env={**ENVIRONMENT, "TERM": "xterm-256color"}, stdin=inner, stdout=inner, stderr=inner,
                                        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(inner, termios.TIOCSCTTY, 0))
        os.close(inner)
        self.seen = ""

    def read(self, pattern: str) -> str:
        """What came up to the pattern, which must come within a minute."""
        end = time.monotonic() + 60
        while not (found := re.search(pattern, self.seen, re.DOTALL)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen[-2000:]!r}"
            try:
                self.seen += os.read(self.screen, 65536).decode(errors="replace")
            except OSError as error:  # the other end is closed
                raise AssertionError(f"no {pattern!r} in {self.seen[-2000:]!r}") from error
        told, self.seen = self.seen[: found.end()], self.seen[found.end():]
        return told

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())


def test_control_c_stops_the_answer_and_not_the_program(published: Path) -> None:
    terminal = Terminal(published, "--max-tokens", "8000")
    try:
        terminal.read("Ctrl-C stops an answer.*> ")
        terminal.type("hi\r")
        terminal.read(r"hi\r\n.{20}")  # it is answering
        terminal.type("\x03")
        terminal.read("stopped; this question and its answer are not kept.*> ")
        terminal.type("\x03")
        terminal.read("ends the conversation.*> ")
        terminal.type("/exit\r")
        assert terminal.process.wait(timeout=30) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            terminal.process.kill()
        os.close(terminal.screen)


def test_reasoning_is_dim_on_a_terminal(published: Path) -> None:
    opened = TEMPLATE.replace("assistant\\n'", "assistant\\n<think>\\n'")
    (published.parent / "opened").mkdir()
    (published.parent / "opened/chat_template.jinja").write_text(opened)
    terminal = Terminal(published, f"template.path={published.parent / 'opened'}", "template.response='{reasoning}</think>{response}'", "--max-tokens", "5")
    try:
        terminal.read("Ctrl-C stops an answer.*> ")
        terminal.type("hi\r")
        assert "\x1b[2m" in terminal.read(r"hi\r\n.*cut off").replace("\x1b[2m(cut off", "")
        terminal.type("/exit\r")
        assert terminal.process.wait(timeout=30) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            terminal.process.kill()
        os.close(terminal.screen)
