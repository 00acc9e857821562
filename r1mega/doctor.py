"""`r1mega doctor`: what is installed, which features that switches on, and combinations known to go wrong.

`inspect_machine` looks, `features` and `problems` judge; the two judges are pure functions of a `Machine`, so a cluster's answer can be worked
out (and tested) on a laptop. Versions come from package metadata: the only package imported is torch, to ask it for the GPUs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.table import Table

GIB = 2**30

# what we call it -> the distributions that provide it
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "megatron-core": ("megatron-core",),
    "hydra-core": ("hydra-core",),
    "numpy": ("numpy",),
    "sentencepiece": ("sentencepiece",),
    "math-verify": ("math-verify",),
    "psutil": ("psutil",),
    "transformer-engine": ("transformer-engine", "transformer-engine-torch"),
    "apex": ("apex",),
    "flash-attn": ("flash-attn", "flash-attn-3"),
    "deep-ep": ("deep-ep",),
    "vllm": ("vllm",),
    "reasoning-gym": ("reasoning-gym",),
    "transformers": ("transformers",),
    "tokenizers": ("tokenizers",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}


@dataclass(frozen=True)
class Gpu:
    """One CUDA device as torch sees it."""

    name: str
    memory_gib: float
    capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """All that the judgements below depend on."""

    python: str
    packages: Mapping[str, str]  # name -> version, installed ones only
    gpus: tuple[Gpu, ...] = ()
    cores: int = 1  # that this process may use
    memory_gib: float = 0.0
    free_disk_gib: float = 0.0  # where the command was called
    shared_memory_gib: float | None = None  # /dev/shm
    torch_cuda: str | None = None  # the CUDA version torch was built for
    torch_error: str | None = None  # why torch cannot be imported
    driver: bool = False  # an NVIDIA driver is loaded
    nvidia_apex: bool = False  # the installed apex has apex.optimizers
    threads_per_rank: int | None = None  # OMP_NUM_THREADS
    ranks: int = 1  # on this machine, as the launcher announced them
    unmet: tuple[str, ...] = field(default=())  # declared requirements that the installed versions break

    def has(self, name: str, at_least: str = "0") -> bool:
        return name in self.packages and Version(self.packages[name]) >= Version(at_least)

    @property
    def capability(self) -> tuple[int, int]:
        """The lowest compute capability among the GPUs; (0, 0) without one."""
        return min((gpu.capability for gpu in self.gpus), default=(0, 0))


@dataclass(frozen=True)
class Feature:
    """Something that is on or off here; `reason` says why it is off and how to switch it on."""

    name: str
    on: bool
    reason: str = ""


@dataclass(frozen=True)
class Problem:
    """A known bad combination. An error means that runs fail or hang, a warning that they are slow or lack something."""

    level: Literal["error", "warning"]
    message: str


# ------------------------------------------------------------------------------------------------------------------------------- judging


def features(machine: Machine) -> list[Feature]:
    """Every optional feature, on or off with the reason."""
    gpu = "" if machine.gpus else "needs an NVIDIA GPU"

    def needs(package: str, extra: str | None = None, at_least: str = "0") -> str:
        if machine.has(package, at_least):
            return ""
        found = f" (found {machine.packages[package]})" if package in machine.packages else ""
        bound = f" >= {at_least}" if at_least != "0" else ""
        return f"needs {package}{bound}{found}" + (f": pip install 'r1mega[{extra}]'" if extra else "")

    def capable(least: tuple[int, int], what: str) -> str:
        if machine.gpus and machine.capability < least:
            return f"needs compute capability {least[0]}.{least[1]} ({what}), found {machine.capability[0]}.{machine.capability[1]}"
        return ""

    absent = "not in this version of r1mega"
    engine = needs("transformer-engine", "te")
    fused_adam = "" if machine.nvidia_apex or not engine else f"{engine}, or NVIDIA's apex built from source"
    wanted: dict[str, tuple[str, ...]] = {
        "Transformer Engine layers": (gpu, engine),
        "FP8 tensorwise": (gpu, engine, capable((8, 9), "Ada, Hopper")),
        "FP8 blockwise": (gpu, needs("transformer-engine", "te", "2.3"), capable((9, 0), "Hopper")),
        "FP8 MXFP8": (gpu, needs("transformer-engine", "te", "2.3"), capable((10, 0), "Blackwell")),
        "fused Adam, bf16 moments": (gpu, fused_adam),
        "DeepEP dispatcher": (absent,),
        "vLLM rollouts": (absent, needs("vllm", "vllm")),
        "reasoning-gym tasks": (needs("reasoning-gym", "gym"),),
        "Hugging Face checkpoints": (absent, needs("transformers", "hf")),
        "Weights & Biases": (needs("wandb", "wandb"),),
        "MLflow": (needs("mlflow", "mlflow"),),
    }
    return [Feature(name, not any(reasons), "; ".join(filter(None, reasons))) for name, reasons in wanted.items()]


def problems(machine: Machine) -> list[Problem]:
    """Every known bad combination found, errors first."""
    found = [*_package_problems(machine), *_device_problems(machine)]
    return sorted(found, key=lambda problem: problem.level)


def _package_problems(machine: Machine) -> list[Problem]:
    # a requirement of vLLM's or Transformer Engine's that is not met concerns their feature alone
    found = [Problem("error" if line.startswith(("r1mega ", "megatron-core ")) else "warning", line) for line in machine.unmet]
    if not Version("3.11") <= Version(machine.python) < Version("3.14"):
        found.append(Problem("error", f"Python {machine.python} is not supported; use 3.11 or 3.12"))
    if machine.torch_error:
        found.append(Problem("error", f"torch cannot be imported: {machine.torch_error}"))
    if not machine.has("megatron-core"):
        found.append(Problem("error", "megatron-core is not installed: pip install megatron-core"))
    elif not machine.has("megatron-core", "0.17") and machine.has("transformer-engine", "2.12"):
        found.append(Problem("error", f"megatron-core {machine.packages['megatron-core']} needs Transformer Engine below 2.12, found "
                                      f"{machine.packages['transformer-engine']}; use megatron-core 0.19 (Python 3.12) or an older engine"))
    if not machine.has("psutil"):
        found.append(Problem("error", "psutil is not installed: Megatron's distributed save hangs for ever without it; pip install psutil"))
    if machine.has("apex") and not machine.nvidia_apex:
        found.append(Problem("warning", f"the package 'apex' {machine.packages['apex']} is not NVIDIA's (it has no apex.optimizers) "
                                        "and shadows it; pip uninstall apex"))
    return found


def _device_problems(machine: Machine) -> list[Problem]:
    found = []
    if machine.torch_cuda and not machine.gpus and not machine.torch_error:
        why = "it sees no GPU (driver too old, or CUDA_VISIBLE_DEVICES?)" if machine.driver else "there is no NVIDIA driver"
        found.append(Problem("warning", f"torch is built for CUDA {machine.torch_cuda} but {why}; training runs on the CPU"))
    if machine.driver and machine.has("torch") and not machine.torch_cuda and not machine.torch_error:
        found.append(Problem("warning", "there is an NVIDIA GPU but torch is a CPU build; install torch's CUDA build to use it"))
    if len({gpu.capability for gpu in machine.gpus}) > 1:
        found.append(Problem("warning", "the GPUs differ in compute capability; features follow the weakest one"))
    threads = machine.threads_per_rank or machine.cores
    if threads * machine.ranks > machine.cores:
        found.append(Problem("warning", f"OMP_NUM_THREADS={machine.threads_per_rank or '(unset)'} with {machine.ranks} rank(s) makes "
                                        f"{threads * machine.ranks} threads on {machine.cores} cores, up to ten times slower; "
                                        f"set OMP_NUM_THREADS={max(1, machine.cores // machine.ranks)}"))
    if machine.gpus and machine.shared_memory_gib is not None and machine.shared_memory_gib < 1:
        found.append(Problem("warning", f"/dev/shm has {machine.shared_memory_gib:.2f} GiB, too little for NCCL between GPUs; "
                                        "in a container pass --shm-size=16g"))
    if machine.free_disk_gib < 5:
        found.append(Problem("warning", f"only {machine.free_disk_gib:.1f} GiB of disk are free here; checkpoints need room"))
    return found


# ------------------------------------------------------------------------------------------------------------------------------- looking


def installed_packages() -> dict[str, str]:
    """The version of every package we know that is installed, from metadata alone."""
    found: dict[str, str] = {}
    for name, distributions in PACKAGES.items():
        for distribution in distributions:
            try:
                found.setdefault(name, metadata.version(distribution))
            except metadata.PackageNotFoundError:
                continue
    return found


def unmet_requirements(distribution: str) -> list[str]:
    """Requirements of `distribution` (extras aside) that are missing or installed in a version it excludes. Its not being installed is none."""
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for requirement in map(Requirement, lines):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{distribution} requires {requirement.name}{requirement.specifier}, which is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{distribution} requires {requirement.name}{requirement.specifier}, found {version}")
    return found


def has_nvidia_apex() -> bool:
    """Whether `apex` is NVIDIA's: looked for in its folder, because importing the other one runs a web framework."""
    spec = util.find_spec("apex")
    return spec is not None and any((Path(folder) / "optimizers").is_dir() for folder in spec.submodule_search_locations or ())


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut by the container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, _, period = quota.read_text().strip().partition(" ")
        if limit.isdigit() and period.isdigit():
            cores = min(cores, max(1, int(limit) // int(period)))
    return cores


def usable_memory_gib() -> float:
    """Physical memory, cut by the container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (value := limit.read_text().strip()).isdigit():
        total = min(total, int(value))
    return total / GIB


def _torch_devices() -> tuple[tuple[Gpu, ...], str | None, str | None]:
    """GPUs, the CUDA version torch was built for, and the error of importing torch."""
    try:
        import torch
    except (ImportError, OSError, ValueError) as error:  # a CUDA build with missing libraries raises any of these
        return (), None, str(error).partition("\n")[0]
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(Gpu(properties.name, round(properties.total_memory / GIB, 1), (properties.major, properties.minor)))
    return tuple(gpus), torch.version.cuda, None


def _integer(*names: str) -> int | None:
    """The first of these environment variables that holds a positive integer."""
    return next((int(value) for name in names if (value := os.environ.get(name, "")).isdigit() and int(value) > 0), None)


def inspect_machine() -> Machine:
    """This machine, as it is now."""
    gpus, torch_cuda, torch_error = _torch_devices()
    shm = Path("/dev/shm")
    return Machine(
        python=".".join(map(str, sys.version_info[:3])),
        packages=installed_packages(),
        gpus=gpus,
        cores=usable_cores(),
        memory_gib=round(usable_memory_gib(), 1),
        free_disk_gib=round(shutil.disk_usage(Path.cwd()).free / GIB, 1),
        shared_memory_gib=round(shutil.disk_usage(shm).total / GIB, 2) if shm.is_dir() else None,
        torch_cuda=torch_cuda,
        torch_error=torch_error,
        driver=bool(list(Path("/dev").glob("nvidia[0-9]*"))) or Path("/proc/driver/nvidia/version").is_file(),
        nvidia_apex=has_nvidia_apex(),
        threads_per_rank=_integer("OMP_NUM_THREADS"),
        ranks=_integer("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE") or 1,
        unmet=tuple(line for name in ("r1mega", "megatron-core", "transformer-engine", "vllm") for line in unmet_requirements(name)),
    )


# ----------------------------------------------------------------------------------------------------------------------------- reporting


def _print(machine: Machine, on_or_off: list[Feature], found: list[Problem]) -> None:
    console = Console()
    versions = Table("package", "version", title=f"Python {machine.python}", title_justify="left")
    for name in PACKAGES:
        versions.add_row(name, machine.packages.get(name, "[dim]not installed[/dim]"))
    console.print(versions)
    for index, gpu in enumerate(machine.gpus):
        console.print(f"GPU {index}: {gpu.name}, {gpu.memory_gib} GiB, compute capability {gpu.capability[0]}.{gpu.capability[1]}")
    build = f"built for CUDA {machine.torch_cuda}" if machine.torch_cuda else "CPU build"
    console.print(f"torch: {machine.torch_error or build}; {len(machine.gpus)} GPU(s), {machine.cores} cores, "
                  f"{machine.memory_gib} GiB of memory, {machine.free_disk_gib} GiB of disk free here", highlight=False)
    table = Table("feature", "", "why", title="Features", title_justify="left")
    for feature in on_or_off:
        table.add_row(feature.name, "[green]on[/green]" if feature.on else "[dim]off[/dim]", feature.reason.replace("[", r"\["))
    console.print(table)
    for problem in found:
        colour = "red" if problem.level == "error" else "yellow"
        console.print(f"[{colour}]{problem.level}:[/{colour}] {problem.message}".replace("r1mega[", r"r1mega\["), highlight=False)
    console.print("[green]nothing known to be wrong[/green]" if not found else f"{len(found)} finding(s)")


def main(as_json: bool = False) -> int:
    """Print the report, as tables or as one JSON object. Returns 1 if something is broken, else 0; warnings do not count."""
    machine = inspect_machine()
    on_or_off, found = features(machine), problems(machine)
    if as_json:
        print(json.dumps({"machine": asdict(machine), "features": [asdict(feature) for feature in on_or_off],
                          "problems": [asdict(problem) for problem in found]}, indent=2))
    else:
        _print(machine, on_or_off, found)
    return int(any(problem.level == "error" for problem in found))
