"""Light random augmentation of images, on their device, for contrastive pretraining."""

import torch
import torch.nn.functional as F

from lorasmith.core.batch_rng import BatchRng


def random_shift_and_zoom(images: torch.Tensor, max_amount: float, rng: BatchRng) -> torch.Tensor:
    """Zoom and shift each image at random; its border pixels are repeated outwards.

    Args:
        images: ``[B, 3, H, W]`` in -1..1.
        max_amount: largest change, as a share of an image's side; 0 returns the images themselves.
        rng: source of the random numbers.
    """
    if max_amount == 0.0:
        return images
    zoom, right, down = (rng.uniform(3) * 2.0 - 1.0) * max_amount
    matrix = torch.zeros(len(images), 2, 3, device=images.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1.0 + zoom
    matrix[:, 0, 2], matrix[:, 1, 2] = right, down
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def color_jitter(images: torch.Tensor, max_amount: float, rng: BatchRng) -> torch.Tensor:
    """Change brightness and contrast of each image at random, by up to ``max_amount``."""
    if max_amount == 0.0:
        return images
    amounts = (rng.uniform(2) * 2.0 - 1.0) * max_amount
    contrast, brightness = amounts.view(2, -1, 1, 1, 1)
    jittered: torch.Tensor = images * (1.0 + contrast) + brightness
    return jittered.clamp(-1.0, 1.0)
