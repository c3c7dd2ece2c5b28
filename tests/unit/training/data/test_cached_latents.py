"""Which latents and embeddings are computed again when a training set is rebuilt."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from helpers.tiny_models import open_model
from helpers.training.datasets import built, data_of, take, write
from lorasmith.config.train_config import DataConfig
from lorasmith.models.model import Model
from lorasmith.models.text.encode import TokenIds
from lorasmith.training.data.captions.captions import CaptionEncoder
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.data.module_hash import hash_module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "p", [(64, 64), (80, 64), (64, 64), (64, 70)])


class Counts:
    """Counts images and captions that go through the model while a set is built."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = model
        self.pictures = self.captions = 0
        encode, embed = type(model.vae).encode, CaptionEncoder.embed

        def encode_counted(vae: Any, pixels: torch.Tensor) -> Any:
            self.pictures += len(pixels)
            return encode(vae, pixels)

        def embed_counted(encoder: CaptionEncoder, tokens: TokenIds) -> Any:
            self.captions += len(tokens.ids)
            return embed(encoder, tokens)

        monkeypatch.setattr(type(model.vae), "encode", encode_counted)
        monkeypatch.setattr(CaptionEncoder, "embed", embed_counted)

    def __call__(self, data: DataConfig, **more: Any) -> tuple[int, int, TrainDataset]:
        self.pictures = self.captions = 0
        dataset = built(more.pop("model", self.model), data, **more)
        return self.pictures, self.captions, dataset


@pytest.fixture
def counts(model: Model, monkeypatch: pytest.MonkeyPatch) -> Counts:
    return Counts(model, monkeypatch)


def clean(dataset: TrainDataset) -> torch.Tensor:
    return take(dataset, list(range(len(dataset.rows)))).latents


def test_second_run_encodes_nothing(folder: Path, counts: Counts, cache_in_tmp: Path) -> None:
    pictures, captions, first = counts(data_of(folder))
    assert (pictures, captions) == (4, 4)
    assert list(cache_in_tmp.rglob("*.safetensors"))
    pictures, captions, second = counts(data_of(folder))
    assert (pictures, captions) == (0, 0)
    assert torch.equal(clean(first), clean(second))
    assert torch.equal(take(first, [1]).context, take(second, [1]).context)


def test_only_an_image_edited_in_place_is_encoded(folder: Path, counts: Counts) -> None:
    """Same name, size and modification time: only the content differs."""
    edited = folder / "02.bmp"
    Image.open(folder / "02.png").save(edited)
    (folder / "02.png").unlink()
    _, _, before = counts(data_of(folder))
    status = edited.stat()
    Image.open(folder / "00.png").save(edited)
    os.utime(edited, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert edited.stat().st_mtime_ns == status.st_mtime_ns
    assert edited.stat().st_size == status.st_size

    pictures, captions, after = counts(data_of(folder))
    assert (pictures, captions) == (1, 0)
    changed = (clean(before) - clean(after)).flatten(1).abs().amax(dim=1) > 1e-6
    assert changed.tolist() == [False, False, True, False]


def test_only_an_edited_caption_is_encoded(folder: Path, counts: Counts) -> None:
    counts(data_of(folder))
    (folder / "01.txt").write_text("something else, ink")
    assert counts(data_of(folder))[:2] == (0, 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"resolution": 128}, 4),
        ({"background_color": "#000000"}, 4),
        ({"flip_aug": True}, 4),  # the mirror images; the others are there
        ({"caption_dropout_rate": 0.5}, 0),
        ({"num_repeats": 3}, 0),
        ({"prior_loss_weight": 0.5}, 0),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_only_settings_that_change_latents_are_encoded_again(
    folder: Path, counts: Counts, change: dict[str, Any], expected: int
) -> None:
    counts(data_of(folder))
    assert counts(data_of(folder, **change))[0] == expected
    assert counts(data_of(folder))[0] == 0
    assert counts(data_of(folder, **change))[0] == 0


