import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lorasmith
from helpers.doubles import RecordingPipeline
from lorasmith.core.errors import ConfigError, LorasmithWarning, WeightsError
from lorasmith.inference.image_jobs import make_image_jobs
from lorasmith.inference.pipeline import Pipeline, load_pipeline, tensor_to_pil
from lorasmith.registries import SAMPLERS


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def weights_of(pipe: Pipeline) -> dict[str, torch.Tensor]:
    parts = {"unet": pipe.model.unet, "text": pipe.model.text_encoder}
    return {
        f"{n}.{k}": v.clone() for n, part in parts.items() for k, v in part.state_dict().items()
    }


@pytest.mark.parametrize("sampler", SAMPLERS.names())
def test_batch_size_does_not_change_the_images(pipe: Pipeline, sampler: str) -> None:
    def draw(batch_size: int) -> np.ndarray:
        return pixels(
            pipe(
                "a red apple",
                num_images_per_prompt=3,
                num_inference_steps=6,
                sampler=sampler,
                batch_size=batch_size,
            )
        )

    single, batched = draw(1), draw(3)
    assert abs(single - batched).max() <= 1
    assert abs(single[0] - single[1]).max() > 10  # the seeds differ


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_image_k_has_seed_plus_k(pipe: Pipeline, sampler: str) -> None:
    images = pixels(
        pipe(
            "a red apple", seed=40, num_images_per_prompt=3, num_inference_steps=4, sampler=sampler
        )
    )
    last = pixels(pipe("a red apple", seed=42, num_inference_steps=4, sampler=sampler))
    assert abs(images[2] - last[0]).max() <= 1


def test_images_follow_prompts_and_say_their_text(pipe: Pipeline) -> None:
    images = pipe(
        ["an apple", "a pear"], num_images_per_prompt=2, num_inference_steps=3, batch_size=3
    )
    single = pipe("a pear", seed=2, num_images_per_prompt=2, num_inference_steps=3)
    assert abs(pixels(images)[2:] - pixels(single)).max() <= 1
    assert [image.info["parameters"].splitlines()[0] for image in images] == [
        *["an apple"] * 2,
        *["a pear"] * 2,
    ]


def test_image_matches_diffusers(pipe: Pipeline, tiny_model: Path) -> None:
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = theirs(
        "a red apple",
        negative_prompt="blurry",
        latents=noise,
        num_inference_steps=12,
        guidance_scale=5.0,
        guidance_rescale=0.4,
        output_type="np",
    ).images[0]
    recording = RecordingPipeline(pipe.model)
    options = {
        "negative_prompt": "blurry",
        "num_inference_steps": 12,
        "guidance_scale": 5.0,
        "guidance_rescale": 0.4,
    }
    recording("a red apple", seed=3, **options)
    np.testing.assert_allclose(recording.decoded[0].permute(1, 2, 0).numpy(), expected, atol=1e-4)


def test_size_need_not_be_square(pipe: Pipeline) -> None:
    assert pipe("x", num_inference_steps=1)[0].size == (64, 64)
    assert pipe("x", num_inference_steps=1, width=96, height=40)[0].size == (96, 40)
    with pytest.raises(ConfigError, match="steps of 8 pixels; use 96x40"):
        pipe("x", width=95, height=41)


def test_options_change_the_image(pipe: Pipeline) -> None:
    plain = pixels(pipe("an apple", num_inference_steps=4))
    for change in (
        {"negative_prompt": "pear"},
        {"guidance_scale": 1.0},
        {"clip_skip": 2},
        {"seed": 9},
    ):
        assert (
            abs(pixels(pipe("an apple", **{"num_inference_steps": 4, **change})) - plain).max() > 1
        ), change


def test_progress_counts_image_steps(pipe: Pipeline) -> None:
    counts: list[int] = []
    pipe("x", num_images_per_prompt=3, num_inference_steps=4, batch_size=2, progress=counts.append)
    assert counts == [2, 2, 2, 2, 1, 1, 1, 1]


