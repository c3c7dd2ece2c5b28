"""lorasmith: teach Stable Diffusion new things with LoRA.

``import lorasmith`` is cheap: torch and diffusers are imported by the first call that needs them.

    import lorasmith
    pipe = lorasmith.load_pipeline()
    images = pipe("a red apple, noto style", seed=0)

    lora = lorasmith.train(
        {"data": {"path": "pictures", "tag": "ink"}, "output": {"name": "ink"}}
    )
    pipe.load_lora(lora, weight=0.8)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lorasmith.core.version import VERSION

if TYPE_CHECKING:
    from lorasmith.inference.pipeline import load_pipeline
    from lorasmith.training.entry import train

__version__ = VERSION

__all__ = ["__version__", "load_pipeline", "train"]

_HOMES = {
    "load_pipeline": "lorasmith.inference.pipeline",
    "train": "lorasmith.training.entry",
}
"""The modules of the public functions."""


def __getattr__(name: str) -> Any:
    """Import the public functions when they are first asked for (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lorasmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
