"""The model that ships in the package: complete, small enough, and good."""

import json

import numpy as np
import pytest
import torch

import lorasmith
from helpers.manifests import read_manifest
from helpers.paths import EMBEDDED_RECIPE, REPOSITORY
from lorasmith.data.reading.reader import read_rows
from lorasmith.data.reading.row import hash_row
from lorasmith.inference.pipeline import Pipeline
from lorasmith.models.files.open import EMBEDDED
from lorasmith.models.image_encoder import embed_images, embed_texts, load_clip, load_tokenizer

PACKED = REPOSITORY.parent / "shared" / "data" / "emoji128.tar"

needs_data = pytest.mark.skipif(not PACKED.is_file(), reason="the packed pictures are not here")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return lorasmith.load_pipeline(device="cpu")


def test_embedded_model_is_small() -> None:
    sizes = {p: p.stat().st_size for p in EMBEDDED.rglob("*") if p.is_file()}
    assert sum(sizes.values()) <= 48 * 2**20
    assert max(sizes.values()) <= 16 * 2**20


def test_embedded_model_has_the_shape_of_stable_diffusion_1() -> None:
    unet = json.loads((EMBEDDED / "unet" / "config.json").read_text())
    vae = json.loads((EMBEDDED / "vae" / "config.json").read_text())
    tokenizer = load_tokenizer(EMBEDDED)
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert unet["layers_per_block"] == 2
    assert (len(vae["block_out_channels"]), vae["latent_channels"]) == (4, 4)
    assert tokenizer.model_max_length == 77


def test_plain_diffusers_generates_the_same_image(pipe: Pipeline) -> None:
    from diffusers import StableDiffusionPipeline

    from lorasmith.core.device import make_generator
    from lorasmith.inference.denoise import sample_noise

    ours = pipe("a red apple, noto style", seed=3, num_inference_steps=8, guidance_scale=5.0)[0]
    theirs = StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    noise = sample_noise([make_generator(3)], (4, 16, 16), torch.device("cpu"))
    image = theirs(
        "a red apple, noto style", num_inference_steps=8, guidance_scale=5.0, latents=noise
    ).images[0]
    difference = np.abs(np.asarray(ours, dtype=int) - np.asarray(image, dtype=int))
    assert difference.max() <= 1


def test_images_match_their_captions(pipe: Pipeline) -> None:
    """Each drawn image is nearer to its own caption than to the others', by the image tower."""
    captions = [
        "a red apple, noto style",
        "the flag of France, twemoji style",
        "a grinning face, noto style",
        "a house, fluent style",
        "a bicycle, emojitwo style",
        "a heart, fluent style",
    ]
    from lorasmith.evaluation.base_model import pil_to_tensor

    images = pipe(captions, seed=0, num_inference_steps=12, guidance_scale=5.0, batch_size=6)
    pair, tokenizer = load_clip(EMBEDDED), load_tokenizer(EMBEDDED)
    pictures = embed_images(pair.image, pil_to_tensor(images, 128))
    texts = embed_texts(pair, tokenizer, captions)
    assert (pictures @ texts.T).argmax(dim=1).tolist() == list(range(len(captions)))


def test_manifest_names_no_held_out_style() -> None:
    manifest = read_manifest(EMBEDDED_RECIPE / "manifest.tsv")
    styles = {key.split("/")[0] for key in manifest}
    assert styles == {"noto", "twemoji", "fluent", "fluent-flat", "fluent3d", "blob", "emojitwo"}
    assert all(len(digest) == 64 for digest in manifest.values())


@needs_data
def test_no_held_out_row_was_trained_on() -> None:
    manifest = read_manifest(EMBEDDED_RECIPE / "manifest.tsv")
    rows = read_rows(PACKED)
    held_out = [row for row in rows if row.columns["role"] == "holdout"]
    base = {row.key: row for row in rows if row.columns["role"] == "base"}
    assert len(held_out) > 3000
    assert not {hash_row(row) for row in held_out} & set(manifest.values())
    assert not {row.key for row in held_out} & set(manifest)
    assert set(manifest) <= set(base)
    sample = sorted(manifest)[::50]
    assert [manifest[key] for key in sample] == [hash_row(base[key]) for key in sample]