def test_long_prompt_warns_once_in_strict_mode(pipe: Pipeline) -> None:
    long = "a " * 75 + "zebra"
    text = "more than the 75 .* read in 2 chunks, the second from 'zebra' on"
    with pytest.warns(LorasmithWarning, match=text) as caught:
        strict = pixels(pipe(long, num_images_per_prompt=2, num_inference_steps=1))
    assert len(caught) == 1
    pipe.strict = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert (
                pixels(pipe(long, num_images_per_prompt=2, num_inference_steps=1)) == strict
            ).all()
    finally:
        pipe.strict = True


def test_image_does_not_depend_on_longer_prompts_of_the_call(pipe: Pipeline) -> None:
    prompts = ["a pear", "an apple BREAK a plum", "a (fig:1.3)"]
    batched = pixels(pipe(prompts, seed=[4, 4, 4], num_inference_steps=2, guidance_scale=9))
    for prompt, image in zip(prompts, batched, strict=True):
        assert (
            abs(
                pixels(pipe(prompt, seed=4, num_inference_steps=2, guidance_scale=9))[0] - image
            ).max()
            <= 1
        )
    assert abs(batched[0] - batched[1]).max() > 1
    longer = pixels(
        pipe("a pear", seed=4, num_inference_steps=2, guidance_scale=9, negative_prompt="a BREAK b")
    )
    assert abs(longer - batched[0]).max() > 1


def test_mentioned_lora_applies_to_its_prompt_only(pipe: Pipeline) -> None:
    before = weights_of(pipe)
    plain, first = "a red apple", "a red apple <lora:one:0.8>"
    prompt_with_both = "a red apple <lora:one:0.8> <lora:two:-0.5>"
    mixed = pixels(
        pipe(
            [plain, first, plain, prompt_with_both],
            seed=[1, 1, 1, 1],
            num_inference_steps=4,
            batch_size=4,
        )
    )
    assert abs(mixed[0] - mixed[2]).max() <= 1
    assert abs(mixed[0] - mixed[1]).max() > 2
    assert abs(mixed[1] - mixed[3]).max() > 2
    assert abs(mixed[1] - pixels(pipe(first, seed=1, num_inference_steps=4))[0]).max() <= 1
    after = weights_of(pipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_lora_changes_the_text_encoder(pipe: Pipeline) -> None:
    ids = pipe.model.tokenizer("apple", return_tensors="pt")["input_ids"]
    plain = pipe.model.text_encoder(ids).last_hidden_state
    pipe.load_lora(pipe.lora_dir / "one.safetensors")
    try:
        assert not torch.allclose(plain, pipe.model.text_encoder(ids).last_hidden_state)
    finally:
        pipe.unload_lora()
    assert torch.equal(plain, pipe.model.text_encoder(ids).last_hidden_state)


def test_loaded_lora_equals_lora_syntax_in_the_prompt(pipe: Pipeline) -> None:
    plain = pixels(pipe("an apple", num_inference_steps=4))
    mentioned = pixels(pipe("an apple <lora:one:0.5>", num_inference_steps=4))
    pipe.load_lora(pipe.lora_dir / "one.safetensors", 0.25)
    pipe.load_lora(pipe.lora_dir / "one.safetensors", 0.25)
    try:
        assert abs(pixels(pipe("an apple", num_inference_steps=4)) - mentioned).max() <= 1
    finally:
        pipe.unload_lora()
    assert (pixels(pipe("an apple", num_inference_steps=4)) == plain).all()


def test_lora_loaded_by_name_or_path_is_in_the_parameters(pipe: Pipeline) -> None:
    mentioned = pipe("an apple <lora:one:0.5> <lora:two:-1>", num_inference_steps=4)
    path = pipe.lora_dir / "two.safetensors"
    for second in (path, str(path), "two"):
        pipe.load_lora("one", 0.5)
        pipe.load_lora(second, -1)
        try:
            drawn = pipe("an apple", num_inference_steps=4)
            assert [(lora.name, lora.weight) for lora in pipe.loaded_loras] == [
                ("one", 0.5),
                ("two", -1),
            ]
        finally:
            pipe.unload_lora()
        assert abs(pixels(drawn) - pixels(mentioned)).max() <= 1
        text = drawn[0].info["parameters"].splitlines()[0]
        assert text == "an apple <lora:one:0.5> <lora:two:-1>"
    assert pipe.loaded_loras == ()
    assert (
        pipe("an apple", num_inference_steps=1)[0].info["parameters"].splitlines()[0] == "an apple"
    )


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e9, -10.1, "strong", None])
def test_invalid_weight_attaches_nothing(pipe: Pipeline, weight: float) -> None:
    before = weights_of(pipe)
    with pytest.raises(ConfigError, match="LoRA 'one'"):
        pipe.load_lora("one", weight)
    assert weights_of(pipe).keys() == before.keys()
    assert pipe.loaded_loras == ()


