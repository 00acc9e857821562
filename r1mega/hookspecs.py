"""THE plugin contract: the hooks an r1mega plugin implements, and the Protocols of what it registers.

Hooks only register; nothing here runs on the hot path. A plugin is a module (or object) whose functions carry `@r1mega.hookimpl`, found through
the entry-point group `r1mega`:

    # my_rewards.py
    import r1mega
    from r1mega.types import RewardSample, Score

    class Short:
        '''1 for an answer under 20 characters.'''
        version = "1"
        def score(self, samples: list[RewardSample]) -> list[Score]:
            return [Score(float(len(s.completion) < 20)) for s in samples]

    @r1mega.hookimpl
    def register_rewards(register):
        register("short", Short)

`register(name, factory, config=None)` takes a factory that is called with the plugin's config dataclass instance if `config` (a dataclass type) is
given, else with nothing, and with the keyword arguments each hook names. `version` and the documentation line are read from the factory. Settings
without which nothing can run (a file of the user's) are named in the dataclass: `required_paths: ClassVar[tuple[str, ...]] = ("path",)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import pluggy

from r1mega.types import Completion, GenerationRequest, Prompt, RewardSample, Score, ScoredGroup

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from r1mega.data.preferences import Assessment, Comparison
    from r1mega.data.records import SampleRecord
    from r1mega.recipe.context import StageContext
    from r1mega.types import MicroBatch

hookspec = pluggy.HookspecMarker("r1mega")
hookimpl = pluggy.HookimplMarker("r1mega")


class Register(Protocol):
    """The one argument of every `register_*` hook."""

    def __call__(self, name: str, factory: Callable[..., Any], *, config: type | None = None) -> None: ...


# ------------------------------------------------------------------------------------------------------------------- what plugins provide


@runtime_checkable
class Stage(Protocol):
    """A node of the graph. `run` is executed by every rank of the stage's process group and returns on all of them.

    `inputs` and `outputs` map a name to an artifact type name ("Checkpoint", "PromptSet", "SampleSet", "PreferenceSet", "RewardModel",
    "HuggingFaceModel", "Report"); an input type that ends with "?" may be left unconnected. `version` goes into the fingerprint: raise it when the
    stage's results change.

    A stage that measures says on what, so that it is kept out of all training data of the recipe (`r1mega.recipe.evaluations`): `measured_on`, the inputs
    whose prompts it measures on where they are connected, and else the test split of its task. A stage that makes training data takes part with a field
    `evaluation_tasks: dict[str, EvaluationTask]` in its config, and optional inputs called as in `EVALUATION_INPUTS` (`r1mega.data.decontaminate`).

    Example: `plugins/stages/evaluate.py`.
    """

    version: ClassVar[str]
    inputs: ClassVar[Mapping[str, str]]
    outputs: ClassVar[Mapping[str, str]]

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Do the work, write the outputs under `context.output(name)`, return the stage's headline metrics."""
        ...


@runtime_checkable
class Reward(Protocol):
    """Scores completions. Runs in a worker process without torch, one call at a time per worker, under a deadline.

    A wrong or malformed answer scores 0; an answer the reward cannot judge at all raises. Returns one `Score` per sample, in order.

    Example: `plugins/rewards/format.py`.
    """

    version: ClassVar[str]

    def score(self, samples: Sequence[RewardSample]) -> Sequence[Score]: ...


class ResponseScorer(Protocol):
    """A reward computed where the policy is, such as a reward model: not in the worker pool, but on every rank of stage `rl`.

    Registered through `register_rewards` too, by a factory with the attribute `needs_scorer = True`, called as `factory(config, folder=..., policy=...,
    tokenizer=...)` once the policy has its weights; `folder` is the stage's input named like the reward term, None where it is not connected.

    `score` is a collective: all ranks call it together, each with its own replica's responses (perhaps none) and the prompt of each, and gets a finite
    number for each response, in order. A response is the part of the completion that the term's `scope` names.

    A scorer whose model has the policy's shape may also have `lengths(prompts, responses) -> list[int]`: the tokens that `score` reads of each, for the
    count of FLOPs. It is no collective.

    Example: `tests/integration/scenario_distribution/scenario.py`.
    """

    version: str
    needs_scorer: ClassVar[bool]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float]: ...


class Generator(Protocol):
    """Makes completions with the current policy. Built by `factory(config, policy=..., tokenizer=...)` on every rank.

    `generate` is a collective: every rank of the job calls it, each with its own replica's requests (ranks of one model-parallel group pass the
    same ones), and it returns when every rank is done. `on_finish` is called on each rank, the moment a completion is whole. The order of calls
    is not defined; the content of each completion is (it depends on the request and the weights alone).

    A generator that asks a model behind a server has the attribute `served_model`, what the server calls it (no address): samples then name that model
    as their maker instead of the stage's checkpoint.

    Example: `plugins/rollouts/megatron.py`.
    """

    def generate(self, requests: Sequence[GenerationRequest], on_finish: Callable[[Completion], None]) -> None: ...


