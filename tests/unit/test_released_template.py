"""Conversation formats read from chat templates, against transformers' `apply_chat_template` on the same folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from r1mega_plugins.tokenizers.huggingface import HuggingFace, HuggingFaceConfig

from r1mega import compose, plugins
from r1mega.config import TemplateConfig
from r1mega.data.chat import check_end
from r1mega.data.released_template import JINJA, LEGACY
from r1mega.errors import ConfigError, DataError
from r1mega.policy.hugging_face.tokenizer import write_tokenizer
from r1mega.recipe.fingerprint import external_files, semantic
from r1mega.rollout.prompts import render_prompt
from r1mega.types import Prompt

transformers = pytest.importorskip("transformers")
R1 = "<think>\n{reasoning}\n</think>\n\n{response}"
SPECIAL = ["<bos>", "<eos>", "<|U|>", "<|A|>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>", "<think>", "</think>"]

# In the manner of the families, each with what makes it different from the others; the begin mark comes from tokenizer_config.json.
CHATML = """\
{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}
{%- for message in messages if message.role in ('user', 'assistant') %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
# earlier answers lose their reasoning, the last message of the assistant gets an empty one; `generation` marks what is learned from
HYBRID = """\
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' ~ messages[0].content ~ '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<|im_start|>user\\n' ~ message.content ~ '<|im_end|>\\n' }}{%- endif %}
    {%- if message.role == 'assistant' %}
        {%- set said = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{- ('<think>\\n\\n</think>\\n\\n' if loop.last else '') ~ said ~ '<|im_end|>\\n' }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
SENTENCE = """\
{%- set found = namespace(system='') -%}
{%- for message in messages %}{%- if message['role'] == 'system' %}{%- set found.system = message['content'] %}{%- endif %}{%- endfor -%}
{{ bos_token }}{{ found.system }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{ '<|U|>' + message['content'] }}{%- endif %}
    {%- if message['role'] == 'assistant' %}{{ '<|A|>' + message['content'].split('</think>')[-1] + eos_token }}{%- endif %}
{%- endfor -%}
{% if add_generation_prompt %}{{ '<|A|>' }}{% endif %}
"""
OPENED = SENTENCE.replace("{{ '<|A|>' }}", "{{ '<|A|><think>\\n' }}")
HEADERS = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{%- set told = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set told = '' %}{%- endif %}
{{- '<|head|>system<|/head|>\\n\\nToday Date: 26 Jul 2024\\n\\n' + told + '<|eot|>' }}
{%- for message in messages %}{{- '<|head|>' + message['role'] + '<|/head|>\\n\\n' + message['content'] | trim + '<|eot|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>\\n\\n' }}{%- endif %}
"""
FAMILIES = {"chatml": (CHATML, "<|im_end|>"), "hybrid": (HYBRID, "<|im_end|>"), "sentence": (SENTENCE, "<eos>"), "opened": (OPENED, "<eos>"),
            "headers": (HEADERS, "<|eot|>")}
TURNS = [{"role": "user", "content": "一加一? {response}"}, {"role": "assistant", "content": "<b>二</b> {question}"},
         {"role": "user", "content": "and\n{{ 2 }}?"}, {"role": "assistant", "content": "3  \n\n4"}]
SYSTEM = {"role": "system", "content": "Be 'brief'."}


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE; the marks are added tokens, outside of the base vocabulary."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer, built.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    built.train_from_iterator(["what is seventeen and twenty five"], trainer)
    built.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in SPECIAL])
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    built.save(str(file))
    return file


