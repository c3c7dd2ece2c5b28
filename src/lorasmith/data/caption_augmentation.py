"""Random changes to captions. Each is a function of a generator, so that runs can be repeated."""

import torch


def shuffle_caption(caption: str, keep: int, draws: torch.Generator) -> str:
    """Put the comma-separated parts of a caption into random order.

    Args:
        caption: parts that are empty are left out.
        keep: how many parts at the start stay where they are, at least 0.
        draws: a CPU generator.
    """
    parts = [part for part in (piece.strip() for piece in caption.split(",")) if part]
    fixed, moved = parts[:keep], parts[keep:]
    order = torch.randperm(len(moved), generator=draws).tolist()
    return ", ".join(fixed + [moved[k] for k in order])


def drop_caption(caption: str, share: float, draws: torch.Generator) -> str:
    """Return an empty caption with probability ``share``, else the caption.

    Always takes one number from ``draws``, whatever comes of it.
    """
    return "" if float(torch.rand((), generator=draws)) < share else caption
