"""Exported tokenizers and chat templates against transformers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from r1mega_plugins.tokenizers.sentencepiece import SentencePiece, SentencePieceConfig

from r1mega.config import TemplateConfig
from r1mega.policy.hugging_face.chat_template import chat_template
from r1mega.policy.hugging_face.tokenizer import write_tokenizer
from r1mega.rollout.prompts import render_prompt
from r1mega.types import Prompt

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]
WORDS = ["the", "quick", "brown", "fox", "12", "345", "add", "reverse", "letters", "abc", "aab", "aba",
         "数字", "加", "等于", "多少", "你好", "世界", "答案", "是"]


def made(folder: Path, **settings: Any) -> tuple[SentencePiece, Path, str]:
    """A tokenizer trained on English and Chinese, the folder of its export, and what that lacks."""
    draw = random.Random(1)
    documents = [f"{' '.join(draw.choices(WORDS, k=20))}\n<think>{''.join(draw.choices('ab数字 ', k=30))}</think>" for _ in range(300)]
    config = SentencePieceConfig(**settings)
    SentencePiece.train(config, documents, folder)
    tokenizer = SentencePiece(config, folder=folder)
    out = folder / "out"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "deepseek_v3"}')
    return tokenizer, out, write_tokenizer(folder, tokenizer, TemplateConfig(prompt="{question}\n"), out)


@pytest.mark.parametrize("settings", [{}, {"byte_fallback": True, "vocab_size": 700}, {"model_type": "char"}], ids=["bpe", "bytes", "char"])
def test_a_converted_tokenizer_encodes_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    ours, folder, lacks = made(tmp_path, **settings)
    assert lacks == ""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert (theirs.eos_token_id, len(theirs)) == (ours.eos_id, ours.vocab_size)
    draw = random.Random(2)
    known, unknown = [*WORDS, " ", "\n", "<think>", "</think>", "<answer>", "</answer>", "ab", "aa", "b"], ["é", "猫", "🙂", "Ж", "\t"]
    for _ in range(500):
        text = "".join(draw.choices(known + unknown, k=draw.randint(1, 30)))
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text), text
    for _ in range(100):
        text = "".join(draw.choices(known, k=draw.randint(1, 30)))
        assert theirs.decode([*ours.encode(text), ours.eos_id], skip_special_tokens=True) == text


def test_what_cannot_be_exact_is_shipped_as_it_is_and_told(tmp_path: Path) -> None:
    _, folder, lacks = made(tmp_path, model_type="unigram", vocab_size=120)
    assert "its model type is UNIGRAM" in lacks
    assert (folder / "tokenizer.model").read_bytes() == (tmp_path / "tokenizer.model").read_bytes()
    assert not (folder / "tokenizer.json").exists()


def templates() -> Mapping[str, TemplateConfig]:
    found = {path.stem: TemplateConfig(**yaml.safe_load(path.read_text())) for path in sorted((ROOT / "conf" / "template").glob("*.yaml"))
             if path.stem != "released"}
    return found | {"odd": TemplateConfig(prompt='S: {{x}} "q" \\ {% raw %} {question} and {question}?\n', turn="U {question}|{response} {question}\n"),
                    "system": TemplateConfig(prompt="<B>You help.<U>{question}<A>", turn="<U>{question}<A>{response}<E>", system='<B>{system}"<S>')}


@pytest.mark.parametrize("name", templates())
def test_the_chat_template_renders_conversations_as_the_recipe_does(name: str) -> None:
    template = templates()[name]
    jinja = chat_template(template)
    turns = [{"role": "user", "content": "一加一? {response} 🙂"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\n二 {question} "},
             {"role": "user", "content": "and\n{{ 2 }}?"}, {"role": "assistant", "content": "3"}]
    system = {"role": "system", "content": "Be 'brief'."}
    for earlier in ([], turns[:2], turns, [system], [system, *turns]):
        asked = {"role": "user", "content": "7*8 {question}"}
        (theirs,), _ = transformers.utils.chat_template_utils.render_jinja_template([[*earlier, asked]], chat_template=jinja, add_generation_prompt=True)
        assert theirs == render_prompt(Prompt("0", asked["content"], metadata={"messages": earlier}), template.prompt, template.turn,
                                       template.system)
    (whole,), _ = transformers.utils.chat_template_utils.render_jinja_template([turns[:2]], chat_template=jinja)
    assert "hm" not in whole
    assert "二" in whole
    with pytest.raises(Exception, match="user and assistant in turn"):
        transformers.utils.chat_template_utils.render_jinja_template([[turns[1]]], chat_template=jinja)
