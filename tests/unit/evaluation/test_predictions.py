"""Predictions for fixed noise: against the network asked by hand, and with LoRAs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

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
from lorasmith.models.load import Model, load_model
from lorasmith.models.noise import NoiseSchedule
from lorasmith.models.text.encode import encode_captions

CAPTIONS = ["a qqa person", "a red qqa cat, blob style", "qqa"]


def feature(file: Path, tag: str = "qqa") -> EvalConcept:
    noise = torch.randint(0, 256, (3, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    pictures = [Image.fromarray(one.numpy().astype("uint8")) for one in noise]
    captions = [caption.replace("qqa", tag) for caption in CAPTIONS]
    return EvalConcept(tag, "person", file, "prompt", pictures, captions, held_out=True)


@pytest.fixture(scope="module")
def studio(model: Model) -> ImageGenerator:
    return ImageGenerator(model, SamplingOptions(num_inference_steps=2, batch_size=8))


def test_predictions_are_the_networks_for_each_picture_level_and_text(model: Model) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = FixedNoisePredictor(model, latents, levels=2, seed=3, batch_size=3)
    texts = ["a cat", "a red boat"]
    found = noise.predict(texts)
    assert found.shape == (4, 4, 8, 8)
    process = NoiseSchedule.from_scheduler(model.scheduler_config, torch.device("cpu"))
    words = encode_captions(model, texts)
    losses = []
    for row, (picture, level) in enumerate([(0, 250), (0, 750), (1, 250), (1, 750)]):
        drawn = noise._predictor[row : row + 1]
        at = torch.tensor([level])
        with torch.no_grad():
            asked = model.unet(
                process.add_noise(latents[picture : picture + 1], drawn, at), at,
                encoder_hidden_states=words[picture].context[None],
            ).sample  # fmt: skip
        torch.testing.assert_close(found[row : row + 1], asked, atol=1e-5, rtol=1e-4)
        losses.append(float((asked - drawn).double().square().mean()))
    expected = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2]
    assert noise.losses(found).tolist() == pytest.approx(expected, rel=1e-4)
    again = FixedNoisePredictor(model, latents, levels=2, seed=3, batch_size=3).predict(texts)
    assert torch.equal(found, again)
    other = FixedNoisePredictor(model, latents, levels=2, seed=4).predict(texts)
    assert not torch.allclose(found, other)


def test_predictions_read_long_captions_as_drawing_does(model: Model) -> None:
    """In chunks, with an empty one behind those that need one less."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = FixedNoisePredictor(model, latents, levels=1, seed=3)
    texts = ["a " * 75 + "red boat", "a cat"]
    first, second, short, empty = encode_captions(model, ["a " * 75, "red boat", "a cat", ""])
    contexts = [
        torch.cat([first.context, second.context]),
        torch.cat([short.context, empty.context]),
    ]
    with torch.no_grad():
        asked = model.unet(
            noise._noisy, noise._timesteps, encoder_hidden_states=torch.stack(contexts)
        ).sample
    torch.testing.assert_close(noise.predict(texts), asked, atol=1e-5, rtol=1e-4)


def test_latents_are_scaled_as_the_network_knows_them(model: Model) -> None:
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = encode_images(model, pictures, batch_size=2)
    assert latents.shape == (3, 4, 8, 8)
    with torch.no_grad():
        mean = model.vae.encode(pictures).latent_dist.mean * model.vae.config.scaling_factor
    torch.testing.assert_close(latents, mean)


def test_sdxl_is_asked_with_sizes_and_summaries(tiny_sdxl: Path) -> None:
    xl = load_model(tiny_sdxl).to(torch.device("cpu"), torch.float32)
    latents = torch.zeros(1, 4, 8, 8)
    found = FixedNoisePredictor(xl, latents, levels=1).predict(["a cat"])
    other = FixedNoisePredictor(xl, latents, levels=1).predict(["a boat"])
    assert found.shape == (1, 4, 8, 8)
    assert not torch.equal(found, other)


def test_a_lora_changes_predictions_and_is_gone_afterwards(
    studio: ImageGenerator, loras: tuple[Path, Path]
) -> None:
    asked = ConceptPredictions(studio, feature(loras[0]))
    leak = asked.leak(loras[0])
    assert leak.floor == 0.0
    assert set(leak.absent) == {"class", "unrelated", "empty"}
    assert all(change > 0 for change in [leak.present, *leak.absent.values()])
    mean = sum(leak.absent.values()) / 3
    assert leak.ratio == pytest.approx(mean / leak.present)
    loss = asked.paired_loss(loras[0])
    with_it = asked._predictor.losses(asked.predict(asked.captions, [loras[0]]))
    without = asked._predictor.losses(asked._predictor.predict(asked.captions))
    assert loss.difference == pytest.approx(float((with_it - without).mean()))
    assert loss.base == pytest.approx(float(without.mean()))
    assert loss.error is not None
    assert asked.paired_loss(loras[1]).base == loss.base