def test_missing_lora_attaches_nothing(pipe: Pipeline) -> None:
    before = weights_of(pipe)
    for absent, message in (("onne", "did you mean one"), ("./one.safetensors", "no such file")):
        with pytest.raises(WeightsError, match=message):
            pipe.load_lora(absent)
    assert weights_of(pipe).keys() == before.keys()


def test_failed_call_detaches_its_loras(pipe: Pipeline) -> None:
    before = weights_of(pipe)

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("x <lora:one:1>", num_inference_steps=2, progress=fail)
    damaged = pipe.lora_dir / "damaged.safetensors"
    damaged.write_bytes(b"not safetensors")
    with pytest.raises(WeightsError, match="damaged"):
        pipe("x <lora:one:1> <lora:damaged:1>", num_inference_steps=2)
    damaged.unlink()
    with pytest.raises(WeightsError, match="did you mean one"):
        pipe(["x", "x <lora:onne:1>"], num_inference_steps=2)
    assert weights_of(pipe).keys() == before.keys()


def test_nan_becomes_black_with_a_warning() -> None:
    with pytest.warns(LorasmithWarning, match="shown as black"):
        images = tensor_to_pil(torch.full((1, 3, 2, 2), float("nan")))
    assert pixels(images).max() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(tensor_to_pil(torch.full((1, 3, 2, 2), 0.5)))[0, 0, 0, 0] == 128


def test_mismatched_components_are_refused(pipe: Pipeline) -> None:
    from diffusers import UNet2DConditionModel

    model = pipe.model
    for change, message in (
        ({"cross_attention_dim": 24}, "width 24"),
        ({"in_channels": 5}, "5 channels"),
    ):
        config = dict(model.unet.config) | change
        with torch.device("meta"):
            second = UNet2DConditionModel.from_config(config)
        with pytest.raises(WeightsError, match=message):
            Pipeline(
                type(model)(model.path, second, model.vae, model.text_encoder, model.tokenizer, {})
            )


def test_bfloat16_gives_nearly_the_same_image(tiny_model: Path, pipe: Pipeline) -> None:
    rough = lorasmith.load_pipeline(tiny_model, device="cpu", dtype=torch.bfloat16)
    difference = pixels(rough("an apple", num_inference_steps=4)) - pixels(
        pipe("an apple", num_inference_steps=4)
    )
    assert abs(difference).mean() < 6


def test_public_names_are_imported_lazily() -> None:
    from lorasmith.training.api import train

    assert {"load_pipeline", "train"} <= set(dir(lorasmith))
    assert lorasmith.load_pipeline is load_pipeline
    assert lorasmith.train is train
    assert not {"load_pipeline", "train"} & set(vars(lorasmith))
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        _ = lorasmith.paint


def test_generate_takes_jobs(pipe: Pipeline) -> None:
    from lorasmith.inference.options import SamplingOptions

    drawn = pipe.generate(
        make_image_jobs(["an apple"], 5, 1), SamplingOptions(num_inference_steps=2)
    )
    assert (pixels(drawn) == pixels(pipe("an apple", seed=5, num_inference_steps=2))).all()