def test_another_crop_is_encoded_again(tmp_path: Path, counts: Counts) -> None:
    folder = write(tmp_path / "p", [(256, 256), (400, 240)])
    assert counts(data_of(folder, resolution=256))[0] == 2
    assert counts(data_of(folder, resolution=256, buckets=False))[0] == 1


def test_another_vae_or_number_format_is_encoded_again(folder: Path, counts: Counts) -> None:
    counts(data_of(folder))
    vae, encoder = counts.model.vae, counts.model.text_encoder
    vae.to(torch.bfloat16)
    assert counts(data_of(folder))[:2] == (4, 0)
    assert counts(data_of(folder))[:2] == (0, 0)
    vae.to(torch.float32)  # the weights are rounded now: another VAE
    assert counts(data_of(folder))[:2] == (4, 0)
    next(vae.parameters()).data[0] += 0.5
    assert counts(data_of(folder))[:2] == (4, 0)
    next(encoder.parameters()).data[0] += 0.5
    assert counts(data_of(folder))[:2] == (0, 4)


def test_equal_models_share_a_cache(folder: Path, counts: Counts, tiny_model: Path) -> None:
    counts(data_of(folder))
    second_model = open_model(tiny_model)
    assert hash_module(second_model.vae) == hash_module(counts.model.vae)
    assert counts(data_of(folder), model=second_model)[:2] == (0, 0)


@pytest.mark.parametrize("damage", ["cut", "bits", "empty", "foreign"])
def test_damaged_caches_are_rebuilt(
    folder: Path, counts: Counts, cache_in_tmp: Path, damage: str
) -> None:
    _, _, before = counts(data_of(folder))
    for shard in cache_in_tmp.rglob("*.safetensors"):
        content = shard.read_bytes()
        half = len(content) // 2
        shard.write_bytes(
            {
                "cut": content[:half],
                "bits": content[:-64] + bytes(byte ^ 4 for byte in content[-64:]),
                "empty": b"",
                "foreign": b"PK\x03\x04 something else",
            }[damage]
        )
    pictures, captions, after = counts(data_of(folder))
    assert (pictures, captions) == ((1, 1) if damage == "bits" else (4, 4))
    assert torch.equal(clean(before), clean(after))
    assert torch.equal(take(before, [0, 2]).context, take(after, [0, 2]).context)
    assert counts(data_of(folder))[:2] == (0, 0)


def test_image_folder_is_never_written(folder: Path, counts: Counts) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = state()
    counts(
        data_of(
            folder, flip_aug=True, color_jitter=0.1, shuffle_caption=True, validation_split=0.25
        )
    )
    counts(data_of(folder, flip_aug=True))
    assert state() == before


def test_cache_can_be_elsewhere_or_off(
    folder: Path, counts: Counts, cache_in_tmp: Path, tmp_path: Path
) -> None:
    counts(data_of(folder, cache=False))
    assert not cache_in_tmp.exists()
    assert counts(data_of(folder, cache_dir=tmp_path / "mine"))[:2] == (4, 4)
    assert not cache_in_tmp.exists()
    assert counts(data_of(folder, cache_dir=tmp_path / "mine"))[:2] == (0, 0)


def test_latents_do_not_depend_on_which_others_are_encoded(folder: Path, counts: Counts) -> None:
    encoded_together = clean(counts(data_of(folder, cache=False))[2])
    counts(data_of(folder))
    Image.open(folder / "01.png").rotate(180).save(folder / "01.png")
    encoded_separately = clean(counts(data_of(folder))[2])
    assert torch.equal(encoded_together[[0, 2, 3]], encoded_separately[[0, 2, 3]])


def test_hashes_differ_between_networks(model: Model) -> None:
    vae = hash_module(model.vae)
    assert vae == hash_module(model.vae)
    assert vae != hash_module(model.text_encoder)
    assert hash_module(model.vae.to(torch.float16)) != vae
    model.vae.to(torch.float32)
    rounded = hash_module(model.vae)
    model.vae.register_to_config(scaling_factor=0.5)
    assert hash_module(model.vae) != rounded
