"""From the replicas' kept samples to a `SampleSet`: merge, rewrite, check again, write. Rank 0's part of stage `sample`."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1mega.config import PluginChoice
from r1mega.data.card import Tallies, Tally, dataset_card, domain_rows, drops_table, headline
from r1mega.data.chat import render_response
from r1mega.data.decontaminate import Decontaminator
from r1mega.data.dedup import DUPLICATE, text_digest
from r1mega.data.filters import Draft, why_unfit
from r1mega.data.records import SampleRecord, write_samples
from r1mega.errors import PluginError, R1MegaError
from r1mega.hookspecs import Rewriter
from r1mega.recipe import files
from r1mega.recipe.context import StageContext
from r1mega.rewards.pool import RewardPool
from r1mega.rollout.collect import reward_sample
from r1mega.types import EncodedPrompt, Prompt

from ._sampler import Place, decider
from ._setup import make

if TYPE_CHECKING:
    from .sample import SampleConfig

_CHUNK = 256  # samples that are rewritten, and banked, at once


def shard(context: StageContext, replica: int) -> Path:
    return context.dir / "shards" / f"replica_{replica:05d}.jsonl"


def write_shard(context: StageContext, replica: int, rows: Sequence[tuple[Place, SampleRecord]]) -> None:
    """A replica's rows, for rank 0 to merge. Called by the replica's lead."""
    path = shard(context, replica)
    path.parent.mkdir(parents=True, exist_ok=True)
    context.check_epoch()
    files.write_text(path, "".join(json.dumps([place, files.plain(dataclasses.asdict(record))]) + "\n" for place, record in rows))


def merged(context: StageContext, replicas: int) -> list[SampleRecord]:
    """All replicas' rows in the order of prompts, rounds and samples."""
    def read(replica: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
        with shard(context, replica).open(encoding="utf-8") as lines:
            for line in lines:
                place, record = json.loads(line)
                yield place, record

    return [SampleRecord(**record) for _, record in heapq.merge(*map(read, range(replicas)), key=lambda row: row[0])]


class Harvest:
    """The rows on their way into the set; every loss is counted in `tallies`."""

    def __init__(self, config: SampleConfig, context: StageContext, rows: Sequence[SampleRecord], tallies: Tallies,
                 about: Mapping[str, Mapping[str, Any]], evaluations: Decontaminator | None = None) -> None:
        """`about`: metadata by prompt id, whole, as the rewards need it; a row holds its labels alone. `evaluations`: what new text is compared with."""
        self.config, self.context, self.rows, self.tallies, self.about = config, context, list(rows), tallies, about
        self.evaluations = evaluations or Decontaminator(())
        self.contaminated: Counter[str] = Counter()  # evaluation problem -> drops of rewritten rows

    def drop(self, record: SampleRecord, reason: str) -> None:
        self.tallies.setdefault(record.domain, Tally()).drops[reason] += 1

    def rewrite(self) -> None:
        """Put the rows through the rewriter, if there is one. What it returns passes the filters, the decontamination and
        the verdict again, or is dropped."""
        choice = self.config.rewriter
        if not isinstance(choice, PluginChoice) or choice.name == "none":
            return
        rewriter: Rewriter = make("rewriters", choice)
        label = f"{choice.name} {rewriter.version}"
        kept = []
        for start in range(0, len(self.rows), _CHUNK):
            chunk = self.rows[start: start + _CHUNK]
            for before, after in zip(chunk, self._rewritten(rewriter, choice.name, start, chunk), strict=True):
                if after is None:
                    self.drop(before, "not_rewritten")
                elif reason := why_unfit(Draft(after.reasoning, after.response, after.language), self.config.filters):
                    self.drop(before, f"rewritten_{reason}")
                elif found := self.evaluations.find(after.reasoning, after.response):
                    self.contaminated[found] += 1
                    self.drop(before, "rewritten_contaminated")
                else:
                    kept.append(dataclasses.replace(after, provenance={**before.provenance, "rewriter": label}))
        self.rows = self._still_correct(kept)

    def _rewritten(self, rewriter: Rewriter, name: str, start: int, chunk: Sequence[SampleRecord]) -> list[SampleRecord | None]:
        """A chunk's new rows; banked, since a rewriter may be a server that is slow and never says the same twice."""
        path = self.context.dir / "rewritten" / f"from_{start:08d}.json"
        source = hashlib.sha256(json.dumps([files.plain(dataclasses.asdict(row)) for row in chunk]).encode()).hexdigest()
        banked = files.read_json(path) if path.is_file() else {}
        if banked.get("source") != source:
            made = list(rewriter.rewrite(chunk))
            if len(made) != len(chunk) or any(after is not None and (after.id, after.prompt, after.answer) != (before.id, before.prompt, before.answer)
                                              for before, after in zip(chunk, made, strict=False)):
                raise PluginError(f"rewriter '{name}' returned {len(made)} rows for {len(chunk)}, or changed an id, a prompt or a reference answer; it "
                                  "must return each sample, with other text, or None in its place")
            banked = {"source": source, "rows": [None if row is None else files.plain(dataclasses.asdict(row)) for row in made]}
            path.parent.mkdir(parents=True, exist_ok=True)
            self.context.check_epoch()
            files.write_json(path, banked)
        return [None if row is None else SampleRecord(**row) for row in banked["rows"]]

    def _still_correct(self, rows: Sequence[SampleRecord]) -> list[SampleRecord]:
        """The rows whose new text is as correct as the old one was, by the reward that decided it then."""
        deciders = {name: term for name, term in self.config.reward.terms.items() if name in (self.config.metric, self.config.judge)}
        kept, template = [], self.config.template
        with RewardPool.from_config(dataclasses.replace(self.config.reward, terms=deciders)) as pool:
            terms = []
            for row in rows:
                about = self.about[row.provenance["prompt_id"]]
                prompt = Prompt(row.id, row.prompt, row.answer, row.domain, row.language, row.task, about)
                encoded = EncodedPrompt(prompt, template.prompt.replace("{question}", row.prompt), ())
                terms.append(decider(self.config, prompt))
                pool.submit(row.id, reward_sample(encoded, render_response(template.response, row.reasoning, row.response)), terms[-1:])
            verdicts = {verdict.key: verdict for verdict in pool.finish()}
        for row, term in zip(rows, terms, strict=True):
            if verdicts[row.id].parts[term] >= self.config.threshold:  # false for a failed reward, which is NaN
                kept.append(row)
            else:
                self.drop(row, "rewritten_incorrect")
        return kept

    def drop_repeats(self) -> None:
        """Keep the first of rows that say the same to the same question (one set may ask it under two ids)."""
        seen: set[str] = set()
        kept = []
        for row in self.rows:
            digest = text_digest(row.prompt, row.reasoning, row.response)
            if digest in seen:
                self.drop(row, DUPLICATE)
            else:
                kept.append(row)
            seen.add(digest)
        self.rows = kept

    def write(self, contaminated: Mapping[str, int], checkpoint: str) -> None:
        """The set with its card, and the report."""
        if not self.rows:
            raise R1MegaError(f"stage '{self.context.name}' kept no sample; dropped: {drops_table(self.tallies)['total']}. Loosen the filter that drops most, "
                              "raise max_rounds or samples_per_round, or begin from a better checkpoint")
        context, config = self.context, self.config
        folder, sets = context.output("samples"), Counter[str]()
        contaminated = Counter(contaminated) + self.contaminated
        for problem, count in contaminated.items():
            sets[problem.partition("/")[0]] += count
        context.check_epoch()
        write_samples(folder, self.rows)
        if config.parquet and importlib.util.find_spec("pyarrow"):
            write_parquet(folder / "samples.parquet", self.rows)
        files.write_json(folder / "drops.json", drops_table(self.tallies))
        files.write_text(folder / "README.md", dataset_card(
            f"Samples of stage {context.name}", self.rows, self.tallies, contaminated=sets, settings=_settings(config),
            provenance={"checkpoint": checkpoint, "rewriter": self.rows[0].provenance["rewriter"] or "none",
                        "reward versions": self.rows[0].provenance["reward_versions"]}))
        report = context.output("report")
        report.mkdir(parents=True, exist_ok=True)
        files.write_json(report / "report.json", {
            "metrics": headline(self.rows, self.tallies), "domains": [dataclasses.asdict(row) for row in domain_rows(self.rows, self.tallies)],
            "drops": drops_table(self.tallies), "contaminated": dict(sorted(contaminated.items()))})


def write_parquet(path: Path, rows: Sequence[SampleRecord]) -> None:
    """The rows as columns; what is nested is JSON text."""
    import pyarrow
    import pyarrow.parquet as parquet

    columns = {item.name: [getattr(row, item.name) for row in rows] for item in dataclasses.fields(SampleRecord)}
    for name in ("metadata", "provenance"):
        columns[name] = [json.dumps(files.plain(value), ensure_ascii=False) for value in columns[name]]
    columns["answer"] = pyarrow.array(columns["answer"], pyarrow.string())
    temporary = path.with_name(f".{path.name}.tmp")
    parquet.write_table(pyarrow.table(columns), temporary)
    temporary.replace(path)


def _settings(config: SampleConfig) -> dict[str, Any]:
    """What the card tells of the settings: no paths."""
    names = ("seed", "samples_per_round", "wanted_per_prompt", "max_rounds", "metric", "threshold", "judge", "selection", "filters", "dedup", "decontamination")
    return {name: getattr(config, name) for name in names} | {"decontaminated against files": ", ".join(config.decontaminate_against) or "none"}
