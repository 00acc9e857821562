"""Whether transformers computes with an exported folder what the policy computes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from r1mega.errors import R1MegaError, UserError
from r1mega.policy import storage
from r1mega.policy.hugging_face.family import Family
from r1mega.policy.hugging_face.load import load_published
from r1mega.policy.policy import Policy
from r1mega.rollout.batching import make_microbatch
from r1mega.types import MicroBatch, TrainSequence

LENGTHS = (48, 17)  # of the random sequences


def transformers_installed() -> bool:
    """Whether the check can be made here."""
    return importlib.util.find_spec("transformers") is not None


def check_logits(policy: Policy, folder: Path, family: Family, tolerance: float) -> float:
    """Load the folder into `policy` (in fp32) and into transformers, and compare them on random tokens. A collective; returns the largest difference.

    Compared are, at every position, the log-probability of a random next token and the entropy of the whole distribution, both in nats: what the logits
    mean, on any layout of the policy. Raises `R1MegaError` where they differ by more than `tolerance` or transformers does not take every tensor.
    """
    load_published(policy, folder, family)
    longest = min(policy.architecture.max_position_embeddings, max(LENGTHS))
    draw = np.random.default_rng(0)
    parts = [TrainSequence(str(place), draw.integers(0, policy.options.vocab_size, min(length, longest)), np.ones(min(length, longest), np.float32))
             for place, length in enumerate(LENGTHS)]
    batch = make_microbatch(parts, policy.pad_multiple)
    ((logprobs, entropy),) = policy.logprobs([batch])

    def compare() -> float:
        theirs = _transformers(folder, family, batch, policy.platform.device)
        worst = 0.0
        start = 0
        for length, (their_logprobs, their_entropy) in zip(batch.lengths, theirs, strict=False):
            gaps = (logprobs[start:start + length - 1] - their_logprobs, entropy[start:start + length] - their_entropy)
            worst = max(worst, *(float(gap.abs().max()) for gap in gaps if gap.numel()))
            start += length
        if not worst <= tolerance:
            raise R1MegaError(f"transformers computes other logits: log-probabilities and entropies of random tokens differ by up to {worst:.3g} nats, "
                              f"above the tolerance of {tolerance:g}")
        return worst

    return storage.on_first_rank(policy.ranks, f"the export to {folder} fails its check", folder, compare)


def _transformers(folder: Path, family: Family, batch: MicroBatch, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(log-probs of the next tokens, entropies) of each sequence, by transformers in fp32."""
    try:
        import transformers
    except ImportError as error:
        raise UserError("comparing logits needs the transformers library, which is not installed: pip install 'r1mega[hf]', or check_logits=never") from error
    transformers.utils.logging.disable_progress_bar()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    if type(model).__name__ != family.causal_class or info["missing_keys"] or info["mismatched_keys"]:
        lost = [*info["missing_keys"], *info["mismatched_keys"]]
        raise R1MegaError(f"transformers made a {type(model).__name__} and did not find {', '.join(map(str, lost[:4])) or 'nothing'}; "
                          f"expected a whole {family.causal_class}")
    model = model.to(device).eval()
    found, start = list[tuple[Any, Any]](), 0
    with torch.no_grad():
        for length in batch.lengths[: batch.num_sequences]:
            tokens = batch.tokens[start:start + length].to(device)
            logs = model(tokens[None]).logits[0].float().log_softmax(-1)
            found.append((logs[:-1].gather(-1, tokens[1:, None])[:, 0].cpu(), -(logs.exp() * logs).sum(-1).cpu()))
            start += length
    return found
