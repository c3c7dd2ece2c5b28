"""Batches of a training set: what they hold, and what they depend on."""

import json
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.training.datasets import built, data_of, moments, pixels_of, take, write
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import make_generator
from lorasmith.core.errors import ConfigError, DataError, LorasmithWarning
from lorasmith.models.model import Model
from lorasmith.models.text.encode import encode_hidden_states, tokenize
from lorasmith.training.data.resolution import buckets_for_model

# --- fixed images and captions ------------------------------------------------------------


def test_batch_equals_its_images_processed_separately(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)] * 5)
    dataset = built(model, data_of(folder))
    batch = take(dataset, [4, 1, 3])

    unit = BatchRng(make_generator(0, 1, 0), 3).normal(4, 8, 8)
    mean, deviation = moments(model, pixels_of(folder, [4, 1, 3]))
    torch.testing.assert_close(batch.latents, mean + deviation * unit, rtol=1e-4, atol=1e-4)
    captions = [f"picture {n}, ink" for n in (4, 1, 3)]
    with torch.no_grad():
        context = encode_hidden_states(model.text_encoder, tokenize(model.tokenizer, captions))
    torch.testing.assert_close(batch.context, context, rtol=1e-4, atol=1e-5)
    assert batch.loss_weights.tolist() == [1.0, 1.0, 1.0]
    assert batch.indices.tolist() == [4, 1, 3]
    assert (batch.pooled, batch.time_ids, batch.loss_mask, batch.input_ids) == (
        None,
        None,
        None,
        None,
    )
    assert dataset.image_keys(torch.tensor([2, 0, 2])) == ["02.png", "00.png"]


def test_parts_of_a_batch_add_up_to_the_batch(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(80, 64)] * 4, "a {}, b, c, ink")
    plain = built(model, data_of(folder, flip_aug=True, caption_dropout_rate=0.4))
    moving = built(
        model, data_of(folder, crop="random", flip_aug=True, color_jitter=0.2, shuffle_caption=True)
    )
    for dataset in (plain, moving):
        full = take(dataset, [0, 1, 2, 3])
        parts = [
            dataset.get_batch(
                torch.tensor(numbers), BatchRng(make_generator(0, 1, 0), 4, first, len(numbers))
            )
            for first, numbers in ((0, [0]), (1, [1, 2, 3]))
        ]
        for name in ("latents", "context", "loss_weights", "indices"):
            pieces = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(pieces, getattr(full, name), rtol=1e-4, atol=1e-4)


def test_batches_follow_their_rng_alone(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(96, 64)] * 4, "a {}, b, c, d, ink")
    more = {"crop": "random", "flip_aug": True, "color_jitter": 0.2, "shuffle_caption": True}
    dataset = built(model, data_of(folder, **more))
    first, repeated, next_step = (take(dataset, [0, 1, 2, 3], step) for step in (3, 3, 4))
    assert torch.equal(first.latents, repeated.latents)
    assert torch.equal(first.context, repeated.context)
    assert not torch.equal(first.context, next_step.context)
    rebuilt = built(model, data_of(folder, **more))
    assert torch.equal(take(rebuilt, [0, 1, 2, 3], 3).latents, first.latents)


def test_images_of_several_shapes_keep_them(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(256, 256), (400, 240), (240, 400), (300, 300), (420, 250)])
    dataset = built(model, data_of(folder, resolution=256, bucket_reso_steps=8))
    assert [str(dataset.buckets[k]) for k in dataset.bucket_indices] == [
        "256x256", "320x192", "192x320", "256x256", "320x192",
    ]  # fmt: skip
    assert take(dataset, [1, 4]).latents.shape == (2, 4, 24, 40)
    assert take(dataset, [2]).latents.shape == (1, 4, 40, 24)
    shapes = Counter(
        n
        for k in range(dataset.batch_sampler.steps_per_epoch)
        for n in dataset.batch_sampler.get_batch(k).tolist()
    )
    assert shapes == dict.fromkeys(range(5), 1)
    squares = built(model, data_of(folder, resolution=256, buckets=False))
    assert take(squares, [0, 1, 2]).latents.shape == (3, 4, 32, 32)


