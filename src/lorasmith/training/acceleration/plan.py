"""How the steps of a run are taken: recorded or not, compiled or not, and within which memory."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lorasmith.config.train_settings import TrainerConfig, parse_memory_size
from lorasmith.core.errors import ConfigError, LorasmithWarning
from lorasmith.loops.memory import empty_gpu_cache, is_out_of_memory, limit_gpu_memory
from lorasmith.ops import fp8, triton_support
from lorasmith.training.acceleration.activation_checkpointing import (
    ActivationCheckpointer,
    bisect_min,
)
from lorasmith.training.state import TrainerState

_WORTH_COMPILING = 900.0
"""Seconds of training from which the minutes that compiling takes are made up for."""
_FAST = 3e14
"""Operations per second that a fast GPU does in training; slower ones gain more by compiling."""
_SHAPES = 2
"""Sizes of pictures up to which compiling is worth it: each is compiled by itself."""
_APART = 0.9 * 2**30
"""What a process takes of a GPU beside its tensors: kernels, libraries, recorded steps."""
_LOOSE = 1.07
"""What the allocator holds over what is used at the peak."""


@dataclass(frozen=True)
class ExecutionPlan:
    """What was decided."""

    use_cuda_graphs: bool = True
    """Whether steps are recorded as CUDA graphs."""
    compile_blocks: bool = False
    """Whether the U-Net's blocks are compiled."""
    fp8: bool = False
    """Whether large frozen layers multiply in 8 bits."""
    messages: tuple[str, ...] = ()
    """What is to be told about it."""


def plan_execution(sessions: Sequence[TrainerState]) -> ExecutionPlan:
    """Decide by the settings, which all sessions have in common, and by what they train.

    Nothing of it depends on how far the run is or on what else the machine does, so that a
    resumed run decides the same.
    """
    session = sessions[0]
    train, device = session.run.train, session.device
    if device.type != "cuda":
        if train.vram_limit:
            _warn("train.vram_limit has no effect on a CPU: it limits what is taken of a GPU")
        if train.compile == "on":
            _warn("train.compile has no effect on a CPU: blocks are compiled for a GPU only")
        if train.fp8:
            _warn("train.fp8 has no effect on a CPU: it is for GPUs that multiply in 8 bits")
        return ExecutionPlan(use_cuda_graphs=False)
    compiled = train.compile == "on" or (
        train.compile == "auto" and _compile_is_worthwhile(sessions)
    )
    notes = []
    if compiled and not triton_support.has_triton():
        compiled = False
        if train.compile == "on":
            _warn("train.compile is off: it needs the package triton, which is not installed")
    if compiled:
        notes.append("compiling the U-Net's blocks, a minute or two the first time")
    kept = next((one.train_step for one in sessions if not one.train_step.is_sync_free), None)
    if train.cuda_graph and kept is not None:
        notes.append(
            f"{_why_not(train, session)}: recorded are passes and gradients, not the optimizer"
        )
    return ExecutionPlan(train.cuda_graph, compiled, _in_eight_bits(session), tuple(notes))


def _in_eight_bits(session: TrainerState) -> bool:
    """Tell whether large layers multiply in 8 bits; warn where they were asked to and cannot."""
    if not session.run.train.fp8:
        return False
    if not fp8.is_available(session.device):
        _warn("train.fp8 has no effect: it needs an RTX 40, H100 or later GPU and triton")
        return False
    if session.model.unet.dtype != torch.bfloat16:
        _warn('train.fp8 has no effect: set train.mixed_precision = "bf16"')
        return False
    return True


def _warn(text: str) -> None:
    """Say that a setting which somebody asked for has no effect."""
    warnings.warn(text, LorasmithWarning, stacklevel=3)


def _why_not(train: TrainerConfig, session: TrainerState) -> str:
    if session.accelerator.num_processes > 1:
        return "several processes exchange gradients"
    if train.mixed_precision == "fp16":
        return "fp16 scales its losses by what it reads from the GPU"
    return f"the optimizer {train.optimizer} reads values from the GPU"


