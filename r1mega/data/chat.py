"""The text of a whole answer, made and taken apart, and a sample as tokens to train on. Pure functions.

    render_response   reasoning + response -> text         (SFT, cold-start data)
    split_response    text -> reasoning, visible response  (rewards, sampling, reports)
    encode_sample     SampleRecord -> TrainSequence        (SFT, distillation)
"""

from __future__ import annotations

import re

import numpy as np

from r1mega.config import TemplateConfig
from r1mega.data.records import SampleRecord
from r1mega.errors import ConfigError
from r1mega.hookspecs import Tokenizer
from r1mega.rollout.prompts import encode_prompt
from r1mega.types import Prompt, TrainSequence

_PLACES = re.compile(r"\{(reasoning|response)\}")


def check_template(template: TemplateConfig) -> None:
    """Raise `ConfigError` for a template whose prompt does not ask the question, or whose response leaves out the answer or says a part twice.

    An empty prompt is that of a released template whose path has not been given yet (`recipe.required`)."""
    if template.prompt and "{question}" not in template.prompt:
        raise ConfigError("template.prompt must contain {question}")
    places = _PLACES.findall(template.response)
    if places.count("response") != 1 or places.count("reasoning") > 1:
        raise ConfigError("template.response must contain {response} once and {reasoning} at most once (without it the reasoning is left out), "
                          f"got {template.response!r}")


def check_end(template: TemplateConfig, tokenizer: Tokenizer) -> None:
    """Raise `ConfigError` where a released template ends an answer otherwise than with the tokenizer's end-of-sequence token, which training puts there."""
    if not template.path:
        return
    tail = template.turn.partition("{response}")[2]
    first = tokenizer.encode(tail)[:1]
    if first != [tokenizer.eos_id]:
        found = tokenizer.decode(first)
        remedy = f"set tokenizer.eos_token='{found}'" if found else "such a template needs strings of your own"
        raise ConfigError(f"template.path: {template.path} puts {tail!r} after an answer, which does not begin with the tokenizer's end-of-sequence token "
                          f"(id {tokenizer.eos_id}): the model would be trained to stop otherwise than its template says; {remedy}")


def render_response(template: str, reasoning: str, response: str) -> str:
    """The text of `TemplateConfig.response` with both parts in place; what looks like a placeholder inside a part stays as it is.

    Empty reasoning leaves an empty block, such as `<think></think>`: the R1 paper gives trivial queries no chain of thought (v1 section 2.3.3), and
    the released models say exactly an empty block there. So every answer has one format, and a model told to open the block can still close it.
    """
    parts = {"reasoning": reasoning, "response": response}
    return _PLACES.sub(lambda place: parts[place[1]], template)


def split_response(text: str, *, starts_in_reasoning: bool = False) -> tuple[str, str]:
    """(reasoning, visible response) of a completion, both stripped; the inverse of `render_response` for the templates of `conf/template`.

    - The reasoning ends at the last `</think>`; its opening `<think>` may be missing, as where the prompt has already opened it.
    - A block that is opened (again) and not closed hides all that follows: truncated in its reasoning, a completion has no visible response.
    - Without any mark all of the text is visible, or reasoning with `starts_in_reasoning` (the prompt opens the block, so this one was cut).
    - A visible part that is one `<answer>...</answer>` block (or its beginning, where the completion was cut) is what stands inside.

    Linear in the length of the text, and never fails: what follows no format comes back as it is.
    """
    before, closed, after = text.rpartition("</think>")
    if "<think>" in after or (starts_in_reasoning and not closed):
        return _without_opening(text), ""
    visible = after.strip()
    if visible.startswith("<answer>"):
        inside = visible.removeprefix("<answer>").removesuffix("</answer>")
        if "<answer>" not in inside and "</answer>" not in inside:  # one block and nothing else
            visible = inside.strip()
    return _without_opening(before), visible


def _without_opening(reasoning: str) -> str:
    return reasoning.strip().removeprefix("<think>").strip()


def encode_sample(record: SampleRecord, template: TemplateConfig, tokenizer: Tokenizer) -> TrainSequence:
    """The sample in the template as tokens: prompt (with the turns before it), response, end of sequence; weight 1 on the last two, 0 on the prompt.

    Prompt and response are encoded apart and joined. Encoded as one text, a tokenizer may merge characters across the boundary (a line break with
    the letter after it), and the model would learn to continue a prompt that it never sees: generation starts from the tokens of the prompt alone.

    Raises `ValueError` for a response without text, or whose text spells the end-of-sequence token: the model would learn to stop in the middle.
    """
    if not record.response.strip():
        raise ValueError("field 'response' is empty: there is nothing to learn")
    asked = Prompt(record.id, record.prompt, metadata=record.metadata)
    prompt = encode_prompt(asked, template.prompt, tokenizer, template.turn, template.system).tokens
    response = tokenizer.encode(render_response(template.response, record.reasoning, record.response))
    if tokenizer.eos_id in response:
        raise ValueError("the text of 'reasoning' or 'response' spells the tokenizer's end-of-sequence token; remove it")
    tokens = np.array((*prompt, *response, tokenizer.eos_id), np.int64)
    return TrainSequence(record.id, tokens, (np.arange(len(tokens)) >= len(prompt)).astype(np.float32))