def test_resizing_and_cropping_of_each_image_is_recorded(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(400, 240), (300, 300)])
    classes = write(tmp_path / "c", [(64, 128)], "a thing")
    dataset = built(model, data_of(folder, resolution=256, reg_data_dir=classes))
    assert dataset.describe_images()[0] == {
        "picture": "00.png",
        "class": False,
        "size": [400, 240],
        "bucket": "320x192",
        "resized": [320, 192],
        "crop": [0, 0, 320, 192],
    }
    assert dataset.describe_images()[2]["class"] is True
    assert dataset.describe_images()[2]["resized"] == [192, 384]
    assert dataset.describe_images()[2]["crop"] == [0, 32, 192, 352]
    assert json.dumps(dataset.describe_images())


def test_sizes_follow_the_model(tmp_path: Path, model: Model) -> None:
    assert [str(b) for b in buckets_for_model(model, data_of(tmp_path))] == ["64x64"]
    sizes = [
        str(b)
        for b in buckets_for_model(model, data_of(tmp_path, resolution=192, bucket_reso_steps=1))
    ]
    assert sizes == ["128x256", "192x192", "256x128"]
    with pytest.raises(
        ConfigError, match=r"data\.resolution: 100 is not a multiple of 64; use 128"
    ):
        buckets_for_model(model, data_of(tmp_path, resolution=100))


# --- mirror images, crops, colours ----------------------------------------------------------


def test_flipped_images_are_encoded_as_such(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)] * 2)
    dataset = built(model, data_of(folder, flip_aug=True))
    plain, _ = moments(model, pixels_of(folder, [0, 1]))
    mirrored, _ = moments(model, pixels_of(folder, [0, 1]).flip(-1))
    kinds = Counter()
    for step in range(20):
        rng = BatchRng(make_generator(0, 1, step), 2)
        result = dataset.get_batch(torch.tensor([0, 1]), rng).latents
        for position in range(2):
            distances = [
                float((result[position] - reference[position]).abs().mean())
                for reference in (plain, mirrored)
            ]
            kinds[distances[0] < distances[1]] += 1
    _, deviation = moments(model, pixels_of(folder, [0, 1]))
    assert float((plain - mirrored).abs().mean()) > 0.1 * float(deviation.mean())
    assert 10 < kinds[True] < 30
    assert kinds[True] + kinds[False] == 40


def test_images_encoded_online_equal_cached_ones_without_augmentation(
    tmp_path: Path, model: Model
) -> None:
    """Minimal color jitter encodes images online; the latents stay the same."""
    folder = write(tmp_path / "p", [(80, 64)] * 3)
    cached = take(built(model, data_of(folder)), [2, 0])
    live = take(built(model, data_of(folder, color_jitter=1e-6)), [2, 0])
    torch.testing.assert_close(live.latents, cached.latents, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(live.context, cached.context)


def test_random_crops_differ_from_step_to_step(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(128, 64)] * 2)
    dataset = built(model, data_of(folder, crop="random"))
    still = BatchRng(make_generator(0), 2)
    means = []
    for step in range(3):
        rng = BatchRng(torch.Generator().manual_seed(step), 2)
        views = dataset.latents._draw_augmentations(
            [dataset.latents._images.bucketed.assignments[0]] * 2, rng
        )
        means.append([view.crop_corner for view in views])
    assert len({tuple(mean) for mean in means}) == 3
    assert dataset.get_batch(torch.tensor([0, 1]), still).latents.shape == (2, 4, 8, 8)


def test_random_crops_of_images_that_fit_need_no_vae(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)] * 2)
    dataset = built(model, data_of(folder, crop="random"))
    model.vae.encode = None
    assert take(dataset, [0, 1]).latents.shape == (2, 4, 8, 8)


# --- masks and classes ----------------------------------------------------------------------


