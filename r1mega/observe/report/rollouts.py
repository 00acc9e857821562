"""The samples that stages wrote down: words counted over all of them, and a choice of them to read. Files of any size are streamed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from r1mega.observe.report.collect import Series, Stage, number, parse, rows

# the paper's reflective words (v2, appendix C.2), with what small and Chinese models say
WORDS = ("wait", "hmm", "let me check", "mistake", "however", "retry", "error", "verify", "wrong", "check", "again", "等等", "不对", "检查")
MOST_SAMPLES = 360
MOST_CHARACTERS = 1_200_000  # of all completions shown
LONGEST = 6000  # characters of one text; a longer one loses its middle


@dataclass(frozen=True)
class Sample:
    """One completion to read. `reasoning` ends with its closing tag, so that both parts together are what the model said."""

    stage: str
    held_out: bool
    step: int
    prompt_id: str
    prompt: str
    reasoning: str
    response: str
    answer: str | None  # the reference
    reward: float | None
    parts: Mapping[str, float]
    advantage: float | None
    has_advantage: bool
    length: int | None  # tokens
    finish_reason: str


@dataclass
class WordCounts:
    """Reflective words of one stage's samples."""

    completions: int = 0
    totals: Counter[str] = field(default_factory=Counter)
    per_step: dict[int, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))  # step -> [words, completions]

    @property
    def series(self) -> Series:
        """Words for each completion, over the steps."""
        steps = sorted(self.per_step)
        return Series(tuple(map(float, steps)), tuple(self.per_step[step][0] / self.per_step[step][1] for step in steps))


@dataclass(frozen=True)
class Rollouts:
    """What the report shows of a run's samples."""

    samples: tuple[Sample, ...]
    recorded: int  # how many there are on disk
    words: Mapping[str, WordCounts]  # stage -> counts, only of training samples where there are such


@dataclass(frozen=True)
class _Entry:
    """Where a sample lies."""

    stage: str
    path: Path
    offset: int
    step: int
    prompt_id: str
    reward: float


def read(stages: Sequence[Stage], words: Sequence[str] = WORDS, most: int = MOST_SAMPLES) -> Rollouts:
    """Count `words` in all samples of all stages, and load at most `most` of them."""
    pattern = word_pattern(words)
    index: list[_Entry] = []
    counts: dict[str, WordCounts] = {}
    for stage in stages:
        paths = sorted((stage.folder / "rollouts").glob("samples*.jsonl"))
        counted = [path for path in paths if not _held_out(path)] or paths
        for path in paths:
            index += _scan(stage.name, path, pattern, counts.setdefault(stage.name, WordCounts()) if path in counted else None)
    chosen = choose(index, most)
    return Rollouts(tuple(_load(chosen)), len(index), {name: count for name, count in counts.items() if count.completions})


def word_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the words, whole ones in scripts that separate words by spaces; of overlapping ones the longest."""
    parts = []
    for word in sorted((word.strip().lower() for word in words if word.strip()), key=len, reverse=True):
        parts.append(rf"(?<!\w){re.escape(word)}(?!\w)" if word.isascii() else re.escape(word))
    return re.compile("|".join(parts) if parts else r"(?!)", re.IGNORECASE)


def _held_out(path: Path) -> bool:
    return "held_out" in path.stem


def _scan(stage: str, path: Path, pattern: re.Pattern[str], counts: WordCounts | None) -> list[_Entry]:
    entries = []
    for offset, row in rows(path):
        completion, step = row.get("completion"), number(row.get("step"))
        if not isinstance(completion, str) or step is None:
            continue
        reward = number(row.get("reward"))
        entries.append(_Entry(stage, path, offset, int(step), _prompt_id(row), float("-inf") if reward is None else reward))
        if counts is not None:
            found = Counter(match.lower() for match in pattern.findall(completion))
            counts.completions += 1
            counts.totals.update(found)
            step_counts = counts.per_step[int(step)]
            step_counts[0] += found.total()
            step_counts[1] += 1
    return entries


def _prompt_id(row: Mapping[str, Any]) -> str:
    """A sample's id is `<prompt id>@<where in the run>#<number>`."""
    identity = str(row.get("id", ""))
    return identity.rpartition("@")[0] or identity.partition("#")[0] or str(row.get("prompt", ""))


