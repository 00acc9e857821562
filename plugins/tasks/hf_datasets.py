"""Problems from a Hugging Face data set, by name on the hub or from a local folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from r1mega import hookimpl
from r1mega.errors import ConfigError, DataError, UserError, nearest
from r1mega.hookspecs import Register
from r1mega.split import Split, given_split, split_prompts
from r1mega.types import Prompt

from ._rows import BadRowError, PromptsTask, RowsConfig, read_prompts
from .jsonl import report


@dataclass(frozen=True)
class HfDatasetsConfig(RowsConfig):
    """Which data set, and which of its splits are which side."""

    required_paths: ClassVar[tuple[str, ...]] = ("path",)
    path: str = ""  # as `datasets.load_dataset` takes it: a name on the hub, such as openai/gsm8k, or a local folder
    subset: str = ""  # the data set's configuration name, such as main
    revision: str = ""  # branch, tag or commit on the hub; empty: the newest
    train_split: str = "train"
    test_split: str = "test"  # empty: the train split is split by test_fraction

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.train_split:
            raise ConfigError("task.train_split is empty: name the split to train on")


class HfDatasets(PromptsTask):
    """Problems from Hugging Face `datasets`: a data set of the hub by name, or a local folder."""

    version = "1"

    def __init__(self, config: HfDatasetsConfig, *, seed: int = 0) -> None:
        """Loads (and where needed downloads) the data set and checks every row at once.

        Raises `ConfigError` for the path or a split, `UserError` where the data set cannot be had, `DataError` for malformed rows. `seed` is
        accepted as for every task; nothing here is drawn at random.
        """
        self.config = config
        self.seed = seed
        super().__init__(_load(config), config.max_prompts)


def _load(config: HfDatasetsConfig) -> Split:
    if not config.path:
        raise ConfigError("task.path is empty: set it to a data set's name, such as task.path=openai/gsm8k, or to a local folder")
    splits = _open(config)
    train = _prompts(splits, config.train_split, "train_split", config)
    if not config.test_split:
        return report(split_prompts(train, config.test_fraction, config.split_seed), config.path)
    return report(given_split(train, _prompts(splits, config.test_split, "test_split", config)), config.path)


def _open(config: HfDatasetsConfig) -> Mapping[str, Any]:
    """All splits by name."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("task 'hf_datasets' needs the datasets library, which is not installed: pip install 'r1mega[hf]'") from error
    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(config.path, config.subset or None, revision=config.revision or None)
    except Exception as error:  # the library passes on whatever its hub client, its cache and its builders raise
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(f"task.path: data set '{config.path}'{f' ({config.subset})' * bool(config.subset)} cannot be loaded: "
                        f"{type(error).__name__}: {first_line} Check the name and the network, or use a local copy with task=jsonl") from error
    return loaded


def _prompts(splits: Mapping[str, Any], name: str, setting: str, config: HfDatasetsConfig) -> list[Prompt]:
    if name not in splits:
        raise ConfigError(f"task.{setting}: data set '{config.path}' has no split '{name}'.{nearest(name, splits)} Known: {', '.join(splits)}")
    prompts = read_prompts(_rows(splits[name], f"{config.path}[{name}]"), config, task="hf_datasets")
    if not prompts:
        raise DataError(f"{config.path}[{name}]: the split is empty")
    return prompts


def _rows(dataset: Any, source: str) -> Iterator[tuple[str, Mapping[str, Any] | BadRowError]]:
    return ((f"{source}:{number}", row) for number, row in enumerate(dataset, start=1))


@hookimpl
def register_tasks(register: Register) -> None:
    register("hf_datasets", HfDatasets, config=HfDatasetsConfig)
