"""Predictions for fixed noise, compared with direct calls of the network, and with LoRAs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.encode import encode_captions
from helpers.tiny_models import open_model
from lorasmith.adapters.files.lora_file import load_lora_file
from lorasmith.adapters.injection.inject import attach_lora
from lorasmith.core.errors import WeightsError
from lorasmith.evaluation.block_ablation import BlockAblation, block_name
from lorasmith.evaluation.checkpoint_choice import choose_best, choose_checkpoint
from lorasmith.evaluation.concept import EvalConcept
from lorasmith.evaluation.concept_predictions import ConceptPredictions
from lorasmith.evaluation.fixed_noise import FixedNoisePredictor, encode_images
from lorasmith.evaluation.image_generator import ImageGenerator
from lorasmith.evaluation.results import Candidate, PairedLoss
from lorasmith.inference.options import SamplingOptions
from lorasmith.models.families.family import PREDICTION_TYPES
from lorasmith.models.model import Model
from lorasmith.models.noise_schedule import NoiseSchedule

CAPTIONS = ["a qqa person", "a red qqa cat, blob style", "qqa"]


def make_concept(file: Path, tag: str = "qqa") -> EvalConcept:
    noise = torch.randint(0, 256, (3, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    images = [Image.fromarray(pixels.numpy().astype("uint8")) for pixels in noise]
    captions = [caption.replace("qqa", tag) for caption in CAPTIONS]
    return EvalConcept(tag, "person", file, "prompt", images, captions, held_out=True)


@pytest.fixture(scope="module")
def generator(shared_model: Model) -> ImageGenerator:
    return ImageGenerator(shared_model, SamplingOptions(num_inference_steps=2, batch_size=8))


def test_predictions_are_the_unet_outputs_of_each_image_level_and_prompt(model: Model) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = FixedNoisePredictor(model, latents, levels=2, seed=3, batch_size=3)
    texts = ["a cat", "a red boat"]
    predictions = noise.predict(texts)
    assert predictions.shape == (4, 4, 8, 8)
    schedule = NoiseSchedule.from_scheduler(model.scheduler_config, torch.device("cpu"))
    words = encode_captions(model, texts)
    losses = []
    for row, (image, level) in enumerate([(0, 250), (0, 750), (1, 250), (1, 750)]):
        image_noise = noise._noise[row : row + 1]
        timestep = torch.tensor([level])
        with torch.no_grad():
            expected = model.unet(
                schedule.add_noise(latents[image : image + 1], image_noise, timestep), timestep,
                encoder_hidden_states=words[image].context[None],
            ).sample  # fmt: skip
        torch.testing.assert_close(predictions[row : row + 1], expected, atol=1e-5, rtol=1e-4)
        losses.append(float((expected - image_noise).double().square().mean()))
    expected_losses = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2]
    assert noise.losses(predictions).tolist() == pytest.approx(expected_losses, rel=1e-4)
    repeated = FixedNoisePredictor(model, latents, levels=2, seed=3, batch_size=3).predict(texts)
    assert torch.equal(predictions, repeated)
    other = FixedNoisePredictor(model, latents, levels=2, seed=4).predict(texts)
    assert not torch.allclose(predictions, other)


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_loss_is_the_distance_to_what_the_model_predicts(model: Model, prediction: str) -> None:
    config = model.scheduler_config | {"prediction_type": prediction}
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = FixedNoisePredictor(replace(model, scheduler_config=config), latents, levels=2, seed=3)
    clean, added = latents.repeat_interleave(2, dim=0).double(), noise._noise.double()
    schedule = NoiseSchedule.from_scheduler(config, torch.device("cpu"))
    power = schedule.alphas_cumprod[noise._timesteps].double().view(-1, 1, 1, 1)
    velocity = power.sqrt() * added - (1 - power).sqrt() * clean
    target = {"epsilon": added, "v_prediction": velocity, "sample": clean}[prediction]
    predictions = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    expected = (predictions - target).square().mean(dim=(1, 2, 3)).view(2, 2).mean(dim=1)
    torch.testing.assert_close(noise.losses(predictions), expected, rtol=1e-5, atol=1e-6)


def test_long_captions_are_encoded_as_in_generation(model: Model) -> None:
    """In chunks; shorter captions are padded with empty chunks."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = FixedNoisePredictor(model, latents, levels=1, seed=3)
    texts = ["a " * 75 + "red boat", "a cat"]
    first, second, short, empty = encode_captions(model, ["a " * 75, "red boat", "a cat", ""])
    contexts = [
        torch.cat([first.context, second.context]),
        torch.cat([short.context, empty.context]),
    ]
    with torch.no_grad():
        expected = model.unet(
            noise._noisy, noise._timesteps, encoder_hidden_states=torch.stack(contexts)
        ).sample
    torch.testing.assert_close(noise.predict(texts), expected, atol=1e-5, rtol=1e-4)