def _compile_is_worthwhile(sessions: Sequence[TrainerState]) -> bool:
    """Estimate whether compiling makes up for its time.

    Where the package's own kernels work it does not: they leave little to a compiler, and what it
    makes of the rest is slower than they are (docs/benchmarks.md). Older GPUs do not have them.

    A U-Net does about 0.2 operations per parameter and latent forward (0.23 for SD 1.5 at 512
    pixels, 0.16 for SDXL at 1024), and a step about as much again and 1.1 times more.
    """
    session = sessions[0]
    if (
        triton_support.is_available(session.device)
        or len({one for each in sessions for one in each.dataset.bucket_indices}) > _SHAPES
    ):
        return False
    unet = session.model.unet
    size: int = sum(one.numel() for one in unet.parameters())
    area: int = max(placed.bucket.area for placed in session.dataset.assignments)
    latents = area / session.model.vae_scale_factor**2
    train = session.run.train
    pictures = (
        train.steps * train.images_per_step(session.accelerator.num_processes) * len(sessions)
    )
    seconds = 2.1 * 0.2 * size * latents * pictures / _FAST
    return bool(seconds > _WORTH_COMPILING)


# --- memory -----------------------------------------------------------------------------------


def configure_activation_checkpointing(
    sessions: Sequence[TrainerState], step: Callable[[], None]
) -> str | None:
    """Let blocks compute twice as the settings say; return what is to be told about it.

    Args:
        sessions: what is trained.
        step: computes the gradients of the largest step of the run.

    Raises:
        ConfigError: even with every block computing twice the memory would not do.
    """
    session = sessions[0]
    train = session.run.train
    wanted = train.vram_limit if session.device.type == "cuda" else None
    if not (train.gradient_checkpointing or wanted):
        return None
    drops_out = any(one.run.lora.dropout > 0 for one in sessions)
    recomputing = ActivationCheckpointer(session.model.unet, drops_out)
    if wanted is None:
        recomputing.select_all()
        return None
    return _fit(sessions, recomputing, wanted, step)


def _fit(
    sessions: Sequence[TrainerState],
    recomputing: ActivationCheckpointer,
    wanted: str,
    step: Callable[[], None],
) -> str:
    device, limit = sessions[0].device, parse_memory_size(wanted)
    total = torch.cuda.get_device_properties(device).total_memory
    limit_gpu_memory(
        device, limit - _APART / 2
    )  # a promise: whatever else happens, no more is taken
    # Optimizers make their state, two values for each parameter, in the first step.
    states = sum(8 * one.numel() for each in sessions for one in each.trainable.parameters())
    room = (min(limit, total) - _APART) / _LOOSE - states
    needed: dict[int, float] = {}
    order = recomputing.sort_by_saved_bytes(_forward_of(step))

    def fits(count: int) -> bool:
        recomputing.select(order[:count])
        needed[count] = _peak(step, device)
        return needed[count] <= room

    count = bisect_min(len(order), fits)
    if count is None:
        least = (needed[len(order)] + states) * _LOOSE + _APART
        raise ConfigError(
            f"train.vram_limit: {wanted} is too little, about {least / 2**30:.1f}GB are needed; lower "
            "train.batch_size (and raise train.gradient_accumulation_steps) or data.resolution"
        )
    recomputing.select(order[:count])
    used = (needed[count] + states) * _LOOSE + _APART
    return (
        f"{count} of {len(order)} blocks compute their activations twice, to take about "
        f"{used / 2**30:.1f} of {wanted}"
    )


def _forward_of(step: Callable[[], None]) -> Callable[[], None]:
    """Return the step; its backward pass fails where nothing was kept, which is no matter."""

    def forward() -> None:
        try:
            step()
        except RuntimeError as error:
            if "nothing was kept" not in str(error):
                raise

    return forward


def _peak(step: Callable[[], None], device: torch.device) -> float:
    """Return the most that is allocated while a step works; infinite where memory runs out."""
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