def release(folder: Path, tokenizer_file: Path, template: Any, eos: str = "<eos>", *, where: str = "config") -> Path:
    """The tokenizer files of a release, its chat template in one of the places where releases have it."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": {"content": "<bos>", "__type": "AddedToken"}, "eos_token": eos,
              "unk_token": None}
    stated = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": template}] if where == "list" else template
    (folder / "tokenizer_config.json").write_text(json.dumps(config | ({"chat_template": stated} if where in ("config", "list") else {})))
    if where == "jinja":
        (folder / JINJA).write_text(template)
    if where == "legacy":
        (folder / LEGACY).write_text(json.dumps({"chat_template": template}))
    return folder


def said_by(theirs: Any, messages: list[dict[str, str]]) -> str:
    return str(theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_strings_say_what_transformers_says(family: str, tokenizer_file: Path, tmp_path: Path) -> None:
    folder = release(tmp_path / family, tokenizer_file, *FAMILIES[family])
    template, theirs = TemplateConfig(path=str(folder), response=R1), transformers.AutoTokenizer.from_pretrained(folder)
    opened = "<think>\n" if family == "opened" else ""
    for earlier in ([], TURNS[:2], TURNS, [SYSTEM], [SYSTEM, *TURNS]):
        asked = "7*8 {question}"
        ours = render_prompt(Prompt("0", asked, metadata={"messages": earlier}), template.prompt, template.turn, template.system)
        assert ours + opened == said_by(theirs, [*earlier, {"role": "user", "content": asked}])
    ours_tokens = HuggingFace(HuggingFaceConfig(), folder=folder)
    check_end(template, ours_tokens)
    assert ours_tokens.encode(template.prompt) == theirs.encode(template.prompt, add_special_tokens=False)


def test_the_opening_of_the_reasoning_goes_to_whoever_the_response_says(tokenizer_file: Path, tmp_path: Path) -> None:
    folder = str(release(tmp_path / "opened", tokenizer_file, OPENED))
    assert TemplateConfig(path=folder, response=R1).prompt == "<bos><|U|>{question}<|A|>"
    kept = TemplateConfig(path=folder, response="{reasoning}\n</think>\n\n{response}")
    assert kept.prompt == "<bos><|U|>{question}<|A|><think>\n"
    assert kept.turn == "<|U|>{question}<|A|>{response}<eos>"


RELEASED = ("qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3", "llama3_1", "deepseekv3", "deepseek_r1_distill")


@pytest.mark.parametrize("name", RELEASED)
def test_released_templates_are_read(name: str, tokenizer_file: Path, tmp_path: Path) -> None:
    found = importlib.util.find_spec("trl")
    file = Path(found.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja" if found and found.submodule_search_locations else None
    if file is None or not file.is_file():
        pytest.skip("trl, which has copies of the released templates, is not installed or has them no longer")
    folder = release(tmp_path / name, tokenizer_file, file.read_text(), where="jinja")
    template, theirs = TemplateConfig(path=str(folder)), transformers.AutoTokenizer.from_pretrained(folder)
    for earlier in ([], [SYSTEM, *TURNS]):
        ours = render_prompt(Prompt("0", "so?", metadata={"messages": earlier}), template.prompt, template.turn, template.system)
        assert said_by(theirs, [*earlier, {"role": "user", "content": "so?"}]).removesuffix("<think>\n") == ours


@pytest.mark.parametrize("where", ["config", "list", "jinja", "legacy"])
def test_the_template_is_found_where_releases_have_it(where: str, tokenizer_file: Path, tmp_path: Path) -> None:
    folder = release(tmp_path / where, tokenizer_file, SENTENCE, where=where)
    template = TemplateConfig(path=str(folder))
    assert template.prompt == "<bos><|U|>{question}<|A|>"
    assert Path(template.path).name == {"jinja": JINJA, "legacy": LEGACY}.get(where, "tokenizer_config.json")
    assert TemplateConfig(**vars(template)) == template  # as a rank builds it from config.yaml


@pytest.mark.parametrize(("template", "message"), [
    (CHATML.replace("message.content", "message.content | upper"), "leaves out the user's text, or changes it"),
    (CHATML.replace("message.content", "message.content | replace('\\n\\n', '\\n')"), "in a conversation with 0 earlier turns.* it writes .* where"),
    (CHATML.replace("'<|im_end|>' + '\\n'", "'<|im_end|>' + '\\n' * loop.index"), "in a conversation with 1 earlier turn it writes"),
    (CHATML.replace("You are a helpful assistant.", "It is ' + strftime_now('%d %b %Y') + '."), "writes today's date"),
    (CHATML.replace("You are a helpful assistant.", "Ask {question}"), r"writes \{question\} itself"),
    (SENTENCE.replace("'<|A|>' }}", "'<|A|><think>\\n\\n</think>\\n\\n' }}"), "tells the model not to reason"),
    ("{%- if messages[0].role == 'system' %}{{ raise_exception('no system') }}{%- endif %}" + HYBRID, "fails on a conversation of system, user.*no system"),
    ("{% for %}", "no valid Jinja"),
    ("{{ messages.__class__.__mro__ }}", "fails on a conversation of user: SecurityError"),
])
def test_what_strings_cannot_say_is_refused_with_what_differs(template: str, message: str, tmp_path: Path) -> None:
    (tmp_path / JINJA).write_text(template)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<bos>", "eos_token": "<eos>"}')
    with pytest.raises(ConfigError, match=message):
        TemplateConfig(path=str(tmp_path), response=R1)


@pytest.mark.parametrize(("files", "message"), [
    ({}, "no chat template: looked for"),
    ({"tokenizer_config.json": "{"}, r"tokenizer_config\.json: not valid JSON"),
    ({"tokenizer_config.json": '{"chat_template": [{"name": "rag", "template": ""}]}'}, "without an entry named 'default'; it has rag"),
    ({"tokenizer_config.json": '{"chat_template": 3}'}, "must be a text or a list"),
])
def test_a_folder_without_a_template_is_named(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        TemplateConfig(path=str(tmp_path))
    with pytest.raises(DataError, match="is neither a folder with a chat template nor"):
        TemplateConfig(path=str(tmp_path / "absent"))


def test_an_answer_must_end_with_the_tokenizers_end(tokenizer_file: Path, tmp_path: Path) -> None:
    folder = release(tmp_path / "base", tokenizer_file, CHATML, eos="<eos>")
    template = TemplateConfig(path=str(folder))
    with pytest.raises(ConfigError, match=r"puts '<\|im_end\|>\\n' after an answer.*set tokenizer.eos_token='<\|im_end\|>'"):
        check_end(template, HuggingFace(HuggingFaceConfig(), folder=folder))
    check_end(template, HuggingFace(HuggingFaceConfig(eos_token="<|im_end|>"), folder=folder))


def test_a_recipe_takes_it_and_its_fingerprint_covers_it(tokenizer_file: Path, tmp_path: Path) -> None:
    folder = release(tmp_path / "chatml", tokenizer_file, CHATML, "<|im_end|>", where="jinja")
    host, asked = plugins.load(), ["recipe=r1_zero_tiny", "template=released"]
    tree = compose.compose_recipe([*asked, f"template.path={folder}"], host).nodes["zero"].tree
    assert semantic(tree)["template.prompt"].endswith("You are a helpful assistant.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    assert semantic(tree)["template.response"] == R1
    assert external_files(tree)["template.path"] == folder / JINJA
    with pytest.raises(ConfigError, match=r"stages\.base: template\.prompt: 'Q: \{question\}' is not what the chat template in .* says"):
        compose.compose_recipe([*asked, f"template.path={folder}", "template.prompt='Q: {question}'"], host)
    (folder / JINJA).write_text(CHATML.replace("helpful", "terse"))
    with pytest.raises(ConfigError, match=r"template\.prompt: .* is not what the chat template"):  # a rank, after the file has changed
        compose.config_from_tree(host, "rl", tree)


@pytest.mark.parametrize("where", ["jinja", "list", "config"])
def test_export_puts_the_releases_own_template_back(where: str, tokenizer_file: Path, tmp_path: Path) -> None:
    source = release(tmp_path / "source", tokenizer_file, OPENED, where=where)
    template, tokenizer = TemplateConfig(path=str(source), response=R1), HuggingFace(HuggingFaceConfig(), folder=source)
    tokenizer.save(tmp_path / "artifact")  # what a stage hands on
    (tmp_path / "out").mkdir()
    assert write_tokenizer(tmp_path / "artifact", tokenizer, template, tmp_path / "out") == ""
    assert (tmp_path / "out" / JINJA).exists() == (where == "jinja")
    if where == "jinja":
        assert (tmp_path / "out" / JINJA).read_bytes() == (source / JINJA).read_bytes() == (tmp_path / "artifact" / JINJA).read_bytes()
    stated = [json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template") for folder in (source, tmp_path / "out")]
    assert stated[0] == stated[1]


def test_export_of_another_conversation_does_not_keep_the_releases_template(tokenizer_file: Path, tmp_path: Path) -> None:
    source = release(tmp_path / "source", tokenizer_file, CHATML, "<|im_end|>", where="jinja")
    (tmp_path / "out").mkdir()
    own = TemplateConfig(prompt="<bos>{question}<|A|>", turn="{question}<|A|>{response}<|im_end|>", response=R1)
    assert write_tokenizer(source, HuggingFace(HuggingFaceConfig(), folder=source), own, tmp_path / "out") == ""
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert said_by(theirs, [{"role": "user", "content": "so?"}]) == "<bos>so?<|A|>"
