"""Where the policy runs: CUDA with NCCL, or a CPU with gloo. Everything that Megatron-Core assumes about CUDA and a CPU lacks is supplied here.

On a CPU no global of torch is touched. Instead every `megatron.core` module gets, in place of its own global name `torch`, a copy of the
torch namespace whose `cuda` part and whose tensor factories know that the device is a CPU. Other libraries in the process (vLLM) see the
real torch, and attribute access costs what it always costs. The few places that this cannot reach are replaced one by one, each with its reason.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from r1mega.errors import UserError

CPU = torch.device("cpu")
# Imported before they are adapted; what these import is adapted with them.
_MEGATRON_MODULES = ("dist_checkpointing", "distributed", "models.gpt.gpt_layer_specs", "models.gpt.gpt_model", "optimizer",
                     "optimizer_param_scheduler", "pipeline_parallel", "transformer.multi_token_prediction")
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "rand", "randn", "eye", "as_tensor", "empty_like", "zeros_like", "ones_like")


@dataclass(frozen=True)
class Platform:
    """The device of this rank and the name of its collective backend."""

    device: torch.device
    backend: str

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


@functools.cache
def get_platform() -> Platform:
    """This process's platform. The first call on a machine without CUDA adapts Megatron-Core to the CPU."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return Platform(device, "nccl")
    adapt_megatron_to_cpu()
    return Platform(CPU, "gloo")


def initialize_distributed(platform: Platform, timeout_minutes: float) -> None:
    """Join the process group described by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT (default: a group of one)."""
    if dist.is_initialized():
        return
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    timeout = timedelta(minutes=timeout_minutes)
    if os.environ["WORLD_SIZE"] == "1" and "MASTER_PORT" not in os.environ:
        dist.init_process_group(platform.backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)  # type: ignore[attr-defined]
        return
    try:
        dist.init_process_group(platform.backend, timeout=timeout)
    except dist.DistNetworkError as error:
        raise UserError(f"cannot rendezvous at {os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')}: {str(error).splitlines()[0]}; "
                        "choose another cluster.master_port or leave it unset") from error


# ------------------------------------------------------------------------------------------------------------------------ the CPU's torch


class _NoStream:
    """A stream on a device that has none: all work is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def record_event(self, *args: Any) -> _NoStream:
        del args
        return self

    def wait_stream(self, *args: Any) -> None:
        del args

    wait_event = synchronize = record = wait = wait_stream

    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *args: object) -> None:
        return None


def _cpu_cuda_namespace() -> types.ModuleType:
    cuda = types.ModuleType("torch.cuda (as a CPU has it)")
    cuda.__dict__.update(torch.cuda.__dict__)

    @contextlib.contextmanager
    def nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
        del args, kwargs
        yield

    stream = _NoStream()
    cuda.__dict__.update(
        current_device=lambda: CPU, Stream=_NoStream, Event=_NoStream, current_stream=lambda *a: stream, default_stream=lambda *a: stream,
        stream=nothing, synchronize=lambda *a: None, empty_cache=lambda: None, manual_seed=torch.manual_seed,
        get_rng_state=lambda *a, **k: torch.get_rng_state(), set_rng_state=lambda state, *a, **k: torch.set_rng_state(state))
    cuda.nvtx = types.SimpleNamespace(range_push=lambda *a: None, range_pop=lambda *a: None, range=nothing)  # type: ignore[attr-defined]
    return cuda


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> Any:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)  # there is no other memory to copy to, and without a GPU torch refuses
        return factory(*args, **kwargs)

    return make


@functools.cache
def _cpu_torch() -> types.ModuleType:
    copy = types.ModuleType("torch")
    copy.__dict__.update(torch.__dict__)
    copy.__dict__.update({name: _on_cpu(getattr(torch, name)) for name in _FACTORIES}, cuda=_cpu_cuda_namespace())
    copy.__dict__["__getattr__"] = lambda name: getattr(torch, name)  # torch loads some names on demand
    return copy


def adopt_cpu_torch() -> None:
    """Give the CPU's torch to every loaded `megatron.core` module that does not have it yet."""
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and getattr(module, "torch", None) is torch:
            module.torch = _cpu_torch()  # type: ignore[attr-defined]


def _undo_compilation() -> None:
    """Replace Megatron's compiled functions by what they were compiled from: on a CPU compiling needs a C++ compiler and seconds, for nothing.

    Megatron's own `disable_jit_fuser` comes too late for modules that are already imported.
    """
    modules = [module for name, module in sys.modules.items() if name.startswith("megatron.core")]
    values = [value for module in modules for value in vars(module).values()]
    classes = {value for value in values if isinstance(value, type) and value.__module__.startswith("megatron.core")}
    for owner in (*modules, *classes):
        for name, value in list(vars(owner).items()):
            if isinstance(value, types.FunctionType) and "_torchdynamo_orig_callable" in vars(value):
                setattr(owner, name, vars(value)["_torchdynamo_orig_callable"])


