"""The text of a whole answer: made, taken apart, and as tokens exactly as generation has them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import yaml
from r1mega_plugins.tasks.arithmetic import Arithmetic, ArithmeticConfig
from r1mega_plugins.tokenizers.huggingface import HuggingFace, HuggingFaceConfig
from r1mega_plugins.tokenizers.sentencepiece import SentencePiece, SentencePieceConfig

from r1mega.compose_hydra import conf_folder
from r1mega.config import TemplateConfig
from r1mega.data.chat import check_template, encode_sample, render_response, split_response
from r1mega.data.records import SampleRecord
from r1mega.errors import ConfigError
from r1mega.rollout.prompts import encode_prompt
from r1mega.types import Prompt

ANSWER, R1 = TemplateConfig().response, yaml.safe_load((conf_folder() / "template/r1.yaml").read_text())["response"]


def test_the_r1_format() -> None:
    assert render_response(R1, "so", r"It is \boxed{4}.") == "<think>\nso\n</think>\n\nIt is \\boxed{4}."


def test_without_reasoning_the_block_is_there_and_empty() -> None:
    assert render_response(R1, "", "Hello!") == "<think>\n\n</think>\n\nHello!"
    assert render_response(ANSWER, "", "Hello!") == "<think></think><answer>Hello!</answer>"


def test_a_part_that_looks_like_a_placeholder_stays() -> None:
    assert render_response(ANSWER, "{response} {reasoning}", "{reasoning}") == "<think>{response} {reasoning}</think><answer>{reasoning}</answer>"


@pytest.mark.parametrize(("text", "expected"), [
    ("<think>a</think><answer>4</answer>", ("a", "4")),
    ("<think>\na b\n</think>\n\nIt is 4.\n", ("a b", "It is 4.")),
    ("a</think>4", ("a", "4")),  # the prompt has opened the block
    ("\na\n</think>\n\n<answer> 4 </answer>\n", ("a", "4")),
    ("<think></think>Hello", ("", "Hello")),
    ("Hello", ("", "Hello")),
    ("", ("", "")),
    ("<answer>4</answer>", ("", "4")),
    ("<think>a</think><answer>4", ("a", "4")),  # cut in the answer
    ("<think>a", ("a", "")),  # cut in the reasoning
    ("<think>a</think>b<think>c", ("a</think>b<think>c", "")),  # opened again
    ("<think>a</think>b</think>c", ("a</think>b", "c")),
    ("<think>a</think>x <answer>4</answer>", ("a", "x <answer>4</answer>")),  # no format: as it is
    ("<think>a</think><answer>4</answer>.", ("a", "<answer>4</answer>.")),
    ("<think>a</think><answer>4</answer><answer>5</answer>", ("a", "<answer>4</answer><answer>5</answer>")),
    ("<think>a</think>4</answer>", ("a", "4</answer>")),
    ("so <think>a</think>4", ("so <think>a", "4")),
])
def test_split(text: str, expected: tuple[str, str]) -> None:
    assert split_response(text) == expected


def test_a_completion_that_starts_inside_the_reasoning_and_was_cut() -> None:
    assert split_response("a b", starts_in_reasoning=True) == ("a b", "")
    assert split_response("a</think>b", starts_in_reasoning=True) == ("a", "b")


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "{response}", "a", "4", " ", "\n", "🙂", r"\boxed{2}", "<", "think>"]


def texts(seed: int, count: int = 400) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices(PIECES, k=generator.randrange(9))) for _ in range(count)]


@pytest.mark.parametrize("template", [ANSWER, R1])
def test_split_undoes_render(template: str) -> None:
    """For parts without marks of their own, up to white space at their ends; a truncated text never shows what is not in it."""
    for reasoning, response in zip(texts(1), texts(2), strict=True):
        if any(mark in reasoning + response for mark in PIECES[:4]):
            continue
        text = render_response(template, reasoning, response)
        assert split_response(text) == (reasoning.strip(), response.strip())
        assert split_response(text[text.index("<think>") + 7:]) == (reasoning.strip(), response.strip())  # starts inside
        for cut in range(len("<think>"), text.index("</think>") + len("</think>")):
            assert split_response(text[:cut])[1] == "", "reasoning was shown as the response"


def test_split_never_fails_and_invents_nothing() -> None:
    for text in texts(3, 2000):
        for part in split_response(text):
            assert part == part.strip()
            assert part in text


@pytest.mark.parametrize(("template", "expected"), [
    (TemplateConfig(prompt="hello"), r"template\.prompt must contain \{question\}"),
    (TemplateConfig(response="{reasoning}"), r"\{response\} once"),
    (TemplateConfig(response="{response}{response}"), r"\{response\} once"),
    (TemplateConfig(response="{reasoning}{reasoning}{response}"), r"at most once"),
])
def test_an_impossible_template_is_refused(template: TemplateConfig, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_template(template)


@pytest.mark.parametrize("file", sorted((conf_folder() / "template").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_template_is_possible(file: Path) -> None:
    check_template(TemplateConfig(**yaml.safe_load(file.read_text())))


# ------------------------------------------------------------------------------------------------------------------------------- tokens

TEMPLATE = TemplateConfig(prompt="{question}\n", response="\n{reasoning}\n{response}")
CORPUS = [f"{question}\n{response}" for question, response in Arithmetic(ArithmeticConfig()).documents(400, seed=0)] + ["1\n\n\n2\n\n3"] * 200


@pytest.fixture(scope="module", params=["sentencepiece", "huggingface"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trained on texts in which a prompt's last line break and a response's first are one token."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "sentencepiece":
        config = SentencePieceConfig(vocab_size=300, user_defined_symbols=["\n\n", "\n"])
        SentencePiece.train(config, CORPUS, folder)
        return SentencePiece(config, folder=folder)
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    built.decoder = tokenizers.decoders.ByteLevel()  # type: ignore[assignment]
    built.train_from_iterator(CORPUS, tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<end>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    built.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    return HuggingFace(HuggingFaceConfig(), folder=folder)


def test_the_boundary_is_the_one_of_generation(tokenizer: Any) -> None:
    record = SampleRecord("7", "17+25=", "7+5=12 c1 1+2+1=4", "42")
    sequence = encode_sample(record, TEMPLATE, tokenizer)
    prompt = encode_prompt(Prompt("7", "17+25="), TEMPLATE.prompt, tokenizer).tokens
    response = sequence.tokens[len(prompt):].tolist()
    assert tuple(sequence.tokens[:len(prompt)]) == prompt, "the model would learn to continue another prompt than it is given"
    assert sequence.weights.tolist() == [0.0] * len(prompt) + [1.0] * len(response)
    assert response[-1] == tokenizer.eos_id
    assert tokenizer.eos_id not in response[:-1]
    assert tokenizer.decode(response) == "\n7+5=12 c1 1+2+1=4\n42"
    assert (sequence.id, sequence.tokens.dtype, sequence.weights.dtype) == ("7", np.int64, np.float32)
    together = tokenizer.encode("17+25=\n\n7+5=12 c1 1+2+1=4\n42")
    assert together != [*prompt, *response[:-1]], "this tokenizer merges nothing across the boundary: the test shows nothing"


def test_a_response_that_ends_itself_or_says_nothing_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="'response' is empty"):
        encode_sample(SampleRecord("1", "q", "1+1", " \n"), TEMPLATE, tokenizer)
    if isinstance(tokenizer, HuggingFace):  # in a sentencepiece text, control pieces stay text
        with pytest.raises(ValueError, match="end-of-sequence"):
            encode_sample(SampleRecord("1", "1+1=", "1<end>", "2"), TEMPLATE, tokenizer)


def test_earlier_turns_are_part_of_the_prompt_and_not_learned(tokenizer: Any) -> None:
    said = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    record = SampleRecord("1", "2+2=", "", "4", metadata={"messages": said})
    sequence = encode_sample(record, TemplateConfig(prompt="{question}\n", response="{response}", turn="{question}\n{response}\n"), tokenizer)
    learned = sequence.tokens[sequence.weights > 0].tolist()
    assert tokenizer.decode(sequence.tokens.tolist()) == "1+1=\n2\n2+2=\n4"
    assert tokenizer.decode(learned) == "4"