def test_latents_are_scaled_by_the_scaling_factor(model: Model) -> None:
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = encode_images(model, pictures, batch_size=2)
    assert latents.shape == (3, 4, 8, 8)
    with torch.no_grad():
        mean = model.vae.encode(pictures).latent_dist.mean * model.vae.config.scaling_factor
    torch.testing.assert_close(latents, mean)


def test_sdxl_predictions_use_sizes_and_pooled_embeddings(tiny_sdxl: Path) -> None:
    xl = open_model(tiny_sdxl)
    latents = torch.zeros(1, 4, 8, 8)
    predictions = FixedNoisePredictor(xl, latents, levels=1).predict(["a cat"])
    other = FixedNoisePredictor(xl, latents, levels=1).predict(["a boat"])
    assert predictions.shape == (1, 4, 8, 8)
    assert not torch.equal(predictions, other)


def test_lora_changes_predictions_and_is_detached_afterwards(
    generator: ImageGenerator, loras: tuple[Path, Path]
) -> None:
    predictions = ConceptPredictions(generator, make_concept(loras[0]))
    leak = predictions.leak(loras[0])
    assert leak.floor == 0.0
    assert set(leak.absent) == {"class", "unrelated", "empty"}
    assert all(change > 0 for change in [leak.present, *leak.absent.values()])
    mean = sum(leak.absent.values()) / 3
    assert leak.ratio == pytest.approx(mean / leak.present)
    loss = predictions.paired_loss(loras[0])
    with_lora = predictions._predictor.losses(predictions.predict(predictions.captions, [loras[0]]))
    base = predictions._predictor.losses(predictions._predictor.predict(predictions.captions))
    assert loss.difference == pytest.approx(float((with_lora - base).mean()))
    assert loss.base == pytest.approx(float(base.mean()))
    assert loss.error is not None
    assert predictions.paired_loss(loras[1]).base == loss.base


def test_best_file_has_the_lowest_loss_within_the_leak_limit(
    generator: ImageGenerator, loras: tuple[Path, Path]
) -> None:
    def candidate(name: str, loss: float, leak: float | None) -> Candidate:
        return Candidate(Path(name), None, PairedLoss(loss, None, 1.0), leak)

    files = [candidate("a", -0.3, 0.9), candidate("b", -0.2, 0.3), candidate("c", -0.1, 0.2),
             candidate("d", -0.9, None)]  # fmt: skip
    assert choose_best(files[:3], None).file == Path("a")
    assert choose_best(files, None).file == Path("d")
    assert choose_best(files, 0.3).file == Path("b")
    assert choose_best(files, 0.1).file == Path("c")


def test_candidates_are_measured_on_the_same_noise(
    generator: ImageGenerator, loras: tuple[Path, Path]
) -> None:
    predictions = ConceptPredictions(generator, make_concept(loras[0]))
    files = [(loras[0], 7), (loras[1], None)]
    choice = choose_checkpoint(predictions, "qqa", files, max_leak=-1.0)
    first, second = choice.candidates
    assert (first.step, second.step) == (7, None)
    assert first.loss.base == second.loss.base
    assert first.loss.difference != second.loss.difference
    assert not choice.is_within_limit
    assert choose_checkpoint(predictions, "qqa", files, None).is_within_limit


def test_block_names_are_targets(model: Model) -> None:
    from lorasmith.adapters.naming.layer_names import find_layer_refs

    refs = find_layer_refs(model)
    blocks = {block_name(ref, "block") for ref in refs.values()}
    assert blocks == {
        "down.0", "down.1", "down.2", "down.3", "mid", "up.0", "up.1", "up.2", "up.3",
        "text-encoder", "outside",
    }  # fmt: skip
    assert {block_name(ref, "kind") for ref in refs.values()} == {
        "cross-attention", "self-attention", "ff", "conv", "projections", "text-encoder", "outside",
    }  # fmt: skip
    blocks = {block_name(ref, "lbw") for ref in refs.values()}
    assert {"IN01", "MID", "OUT11", "text-encoder"} <= blocks


