import pytest
import torch

from lorasmith.inference.denoise import CFGDenoiser, rescale_noise_cfg, sample_noise


def test_guidance_rescale_restores_the_spread() -> None:
    random = torch.Generator().manual_seed(0)
    positive = torch.randn(3, 4, 8, 8, generator=random) * torch.tensor([1.0, 2.0, 0.5]).view(
        -1, 1, 1, 1
    )
    guided = positive * 7.0 + 1.0
    rescaled = rescale_noise_cfg(guided, positive, 1.0)
    torch.testing.assert_close(rescaled.std((1, 2, 3)), positive.std((1, 2, 3)))
    torch.testing.assert_close(rescale_noise_cfg(guided, positive, 0.0), guided)
    torch.testing.assert_close(
        rescale_noise_cfg(guided, positive, 0.7), 0.7 * rescaled + 0.3 * guided
    )


class FakeUnet:
    """Returns the mean of the context, so that guidance can be worked out by hand."""

    dtype = torch.float32

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, latents, timestep, encoder_hidden_states, return_dict):
        self.batches.append(len(latents))
        return (encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1).expand_as(latents),)


@pytest.mark.parametrize(
    ("guidance", "expected", "batch"), [(5.0, 6.0, 4), (0.0, 1.0, 4), (1.0, 2.0, 2)]
)
def test_guidance_makes_one_batched_call(guidance: float, expected: float, batch: int) -> None:
    unet = FakeUnet()
    negative, context = torch.full((2, 77, 8), 1.0), torch.full((2, 77, 8), 2.0)
    out = CFGDenoiser(unet, context, negative, guidance)(torch.zeros(2, 4, 8, 8), torch.tensor(5))
    torch.testing.assert_close(out, torch.full((2, 4, 8, 8), expected))
    assert unet.batches == [batch]


def test_noise_does_not_depend_on_neighbours() -> None:
    def seeded(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    batched = sample_noise(seeded(3, 4, 5), (4, 8, 8), torch.device("cpu"))
    single = sample_noise(seeded(4), (4, 8, 8), torch.device("cpu"))
    assert torch.equal(batched[1:2], single)
