"""The devices and processes that a run is spread over, as accelerate sees them."""

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from lorasmith.config.pretrain import LoopSettings
from lorasmith.core.errors import ConfigError


def accelerator_for(settings: LoopSettings) -> Accelerator:
    """Return accelerate's view of this process for a run's device and precision.

    Raises:
        ConfigError: the device cannot do what the settings ask for.
    """
    # accelerate keeps the first precision and device that a process asked for and refuses others;
    # two runs in one process (a notebook, the tests) may well differ.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=settings.precision, cpu=settings.device == "cpu")
    kind = accelerator.device.type
    if settings.precision == "fp16" and kind == "cpu":
        raise ConfigError("loop.precision: fp16 needs a GPU; use bf16 or no")
    if settings.graph and (kind != "cuda" or accelerator.num_processes > 1):
        raise ConfigError("loop.graph: a CUDA graph needs exactly one CUDA GPU; set it to false")
    if settings.graph and settings.precision == "fp16":
        raise ConfigError("loop.graph: fp16 loss scaling cannot be recorded; use bf16 or no")
    return accelerator
