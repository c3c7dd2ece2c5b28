"""Caption shuffling and dropout, each a function of a generator, so that runs can be repeated."""

import torch


def shuffle_caption(caption: str, keep: int, generator: torch.Generator) -> str:
    """Put the comma-separated parts of a caption into random order.

    Args:
        caption: empty parts are left out.
        keep: how many parts at the start stay where they are, at least 0.
        generator: a CPU generator.
    """
    parts = [part.strip() for part in caption.split(",") if part.strip()]
    fixed, shuffled = parts[:keep], parts[keep:]
    order = torch.randperm(len(shuffled), generator=generator).tolist()
    return ", ".join(fixed + [shuffled[i] for i in order])


def drop_caption(caption: str, rate: float, generator: torch.Generator) -> str:
    """Return an empty caption with probability ``rate``, else the caption.

    Every call draws one random number.
    """
    return "" if float(torch.rand((), generator=generator)) < rate else caption
