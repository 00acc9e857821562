"""What every stage that holds a policy builds first: tokenizer, prompts, policy, generator, observers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1mega import plugins
from r1mega.config import CheckpointConfig, PluginChoice, StageCommon
from r1mega.data.chat import check_end
from r1mega.errors import ConfigError
from r1mega.observe.progress import StageProgress
from r1mega.recipe import files
from r1mega.recipe.context import StageContext
from r1mega.rollout.evaluate import Bank
from r1mega.rollout.prompts import drop_too_long, encode_prompt
from r1mega.types import EncodedPrompt, Prompt, SamplingParams

if TYPE_CHECKING:
    from r1mega.config import OptimizerConfig
    from r1mega.hookspecs import Generator, Task, Tokenizer
    from r1mega.policy.build import TrainingTerms
    from r1mega.policy.policy import Policy, RewardHead

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationConfig:
    """How a checkpoint is measured on the task's held-out problems."""

    samples: int = 4  # per problem
    max_problems: int = 0  # 0: all of the test split
    temperature: float = 1.0
    top_p: float = 1.0
    metric: str = "accuracy"  # the reward term that says whether a sample is correct
    every: int = 0  # also after every so many steps; 0: before and after only
    samples_per_unit: int = 512  # what is generated, scored and banked at once, at least one problem's samples; per replica

    def __post_init__(self) -> None:
        for name in ("samples", "samples_per_unit"):
            if getattr(self, name) < 1:
                raise ConfigError(f"evaluation.{name}={getattr(self, name)}: must be at least 1")


def make(kind: str, choice: Any, **arguments: Any) -> Any:
    """The plugin of a config's `PluginChoice`."""
    assert isinstance(choice, PluginChoice)
    plugin = plugins.load().registry.get(kind, choice.name)
    return plugin.factory(choice.config, **arguments) if plugin.config is not None else plugin.factory(**arguments)


def make_task(config: StageCommon) -> Task:
    task: Task = make("tasks", config.task, seed=config.seed)
    return task


def load_tokenizer(config: StageCommon, checkpoint: Path) -> Tokenizer:
    """The tokenizer that belongs to a checkpoint artifact. Raises `ConfigError` for a released template that ends answers with another token."""
    tokenizer: Tokenizer = make("tokenizers", config.tokenizer, folder=checkpoint / "tokenizer")
    check_end(config.template, tokenizer)
    return tokenizer


def make_policy(config: StageCommon, tokenizer: Tokenizer, *, optimizer: OptimizerConfig | None, steps: int = 0, terms: TrainingTerms | None = None,
                temperature: float = 1.0, reward_head: RewardHead = "none") -> Policy:
    from r1mega.policy.policy import Policy

    return Policy(make("models", config.model), vocab_size=tokenizer.vocab_size, parallel=config.parallel, precision=config.precision, seed=config.seed,
                  optimizer=optimizer, training_steps=steps, terms=terms, temperature=temperature, reward_head=reward_head,
                  timeout_minutes=config.cluster.timeout_minutes)


def gather_of(config: StageCommon, context: StageContext) -> Callable[[Any], list[Any]]:
    """A collective that gives every rank all ranks' values in rank order, for what has to be known before there is a policy."""
    import torch.distributed as dist

    from r1mega.policy.platform import get_platform, initialize_distributed

    initialize_distributed(get_platform(), config.cluster.timeout_minutes)

    def gather(mine: Any) -> list[Any]:
        found: list[Any] = [None] * context.world_size
        dist.all_gather_object(found, mine)
        return found

    return gather


def maker_of(generator: Generator, checkpoint: Path) -> dict[str, str]:
    """Who makes the generator's responses, for a row's provenance: the model that a server runs, by its name, or the digest of the checkpoint."""
    served = getattr(generator, "served_model", "")
    return {"model": served} if served else {"checkpoint": digest_of(checkpoint)}


def digest_of(artifact: Path) -> str:
    """The content digest of an input artifact: what it states, else that of its files."""
    stated = artifact / "content.sha256"
    return stated.read_text().split()[0] if stated.is_file() else files.combined(files.digests(artifact))


def make_generator(rollout: Any, policy: Policy, tokenizer: Tokenizer) -> Generator:
    generator: Generator = make("rollouts", rollout, policy=policy, tokenizer=tokenizer)
    return generator


def sampling_of(rollout: Any, tokenizer: Tokenizer, *, temperature: float | None = None, top_p: float | None = None) -> SamplingParams:
    """The sampling parameters of a rollout group, the end-of-sequence token as stop token."""
    settings = rollout.config
    return SamplingParams(
        max_tokens=settings.max_tokens, temperature=settings.temperature if temperature is None else temperature,
        top_p=settings.top_p if top_p is None else top_p, stop=tuple(settings.stop), stop_token_ids=(tokenizer.eos_id,))