def choose(index: Sequence[_Entry], most: int) -> list[_Entry]:
    """At most `most` samples, the most telling first: up to half for prompts that several stages (or the two ends of one) answered, then stage by
    stage in turn, spread over the steps, best and worst of each."""
    chosen: dict[_Entry, None] = {}
    by_prompt: dict[str, list[_Entry]] = defaultdict(list)
    for entry in index:
        by_prompt[entry.prompt_id].append(entry)
    ranked = sorted(by_prompt.values(), key=lambda group: (-len({one.stage for one in group}), -len({(one.stage, one.step) for one in group})))
    for group in ranked:
        picked = _ends(group)
        if len({(one.stage, one.step) for one in picked}) < 2 or len(chosen) + len(picked) > most // 2:
            break
        chosen |= dict.fromkeys(picked)
    stages = dict.fromkeys(entry.stage for entry in index)
    rest = sorted(([entry for entry in index if entry.stage == stage and entry not in chosen] for stage in stages), key=len)
    spread: list[list[_Entry]] = []
    room = most - len(chosen)
    for at, entries in enumerate(rest):  # what a stage with few samples leaves of its share goes to the others
        spread.append(_spread(entries, room // (len(rest) - at)))
        room -= len(spread[-1])
    chosen |= dict.fromkeys(entry for turn in zip_longest(*spread) for entry in turn if entry is not None)
    return list(chosen)[:most]


def _ends(group: Sequence[_Entry]) -> list[_Entry]:
    """The best sample of the first and of the last step of every stage."""
    found: dict[_Entry, None] = {}
    for stage in dict.fromkeys(one.stage for one in group):
        mine = [one for one in group if one.stage == stage]
        for step in (min(one.step for one in mine), max(one.step for one in mine)):
            found[max((one for one in mine if one.step == step), key=lambda one: one.reward)] = None
    return list(found)


def _spread(entries: Sequence[_Entry], most: int) -> list[_Entry]:
    """Best and worst of steps that lie evenly, first and last included."""
    steps = sorted({entry.step for entry in entries})
    wanted = max(1, most // 2)
    if most >= len(entries):
        return list(entries)
    if len(steps) > wanted:
        steps = [steps[round(place * (len(steps) - 1) / max(1, wanted - 1))] for place in range(wanted)]
    by_step: dict[int, list[_Entry]] = defaultdict(list)
    for entry in entries:
        by_step[entry.step].append(entry)
    ranked = {step: sorted(by_step[step], key=lambda one: -one.reward) for step in steps}
    found: dict[_Entry, None] = {}
    for turn in range(max((len(group) for group in ranked.values()), default=0)):
        for group in ranked.values():
            if turn < len(group) and len(found) < most:
                found[group[turn // 2 if turn % 2 == 0 else len(group) - 1 - turn // 2]] = None
    return list(found)


def _load(entries: Sequence[_Entry]) -> Iterable[Sample]:
    """The chosen samples in their order, until their texts reach the cap."""
    characters = 0
    for entry in entries:
        with entry.path.open("rb") as file:
            file.seek(entry.offset)
            row = parse(file.readline())
        if row is None:  # rewritten since: a resumed run cuts what it makes again
            continue
        sample = _sample(entry, row)
        characters += len(sample.prompt) + len(sample.reasoning) + len(sample.response)
        if characters > MOST_CHARACTERS:
            return
        yield sample


def _sample(entry: _Entry, row: Mapping[str, Any]) -> Sample:
    completion = str(row["completion"])
    cut = completion.rfind("</think>")
    cut = 0 if cut < 0 else cut + len("</think>")
    reasoning, response = completion[:cut], completion[cut:]
    parts = row.get("parts")
    length = number(row.get("length"))
    return Sample(
        entry.stage, _held_out(entry.path), entry.step, entry.prompt_id, shorten(str(row.get("question", row.get("prompt", "")))), shorten(reasoning),
        shorten(response), None if row.get("answer") is None else shorten(str(row["answer"])), number(row.get("reward")),
        {str(name): value for name, raw in parts.items() if (value := number(raw)) is not None} if isinstance(parts, Mapping) else {},
        number(row.get("advantage")), "advantage" in row, None if length is None else int(length), str(row.get("finish_reason", "")))


def shorten(text: str, most: int = LONGEST) -> str:
    """The text, its middle replaced by how much is missing where it is long."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n[... {len(text) - most} characters left out ...]\n{text[-most // 2 :]}"
