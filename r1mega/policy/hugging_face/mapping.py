"""A family's table spelled out for one model: which rows of which tensor of ours make which tensor of theirs.

A *unit* is one matrix or vector of ours: a tensor, or its entry for one layer or expert where the checkpoint stacks those. Its *parts* are the tensors
of theirs, each a sequence of row ranges of the unit. Export cuts units into parts; loading fills units, or any region of one, from parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from r1mega.errors import UserError
from r1mega.policy.architecture import Architecture
from r1mega.policy.hugging_face.family import Family, Row
from r1mega.policy.hugging_face.rows import EMBEDDING, FINAL_NORM, HEAD, SCORE, head_size

Shape = tuple[int, ...]
Ranges = tuple[tuple[int, int], ...]
_UNUSED_BY_REWARD = ("output_layer.", "mtp.")


@dataclass(frozen=True)
class Part:
    """A tensor of theirs: these rows of the unit, in this order."""

    name: str
    ranges: Ranges
    copies: tuple[str, ...] = ()  # further names of it

    @property
    def rows(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def overlaps(self, start: int, stop: int) -> list[tuple[slice, slice]]:
        """Where rows start ... stop - 1 of the unit are this part's: (rows of that region, rows of the part)."""
        found, place = [], 0
        for first, last in self.ranges:
            low, high = max(first, start), min(last, stop)
            if low < high:
                found.append((slice(low - start, high - start), slice(place + low - first, place + high - first)))
            place += last - first
        return found


@dataclass(frozen=True)
class Unit:
    """A matrix or vector of ours, `key[index]` in a checkpoint, and what it is made of."""

    key: str
    index: tuple[int, ...]  # layer, expert: as far as the checkpoint stacks them
    shape: Shape  # without the index
    parts: tuple[Part, ...]
    fp32: bool = False

    @property
    def names(self) -> Iterator[str]:
        """Every name of theirs, copies included."""
        for part in self.parts:
            yield from (part.name, *part.copies)


@dataclass(frozen=True)
class _Place:
    """Where a table's rows apply: prefixes on both sides. `ours` has the layer in the name, `stacked` as a leading index."""

    ours: str
    stacked: str
    theirs: str
    layer: int | None


def map_tensors(family: Family, architecture: Architecture, vocab_size: int, shapes: Mapping[str, Shape], where: str, *,
                reward: bool = False) -> list[Unit]:
    """The units of a model, in the order of its layers. `shapes` are those of our whole tensors, by checkpoint key; `where` they are from is for errors.

    Of a `reward` model the scalar head is one; the vocabulary's head and multi-token-prediction layers, which it carries unused, are in no unit.
    Raises `UserError` naming the tensors that the table has and `shapes` lacks, that `shapes` has and the table does not know, and those of another shape.
    """
    if reward:
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith(_UNUSED_BY_REWARD)}
        architecture = replace(architecture, mtp_num_layers=0)
    problems: dict[str, list[str]] = {"it lacks": [], f"{family.name} does not have": [], "shapes differ": []}
    units: list[Unit] = []
    for place, row in _rows(family, architecture, reward=reward):
        key, leading = _find(place, row, shapes)
        if key is None:
            problems["it lacks"].append(place.ours + row.ours[0])
            continue
        units += _units(place, row, key, leading, shapes[key], architecture, vocab_size, problems["shapes differ"])
    known = {unit.key for unit in units} | {problem.partition(" ")[0] for problem in problems["shapes differ"]}
    problems[f"{family.name} does not have"] += sorted(shapes.keys() - known)
    problems["shapes differ"] += _uncovered(units, shapes)
    report_problems(f"the weights in {where} do not fit the {family.name} table", problems)
    return units


def report_problems(what: str, problems: Mapping[str, Sequence[str]]) -> None:
    """Raise `UserError` with the first of each kind of problem and how many more there are; nothing where there are none."""
    distinct = {kind: list(dict.fromkeys(items)) for kind, items in problems.items() if items}  # stacked layers say the same
    told = [f"{kind}: {', '.join(items[:4])}{f' and {len(items) - 4} more' if len(items) > 4 else ''}" for kind, items in distinct.items()]
    if told:
        raise UserError(f"{what}: {'; '.join(told)}. Use the model configuration that the weights were made with")


