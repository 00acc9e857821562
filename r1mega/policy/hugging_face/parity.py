"""Whether transformers computes with an exported folder what the policy computes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from r1mega.errors import ConfigError, R1MegaError, UserError
from r1mega.policy import storage
from r1mega.policy.hugging_face.family import Family
from r1mega.policy.hugging_face.load import load_published
from r1mega.policy.policy import Policy
from r1mega.recipe import files
from r1mega.rollout.batching import make_microbatch
from r1mega.types import MicroBatch, TrainSequence

LENGTHS = (48, 17)  # of the random sequences


def transformers_installed() -> bool:
    """Whether the check can be made here."""
    return importlib.util.find_spec("transformers") is not None


def require_reward_class(family: Family) -> None:
    """Raises `ConfigError` for a family whose models cannot have a scalar head in transformers; without transformers the family's own word is taken."""
    wanted = family.reward_class
    if not transformers_installed():
        return
    import transformers

    if not hasattr(transformers, wanted):
        raise ConfigError(f"transformers {transformers.__version__} has no {wanted}: a reward model of the family {family.name} cannot be exported for it")


def check_logits(policy: Policy, folder: Path, family: Family, tolerance: float) -> float:
    """Load the folder into `policy` (in fp32) and into transformers, and compare them on random tokens. A collective; returns the largest difference.

    Compared are, at every position, the log-probability of a random next token and the entropy of the whole distribution, both in nats: what the logits
    mean, on any layout of the policy. Of a reward model (`reward_head="train"`) it is the value at the last token, the end of sequence. Raises `R1MegaError`
    where they differ by more than `tolerance` or transformers does not take every tensor.
    """
    load_published(policy, folder, family)
    reward = policy.reward_head == "train"
    batch = _random_batch(policy, _end_of_sequence(folder) if reward else None)
    for _ in range(2):  # the first pass of a process with two threads was seen to differ by 9e-4 nats, in one of forty processes; later ones never did
        ours = _ends(policy.values([batch])[0], batch) if reward else _positions(policy, batch)

    def compare() -> float:
        model = _transformers(folder, family.reward_class if reward else family.causal_class, policy.platform.device)
        theirs = _their_values(model, batch) if reward else _their_positions(model, batch)
        worst = max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True) if one.numel())
        if not worst <= tolerance:
            what = "rewards: values at the last token" if reward else "logits: log-probabilities and entropies (nats) of random tokens"
            raise R1MegaError(f"transformers computes other {what} differ by up to {worst:.3g}, above the tolerance of {tolerance:g}")
        return worst

    return storage.on_first_rank(policy.ranks, f"the export to {folder} fails its check", folder, compare)


def _random_batch(policy: Policy, last: int | None) -> MicroBatch:
    """Two sequences of random tokens, the last one of each as given."""
    longest = min(policy.architecture.max_position_embeddings, max(LENGTHS))
    draw = np.random.default_rng(0)
    drawn = [draw.integers(0, policy.options.vocab_size, min(length, longest)) for length in LENGTHS]
    for tokens in drawn:
        tokens[-1] = tokens[-1] if last is None else last
    return make_microbatch([TrainSequence(str(place), tokens, np.ones(len(tokens), np.float32)) for place, tokens in enumerate(drawn)], policy.pad_multiple)


def _end_of_sequence(folder: Path) -> int | None:
    found = files.read_json(folder / "config.json").get("eos_token_id")
    return found if isinstance(found, int) else None


def _positions(policy: Policy, batch: MicroBatch) -> list[torch.Tensor]:
    """Of each sequence the log-probs of the next tokens, and the entropies."""
    ((logprobs, entropy),) = policy.logprobs([batch])
    return [part for start, stop in _bounds(batch) for part in (logprobs[start:stop - 1], entropy[start:stop])]


def _ends(values: torch.Tensor, batch: MicroBatch) -> list[torch.Tensor]:
    return [values[stop - 1] for _, stop in _bounds(batch)]


def _bounds(batch: MicroBatch) -> list[tuple[int, int]]:
    ends = np.cumsum(batch.lengths[: batch.num_sequences]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _transformers(folder: Path, wanted: str, device: torch.device) -> Any:
    """The folder's model by transformers, in fp32."""
    try:
        import transformers
    except ImportError as error:
        raise UserError("comparing logits needs the transformers library, which is not installed: pip install 'r1mega[hf]', or check_logits=never") from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it did not find is judged below
    auto: Any = transformers.AutoModelForCausalLM if wanted.endswith("ForCausalLM") else transformers.AutoModelForSequenceClassification
    model, info = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    if type(model).__name__ != wanted or info["missing_keys"] or info["mismatched_keys"]:
        lost = [*info["missing_keys"], *info["mismatched_keys"]]
        raise R1MegaError(f"transformers made a {type(model).__name__} and did not find {', '.join(map(str, lost[:4])) or 'nothing'}; "
                          f"expected a whole {wanted}")
    return model.to(device).eval()


@torch.no_grad()
def _their_positions(model: Any, batch: MicroBatch) -> list[torch.Tensor]:
    found = list[torch.Tensor]()
    for start, stop in _bounds(batch):
        tokens = batch.tokens[start:stop].to(model.device)
        logs = model(tokens[None]).logits[0].float().log_softmax(-1)
        found += [logs[:-1].gather(-1, tokens[1:, None])[:, 0].cpu(), -(logs.exp() * logs).sum(-1).cpu()]
    return found


@torch.no_grad()
def _their_values(model: Any, batch: MicroBatch) -> list[torch.Tensor]:
    return [model(batch.tokens[None, start:stop].to(model.device)).logits[0, 0].float().cpu() for start, stop in _bounds(batch)]
