"""Every config dataclass of the core. YAML in `conf/` is composed by Hydra and checked against these (see `compose.py`).

Field names are Megatron-Core's, vLLM's or the paper's wherever one exists. A field typed `Plugin` holds the settings of a plugin:
its `name` chooses the plugin, the rest is checked against that plugin's own dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from r1mega.errors import ConfigError

Plugin = dict[str, Any]  # {"name": <plugin>, **settings}; after checking, `compose` replaces it by PluginChoice


@dataclass(frozen=True)
class PluginChoice:
    """A checked plugin group: which plugin, and its config dataclass instance (None when it takes no config)."""

    name: str
    config: Any = None

    @property
    def is_unset(self) -> bool:
        """Whether a path that the plugin cannot do without is still empty."""
        return any(not getattr(self.config, name) for name in getattr(self.config, "required_paths", ()))


@dataclass(frozen=True)
class ParallelConfig:
    """How one stage is spread over its ranks; names are Megatron's. Data parallelism is what remains of the world size."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    pipeline_model_parallel_layout: str | None = None  # Megatron's, as "Et*3|(tt|)*29,m|L"; None: layers as even over the stages as can be
    context_parallel_size: int = 1
    expert_model_parallel_size: int = 1
    expert_tensor_parallel_size: int | None = None  # None: the same as tensor_model_parallel_size without experts, else 1
    data_parallel_size: int = 1  # local runs: world size = tp * pp * cp * dp; under Slurm it must agree with nodes x ranks_per_node
    sequence_parallel: bool | None = None  # None: on exactly when tensor_model_parallel_size > 1


@dataclass(frozen=True)
class PrecisionConfig:
    """Number formats of training. FP8 recipes need Transformer Engine."""

    params_dtype: Literal["fp32", "bf16"] = "fp32"
    fp8: Literal["e4m3", "hybrid"] | None = None
    fp8_recipe: Literal["blockwise", "tensorwise", "mxfp8"] = "blockwise"
    exp_avg_dtype: Literal["fp32", "bf16"] = "fp32"  # Adam moments; bf16 needs a fused precision-aware optimizer
    transformer_engine: bool | None = None  # None: used where installed and a GPU is present
    recompute_granularity: Literal["full", "selective"] | None = None
    recompute_modules: list[str] = field(default_factory=list)  # with "selective", Megatron's names
    recompute_num_layers: int = 1  # with "full"


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam or SGD through Megatron's (distributed) optimizer."""

    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 3e-6
    min_lr: float = 0.0
    lr_decay_style: Literal["constant", "linear", "cosine"] = "constant"
    lr_warmup_steps: int = 0
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    clip_grad: float = 1.0
    use_distributed_optimizer: bool = True
    max_nonfinite_updates: int = 3  # updates in a row that were skipped because the gradient's norm was not finite: as many end the stage

    def __post_init__(self) -> None:
        if self.max_nonfinite_updates < 1:
            raise ValueError(f"max_nonfinite_updates={self.max_nonfinite_updates}: must be at least 1")


@dataclass(frozen=True)
class CheckpointConfig:
    """When and how the state of a stage is saved."""

    every: int = 100  # steps; the last step is always saved
    keep_last: int = 2
    async_save: bool = False


@dataclass(frozen=True)
class ClusterConfig:
    """Where the ranks of a stage run."""

    kind: Literal["local", "slurm"] = "local"
    nodes: int = 1
    ranks_per_node: int | None = None  # None: locally the layout's product
    threads_per_rank: int | None = None  # None: cores / ranks, at least 1
    master_port: int | None = None  # None: a free one is chosen
    timeout_minutes: float = 10.0  # of collectives


