"""lorasmith: teach Stable Diffusion new things with LoRA.

``import lorasmith`` is cheap: torch and diffusers are imported by the first call that needs them.

    import lorasmith
    pipe = lorasmith.load_pipeline()
    images = pipe("a red apple, noto style", seed=0)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorasmith.inference.pipeline import load_pipeline

__version__ = "0.1.0"

__all__ = ["__version__", "load_pipeline"]


def __getattr__(name: str) -> Any:
    """Import the public functions when they are first asked for (PEP 562)."""
    if name == "load_pipeline":
        from lorasmith.inference.pipeline import load_pipeline

        return load_pipeline
    raise AttributeError(f"module 'lorasmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