def encode_split(task: Task, split: str, config: StageCommon, tokenizer: Tokenizer, max_tokens: int, limit: int = 0) -> list[EncodedPrompt]:
    """A split's prompts, at most `limit` of them (0: all), in the template; see `encode_prompts`."""
    prompts = task.prompts(split)
    return encode_prompts(prompts[:limit] if limit else prompts, split, config, tokenizer, max_tokens)


def encode_prompts(prompts: Sequence[Prompt], split: str, config: StageCommon, tokenizer: Tokenizer, max_tokens: int) -> list[EncodedPrompt]:
    """Prompts in the template, without those that leave no room for a completion. Raises `ConfigError` when not one of them does."""
    room = make("models", config.model).max_position_embeddings - max_tokens
    if room <= 0:
        raise ConfigError(f"rollout.max_tokens={max_tokens} leaves no room for a prompt within the model's max_position_embeddings={room + max_tokens}; "
                          f"lower rollout.max_tokens below {room + max_tokens}")
    template = config.template
    kept, dropped = drop_too_long([encode_prompt(prompt, template.prompt, tokenizer, template.turn, template.system) for prompt in prompts], room)
    if not kept:
        raise ConfigError(f"no {split} prompt leaves room for rollout.max_tokens={max_tokens} within the model's max_position_embeddings="
                          f"{room + max_tokens} ({dropped} prompts of the task are longer than {room} tokens); lower rollout.max_tokens, or choose another "
                          "model or task")
    if dropped:
        _log.warning("%d of %d %s prompts are longer than %d tokens and are left out (model.max_position_embeddings less rollout.max_tokens)",
                     dropped, dropped + len(kept), split, room)
    return kept


def bank_of(context: StageContext, settings: EvaluationConfig, name: str) -> Bank:
    """Where the stage's evaluation of this name keeps its finished units."""
    return Bank(context.rollouts / "evaluations" / name, settings.samples_per_unit, context.check_epoch)


def seal_checkpoint(folder: Path, tokenizer: Tokenizer) -> None:
    """Put the tokenizer into a checkpoint artifact that is being written and extend its content digest to it. One rank (`export_artifact`'s
    `complete`)."""
    tokenizer.save(folder / "tokenizer")
    digest = hashlib.sha256((folder / "content.sha256").read_bytes())
    for file in sorted((folder / "tokenizer").iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    files.write_text(folder / "content.sha256", digest.hexdigest() + "\n")


@dataclass
class Saver:
    """Saves a stage's checkpoints; with `async_save` the files are written while training goes on, and each save first completes the one before."""

    policy: Policy
    context: StageContext
    config: CheckpointConfig
    _pending: Any = field(default=None, init=False)

    def due(self, step: int, before: int, last: int) -> bool:
        """Whether a save falls between step `before` (exclusive) and `step`; the last step always saves."""
        return step // self.config.every > before // self.config.every or step >= last

    def save(self, step: int, extra: Mapping[str, Any], sets: Any = None) -> None:
        """A collective."""
        from r1mega.policy import checkpoint

        self.finish()
        begin = checkpoint.begin_save if self.config.async_save else checkpoint.save
        pending = begin(self.policy, self.context.checkpoints, step, extra, keep_last=self.config.keep_last, before_rename=self.context.check_epoch, sets=sets)
        self._pending = pending if self.config.async_save else None

    def finish(self) -> None:
        """Wait until the newest checkpoint is whole. A collective."""
        if self._pending is not None:
            self._pending.finish()
            self._pending = None


@dataclass
class Reporter:
    """Rank 0 tells the observers and the console about each step; silent elsewhere."""

    context: StageContext
    total: int
    start: int
    _progress: StageProgress | None = field(default=None, init=False)

    def __enter__(self) -> Reporter:
        if self.context.rank == 0:
            plugins.load().hook.stage_start(run_dir=self.context.run_dir, stage=self.context.name, stage_dir=self.context.dir, step=self.start)
            self._progress = StageProgress(self.context.name, self.total, self.start).__enter__()
        return self

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._progress is not None:
            plugins.load().hook.step_end(run_dir=self.context.run_dir, stage=self.context.name, stage_dir=self.context.dir, step=step, metrics=metrics)
            self._progress.update(step, metrics)

    def __exit__(self, *error: Any) -> None:
        if self._progress is not None:
            self._progress.__exit__(*error)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