def _start_vector_math() -> None:
    """One thread makes the first calls of the vector library. Where two make them at once, the first attention of a process was seen to come out with
    fewer digits (1e-4, with the same weights and inputs), in one of forty processes; the library chooses its kernels then."""
    one = torch.ones(1)
    for function in (torch.cos, torch.sin, torch.exp, torch.log, torch.tanh):
        function(one)


@functools.cache
def adapt_megatron_to_cpu() -> None:
    """Make the imported Megatron-Core run on a CPU. Idempotent."""
    for name in _MEGATRON_MODULES:
        importlib.import_module(f"megatron.core.{name}")
    import megatron.core.transformer.multi_latent_attention as mla
    from megatron.core.optimizer import clip_grads
    from megatron.core.tensor_parallel import mappings, random
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    _undo_compilation()
    adopt_cpu_torch()
    _start_vector_math()
    # The generator state of "the device" is the CPU generator's.
    random._get_cuda_rng_state = lambda device=None, clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    # These guards are wrong where Transformer Engine is absent: the names exist and are not usable.
    moe_utils.te_general_gemm = None
    mla.HAVE_TE = False
    if not hasattr(random, "FP8GlobalStateManager"):  # recomputing a norm or an up projection asks it whether FP8 is on
        random.FP8GlobalStateManager = types.SimpleNamespace(is_fp8_enabled=lambda: False)
        random.activation_recompute_forward = random.fp8_autocast = lambda *a, **k: contextlib.nullcontext()
    # gloo's all-to-all takes split sizes as numbers, not tensors.
    token_dispatcher.maybe_move_tensor_to_cpu = _split_sizes_to_numpy
    # gloo has neither an all-gather nor a reduce-scatter of unequal parts; expert-TP beside EP needs both.
    mappings._gather_along_first_dim = _gather_unequal(mappings._gather_along_first_dim)
    mappings._reduce_scatter_along_first_dim = _reduce_scatter_unequal(mappings._reduce_scatter_along_first_dim)
    # The original asserts the string 'torch.cuda.FloatTensor'.
    clip_grads.clip_grad_by_total_norm_fp32 = _clip_grad_by_total_norm
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("megatron.core.optimizer") and hasattr(module, "clip_grad_by_total_norm_fp32"):
            module.clip_grad_by_total_norm_fp32 = _clip_grad_by_total_norm  # type: ignore[attr-defined]


@contextlib.contextmanager
def building_on_cpu(platform: Platform) -> Iterator[None]:
    """While a model is built on a CPU, `Tensor.cuda()` returns the tensor itself: Megatron moves shared embeddings with it. Restored after."""
    if platform.is_cuda:
        yield
        return
    original = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.cuda = original  # type: ignore[method-assign]


def mark_parameters(module: torch.nn.Module) -> None:
    """Let each parameter answer `.type()` as its CUDA twin would: the distributed optimizer sorts parameters by that string. Only on a CPU."""
    for parameter in module.parameters():
        parameter.type = functools.partial(_cuda_type, parameter.dtype)  # type: ignore[method-assign, assignment]


def _cuda_type(dtype: torch.dtype) -> str:
    return {torch.float32: "torch.cuda.FloatTensor", torch.bfloat16: "torch.cuda.BFloat16Tensor", torch.float16: "torch.cuda.HalfTensor"}[dtype]


def _split_sizes_to_numpy(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    del record_stream
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _gather_unequal(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def gather(x: torch.Tensor, group: Any, output_split_sizes: Any = None, use_global_buffer: bool = False) -> torch.Tensor:
        if output_split_sizes is None or group.size() == 1:
            return original(x, group, output_split_sizes, use_global_buffer)
        sizes = [int(size) for size in output_split_sizes]
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: x.shape[0]] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    return gather


def _reduce_scatter_unequal(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def scatter(x: torch.Tensor, group: Any, input_split_sizes: Any = None, use_global_buffer: bool = False) -> torch.Tensor:
        if input_split_sizes is None or group.size() == 1:
            return original(x, group, input_split_sizes, use_global_buffer)
        total = x.clone()
        dist.all_reduce(total, group=group)
        parts: list[torch.Tensor] = list(total.split([int(size) for size in input_split_sizes]))
        mine: torch.Tensor = parts[group.rank()].contiguous()
        return mine

    return scatter


def _clip_grad_by_total_norm(parameters: Any, max_norm: float, total_norm: float, use_decoupled_grad: bool = False) -> None:
    coefficient = max_norm / (total_norm + 1.0e-6)
    if coefficient >= 1.0:
        return
    name = "decoupled_grad" if use_decoupled_grad else "grad"
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else parameters
    grads = [grad for parameter in parameters if (grad := getattr(parameter, name, None)) is not None]
    torch._foreach_mul_(grads, coefficient)