def test_ablation_measures_each_block(model: Model, loras: tuple[Path, Path]) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    predictor = FixedNoisePredictor(model, latents, levels=2)
    prompts = ["a qqa person", "qqa"]
    file = load_lora_file(loras[0])
    steps: list[int] = []
    ablation = BlockAblation(model, file, "kind")
    result = ablation.run(predictor, prompts, steps.append)
    assert len(steps) == len(ablation) == 6
    assert [block.block for block in result.blocks] == ["cross-attention", "self-attention"]
    base = predictor.predict(prompts).double()
    attached = attach_lora(model, file)
    full = predictor.predict(prompts).double()
    for name, adapter in attached.adapters.items():
        adapter.strength = 0.0 if "attn2" in name else 1.0
    self_attention_only = predictor.predict(prompts).double()
    attached.detach()
    effect = float((full - base).square().sum())
    cross, self_attention = result.blocks
    missing = float((full - self_attention_only).square().sum())
    assert cross.switched_off == pytest.approx(missing / effect)
    expected = float((self_attention_only - base).square().sum())
    assert self_attention.alone == pytest.approx(expected / effect)
    assert result.effect == pytest.approx(effect / float(base.square().sum()))
    assert torch.equal(predictor.predict(prompts).double(), base)  # the LoRA is detached


def test_only_block_of_a_lora_has_all_of_its_effect(model: Model, tmp_path: Path) -> None:
    from helpers.lora_files import make_lora

    path = make_lora(model, tmp_path / "up.safetensors", {"targets": "attention@up.1"}, 0.3)
    noise = FixedNoisePredictor(model, torch.zeros(1, 4, 8, 8), levels=1)
    result = BlockAblation(model, load_lora_file(path)).run(noise, ["a cat"])
    assert [block.block for block in result.blocks] == ["up.1"]
    assert result.blocks[0].alone == 1.0
    assert result.blocks[0].switched_off == 1.0
    assert result.blocks[0].norm > 0


def test_ablation_of_a_lora_without_effect_is_an_error(
    model: Model, loras: tuple[Path, Path]
) -> None:

    file = load_lora_file(loras[0])
    idle_layers = {
        name: replace(layer, up=torch.zeros_like(layer.up)) for name, layer in file.layers.items()
    }
    noise = FixedNoisePredictor(model, torch.zeros(1, 4, 8, 8), levels=1)
    with pytest.raises(WeightsError, match="changes nothing"):
        BlockAblation(model, replace(file, layers=idle_layers)).run(noise, ["a cat"])


@pytest.mark.parametrize(("family", "level"), [("sd1-inpainting", 500), ("sdxl-refiner", 100)])
def test_inpainting_and_refiner_models_get_their_conditioning(
    tiny_of: Callable[[str], Path], family: str, level: int
) -> None:
    """An inpainting model inpaints everything; the refiner gets an aesthetic score."""
    model = open_model(tiny_of(family))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = FixedNoisePredictor(model, latents, levels=1)
    predictions = noise.predict(["a cat"])
    schedule = NoiseSchedule.from_scheduler(model.scheduler_config, torch.device("cpu"))
    conditioning = encode_captions(model, ["a cat"])[0]
    timestep = torch.tensor([level])
    inputs, extra = [schedule.add_noise(latents, noise._noise, timestep)], None
    with torch.no_grad():
        if family == "sd1-inpainting":
            grey = model.vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean
            inputs += [torch.ones(1, 1, 8, 8), grey * model.vae.config.scaling_factor]
        else:
            assert conditioning.pooled is not None
            sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 6.0]])
            extra = {"text_embeds": conditioning.pooled[None], "time_ids": sizes}
        expected = model.unet(
            torch.cat(inputs, dim=1), timestep, conditioning.context[None], added_cond_kwargs=extra
        ).sample
    torch.testing.assert_close(predictions, expected, atol=1e-5, rtol=1e-4)
