"""How the steps of a run are executed: CUDA graphs, compilation, FP8, and the memory limit."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorasmith.config.optimization import TrainerConfig, parse_memory_size
from lorasmith.core.errors import ConfigError, LorasmithWarning
from lorasmith.loops.memory import empty_gpu_cache, is_out_of_memory, limit_gpu_memory
from lorasmith.ops import fp8
from lorasmith.ops.triton_kernels import support as triton_support
from lorasmith.training.acceleration.activation_checkpointing import (
    ActivationCheckpointer,
    bisect_min,
)
from lorasmith.training.losses import is_capturable

if TYPE_CHECKING:
    from lorasmith.training.state import TrainerState

_MIN_SECONDS_TO_COMPILE = 900.0
"""Estimated seconds of training from which the minutes that compiling takes pay off."""
_FAST_GPU_FLOPS = 3e14
"""Operations per second of a fast GPU in training; slower ones gain more by compiling."""
_MAX_SHAPES_TO_COMPILE = 2
"""Image sizes up to which compiling pays off: each one is compiled separately."""
_NON_TENSOR_BYTES = 0.9 * 2**30
"""GPU memory of a process besides its tensors: kernels, libraries, captured graphs."""
_ALLOCATOR_OVERHEAD = 1.07
"""Memory that the allocator reserves, relative to the peak of what is used."""


@dataclass(frozen=True)
class Workload:
    """What the plan depends on besides settings; LoRAs that are trained together are one workload.

    None of it changes in the course of a run, so that a resumed run gets the same plan.
    """

    device: torch.device
    unet_dtype: torch.dtype
    unet_parameters: int
    """Number of the U-Net's weights."""
    image_sizes: int
    """Number of different image sizes (buckets)."""
    latent_area: float
    """Positions of the largest image's latents, h * w."""
    images: int
    """Images in all steps together."""
    processes: int = 1
    is_sync_free: bool = True
    """Whether no part of a step waits for the GPU or for other processes."""
    is_loss_capturable: bool = True
    """Whether the loss function may be captured as a CUDA graph."""


def workload_of(states: Sequence["TrainerState"]) -> Workload:
    """Return the workload of LoRAs that are trained together."""
    first = states[0]
    train, unet = first.train, first.model.unet
    processes = first.accelerator.num_processes
    area = max(placed.bucket.area for placed in first.dataset.assignments)
    return Workload(
        device=first.device,
        unet_dtype=unet.dtype,
        unet_parameters=sum(parameter.numel() for parameter in unet.parameters()),
        image_sizes=len({bucket for state in states for bucket in state.dataset.bucket_indices}),
        latent_area=area / first.model.vae_scale_factor**2,
        images=train.steps * train.images_per_step(processes) * len(states),
        processes=processes,
        is_sync_free=all(state.train_step.is_sync_free for state in states),
        is_loss_capturable=all(is_capturable(state.loss.loss_fn) for state in states),
    )


@dataclass(frozen=True)
class ExecutionPlan:
    """How steps are executed."""

    use_cuda_graphs: bool = True
    compile_blocks: bool = False
    """Whether the U-Net's blocks are compiled."""
    fp8: bool = False
    """Whether large frozen layers compute in FP8."""
    messages: tuple[str, ...] = ()
    """What to tell the user about it."""


def plan_execution(train: TrainerConfig, workload: Workload) -> ExecutionPlan:
    """Decide how steps are executed; warn about settings that have no effect."""
    if workload.device.type != "cuda":
        _warn_on_cpu(train)
        return ExecutionPlan(use_cuda_graphs=False)
    compile_blocks = _should_compile(train.compile, workload)
    messages = []
    if compile_blocks:
        messages.append("compiling the U-Net's blocks, a minute or two the first time")
    use_cuda_graphs = train.cuda_graph and workload.is_loss_capturable
    if train.cuda_graph and not use_cuda_graphs:
        messages.append("no CUDA graphs: the loss function is not marked @lorasmith.capturable")
    if use_cuda_graphs and not workload.is_sync_free:
        reason = _why_not_sync_free(train, workload)
        messages.append(f"CUDA graphs hold forward and backward, not the optimizer: {reason}")
    use_fp8 = train.fp8 and _can_use_fp8(workload)
    return ExecutionPlan(use_cuda_graphs, compile_blocks, use_fp8, tuple(messages))


def _warn_on_cpu(train: TrainerConfig) -> None:
    if train.vram_limit:
        _warn("train.vram_limit has no effect on a CPU: it limits the memory taken of a GPU")
    if train.compile == "on":
        _warn("train.compile has no effect on a CPU: blocks are compiled for a GPU only")
    if train.fp8:
        _warn("train.fp8 has no effect on a CPU: it needs a GPU that multiplies in FP8")


