"""Light random changes to pictures, on the device, for contrastive pretraining."""

import torch
import torch.nn.functional as F

from lorasmith.core.batch_rng import BatchRng


def shift_and_scale(pictures: torch.Tensor, share: float, draws: BatchRng) -> torch.Tensor:
    """Zoom and shift each picture by up to ``share`` of its side; the border is extended.

    Args:
        pictures: ``[B, 3, H, W]`` in -1..1.
        share: 0 leaves the pictures alone.
        draws: where the choices come from.
    """
    if share == 0.0:
        return pictures
    zoom, right, down = (draws.uniform(3) * 2.0 - 1.0) * share
    matrix = torch.zeros(len(pictures), 2, 3, device=pictures.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1.0 + zoom
    matrix[:, 0, 2], matrix[:, 1, 2] = right, down
    grid = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def jitter_colours(pictures: torch.Tensor, share: float, draws: BatchRng) -> torch.Tensor:
    """Change brightness and contrast of each picture by up to ``share``."""
    if share == 0.0:
        return pictures
    amount = (draws.uniform(2) * 2.0 - 1.0) * share
    contrast, brightness = amount.view(2, -1, 1, 1, 1)
    changed: torch.Tensor = pictures * (1.0 + contrast) + brightness
    return changed.clamp(-1.0, 1.0)