class Algorithm(Protocol):
    """Turns rewards into advantages and log-probs into a loss. Pure: no Megatron, no I/O. Example: `plugins/algorithms/grpo.py`."""

    version: ClassVar[str]
    needs_reference: bool  # whether `loss` reads `batch.ref_logprobs`

    def advantages(self, groups: Sequence[ScoredGroup]) -> Sequence[np.ndarray]:
        """For each group a float32 array [G]; NaN marks a sample that gives no gradient (masked, zero-variance or one-member group)."""
        ...

    def weights(self, completion_lengths: Sequence[int]) -> Sequence[float]:
        """The loss weight of each token of a completion, one per contributing sequence of the step (aggregation)."""
        ...

    def denominator(self, completion_lengths: Sequence[int]) -> float:
        """What the step's summed, weighted loss is divided by; additive over data-parallel replicas."""
        ...

    def loss(self, logprobs: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """The weighted loss *sum* over the micro-batch, and sums of metrics (weighted by `batch.weights > 0` tokens)."""
        ...


class Task(Protocol):
    """A source of problems with a train/test split by problem identity. Example: `plugins/tasks/arithmetic.py`."""

    version: ClassVar[str]

    def prompts(self, split: str) -> Sequence[Prompt]:
        """All problems of the split "train" or "test", in a fixed order. No problem id is in both."""
        ...


class CorpusTask(Task, Protocol):
    """A task that can also write pre-training documents, about training problems only."""

    def documents(self, count: int, seed: int) -> Iterator[tuple[str | None, str]]:
        """`count` documents: (question, response), to be rendered through the template, or (None, plain text)."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back. Example: `plugins/tokenizers/sentencepiece.py`."""

    vocab_size: int
    eos_id: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def save(self, folder: Path) -> None: ...


class Rewriter(Protocol):
    """Writes kept samples anew: another format, another style, the same answer. Built by `factory(config)` on the lead
    of each replica of a `sample` stage, which hands it that replica's samples some hundred at a time: what becomes of a sample must not depend on the
    others.

    `rewrite` returns one entry per sample, in order: the sample with other text, or None for one it cannot rewrite (it is dropped and counted). The
    id stays. Example: `plugins/rewriters/rules.py`.
    """

    version: ClassVar[str]

    def rewrite(self, samples: Sequence[SampleRecord]) -> Sequence[SampleRecord | None]: ...


class Annotator(Protocol):
    """Judges responses: which of two is better, and whether one is safe. Built by `factory(config, reward=...)` on the lead of each replica of a
    `preference_data` stage, which asks it for some hundred judgements at a time; `reward` is the stage's, for annotators that decide by a rule.

    Both methods return one verdict per question, in order, None where there is none: what it was about is dropped and counted. An annotator that can
    do only one of them raises `ConfigError` in the other. Example: `plugins/annotators/rule.py`.
    """

    version: ClassVar[str]
    provenance: Mapping[str, Any]  # what the rows shall say of it beside its name and version, such as the model that it asks; no address

    def compare(self, comparisons: Sequence[Comparison]) -> Sequence[str | None]:
        """A key of `data.preferences.VERDICTS` for each."""
        ...

    def assess(self, assessments: Sequence[Assessment]) -> Sequence[bool | None]:
        """Whether each response is safe."""
        ...

    def close(self) -> None:
        """No more questions come; processes may end."""
        ...


# ------------------------------------------------------------------------------------------------------------------------------- the hooks


@hookspec
def register_stages(register: Register) -> None:
    """Add stage kinds: `factory(config)` is a `Stage`; `config` is the dataclass the stage's YAML is checked against."""


@hookspec
def register_rewards(register: Register) -> None:
    """Add rewards: `factory(config)` is a `Reward`, called once in every worker process; with `needs_scorer` it makes a `ResponseScorer`."""


@hookspec
def register_rollouts(register: Register) -> None:
    """Add generators: `factory(config, policy=..., tokenizer=...)` is a `Generator`."""


@hookspec
def register_algorithms(register: Register) -> None:
    """Add RL algorithms: `factory(config)` is an `Algorithm`."""


@hookspec
def register_models(register: Register) -> None:
    """Add model families: `factory(config)` is a `policy.architecture.Architecture` (Megatron's terms)."""


@hookspec
def register_tasks(register: Register) -> None:
    """Add tasks: `factory(config, seed=...)` is a `Task`."""


@hookspec
def register_tokenizers(register: Register) -> None:
    """Add tokenizers: `factory(config, folder=...)` loads one; a factory with a `train(config, documents, folder)` attribute can be trained."""


@hookspec
def register_rewriters(register: Register) -> None:
    """Add rewriters of samples: `factory(config)` is a `Rewriter`."""


@hookspec
def register_annotators(register: Register) -> None:
    """Add judges of responses: `factory(config, reward=...)` is an `Annotator`."""


@hookspec
def stage_start(run_dir: Path, stage: str, stage_dir: Path, step: int) -> None:
    """Called on rank 0 before a stage's first step. `step` is the last finished one: 0 for a fresh start, more after a resume.

    `stage_dir` is `RUN_DIR/stages/<name>/<fingerprint>/`, here and below. A missing package or an impossible setting is raised here.
    """


@hookspec
def step_end(run_dir: Path, stage: str, stage_dir: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Called on rank 0 after every step (counted from 1) with its global metrics. Must return quickly."""


@hookspec
def stage_end(run_dir: Path, stage: str, stage_dir: Path, metrics: Mapping[str, Any]) -> None:
    """Called on rank 0 when a stage is complete, with its headline metrics."""


@hookspec
def config_search_path() -> str | None:  # type: ignore[empty-body]
    """A Hydra search path of the plugin's own config groups, such as `pkg://my_rewards.conf`; extends the built-in `conf/`."""
