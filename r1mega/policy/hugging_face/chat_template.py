"""A recipe's conversation format as a Jinja chat template, which transformers and serving engines apply."""

from __future__ import annotations

import json
import re

from r1mega.config import TemplateConfig

_PLACES = re.compile(r"(\{question\}|\{response\}|\{system\})")
_ORDER = "messages must be user and assistant in turn, after at most one system message"


def chat_template(template: TemplateConfig) -> str:
    """The template that renders a conversation as `rollout.prompts.render_prompt` does.

    A last message of the user is put as the question, its end (`<｜Assistant｜>` and the like) only with `add_generation_prompt`. An earlier exchange, or
    one that ends the conversation, is written as a turn: the assistant's text without its reasoning.
    """
    prompt, turn = template.prompt, template.turn or template.prompt + "{response}\n\n"
    head, before = turn.partition("{question}")[0], prompt.partition("{question}")[0]
    place = len(before) - len(head) if before.endswith(head) else 0
    asked, mark, opening_of_answer = prompt[place:].rpartition("{question}")
    question = {"{question}": "message['content']"}
    exchange = {"{question}": "turns[loop.index0 - 1]['content']", "{response}": "(message['content'].split('</think>') | last | trim)"}
    return "".join((
        "{%- set system = messages and messages[0]['role'] == 'system' -%}",
        "{%- set turns = messages[1:] if system else messages -%}",
        *_opening(prompt[:place], template.system),
        "{%- for message in turns -%}",
        "{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}",
        "{{- raise_exception(", _quoted(_ORDER), ") -}}{%- endif -%}",
        "{%- if message['role'] == 'assistant' -%}", _filled(turn, exchange),
        "{%- elif loop.last -%}", _filled(asked + mark, question),
        "{%- if add_generation_prompt -%}", _literal(opening_of_answer), "{%- endif -%}",
        "{%- endif -%}",
        "{%- endfor -%}"))


def _opening(introduction: str, system: str) -> tuple[str, ...]:
    """What stands before the first exchange, with a system message and without."""
    told = "messages[0]['content']"
    if not system:
        return _literal(introduction), f"{{%- if system -%}}{{{{- {told} + \"\\n\\n\" -}}}}{{%- endif -%}}"
    return "{%- if system -%}", _filled(system, {"{system}": told}), "{%- else -%}", _literal(introduction), "{%- endif -%}"


def _filled(text: str, values: dict[str, str]) -> str:
    """The text with each placeholder as a Jinja expression."""
    return "".join(f"{{{{- {values[piece]} -}}}}" if piece in values else _literal(piece) for piece in _PLACES.split(text))


def _literal(text: str) -> str:
    return f"{{{{- {_quoted(text)} -}}}}" if text else ""


def _quoted(text: str) -> str:
    """A Jinja string; its escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)
