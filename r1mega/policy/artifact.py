"""The model's weights alone as an artifact: what one stage hands to the next, whatever their layouts and optimizers.

    FOLDER/  __<rank>_0.distcp  .metadata  common.pt  metadata.json    a Megatron distributed checkpoint of the weights
             architecture.json   the architecture and the vocabulary's size
             content.sha256      one digest of the weights, the same for every layout that holds them
             checksums.json      SHA-256 of every other file but content.sha256
    and what the stage that made it adds: tokenizer/, for a reward model reward.json
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1mega.errors import R1MegaError, UserError
from r1mega.policy import storage
from r1mega.policy.architecture import Architecture
from r1mega.policy.checkpoint import load_weights
from r1mega.policy.keys import model_state, saved_tensors
from r1mega.recipe import files

if TYPE_CHECKING:
    from r1mega.policy.policy import Policy

ARCHITECTURE = "architecture.json"
CONTENT = "content.sha256"
_NOT_IN_WEIGHTS = {"max_position_embeddings", "init_method_std"}


def export_artifact(policy: Policy, folder: Path, *, complete: Callable[[Path], None] = lambda _: None, check: Callable[[Path], None] = lambda _: None,
                    before_rename: Callable[[], None] = lambda: None) -> str:
    """Write the current weights to `folder`, replacing it in one step, and return their content digest. A collective.

    `complete` adds what else belongs to the artifact, on rank 0, while the folder still has a temporary name: it is there with everything or not
    at all. `check` is a collective of the caller's over the written weights, before anything gets its name. The digest returned covers the sorted names,
    types, shapes and bytes of the whole tensors. The ranks share the work: each reads whole tensors, one
    at a time, from the files just written. Errors as of `checkpoint.save`.
    """
    if policy.foreign_weights is not None:
        raise R1MegaError(f"cannot export while weight set '{policy.foreign_weights}' stands in for the weights")
    ranks, what = policy.ranks, f"cannot write {folder}"
    temporary = storage.on_first_rank(ranks, what, folder, lambda: storage.fresh_folder(folder, f"{folder.name}.tmp-*", before_rename))
    about = {"vocab_size": policy.options.vocab_size, "architecture": dataclasses.asdict(policy.architecture)}
    with storage.removed_on_error(ranks, temporary):
        write = storage.Write(ranks, temporary, model_state(policy), validate=False, background=False)
        write.finish({ARCHITECTURE: json.dumps(about, indent=2) + "\n"})
        digest = content_digest(policy, temporary)
        check(temporary)

        def publish() -> None:
            files.write_text(temporary / CONTENT, digest + "\n")
            complete(temporary)
            _extend_checksums(temporary)
            files.sync(temporary)
            storage.put_in_place(temporary, folder, before_rename)

        storage.on_first_rank(ranks, what, temporary, publish)
    return digest


def _extend_checksums(folder: Path) -> None:
    """List the files that were added to a folder of weights."""
    path = folder / storage.CHECKSUMS
    listed: dict[str, str] = files.read_json(path)
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    added = {name: files.file_digest(folder / name) for name in sorted(names - {*listed, CONTENT, storage.CHECKSUMS})}
    if added:
        files.write_json(path, dict(sorted((listed | added).items())))


def load_artifact(policy: Policy, folder: Path, *, mtp_optional: bool = False, head: bool | None = None, optimizer: bool = True) -> None:
    """Load an artifact's weights; the optimizer, if there is one, starts from them unless `optimizer` is false. A collective.

    `head`: whether the artifact has a reward head to load. A reward model that is to be trained from a policy's checkpoint says False and keeps
    the head it was initialized with.

    With `mtp_optional` multi-token-prediction layers may be on one side only: extra ones are left, absent ones keep their initial values.
    Raises `UserError` naming the fields in which the architectures differ, `R1MegaError` for a damaged folder.
    """
    if damage := storage.find_damage(policy.ranks, folder):
        raise R1MegaError(f"the weights in {folder} are damaged: {damage}; run the stage that made them again")
    about = storage.on_first_rank(policy.ranks, f"cannot read {folder}", folder, lambda: files.read_json(folder / ARCHITECTURE))
    check_architecture(about, policy.architecture, policy.options.vocab_size, folder, mtp_optional=mtp_optional)
    load_weights(policy, folder, mtp_optional=mtp_optional, head=head, optimizer=optimizer)


def check_architecture(about: Mapping[str, Any], architecture: Architecture, vocab_size: int, folder: Path, *, mtp_optional: bool = False) -> None:
    """Compare an artifact's `architecture.json` with a model. Raises `UserError` naming the fields in which they differ."""
    own = {"vocab_size": vocab_size, **dataclasses.asdict(architecture.canonical())}
    saved = {"vocab_size": about["vocab_size"], **dataclasses.asdict(Architecture.from_dict(about["architecture"]).canonical())}
    ignored = _NOT_IN_WEIGHTS | ({"mtp_num_layers"} if mtp_optional else set())
    there, here = _flat(saved, ignored), _flat(own, ignored)
    differing = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    if differing:
        fields = "; ".join(f"{name} is {there.get(name)} there and {here.get(name)} here" for name in differing)
        raise UserError(f"the weights in {folder} are of another model: {fields}. Use the model configuration they were made with")


def content_digest(policy: Policy, folder: Path) -> str:
    """One digest of all model weights in a checkpoint or artifact, independent of the layout that wrote it. A collective."""
    ranks = policy.ranks
    shapes = storage.on_first_rank(ranks, f"cannot read {folder}", folder, lambda: saved_tensors(folder))
    mine = sorted(shapes)[ranks.rank::ranks.world_size]
    return files.combined(storage.tensor_digests(ranks, folder, mine))


def _flat(tree: Mapping[str, Any], ignored: set[str], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if name in ignored:
            continue
        if isinstance(value, Mapping):
            found |= _flat(value, ignored, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
