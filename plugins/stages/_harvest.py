"""From the replicas' kept samples to a `SampleSet`: shards, merge, set, card, report. Rows pass one by one; none but the one under way is in memory."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1mega.data.card import Kept, Tallies, Tally, dataset_card, domain_rows, drops_table, headline
from r1mega.data.dedup import DUPLICATE, text_digest
from r1mega.data.records import SAMPLES, SampleRecord, read_rows, write_samples
from r1mega.errors import R1MegaError
from r1mega.recipe import files
from r1mega.recipe.context import StageContext

from ._placed import merge_placed, write_placed
from ._sampler import Row

if TYPE_CHECKING:
    from .sample import SampleConfig

_ROW_GROUP = 1024  # rows of a Parquet file that are in memory together


def _shard(context: StageContext, replica: int) -> Path:
    return context.scratch / "shards" / f"replica_{replica:05d}.jsonl"


def write_shard(context: StageContext, replica: int, rows: Iterable[Row]) -> None:
    """A replica's rows, for rank 0 to merge. Called by the replica's lead."""
    write_placed(_shard(context, replica), rows, context.check_epoch)


def merged(context: StageContext, replicas: int) -> Iterator[SampleRecord]:
    """All replicas' rows in the order of prompts, rounds and samples."""
    return (SampleRecord(**row) for row in merge_placed(_shard(context, replica) for replica in range(replicas)))


def distinct(rows: Iterable[SampleRecord], tallies: Tallies) -> Iterator[SampleRecord]:
    """The first of rows that say the same to the same question (one set may ask it under two ids); the others are counted as dropped."""
    seen: set[bytes] = set()
    for row in rows:
        digest = bytes.fromhex(text_digest(row.prompt, row.reasoning, row.response))[:16]  # 128 bits tell all rows there will ever be apart
        if digest in seen:
            tallies.setdefault(row.domain, Tally()).drops[DUPLICATE] += 1
        else:
            seen.add(digest)
            yield row


def write_set(config: SampleConfig, context: StageContext, rows: Iterator[SampleRecord], tallies: Tallies, contaminated: Mapping[str, int],
              maker: Mapping[str, str]) -> None:
    """The set with its card, and the report. `tallies` may grow while `rows` are drawn. Raises `R1MegaError` where there is no row."""
    first = next(rows, None)
    if first is None:
        raise R1MegaError(f"stage '{context.name}' kept no sample; dropped: {drops_table(tallies)['total']}. Loosen the filter that drops most, "
                          "raise max_rounds or samples_per_round, or begin from a better checkpoint")
    folder, sets, kept = context.output("samples"), Counter[str](), Kept()
    for problem, count in contaminated.items():
        sets[problem.partition("/")[0]] += count
    context.check_epoch()
    write_samples(folder, kept.counted(itertools.chain((first,), rows)), context.check_epoch)
    if config.parquet and importlib.util.find_spec("pyarrow"):
        write_parquet(folder / "samples.parquet", (row for _, row in read_rows(folder / SAMPLES, SampleRecord)), context.check_epoch)
    files.write_json(folder / "drops.json", drops_table(tallies))
    files.write_text(folder / "README.md", dataset_card(
        f"Samples of stage {context.name}", kept, tallies, contaminated=sets, settings=_settings(config),
        provenance={**maker, "rewriter": first.provenance["rewriter"] or "none", "reward versions": first.provenance["reward_versions"]}))
    report = context.output("report")
    report.mkdir(parents=True, exist_ok=True)
    files.write_json(report / "report.json", {
        "metrics": headline(kept, tallies), "domains": [dataclasses.asdict(row) for row in domain_rows(kept, tallies)],
        "drops": drops_table(tallies), "contaminated": dict(sorted(contaminated.items()))})


def write_parquet(path: Path, rows: Iterable[SampleRecord], before_rename: Callable[[], None] = lambda: None) -> None:
    """The rows as columns of text, in row groups; what is nested is JSON."""
    import pyarrow
    import pyarrow.parquet as parquet

    names = [item.name for item in dataclasses.fields(SampleRecord)]
    schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
    temporary, left = path.with_name(f".{path.name}.{os.getpid()}.tmp"), iter(rows)
    try:
        with parquet.ParquetWriter(temporary, schema) as writer:
            while group := list(itertools.islice(left, _ROW_GROUP)):
                writer.write_table(pyarrow.table({name: [_cell(getattr(row, name)) for row in group] for name in names}, schema))
        files.sync(temporary)
        before_rename()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    files.sync(path.parent)


def _cell(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(files.plain(value), ensure_ascii=False)


def _settings(config: SampleConfig) -> dict[str, Any]:
    """What the card tells of the settings: no paths."""
    names = ("seed", "samples_per_round", "wanted_per_prompt", "max_rounds", "metric", "threshold", "judge", "selection", "filters", "dedup", "decontamination")
    return {name: getattr(config, name) for name in names} | {"decontaminated against files": ", ".join(config.decontaminate_against) or "none"}
