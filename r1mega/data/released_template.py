"""The conversation format of a released model: its Jinja chat template as the strings of a `TemplateConfig`, proven to say the same.

The strings put texts as they are. Where a template trims the white space around them (Llama 3), a text that has none is meant; of earlier answers the
visible part alone is meant, which `rollout.prompts` takes out of them, as the templates of the reasoning models do themselves.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from r1mega.errors import ConfigError, DataError
from r1mega.recipe import files
from r1mega.rollout.prompts import render_prompt
from r1mega.types import Prompt

JINJA, CONFIG, LEGACY = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"
FILES = (JINJA, CONFIG, LEGACY)  # where releases keep the template; the first that has one decides, as in transformers
_PLACES = ("{question}", "{response}", "{system}")
_OPENING = re.compile(r"<think>\s*\Z")
_REMEDY = "Use a template of your own (conf/template shows what one says)"
Message = Mapping[str, str]


@dataclass(frozen=True)
class Source:
    """A chat template and what it is rendered with."""

    file: Path  # the one that holds the template
    text: str
    tokens: tuple[tuple[str, str], ...]  # bos_token, eos_token and the like


@dataclass(frozen=True)
class Conversation:
    """`TemplateConfig.prompt`, `turn` and `system` that say what a chat template says."""

    prompt: str
    turn: str
    system: str


def read_source(path: Path) -> Source:
    """The chat template of a folder of released files, or of one of these files. Raises `DataError` where there is none, or it cannot be read."""
    folder, names = (path, FILES) if path.is_dir() else (path.parent, (path.name,))
    if not path.exists() or (path.is_file() and path.name not in FILES):
        raise DataError(f"{path} is neither a folder with a chat template nor one of {', '.join(FILES)}")
    for name in names:
        text = _template_in(folder / name)
        if text:
            return Source(folder / name, text, tuple(sorted(_special_tokens(folder).items())))
    raise DataError(f"{path}: no chat template: looked for {JINJA} and for the key chat_template in {CONFIG} and {LEGACY}. A base model's tokenizer "
                    "often has none; its instruction-tuned sister has one")


def has_template(folder: Path) -> bool:
    """Whether the folder has a chat template. Raises `DataError` for a file that cannot be read."""
    return any(_template_in(folder / name) for name in FILES)


def conversation_of(source: Source, *, keep_opening: bool = False) -> Conversation:
    """The strings that say exactly what the template says, for a user and an assistant in turn after at most one system message.

    Where the template opens the reasoning for the model (`<think>` at the end of the prompt), `keep_opening` leaves the opening in the prompt. Else it
    goes: the model opens the block, as R1 was trained to.

    Raises `ConfigError` for a template that strings cannot express, saying what differs.
    """
    return _conversation(source, keep_opening)


@functools.lru_cache(maxsize=64)
def _conversation(source: Source, keep_opening: bool) -> Conversation:
    render = _Template(source)
    found, opening = _derive(render, keep_opening)
    _prove(render, found, opening)
    return found


# ------------------------------------------------------------------------------------------------------------------------------- the files


def _template_in(file: Path) -> str:
    if not file.is_file():
        return ""
    if file.name == JINJA:
        return file.read_text(encoding="utf-8")
    stated = files.read_object(file).get("chat_template")
    if isinstance(stated, list):  # several, by name: for tools, for retrieval, and the one for conversations
        named = {entry.get("name"): entry.get("template") for entry in stated if isinstance(entry, dict)}
        if "default" not in named:
            raise DataError(f"{file}: chat_template is a list without an entry named 'default'; it has {', '.join(map(str, named)) or 'none'}")
        stated = named["default"]
    if stated is not None and not isinstance(stated, str):
        raise DataError(f"{file}: chat_template must be a text or a list of {{name, template}}, got {type(stated).__name__}")
    return stated or ""


def _special_tokens(folder: Path) -> dict[str, str]:
    """The texts that templates know as bos_token, eos_token, ...; tokenizer_config.json goes before special_tokens_map.json."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", CONFIG):
        for key, value in (files.read_object(folder / name).items() if (folder / name).is_file() else ()):
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


# --------------------------------------------------------------------------------------------------------------------------- the rendering