def _rows(family: Family, architecture: Architecture, *, reward: bool) -> Iterator[tuple[_Place, Row]]:
    top, a = _Place("", "", "", None), architecture
    depths = range(a.num_layers, a.num_layers + a.mtp_num_layers)
    # a released multi-token-prediction layer repeats the embedding and the head that it shares
    yield top, replace(EMBEDDING, copies=tuple(f"model.layers.{layer}.embed_tokens.weight" for layer in depths)
                       + (tuple(f"model.layers.{layer}.shared_head.head.weight" for layer in depths) if a.tied_embeddings else ()))
    for layer in range(a.num_layers):
        place = _Place(f"decoder.layers.{layer}.", "decoder.layers.", f"model.layers.{layer}.", layer)
        yield from ((place, row) for row in family.layer(a, layer))
    yield top, FINAL_NORM
    if reward:
        yield top, SCORE
    elif not a.tied_embeddings:
        yield top, replace(HEAD, copies=tuple(f"model.layers.{layer}.shared_head.head.weight" for layer in depths))
    for depth, layer in enumerate(depths):
        around = _Place(f"mtp.layers.{depth}.", "mtp.layers.", f"model.layers.{layer}.", depth)
        block = replace(around, ours=f"{around.ours}transformer_layer.", stacked=f"{around.stacked}transformer_layer.")
        yield from ((around, row) for row in family.prediction)
        yield from ((block, row) for row in family.layer(a, layer))


def _find(place: _Place, row: Row, shapes: Collection[str]) -> tuple[str | None, tuple[int, ...]]:
    """The checkpoint's key of a row, and the index of the layer in it."""
    for spelling in row.ours:
        if place.ours + spelling in shapes:
            return place.ours + spelling, ()
        if place.layer is not None and place.stacked + spelling in shapes:
            return place.stacked + spelling, (place.layer,)
    return None, ()


def _units(place: _Place, row: Row, key: str, leading: tuple[int, ...], shape: Shape, a: Architecture, vocab_size: int, bad: list[str]) -> list[Unit]:
    experts: Sequence[int | None] = range(a.moe.num_moe_experts) if row.per_expert and a.moe else (None,)
    indices = [(*leading, *(() if expert is None else (expert,))) for expert in experts]
    size = shape[len(indices[0]):]
    ranges = _ranges(row, size[0], a, vocab_size) if size else None
    if ranges is None or any(at >= extent for at, extent in zip(indices[-1], shape, strict=False)) or (row.per_expert and shape[len(leading)] != len(indices)):
        bad.append(f"{key} is {list(shape)}, which does not make {len(indices)} x {' + '.join(row.theirs)}")
        return []
    units = []
    for expert, index in zip(experts, indices, strict=True):
        parts = tuple(Part(place.theirs + name.format(expert=expert), of, row.copies) for name, of in zip(row.theirs, ranges, strict=True))
        units.append(Unit(key, index, size, parts, row.fp32))
    return units


def _ranges(row: Row, rows: int, a: Architecture, vocab_size: int) -> tuple[Ranges, ...] | None:
    """The row ranges of each tensor of theirs in a unit of so many rows; None where they cannot be."""
    if row.rule == "vocabulary":
        return (((0, vocab_size),),) if vocab_size <= rows else None
    if row.rule == "stacked":
        count = len(row.theirs)
        each = rows // count
        return tuple(((each * i, each * (i + 1)),) for i in range(count)) if rows % count == 0 else None
    if row.rule == "qkv":
        groups, size = a.num_query_groups or a.num_attention_heads, head_size(a)
        queries = a.num_attention_heads // groups * size
        group = queries + 2 * size
        cuts = ((0, queries), (queries, queries + size), (queries + size, group))
        return tuple(tuple((g * group + start, g * group + stop) for g in range(groups)) for start, stop in cuts) if rows == groups * group else None
    return (((0, rows),),)


def _uncovered(units: Sequence[Unit], shapes: Mapping[str, Shape]) -> list[str]:
    """Stacked tensors of which some entries are in no unit."""
    counts: dict[str, int] = {}
    for unit in units:
        counts[unit.key] = counts.get(unit.key, 0) + 1
    found = []
    for unit in units:
        entries = 1
        for extent in shapes[unit.key][: len(unit.index)]:
            entries *= extent
        if (count := counts.pop(unit.key, None)) is not None and count != entries:
            found.append(f"{unit.key} has {entries} entries, the model {count}")
    return found
