"""From a folder to a single file and back: the same tensors, the same configs."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from helpers.tiny_models import make_tiny
from lorasmith.core.errors import OutputError, WeightsError
from lorasmith.core.safetensors_io import load_metadata, load_tensors, save_tensors
from lorasmith.models.files.convert import read_contents, save_folder, save_single_file
from lorasmith.models.files.open import EMBEDDED, open_source
from lorasmith.models.files.save import save_modified_model
from lorasmith.models.load import load_model

FAMILIES = ("sd1", "sd2", "sdxl", "sdxl-refiner", "sd1-inpainting", "sdxl-inpainting")


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", request.param)


def single(folder: Path | None, path: Path, dtype: torch.dtype | None = None) -> Path:
    save_single_file(read_contents(open_source(folder)), path, dtype)
    return path


def assert_same_weights(first: Path, second: Path) -> None:
    files = sorted(path.relative_to(first) for path in first.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(second) for path in second.rglob("*.safetensors"))
    assert len(files) >= 3
    for file in files:
        actual, expected = load_tensors(first / file), load_tensors(second / file)
        assert actual.keys() == expected.keys(), file
        for key, value in actual.items():
            assert value.dtype == expected[key].dtype
            assert torch.equal(value, expected[key]), f"{file}: {key}"


def test_round_trip_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    path, back = single(tiny, tmp_path / "a.safetensors"), tmp_path / "back"
    save_folder(read_contents(open_source(path)), back)
    assert_same_weights(tiny, back)
    second_file = single(back, tmp_path / "b.safetensors")
    first, second = load_tensors(path), load_tensors(second_file)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert load_metadata(path)["lorasmith.model"] == load_metadata(second_file)["lorasmith.model"]
    assert open_source(path).variant == open_source(tiny).variant == open_source(back).variant


def test_noise_of_a_model_stays_in_a_single_file(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    noise = {
        "prediction_type": "sample", "beta_schedule": "linear", "beta_end": 0.03,
        "num_train_timesteps": 300, "rescale_betas_zero_snr": True,
    }  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | noise))
    file, back = single(folder, tmp_path / "a.safetensors"), tmp_path / "back"
    assert load_metadata(file)["modelspec.prediction_type"] == "sample"
    save_folder(read_contents(open_source(file)), back)
    for model in (file, back):
        assert load_model(model).scheduler_config.items() >= noise.items()


def test_diffusers_opens_the_folder(tiny: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    save_folder(
        read_contents(open_source(single(tiny, tmp_path / "a.safetensors"))), tmp_path / "b"
    )
    ours = DiffusionPipeline.from_pretrained(tmp_path / "b", local_files_only=True)
    theirs = DiffusionPipeline.from_pretrained(tiny, local_files_only=True)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        first, second = getattr(ours, name, None), getattr(theirs, name, None)
        assert (first is None) == (second is None)
        if first is not None:
            state = second.state_dict()
            assert all(torch.equal(value, state[key]) for key, value in first.state_dict().items())
    assert ours.unet.config.attention_head_dim == theirs.unet.config.attention_head_dim
    assert ours.scheduler.config.prediction_type == theirs.scheduler.config.prediction_type


def test_dtypes_are_kept_unless_a_dtype_is_given(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    save_folder(read_contents(open_source(tiny_model)), folder, torch.float16)
    path = single(folder, tmp_path / "a.safetensors")
    assert {value.dtype for value in load_tensors(path).values()} == {torch.float16}
    wide = single(path, tmp_path / "b.safetensors", torch.float32)
    assert {value.dtype for value in load_tensors(wide).values()} == {torch.float32}


def test_embedded_model_is_saved_as_a_single_file(tmp_path: Path) -> None:
    path = single(None, tmp_path / "mini.safetensors")
    model, embedded = load_model(path), load_model()
    state = embedded.unet.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.unet.state_dict().items())
    text = "a red apple, noto style"
    assert model.tokenizer(text)["input_ids"] == embedded.tokenizer(text)["input_ids"]
    assert load_metadata(path)["modelspec.architecture"] == "stable-diffusion-v1"


def test_other_tokenizer_is_refused_in_a_single_file(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"its tokenizer is not CLIP's.*keep it as a folder"):
        single(folder, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_folder_has_a_tokenizer_for_older_programs(tiny_model: Path, tmp_path: Path) -> None:
    save_folder(read_contents(open_source(tiny_model)), tmp_path / "b")
    folder = tmp_path / "b" / "tokenizer"
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert len(vocabulary) == 1014
    assert lines[:2] == ["#version: 0.2", "i n"]
    assert len(lines) == 1 + 500


def test_weights_that_are_not_finite_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    broken = load_tensors(path)
    with pytest.raises(WeightsError, match="1 tensors are not finite"):
        save_tensors(path, broken | {"quant_conv.bias": torch.full((8,), torch.nan)}, {})
    raw = bytearray(path.read_bytes())
    raw[-4:] = torch.tensor([torch.nan]).numpy().tobytes()
    path.write_bytes(raw)
    with pytest.raises(WeightsError, match="1 tensors are not finite"):
        save_folder(read_contents(open_source(folder)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_existing_files_are_not_overwritten(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(OutputError, match="cannot write"):
        save_folder(read_contents(open_source(tiny_model)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_modified_single_file_is_saved_as_a_folder(tiny_model: Path, tmp_path: Path) -> None:
    path = single(tiny_model, tmp_path / "a.safetensors")
    model = load_model(path)
    with torch.no_grad():
        model.unet.conv_in.bias.fill_(3.0)
    save_modified_model(model, {"unet"}, tmp_path / "out")
    changed, before = load_model(tmp_path / "out"), load_model(path)
    assert changed.unet.conv_in.bias.tolist() == [3.0] * 8
    assert torch.equal(changed.unet.conv_out.bias, before.unet.conv_out.bias)
    vae = before.vae.state_dict()
    assert all(torch.equal(value, vae[key]) for key, value in changed.vae.state_dict().items())


def test_embedded_model_matches_its_config_files() -> None:
    assert open_source().path == EMBEDDED
    assert open_source().variant.title == "SD 1.x"


@pytest.mark.parametrize("is_linear", [True, False])
def test_projection_named_like_a_linear_layer_is_read(tmp_path: Path, is_linear: bool) -> None:
    """As Playground v2 has it; and where a program only renamed it."""
    folder = make_tiny(tmp_path / "sdxl", "sdxl")
    plain = single(folder, tmp_path / "plain.safetensors")
    tensors, key = load_tensors(plain), "conditioner.embedders.1.model.text_projection"
    projection = tensors.pop(key)
    tensors[f"{key}.weight"] = (projection.T if is_linear else projection).contiguous()
    odd = tmp_path / "odd.safetensors"
    save_tensors(odd, tensors, load_metadata(plain))
    save_folder(read_contents(open_source(odd)), tmp_path / "back")
    assert_same_weights(folder, tmp_path / "back")


def test_stray_tensors_are_left_out_where_asked(tiny_model: Path, tmp_path: Path) -> None:
    plain = single(tiny_model, tmp_path / "plain.safetensors")
    stray, harmless = "control_model.zero.weight", "embedding_manager.embedder.position_ids"
    content = load_tensors(plain) | {stray: torch.zeros(1), harmless: torch.zeros(1)}
    odd = tmp_path / "odd.safetensors"
    save_tensors(odd, content, load_metadata(plain))
    with pytest.raises(WeightsError, match=rf"1 tensors .* \({stray}\).*convert --ignore-unknown"):
        read_contents(open_source(odd))
    contents = read_contents(open_source(odd), ignore_unknown=True)
    assert contents.unknown == (stray,)
    save_single_file(contents, tmp_path / "clean.safetensors")
    assert load_tensors(tmp_path / "clean.safetensors").keys() == load_tensors(plain).keys()


@pytest.mark.parametrize(
    "stray",
    [
        {
            "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)
            * 0.98
        },
        {"alphas_cumprod": torch.zeros(1000), "betas": torch.zeros(1000)},
        {"cond_stage_model.logit_scale": torch.tensor(4.6)},
    ],
)
def test_tensors_that_no_image_depends_on_do_no_harm(
    tiny_model: Path, tmp_path: Path, stray: dict[str, torch.Tensor]
) -> None:
    plain = single(tiny_model, tmp_path / "plain.safetensors")
    odd = tmp_path / "odd.safetensors"
    save_tensors(odd, load_tensors(plain) | stray, load_metadata(plain))
    save_folder(read_contents(open_source(odd)), tmp_path / "back")
    assert_same_weights(tiny_model, tmp_path / "back")