class _Template:
    """Renders messages as transformers' `apply_chat_template` does, and refuses what a conversation must not depend on."""

    def __init__(self, source: Source) -> None:
        import jinja2

        from r1mega.data.jinja import environment

        self.source = source
        try:
            self._template = environment(self._today).from_string(source.text)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"{source.file}: the chat template is no valid Jinja: {error.message} (its line {error.lineno})") from error

    def refuse(self, what: str) -> NoReturn:
        raise ConfigError(f"{self.source.file}: this chat template cannot be written as template.prompt, turn and system: {what}. {_REMEDY}")

    def _today(self, _: str) -> str:
        self.refuse("it writes today's date (strftime_now), so the same question would be another text tomorrow")

    def __call__(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """`answer`: the text ends where the assistant's answer begins."""
        import jinja2

        try:
            return self._template.render(messages=messages, add_generation_prompt=answer, tools=None, documents=None, **dict(self.source.tokens))
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            shown = ", ".join(message["role"] for message in messages)
            self.refuse(f"it fails on a conversation of {shown}: {type(error).__name__}: {error}")


# -------------------------------------------------------------------------------------------------------------------------- the derivation


def _derive(render: _Template, keep_opening: bool) -> tuple[Conversation, str]:
    """The strings, and the opening of the reasoning that was taken from the prompt's end."""
    first, second = {"role": "user", "content": "first-question"}, {"role": "user", "content": "second-question"}
    reply, system = {"role": "assistant", "content": "first-reply"}, {"role": "system", "content": "system-text"}
    begin, end = _pieces(render, [first])
    earlier, middle, between, _ = _pieces(render, [first, reply, second])
    begin_told, after_system, _ = _pieces(render, [system, first])
    closing = _pieces(render, [first, reply], answer=False)[-1]
    if earlier != begin:
        render.refuse(f"a conversation with earlier turns begins with {earlier!r}, one without with {begin!r}")
    next_turn = between.removeprefix(closing)  # what ends an answer belongs to its turn, what opens a question to the next
    shared = min(_shared(begin[::-1], next_turn[::-1]), _shared(begin[::-1], after_system[::-1]))
    head = begin[len(begin) - shared:]
    tail = between[: len(between) - len(head)]
    if "</think>" in end and not keep_opening:
        render.refuse(f"it has {end!r} before every answer, which tells the model not to reason; that goes with template.response='{{response}}'")
    opened = None if keep_opening else _OPENING.search(end)
    opening = opened[0] if opened else ""
    found = Conversation(prompt=f"{begin}{{question}}{end.removesuffix(opening)}", turn=f"{head}{{question}}{middle}{{response}}{tail}",
                         system=f"{begin_told}{{system}}{after_system[: len(after_system) - len(head)]}")
    for text, places in ((found.prompt, ("{question}",)), (found.turn, ("{question}", "{response}")), (found.system, ("{system}",))):
        for place in _PLACES:
            if text.count(place) != (place in places):
                render.refuse(f"it writes {place} itself")
    return found, opening


def _pieces(render: _Template, messages: Sequence[Message], *, answer: bool = True) -> list[str]:
    """What the template writes before, between and after the messages' texts."""
    rest, pieces = render(messages, answer=answer), list[str]()
    for message in messages:
        if rest.count(message["content"]) != 1:
            what = "leaves out" if message["content"] not in rest else "writes more than once"
            render.refuse(f"it {what} the {message['role']}'s text, or changes it or the order of texts")
        before, _, rest = rest.partition(message["content"])
        pieces.append(before)
    return [*pieces, rest]


def _shared(one: str, other: str) -> int:
    """How many characters the two begin with alike."""
    return next((place for place, (ours, theirs) in enumerate(zip(one, other, strict=False)) if ours != theirs), min(len(one), len(other)))


# ------------------------------------------------------------------------------------------------------------------------------- the proof

_WORDS = ("one", "Two", "3.50", "数学", "🙂", "{question}", "{response}", "{system}", "{{ x }}", "{% if %}", "<b>", "&amp;", "'", '"', "\\n", "%s", "#")
_GAPS = (" ", "  ", "\n", "\n\n", "\t", "")


def _text(draw: random.Random) -> str:
    """Something to say, with what a template might change; no white space around it."""
    words = draw.choices(_WORDS, k=draw.randint(1, 8))
    return "a" + "".join(draw.choice(_GAPS) + word for word in words) + "z"


def _prove(render: _Template, found: Conversation, opening: str) -> None:
    """Compare on random conversations of 0 to 3 earlier turns, with and without a system message."""
    draw = random.Random(0)
    for turns, told in ((turns, told) for turns in range(4) for told in (False, True) for _ in range(3)):
        earlier = [{"role": "system", "content": _text(draw)}] if told else []
        for _ in range(turns):
            earlier += [{"role": "user", "content": _text(draw)}, {"role": "assistant", "content": _text(draw)}]
        question = _text(draw)
        theirs = render([*earlier, {"role": "user", "content": question}])
        asked = Prompt("", question, metadata={"messages": earlier})
        ours = render_prompt(asked, found.prompt, found.turn, found.system) + opening
        if ours != theirs:
            place = _shared(ours, theirs)
            cut = slice(max(0, place - 20), place + 30)
            where = f"{turns} earlier turn{'s' * (turns != 1)}" + (" and a system message" if told else "")
            render.refuse(f"in a conversation with {where} it writes {theirs[cut]!r} where that of one turn makes it {ours[cut]!r}")
