"""Light random changes to pictures, on the device, for contrastive pretraining."""

import torch
import torch.nn.functional as F


def shift_and_scale(pictures: torch.Tensor, share: float, draws: torch.Generator) -> torch.Tensor:
    """Zoom and shift each picture by up to ``share`` of its side; the border is extended.

    Args:
        pictures: ``[B, 3, H, W]`` in -1..1.
        share: 0 leaves the pictures alone.
        draws: where the choices come from.
    """
    if share == 0.0:
        return pictures
    amount = torch.rand(3, len(pictures), generator=draws, device=pictures.device) * 2.0 - 1.0
    zoom, right, down = amount * share
    matrix = torch.zeros(len(pictures), 2, 3, device=pictures.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1.0 + zoom
    matrix[:, 0, 2], matrix[:, 1, 2] = right, down
    grid = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def jitter_colours(pictures: torch.Tensor, share: float, draws: torch.Generator) -> torch.Tensor:
    """Change brightness and contrast of each picture by up to ``share``."""
    if share == 0.0:
        return pictures
    amount = torch.rand(2, len(pictures), 1, 1, 1, generator=draws, device=pictures.device)
    contrast, brightness = (amount * 2.0 - 1.0) * share
    return (pictures * (1.0 + contrast) + brightness).clamp(-1.0, 1.0)