def test_the_best_file_is_the_lowest_loss_within_the_bound(
    studio: ImageGenerator, loras: tuple[Path, Path]
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
    studio: ImageGenerator, loras: tuple[Path, Path]
) -> None:
    predictions = ConceptPredictions(studio, feature(loras[0]))
    files = [(loras[0], 7), (loras[1], None)]
    choice = choose_checkpoint(predictions, "qqa", files, max_leak=-1.0)
    first, second = choice.candidates
    assert (first.step, second.step) == (7, None)
    assert first.loss.base == second.loss.base
    assert first.loss.difference != second.loss.difference
    assert not choice.is_within_limit
    assert choose_checkpoint(predictions, "qqa", files, None).is_within_limit


def test_blocks_are_named_as_targets_are(model: Model) -> None:
    from lorasmith.adapters.naming.layer_names import find_layer_refs

    places = find_layer_refs(model)
    blocks = {block_name(place, "block") for place in places.values()}
    assert blocks == {
        "down.0", "down.1", "down.2", "down.3", "mid", "up.0", "up.1", "up.2", "up.3",
        "text-encoder", "outside",
    }  # fmt: skip
    assert {block_name(place, "kind") for place in places.values()} == {
        "cross-attention", "self-attention", "ff", "conv", "projections", "text-encoder", "outside",
    }  # fmt: skip
    pieces = {block_name(place, "piece") for place in places.values()}
    assert {"IN01", "MID", "OUT11", "text-encoder"} <= pieces


def test_a_probe_tells_blocks_apart(model: Model, loras: tuple[Path, Path], tmp_path: Path) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = FixedNoisePredictor(model, latents, levels=2)
    texts = ["a qqa person", "qqa"]
    file = load_lora_file(loras[0])
    asked: list[int] = []
    work = BlockAblation(model, file, "kind")
    found = work.run(noise, texts, asked.append)
    assert len(asked) == len(work) == 6
    assert [one.block for one in found.blocks] == ["cross-attention", "self-attention"]
    base = noise.predict(texts).double()
    attached = attach_lora(model, file)
    full = noise.predict(texts).double()
    for name, adapter in attached.adapters.items():
        adapter.strength = 0.0 if "attn2" in name else 1.0
    without = noise.predict(texts).double()
    attached.detach()
    whole = float((full - base).square().sum())
    cross, own = found.blocks
    assert cross.switched_off == pytest.approx(float((full - without).square().sum()) / whole)
    assert own.alone == pytest.approx(float((without - base).square().sum()) / whole)
    assert found.effect == pytest.approx(whole / float(base.square().sum()))
    assert torch.equal(noise.predict(texts).double(), base)  # the model is as it was


def test_a_block_that_is_all_of_a_lora_is_all_of_its_effect(model: Model, tmp_path: Path) -> None:
    from lora_making import make_lora

    path = make_lora(model, tmp_path / "up.safetensors", {"targets": "attention@up.1"}, 0.3)
    noise = FixedNoisePredictor(model, torch.zeros(1, 4, 8, 8), levels=1)
    found = BlockAblation(model, load_lora_file(path)).run(noise, ["a cat"])
    assert [one.block for one in found.blocks] == ["up.1"]
    assert found.blocks[0].alone == 1.0
    assert found.blocks[0].switched_off == 1.0
    assert found.blocks[0].norm > 0


def test_a_lora_that_does_nothing_is_named(model: Model, loras: tuple[Path, Path]) -> None:
    from dataclasses import replace

    file = load_lora_file(loras[0])
    idle = {n: la._replace(up=torch.zeros_like(la.up)) for n, la in file.layers.items()}
    noise = FixedNoisePredictor(model, torch.zeros(1, 4, 8, 8), levels=1)
    with pytest.raises(WeightsError, match="changes nothing"):
        BlockAblation(model, replace(file, layers=idle)).run(noise, ["a cat"])


@pytest.mark.parametrize(("family", "level"), [("sd1-inpainting", 500), ("sdxl-refiner", 100)])
def test_models_that_are_told_more(tiny_of: Callable[[str], Path], family: str, level: int) -> None:
    """An inpainting model has all to paint anew; the refiner is told a score, at a known level."""
    told = load_model(tiny_of(family)).to(torch.device("cpu"), torch.float32)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = FixedNoisePredictor(told, latents, levels=1)
    found = noise.predict(["a cat"])
    process = NoiseSchedule.from_scheduler(told.scheduler_config, torch.device("cpu"))
    words, at = encode_captions(told, ["a cat"])[0], torch.tensor([level])
    inputs, extra = [process.add_noise(latents, noise._predictor, at)], None
    with torch.no_grad():
        if family == "sd1-inpainting":
            grey = told.vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean
            inputs += [torch.ones(1, 1, 8, 8), grey * told.vae.config.scaling_factor]
        else:
            assert words.pooled is not None
            sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 6.0]])
            extra = {"text_embeds": words.pooled[None], "time_ids": sizes}
        asked = told.unet(
            torch.cat(inputs, dim=1), at, words.context[None], added_cond_kwargs=extra
        ).sample
    torch.testing.assert_close(found, asked, atol=1e-5, rtol=1e-4)
