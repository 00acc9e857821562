"""`r1mega chat`: one question, or a conversation on a terminal. The answer is shown as it is made, its reasoning dim."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from r1mega import plugins
from r1mega.data.chat import split_response
from r1mega.errors import UserError
from r1mega.rollout.prompts import encode_prompt
from r1mega.rollout.streaming import Part, Parts, TokenText
from r1mega.talk_checkpoint import Checkpoint, read_checkpoint
from r1mega.types import Prompt, SamplingParams

if TYPE_CHECKING:
    from r1mega.policy.speaker import Speaker

HELP = "/system TEXT sets the system message and begins anew, /reset begins anew, /exit ends; Ctrl-C stops an answer"


def main(options: argparse.Namespace) -> int:
    """The command. Raises `UserError` for what cannot be talked to, or settings that cannot be."""
    try:
        sampling = SamplingParams(max_tokens=options.max_tokens, temperature=options.temperature, top_p=options.top_p, stop=tuple(filter(None, options.stop)))
    except ValueError as error:
        raise UserError(f"--max-tokens={options.max_tokens} must be at least 1, --temperature={options.temperature} at least 0, --top-p={options.top_p} "
                        "above 0 and at most 1") from error
    checkpoint = read_checkpoint(options.checkpoint, options.overrides, plugins.load())
    status = Console(stderr=True, highlight=False)
    tell(status, f"template: {checkpoint.template_source}")
    with _quiet():
        from r1mega.policy.speaker import Speaker

        talk = Talk(checkpoint, Speaker(checkpoint), sampling, options.seed, Console(highlight=False), status)
        return _ask_once(talk, options.prompt) if options.prompt is not None else _converse(talk)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings, which would stand in the middle of the conversation."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def tell(console: Console, text: str) -> None:
    """A line of ours, apart from what the model says."""
    console.print(Text(text, style="dim"), soft_wrap=True)


def _ask_once(talk: Talk, question: str) -> int:
    try:
        talk.ask(question)
        print(flush=True)
    except BrokenPipeError:  # whoever read has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _converse(talk: Talk) -> int:
    """Questions from the terminal, or line by line from standard input, until they end."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  lines can be edited, and come back with the arrow keys
        tell(talk.status, HELP)
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            tell(talk.status, "\n/exit or Ctrl-D ends the conversation")
            continue
        command, _, rest = line.partition(" ")
        if command == "/exit":
            return 0
        if command in ("/reset", "/system"):
            talk.begin(rest.strip() if command == "/system" else talk.system)
            tell(talk.status, f"a new conversation, system message: {talk.system or 'none'}")
        elif command.startswith("/"):
            tell(talk.status, f"there is no command {command}: {HELP}")
        elif line:
            _answer(talk, line)


def _answer(talk: Talk, question: str) -> None:
    try:
        reason = talk.ask(question)
        print(flush=True)
        if reason == "length":
            tell(talk.status, "(cut off: --max-tokens, or the end of the model's context)")
    except KeyboardInterrupt:
        tell(talk.status, "\n(stopped; this question and its answer are not kept)")
    except UserError as error:
        tell(talk.status, f"{error}")


@dataclass
class Talk:
    """A conversation with a checkpoint."""

    checkpoint: Checkpoint
    speaker: Speaker
    sampling: SamplingParams
    seed: int | None  # None: other answers every time
    screen: Console
    status: Console
    system: str = ""
    _turns: list[dict[str, str]] = field(default_factory=list)

    def begin(self, system: str) -> None:
        """Forget what was said."""
        self.system = system
        self._turns.clear()

    def ask(self, question: str) -> str:
        """Show the answer as it comes, keep the exchange, and return why the answer ended. Raises `UserError` where the conversation has no room left."""
        checkpoint, template = self.checkpoint, self.checkpoint.template
        told = [{"role": "system", "content": self.system}] if self.system else []
        prompt = Prompt("chat", question, metadata={"messages": [*told, *self._turns]})
        encoded = encode_prompt(prompt, template.prompt, checkpoint.tokenizer, template.turn, template.system)
        room = checkpoint.architecture.max_position_embeddings - len(encoded.tokens)
        if room < 1:
            raise UserError(f"the conversation has {len(encoded.tokens)} tokens and the model's context {checkpoint.architecture.max_position_embeddings}: "
                            "no room for an answer; ask something shorter, or begin anew with /reset")
        sampling = SamplingParams(max_tokens=min(self.sampling.max_tokens, room), temperature=self.sampling.temperature, top_p=self.sampling.top_p,
                                  stop=self.sampling.stop, stop_token_ids=checkpoint.stop_token_ids)
        text, parts = TokenText(checkpoint.tokenizer.decode), Parts(starts_in_reasoning=encoded.text.rstrip().endswith("<think>"), stop=sampling.stop)
        said = list[Part]()

        def show(found: list[Part]) -> None:
            for part in found:
                said.append(part)
                self._show(part)

        def on_token(token: int) -> None:
            if token not in sampling.stop_token_ids:
                show(parts.push(text.push(token)))

        seed = random.getrandbits(64) if self.seed is None else self.seed
        completion = self.speaker.answer(encoded.tokens, sampling, seed, on_token)
        show(parts.push(text.rest()) + parts.rest())
        visible = split_response("".join(piece for _, piece in said), starts_in_reasoning=encoded.text.rstrip().endswith("<think>"))[1]
        self._turns += [{"role": "user", "content": question}, {"role": "assistant", "content": visible}]
        return completion.finish_reason

    def _show(self, part: Part) -> None:
        kind, text = part
        if not self.screen.is_terminal:
            sys.stdout.write(text)  # to the letter
            sys.stdout.flush()
            return
        safe = "".join(character if character in "\n\t" or character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
        self.screen.print(Text(safe, style="dim" if kind == "reasoning" else ""), end="", soft_wrap=True)

