"""Problems from reasoning-gym: any of its procedural families, scored by the family's own rule (reward `reasoning_gym`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from r1mega import hookimpl
from r1mega.errors import ConfigError, UserError, nearest
from r1mega.hookspecs import Register
from r1mega.split import split_prompts, text_id
from r1mega.types import Prompt

from ._rows import PromptsTask


@dataclass(frozen=True)
class ReasoningGymConfig:
    """One family of reasoning-gym, and the parameters of its generator."""

    family: str = "chain_sum"
    size: int = 2000  # problems generated, before repeated ones are dropped
    seed: int = 0  # of the family's generator; not the run's seed, so that every stage sees the same problems
    parameters: dict[str, Any] = field(default_factory=dict)  # the family's own, as reasoning-gym spells them
    test_fraction: float = 0.2
    split_seed: int = 0  # not the run's seed: every stage of every run must agree on what is held out
    domain: str = "reasoning"
    language: str = "en"

    def __post_init__(self) -> None:
        if not self.family:
            raise ConfigError("task.family is empty: name a reasoning-gym family, such as chain_sum")
        if self.size < 1:
            raise ConfigError(f"task.size must be at least 1, got {self.size}")
        if not 0 <= self.test_fraction <= 1:
            raise ConfigError(f"task.test_fraction must be between 0 and 1, got {self.test_fraction}")


class ReasoningGym(PromptsTask):
    """Problems of any reasoning-gym family; its entries travel along in `metadata` for its own scorer."""

    version = "1"

    def __init__(self, config: ReasoningGymConfig, *, seed: int = 0) -> None:
        """Generates all problems. Raises `UserError` for an unknown family, `ConfigError` for parameters it does not take.

        `seed` is accepted as for every task; the problems depend on `config.seed` alone.
        """
        self.config = config
        self.seed = seed
        super().__init__(split_prompts(_prompts(config), config.test_fraction, config.split_seed))


def _prompts(config: ReasoningGymConfig) -> Iterator[Prompt]:
    for entry in _entries(config):
        answer = entry["answer"]
        yield Prompt(
            id=text_id(entry["question"]), question=entry["question"], answer=None if answer is None else str(answer), domain=config.domain,
            language=config.language, task="reasoning_gym", metadata={"dataset": config.family, "entry": entry},
        )


def _entries(config: ReasoningGymConfig) -> list[Mapping[str, Any]]:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if config.family not in DATASETS:
        raise UserError(f"task.family: reasoning-gym has no family '{config.family}'.{nearest(config.family, DATASETS)} "
                        f"Known: {', '.join(sorted(DATASETS))}")
    parameters = _parameters(config, DATASETS[config.family][1])
    try:
        dataset = reasoning_gym.create_dataset(config.family, **parameters, size=config.size, seed=config.seed)
        return [dataset[index] for index in range(config.size)]
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"task.parameters: family '{config.family}' cannot make {config.size} problems with {config.parameters}: "
                          f"{type(error).__name__}: {error}") from error


def _parameters(config: ReasoningGymConfig, accepted: type) -> dict[str, Any]:
    """The family's parameters, checked for spelling; lists become tuples where the family has a tuple (YAML knows none)."""
    known = {parameter.name: parameter for parameter in fields(accepted) if parameter.name not in ("seed", "size")}
    for name in config.parameters:
        if name not in known:
            hint = f" Set task.{name} itself instead." if name in ("seed", "size") else nearest(name, known)
            raise ConfigError(f"task.parameters: family '{config.family}' has no parameter '{name}'.{hint} Known: {', '.join(known)}")
    return {name: tuple(value) if isinstance(value, list) and isinstance(known[name].default, tuple) else value
            for name, value in config.parameters.items()}


@hookimpl
def register_tasks(register: Register) -> None:
    register("reasoning_gym", ReasoningGym, config=ReasoningGymConfig)