def _can_use_fp8(workload: Workload) -> bool:
    """Return whether large layers can compute in FP8; warn if not."""
    if not fp8.is_available(workload.device):
        _warn("train.fp8 has no effect: it needs an RTX 40, H100 or later GPU and triton")
        return False
    if workload.unet_dtype != torch.bfloat16:
        _warn('train.fp8 has no effect: set train.mixed_precision = "bf16"')
        return False
    return True


def _warn(text: str) -> None:
    warnings.warn(text, LorasmithWarning, stacklevel=4)


def _why_not_sync_free(train: TrainerConfig, workload: Workload) -> str:
    if workload.processes > 1:
        return "several processes exchange gradients"
    if train.mixed_precision == "fp16":
        return "fp16 scales its losses by values that it reads from the GPU"
    return f"the optimizer {train.optimizer} reads values from the GPU"


def _should_compile(setting: str, workload: Workload) -> bool:
    is_wanted = setting == "on" or (setting == "auto" and _compile_is_worthwhile(workload))
    if is_wanted and not triton_support.has_triton():
        if setting == "on":
            _warn("train.compile is off: it needs the package triton, which is not installed")
        return False
    return is_wanted


def _compile_is_worthwhile(workload: Workload) -> bool:
    """Estimate whether compiling saves more time than it takes.

    Where the package's own kernels work it does not: they leave little to a compiler, and its code
    for these modules is slower than they are (docs/benchmarks.md). Older GPUs lack them.

    A U-Net does about 0.2 operations per parameter and latent position in its forward pass (0.23
    for SD 1.5 at 512 pixels, 0.16 for SDXL at 1024), and a step about 2.1 times as many.
    """
    if triton_support.is_available(workload.device):
        return False
    if workload.image_sizes > _MAX_SHAPES_TO_COMPILE:
        return False
    operations = 2.1 * 0.2 * workload.unet_parameters * workload.latent_area * workload.images
    return operations / _FAST_GPU_FLOPS > _MIN_SECONDS_TO_COMPILE


# --- memory -------------------------------------------------------------------------------------


def configure_activation_checkpointing(
    unet: Any,
    train: TrainerConfig,
    trained_parameters: int,
    has_dropout: bool,
    step: Callable[[], None],
) -> str | None:
    """Checkpoint blocks of a U-Net as the settings say; return a message about it.

    Args:
        unet: the U-Net, on the device where it is trained.
        train: the settings.
        trained_parameters: number of trained parameters of all LoRAs.
        has_dropout: whether adapters draw random numbers.
        step: computes the gradients of the largest step of the run.

    Raises:
        ConfigError: the memory is too little even with all blocks checkpointed.
    """
    device = torch.device(unet.device)
    limit = train.vram_limit if device.type == "cuda" else None
    if not (train.gradient_checkpointing or limit):
        return None
    checkpointer = ActivationCheckpointer(unet, has_dropout)
    if limit is None:
        checkpointer.select_all()
        return None
    return _fit_into_memory(checkpointer, limit, device, trained_parameters, step)


def _fit_into_memory(
    checkpointer: ActivationCheckpointer,
    limit: str,
    device: torch.device,
    trained_parameters: int,
    step: Callable[[], None],
) -> str:
    """Checkpoint as few blocks as fit into the memory limit, by trying."""
    limit_bytes = parse_memory_size(limit)
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    # A guarantee: the process never takes more than this, whatever else happens.
    limit_gpu_memory(device, limit_bytes - _NON_TENSOR_BYTES / 2)
    # Optimizers create their state, two float32 values per parameter, in the first step.
    state_bytes = 8 * trained_parameters
    budget = (min(limit_bytes, total_bytes) - _NON_TENSOR_BYTES) / _ALLOCATOR_OVERHEAD - state_bytes
    peaks: dict[int, float] = {}
    order = checkpointer.sort_by_saved_bytes(step)

    def fits(count: int) -> bool:
        checkpointer.select(order[:count])
        peaks[count] = _peak_bytes(step, device)
        return peaks[count] <= budget

    def gigabytes(count: int) -> float:
        needed = (peaks[count] + state_bytes) * _ALLOCATOR_OVERHEAD + _NON_TENSOR_BYTES
        return needed / 2**30

    count = bisect_min(len(order), fits)
    if count is None:
        raise ConfigError(
            f"train.vram_limit: {limit} is too little, about {gigabytes(len(order)):.1f}GB are "
            "needed; lower train.batch_size (and raise train.gradient_accumulation_steps) or "
            "data.resolution"
        )
    checkpointer.select(order[:count])
    return (
        f"{count} of {len(order)} blocks compute their activations twice, to take about "
        f"{gigabytes(count):.1f} of {limit}"
    )


def _peak_bytes(step: Callable[[], None], device: torch.device) -> float:
    """Return the peak of allocated memory during a step; infinite if it does not suffice."""
    empty_gpu_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        step()
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return float("inf")
    finally:
        empty_gpu_cache()
    return float(torch.cuda.max_memory_allocated(device))
