"""Paths, settings, tag coverage, encoding and reports of a training run."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorasmith.config.base import described_fields
from lorasmith.config.load import dump_toml, load_settings
from lorasmith.config.run import TrainData, TrainRun, TrainSettings
from lorasmith.core.errors import ConfigError, DataError, LorasmithWarning, OutputError
from lorasmith.loops.track import Tracker, read_log
from lorasmith.models.load import load_model
from lorasmith.training.chosen import tagged_rows
from lorasmith.training.dataset import encode_dataset, picture_side
from lorasmith.training.paths import RunPaths
from lorasmith.training.reporting import Reporter, Smoothed
from lorasmith.training.step import Figures

NEEDED = ["data.path=x", "data.tag=ink", "output.name=n"]


# --- paths ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [
        ("ink", "loras/ink.safetensors", "loras/ink"),
        ("ink.v1.5", "loras/ink.v1.5.safetensors", "loras/ink.v1.5"),
        ("some/path/ink", "some/path/ink.safetensors", "some/path/ink"),
        ("./ink", "ink.safetensors", "ink"),
        ("/abs/ink", "/abs/ink.safetensors", "/abs/ink"),
    ],
)
def test_paths(name: str, file: str, folder: str) -> None:
    paths = RunPaths.of(name)
    assert (paths.lora, paths.folder) == (Path(file), Path(folder))
    assert paths.name == name.rpartition("/")[2]


@pytest.mark.parametrize("taken", ["ink.safetensors", "ink", "ink/notes.txt", "ink/log.jsonl/x"])
def test_taken_names_are_refused_and_left_alone(tmp_path: Path, taken: str) -> None:
    paths = RunPaths.of(f"{tmp_path}/ink")
    paths.claim()
    (tmp_path / taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / taken).write_text("mine")
    with pytest.raises(OutputError, match="exists already and is not written over"):
        paths.claim()
    assert (tmp_path / taken).read_text() == "mine"


def test_leftovers_of_an_unfinished_run_are_replaced(tmp_path: Path) -> None:
    paths = RunPaths.of(f"{tmp_path}/ink")
    paths.begin("first")
    paths.log.write_text("lines")
    (tmp_path / "ink" / ".lorasmith-tmp-1-run.toml").write_text("half")
    (tmp_path / ".lorasmith-tmp-1-ink.safetensors").write_text("half")
    (tmp_path / ".lorasmith-tmp-1-other.safetensors").write_text("of another")
    paths.claim()
    assert paths.settings.read_text() == "first"
    paths.begin("second")
    assert [p.name for p in paths.folder.iterdir()] == ["run.toml"]
    assert paths.settings.read_text() == "second"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".lorasmith-tmp-1-other.safetensors",
        "ink",
    ]


def test_unwritable_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to folder"):
        RunPaths.of(f"{tmp_path}/file/ink").claim()


# --- settings -------------------------------------------------------------------------------


def test_settings_survive_their_own_toml(tmp_path: Path) -> None:
    run = load_settings(TrainRun, None, [*NEEDED, "lora.alpha=3.5", "train.precision=bf16"])
    path = tmp_path / "run.toml"
    path.write_text(dump_toml(run))
    assert load_settings(TrainRun, path) == run


def test_every_field_is_documented() -> None:
    assert all(text for _, _, text in described_fields(TrainRun))


def test_alpha_is_the_rank_unless_given() -> None:
    assert load_settings(TrainRun, None, [*NEEDED, "lora.rank=4"]).lora.scaled_alpha == 4.0
    both = load_settings(TrainRun, None, [*NEEDED, "lora.rank=4", "lora.alpha=1"])
    assert both.lora.scaled_alpha == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", r"unknown key 'step' in section \[train\]; did you mean steps\?"),
        ("trian.steps=3", r"unknown key 'trian' in the top level; did you mean train\?"),
        ("train.steps=0", "train.steps: .*greater than 0"),
        ("train.learning_rate=-1", "train.learning_rate: .*greater than 0"),
        ("train.precision=fp8", "train.precision: "),
        ("data.tag=' , '", "data.tag: the tag is empty"),
        ("data.tag='a, b'", "data.tag: a tag has no comma"),
        ("output.name='a/'", "output.name: give the LoRA a name"),
        ("output.name='..'", "output.name: give the LoRA a name"),
        ("lora.rank=1.5", "lora.rank: "),
    ],
)
def test_settings_that_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(TrainRun, None, [*NEEDED, override])


# --- data -----------------------------------------------------------------------------------


def write_pictures(folder: Path, captions: list[str], side: int = 64) -> Path:
    folder.mkdir(exist_ok=True)
    for number, caption in enumerate(captions):
        shade = 40 * number
        Image.new("RGB", (side, side), (shade, 90, 200 - shade)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


def test_tag_in_every_caption_is_silent(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", ["a cat, ink style", "a dog, Ink style"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(tagged_rows(TrainData(path=folder, tag="ink"))) == 2


def test_some_captions_without_the_tag_warn_with_counts(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", ["a cat, ink style", "a dog", "inky"])
    with pytest.warns(LorasmithWarning, match=r"2 of 3 captions do not contain .*first 1\.png"):
        assert len(tagged_rows(TrainData(path=folder, tag="ink"))) == 3


def test_no_caption_with_the_tag_is_an_error(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", ["a cat", "a dog"])
    with pytest.raises(
        DataError, match=r"none of its 2 captions contains the tag 'ink'.*a cat, ink"
    ):
        tagged_rows(TrainData(path=folder, tag="ink"))


def test_encoding_matches_the_parts_used_one_by_one(tmp_path: Path, tiny_model: Path) -> None:
    model = load_model(tiny_model).to(torch.device("cpu"), torch.float32)
    captions = ["a ink", "b ink", "a ink", *(f"{n} ink" for n in range(7))]
    rows = tagged_rows(TrainData(path=write_pictures(tmp_path / "p", captions), tag="ink"))
    data = encode_dataset(model, rows, 64)

    assert data.contexts.shape == (9, 77, 16)
    assert data.caption.tolist() == [0, 1, 0, *range(2, 9)]
    assert data.mean.shape == data.deviation.shape == (10, 4, 8, 8)
    picture = Image.open(tmp_path / "p" / "9.png").getpixel((0, 0))
    pixels = (torch.tensor(picture).float() / 127.5 - 1).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    with torch.no_grad():
        posterior = model.vae.encode(pixels).latent_dist
    scale = model.vae.config.scaling_factor
    torch.testing.assert_close(data.mean[9:], posterior.mean * scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(data.deviation[9:], posterior.std * scale, rtol=1e-4, atol=1e-5)
    assert data.keys_of(torch.tensor([2, 0, 2])) == ["2.png", "0.png"]


def test_a_latent_that_is_not_finite_names_its_picture(tmp_path: Path, tiny_model: Path) -> None:
    model = load_model(tiny_model).to(torch.device("cpu"), torch.float32)
    rows = tagged_rows(TrainData(path=write_pictures(tmp_path / "p", ["ink"] * 3), tag="ink"))
    model.vae.encoder.conv_in.weight.data.fill_(1e38)
    with pytest.raises(DataError, match=r"0\.png: the VAE .*not finite"):
        encode_dataset(model, rows, 64)


def test_sides_that_the_model_cannot_do(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    assert picture_side(model, None) == 64
    assert picture_side(model, 128) == 128
    with pytest.raises(
        ConfigError, match=r"data\.resolution: 100 is not a multiple of 64; use 128"
    ):
        picture_side(model, 100)


# --- reports --------------------------------------------------------------------------------


def test_reports_have_the_mean_since_the_last(tmp_path: Path) -> None:
    notes: list[str | None] = []

    def advance(count: int = 1, note: str | None = None) -> None:
        notes.append(note)

    settings = TrainSettings(steps=5, log_every=2)
    with Tracker(tmp_path, tensorboard=False) as tracker:
        reporter = Reporter(settings, tracker, advance)
        for step in range(5):
            figures = Figures(torch.tensor(float(step)), torch.tensor(float(10 - step)))
            reporter.step(step, figures, 1e-3)

    log = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in log] == [2, 4, 5]
    assert [line["loss"] for line in log] == [0.5, 2.5, 4.0]
    assert [line["grad_norm"] for line in log] == [10.0, 8.0, 6.0]
    assert all(line["lr"] == 1e-3 and line["images_per_s"] > 0 for line in log)
    assert [note is not None for note in notes] == [False, True, False, True, True]
    assert "loss" in str(notes[-1])
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["step"] == 2


def test_smoothing_starts_without_bias() -> None:
    smooth = Smoothed(0.9)
    assert smooth.value == 0.0
    smooth.add(3.0)
    assert smooth.value == pytest.approx(3.0)
    for _ in range(200):
        smooth.add(1.0)
    assert smooth.value == pytest.approx(1.0, abs=1e-6)