@pytest.mark.parametrize("live", [False, True])
def test_masks_follow_their_images(tmp_path: Path, model: Model, live: bool) -> None:
    folder = write(tmp_path / "p", [(64, 64)] * 2)
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[:, :16], mask[:8, 60:] = 255, 255
    Image.fromarray(mask.numpy()).save(folder / "00.mask.png")
    expected = torch.zeros(8, 8)
    expected[:, :2], expected[0, 7] = 1.0, 0.5
    more = {"flip_aug": True, "color_jitter": 0.1 if live else 0.0}
    dataset = built(model, data_of(folder, **more))
    crops = set()
    for step in range(12):
        result = take(dataset, [0, 1], step).loss_mask
        assert result is not None
        assert result.shape == (2, 1, 8, 8)
        assert bool((result[1] == 1.0).all())
        mirrored = bool(result[0, 0, 4, 7])
        torch.testing.assert_close(result[0, 0], expected.flip(-1) if mirrored else expected)
        crops.add(mirrored)
    assert crops == {False, True}


def test_random_masks_need_an_inpainting_model(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)])
    with pytest.warns(
        LorasmithWarning, match=r"data\.inpaint_masks has no effect: the model does not"
    ):
        built(model, data_of(folder, inpaint_masks="random"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built(model, data_of(folder))


def test_masks_can_be_ignored(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)] * 2)
    Image.new("L", (64, 64), 128).save(folder / "00.mask.png")
    assert take(built(model, data_of(folder)), [0]).loss_mask is not None
    ignoring = built(model, data_of(folder), masked=False)
    assert take(ignoring, [0]).loss_mask is None


def test_class_images_come_as_often_and_have_their_weight(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)] * 4)
    classes = write(tmp_path / "c", [(64, 64)] * 6, "a thing")
    dataset = built(model, data_of(folder, reg_data_dir=classes, prior_loss_weight=0.25))
    assert (dataset.num_tagged, len(dataset.rows)) == (4, 10)
    batch = take(dataset, [0, 4, 9])
    assert batch.loss_weights.tolist() == [1.0, 0.25, 0.25]
    with torch.no_grad():
        context = encode_hidden_states(model.text_encoder, tokenize(model.tokenizer, ["a thing"]))
    torch.testing.assert_close(batch.context[1:], context.expand(2, -1, -1), rtol=1e-4, atol=1e-5)
    epoch = [
        n
        for k in range(dataset.batch_sampler.steps_per_epoch)
        for n in dataset.batch_sampler.get_batch(k).tolist()
    ]
    assert sorted(n for n in epoch if n < 4) == [0, 1, 2, 3]
    assert len([n for n in epoch if n >= 4]) == 4


def test_repeats_of_folders_and_settings_multiply(tmp_path: Path, model: Model) -> None:
    write(tmp_path / "p", [])
    write(tmp_path / "p" / "3_ink", [(64, 64)])
    write(tmp_path / "p" / "1_more", [(64, 64)])
    dataset = built(model, data_of(tmp_path / "p", num_repeats=2))
    epoch = [
        n
        for k in range(dataset.batch_sampler.steps_per_epoch)
        for n in dataset.batch_sampler.get_batch(k).tolist()
    ]
    counts = {dataset.rows[n].key: count for n, count in Counter(epoch).items()}
    assert sorted(counts.values()) == [2, 6]
    assert next(key for key, count in counts.items() if count == 6).startswith("3_ink")


# --- mistakes -------------------------------------------------------------------------------


def test_latent_that_is_not_finite_names_its_image(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)] * 3)
    encode_as_before = model.vae.encode

    def encode_badly(pixels: torch.Tensor):
        result = encode_as_before(pixels)
        if encode_badly.left == 0:
            result.latent_dist.mean[..., 3, 3] = float("nan")
        encode_badly.left -= 1
        return result

    encode_badly.left = 1
    model.vae.encode = encode_badly
    with pytest.raises(DataError, match=r"01\.png: the VAE .*not finite"):
        built(model, data_of(folder))


def test_embedding_that_is_not_finite_names_its_caption(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)])
    for parameter in model.text_encoder.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(DataError, match=r"the caption 'picture 0, ink' into values .*not finite"):
        built(model, data_of(folder))


def test_cache_is_not_written_into_the_image_folder(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)])
    with pytest.raises(ConfigError, match=r"data\.cache_dir: .* lies among the pictures"):
        built(model, data_of(folder, cache_dir=folder / "cache"))


def test_complete_dataset_gives_no_warning(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(300, 256)] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built(model, data_of(folder))