@dataclass(frozen=True)
class RewardTerm:
    """One reward of the sum: which plugin, its settings, and how it counts."""

    name: str
    weight: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)
    from_step: int = 0  # it counts in rollouts that begin after at least so many policy updates
    until_step: int | None = None  # and after fewer than so many; null: to the end. Evaluations compute it whatever the step
    domains: list[str] = field(default_factory=list)  # it counts for prompts of these domains; empty: of all
    scope: Literal["response", "summary", "reasoning"] = "response"  # what it sees of a completion: all, or the part after or inside the reasoning

    def __post_init__(self) -> None:
        if self.from_step < 0 or (self.until_step is not None and self.until_step <= self.from_step):
            raise ValueError(f"from_step={self.from_step}, until_step={self.until_step}: no step lies between them; expected 0 <= from_step < until_step")


@dataclass(frozen=True)
class RewardConfig:
    """All reward terms and the pool that computes them."""

    terms: dict[str, RewardTerm] = field(default_factory=dict)
    workers: int = 1  # processes per data-parallel replica
    timeout_s: float = 10.0  # deadline of one call
    memory_mb: int = 4096  # address-space limit of a worker; 0: none
    batch_size: int = 32  # samples per call
    retries: int = 1
    on_failure: Literal["mask", "stop"] = "mask"
    max_failure_rate: float = 0.25  # of a step's samples; above it the run stops, whatever `on_failure`


@dataclass(frozen=True)
class MismatchConfig:
    """The guard on the distance between the generator's and the trainer's log-probs."""

    action: Literal["off", "warn", "stop"] = "warn"
    max_mean_abs: float = 0.02  # nats per token


@dataclass(frozen=True)
class TemplateConfig:
    """How a question becomes the text the model continues, and what a whole answer to it looks like (the text that SFT trains on).

    With `path`, `prompt`, `turn` and `system` are those of a released model's chat template (`data.released_template`), read when the config is made.
    """

    prompt: str = "{question}"  # {question} is replaced
    response: str = "<think>{reasoning}</think><answer>{response}</answer>"  # {reasoning} and {response} are replaced
    turn: str = ""  # an earlier turn of a conversation, {question} and {response} replaced; empty: the prompt, then the response and an empty line
    system: str = ""  # how a conversation with a system message begins, {system} replaced; empty: as one without, then the message and an empty line
    path: str = ""  # a folder with a released model's chat template (chat_template.jinja or tokenizer_config.json), or that file

    def __post_init__(self) -> None:
        if not self.path:
            return
        from r1mega.data.released_template import conversation_of, read_source

        source = read_source(Path(self.path).expanduser())
        found = conversation_of(source, keep_opening="<think>" not in self.response)
        for name, default in (("prompt", "{question}"), ("turn", ""), ("system", "")):
            given, stated = getattr(self, name), getattr(found, name)
            if given not in ("", default, stated):
                raise ConfigError(f"template.{name}: {given!r} is not what the chat template in {source.file} says, {stated!r}; "
                                  "leave template.path or template." + name + " out")
            object.__setattr__(self, name, stated)
        object.__setattr__(self, "path", str(source.file))  # the one file that a result depends on, not all of its folder


@dataclass(frozen=True)
class StageCommon:
    """What every training-like stage has. A stage plugin's dataclass inherits from this."""

    seed: int = 0
    model: Plugin = field(default_factory=dict)
    tokenizer: Plugin = field(default_factory=dict)
    task: Plugin = field(default_factory=dict)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


# Fields that do not change a stage's results (within numerical noise): left out of its fingerprint.
NOT_SEMANTIC = ("parallel", "cluster", "checkpoint", "reward.workers", "reward.timeout_s", "reward.memory_mb", "reward.batch_size",
                "monitor.action", "optimizer.max_nonfinite_updates", "rollout.server", "rewriter.server", "annotator.server",
                "rollout.max_slots", "rollout.refill_fraction", "micro_batch_tokens", "prompts_per_unit", "evaluation.samples_per_unit", "samples_logged",
                "parquet", "precision.recompute_granularity", "precision.recompute_modules", "precision.recompute_num_layers", "logging")
