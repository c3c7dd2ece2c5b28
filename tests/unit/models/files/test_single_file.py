"""Single files are identified by names and shapes; other files are described."""

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from helpers.published_files import VARIANTS, file_shapes, write_sparse
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.core.safetensors_io import load_tensors, save_tensors
from lorasmith.models.families.family import ModelVariant
from lorasmith.models.files.convert import read_contents, save_single_file
from lorasmith.models.files.open import open_source
from lorasmith.models.files.summary import read_model_info
from lorasmith.models.image_sizes import ImageSizes
from lorasmith.models.load import load_model
from lorasmith.models.model_summary import build_meta_networks
from lorasmith.models.prediction_type import measure_prediction_type

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."
EXTRAS = {
    "sd1": {f"{CLIP}embeddings.position_ids": (1, 77), "alphas_cumprod": (1000,), "betas": (1000,)},
    "sd2": {
        "cond_stage_model.model.transformer.resblocks.23.ln_1.weight": (1024,),
        "cond_stage_model.model.text_projection": (1024, 1024),
        "model_ema.diffusion_modelout2weight": (4, 320, 3, 3),
    },
    "sdxl": {"conditioner.embedders.1.model.logit_scale": (), "denoiser.sigmas": (1000,)},
    "sdxl-refiner": {"denoiser.sigmas": (1000,)},
}
"""What published files hold besides."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture(scope="module")
def tiny_file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_single_file(read_contents(open_source(tiny_model)), path)
    return path


@pytest.mark.parametrize("name", VARIANTS)
def test_family_follows_from_names_and_shapes(name: str, path: Path) -> None:
    variant = VARIANTS[name]
    extras = EXTRAS[variant.family_name]
    summary = read_model_info(write_sparse(path, file_shapes(name) | extras))
    message = (
        variant.prediction_type if variant.family_name != "sd2" or variant.is_inpainting else None
    )
    assert summary.variant == ModelVariant(variant.family_name, variant.is_inpainting, message)
    assert {part.formats for part in summary.parts} == {("F16",)}
    assert set(summary.unused) == set(extras)
    assert ImageSizes.read(path).default == (768 if message is None else variant.native_size)


DESCRIPTIONS = {
    "v_pred": ({"v_pred": (0,)}, {}, "v_prediction"),
    "modelspec": ({}, {"modelspec.prediction_type": "v"}, "v_prediction"),
    "architecture": ({}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
    "modelspec sample": ({}, {"modelspec.prediction_type": "sample"}, "sample"),
    "modelspec epsilon": ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
}


@pytest.mark.parametrize("source", DESCRIPTIONS)
def test_prediction_type_is_read_from_the_file(source: str, path: Path) -> None:
    more, metadata, expected = DESCRIPTIONS[source]
    write_sparse(path, file_shapes("sd2-v") | more, metadata=metadata)
    assert open_source(path).variant.prediction_type == expected


@pytest.mark.parametrize(
    ("word", "expected"), [('"v"', "v_prediction"), ("x0", "sample"), ("eps", "epsilon")]
)
def test_prediction_type_is_read_from_the_yaml_file(path: Path, word: str, expected: str) -> None:
    write_sparse(path, file_shapes("sd2-v"))
    path.with_suffix(".yaml").write_text(f"model:\n  params:\n    parameterization: {word}\n")
    assert open_source(path).variant.prediction_type == expected


def test_sdxl_with_v_prediction_and_zero_terminal_snr_is_recognised(path: Path) -> None:
    write_sparse(path, file_shapes("sdxl") | {"v_pred": (0,), "ztsnr": (0,)})
    scheduler = open_source(path).config("scheduler")
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["rescale_betas_zero_snr"] is True
    assert read_model_info(path).unused == ()  # the marks decide


def test_zero_terminal_snr_with_noise_prediction_is_warned_about(path: Path) -> None:
    write_sparse(path, file_shapes("sdxl") | {"ztsnr": (0,)})
    with pytest.warns(LorasmithWarning, match="every picture would be black"):
        read_model_info(path)


PROJECTION = "conditioner.embedders.1.model.text_projection"


def rewrite_projection(tiny: Path, path: Path, transposed: bool) -> torch.Tensor:
    """Write an SDXL file with `text_projection.weight`; return the projection in diffusers' form.

    `transposed` leaves it as OpenCLIP has it.
    """
    save_single_file(read_contents(open_source(tiny)), path)
    with safe_open(path, "pt") as stream:
        metadata = stream.metadata()
    tensors = load_tensors(path)
    projection = tensors.pop(PROJECTION)
    tensors[f"{PROJECTION}.weight"] = projection if transposed else projection.t().contiguous()
    path.unlink()
    save_tensors(path, tensors, metadata)
    return projection.t()


@pytest.mark.parametrize("transposed", [False, True])
def test_text_projection_as_a_linear_layer_is_read(
    transposed: bool, tiny_sdxl: Path, path: Path
) -> None:
    expected = rewrite_projection(tiny_sdxl, path, transposed)
    assert read_model_info(path).unused == ()
    torch.testing.assert_close(load_model(path).text_encoder_2.text_projection.weight, expected)


def test_two_text_projections_are_refused(path: Path) -> None:
    shapes = file_shapes("sdxl") | {f"{PROJECTION}.weight": (1280, 1280)}
    with pytest.raises(
        WeightsError, match=r"1 tensors belong to no part .*text_projection\.weight"
    ):
        read_model_info(write_sparse(path, shapes))


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ("[" * 100_000, "lorasmith.model is damaged: nested too deep"),
        ('{"configs": 3}', "lorasmith.model is damaged"),
        ('{"configs": {"unet": {}, "vae": {}}}', "lorasmith.model is incomplete"),
        ('{"configs": {"unet": 1, "vae": {}, "scheduler": {}}}', "is damaged: 'unet'"),
        ('{"configs": {"unet": {}, "vae": {}, "scheduler": {"beta_start": NaN}}}',
         "lorasmith.model (scheduler): beta_start is nan"),
        ('{"configs": {"unet": {}, "vae": {}, "scheduler": {}}}', "has no text_encoder"),
    ],
)  # fmt: skip
def test_damaged_configs_in_metadata_are_named(path: Path, saved: str, message: str) -> None:
    write_sparse(path, file_shapes("sd1"), metadata={"lorasmith.model": saved})
    with pytest.raises(WeightsError, match=re.escape(message)):
        read_model_info(path)


def test_older_names_of_the_text_encoder_are_read(path: Path) -> None:
    old = {key.replace(CLIP, CLIP.removesuffix("text_model.")): shape
           for key, shape in file_shapes("sd1").items()}  # fmt: skip
    assert read_model_info(write_sparse(path, old)).variant == VARIANTS["sd1"]


def test_refiner_has_no_first_text_encoder(path: Path) -> None:
    networks = build_meta_networks(write_sparse(path, file_shapes("sdxl-refiner")))
    assert networks.text_encoder is None
    assert networks.text_encoder_2.config.hidden_size == 1280


def shapes_of(name: str, *starts: str) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in file_shapes(name).items() if key.startswith(starts)}


WRONG_SHAPES = {
    "this is a U-Net alone; expected a whole": shapes_of("sd1", UNET),
    "this is a U-Net with its text encoder, without an auto": shapes_of("sd1", UNET, CLIP),
    "this is an autoencoder (VAE) alone; expected": shapes_of("sd1", VAE),
    "this is an autoencoder (VAE) and a text encoder, without a U-Net": shapes_of("sd1", VAE, CLIP),
    "this is a text encoder alone; expected a whole": shapes_of("sd1", CLIP),
    "this is a U-Net of SDXL with its autoencoder, without one of its two text encoders; expected "
    "conditioner.embedders.1.model.* as well":
        shapes_of("sdxl", UNET, VAE, "conditioner.embedders.0."),
    "this is a U-Net of SD 1.x with its autoencoder, without a text encoder; expected "
    "cond_stage_model.transformer.text_model.* as well": shapes_of("sd1", UNET, VAE),
    "this is a U-Net of SDXL with its autoencoder, without a text encoder; expected conditioner."
    "embedders.0": shapes_of("sdxl", UNET, VAE),
    "this is a text encoder alone": {"text_model.embeddings.token_embedding.weight": (2, 2)},
    "this is a U-Net alone, in diffusers' naming": {"down_blocks.0.resnets.0.conv1.weight": (1,)},
    "this is an autoencoder (VAE) alone, in diff": {"encoder.down_blocks.0.resnets.0.conv1": (1,)},
    "this is an autoencoder (VAE) alone;": {"decoder.up.0.block.0.conv1.weight": (1,)},
    "this is a LoRA": {"lora_unet_mid_block_x.lora_down.weight": (1, 1)},
    "this is a ControlNet": {"control_model.input_blocks.0.0.weight": (1,)},
    "this is a model of a later family": {f"{UNET}double_blocks.0.img_attn.proj.weight": (1, 1)},
    "this is a textual-inversion embedding": {"emb_params": (1, 768)},
    "this is of no kind that lorasmith knows (1 tensors, such as what)": {"what": (1,)},
    "this is of no kind that lorasmith knows (0 tensors)": {},
    "its U-Net is that of an InstructPix2Pix model (8 input channels); expected 4, or 9":
        file_shapes("sd1") | {f"{UNET}input_blocks.0.0.weight": (320, 8, 3, 3)},
    "its text encoder is that of SD 1.x, and its U-Net reads text of width 2048 of SDXL; expected "
    "768": shapes_of("sdxl", UNET, VAE) | shapes_of("sd1", CLIP),
    "2 tensors belong to no part of SD 1.x (what, model.diffusion_model.adapter.weight); the file "
    "is of another kind, or something was merged into it":
        file_shapes("sd1") | {"what": (1,), f"{UNET}adapter.weight": (1,)},
    "unet cannot be loaded: 1 of 686 tensors are missing (model.diffusion_model.out.2.bias)":
        {k: v for k, v in file_shapes("sd1").items() if k != f"{UNET}out.2.bias"},
    "text_encoder_2 cannot be loaded: 1 of 389 tensors are missing (conditioner.embedders.1.model"
    ".ln_final.bias)":
        {k: v for k, v in file_shapes("sdxl").items() if not k.endswith("ln_final.bias")},
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG_SHAPES)
def test_file_that_is_not_a_full_model_is_described(message: str, path: Path) -> None:
    write_sparse(path, WRONG_SHAPES[message])
    with pytest.raises(WeightsError) as caught:
        read_model_info(path)
    assert str(caught.value).startswith(f"model {path}: {message}")


def test_shapes_of_another_family_are_refused(path: Path) -> None:
    shapes = file_shapes("sd1") | {f"{UNET}out.2.bias": (5,)}
    with pytest.raises(
        WeightsError, match=r"unet cannot .* 1 of 686 .* conv_out.bias: \[5\] where"
    ):
        load_model(write_sparse(path, shapes))
    for look in (read_model_info, lambda file: read_contents(open_source(file))):
        with pytest.raises(WeightsError, match=r"unet cannot .* 1 of 686 tensors do not fit"):
            look(path)


def test_quantised_weights_are_refused(path: Path) -> None:
    write_sparse(path, file_shapes("sd1"), "I8")
    for look in (load_model, read_model_info, lambda file: read_contents(open_source(file))):
        with pytest.raises(WeightsError, match=r"unet .* 686 tensors are whole numbers \(I8\)"):
            look(path)


def test_truncated_file_is_named(tiny_file: Path, path: Path) -> None:
    path.write_bytes(tiny_file.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"model\.safetensors: .*it is cut off"):
        load_model(path)


def test_mixed_dtypes_become_a_single_dtype(tiny_file: Path, path: Path) -> None:
    tensors = load_tensors(tiny_file)
    mixed = {k: v.half() if n % 2 else v.bfloat16() for n, (k, v) in enumerate(tensors.items())}
    save_tensors(path, mixed, open_source(tiny_file).metadata)
    model = load_model(path, torch.bfloat16)
    assert {parameter.dtype for parameter in model.unet.parameters()} == {torch.bfloat16}
    assert {part.formats for part in read_model_info(path).parts} <= {
        ("F16", "BF16"),
        ("BF16", "F16"),
    }


@pytest.mark.parametrize("text", ["{", "[]", '{"configs": {"unet": {}}}'])
def test_damaged_configs_in_the_metadata_are_refused(
    tiny_file: Path, path: Path, text: str
) -> None:
    save_tensors(path, load_tensors(tiny_file), {"lorasmith.model": text})
    with pytest.raises(WeightsError, match=r"its lorasmith.model is (damaged|incomplete)"):
        open_source(path)


def test_single_file_loads_like_the_folder(tiny_file: Path, tiny_model: Path) -> None:
    first, second = load_model(tiny_file), load_model(tiny_model)
    for part in ("unet", "vae", "text_encoder"):
        actual, expected = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in actual)
    assert first.scheduler_config["prediction_type"] == second.scheduler_config["prediction_type"]
    assert first.tokenizer("a cat")["input_ids"] == second.tokenizer("a cat")["input_ids"]
    assert first.default_size == second.default_size == ImageSizes.read(tiny_file).default


class Denoiser(torch.nn.Module):
    """Stands for a trained U-Net at the last timestep: returns its input, or something else."""

    dtype = torch.float32

    def __init__(self, copies: bool) -> None:
        super().__init__()
        self.copies = copies
        self.config = type("Config", (), {"in_channels": 4, "cross_attention_dim": 8})

    def forward(self, noise: torch.Tensor, step: torch.Tensor, context: torch.Tensor) -> object:
        assert context.shape == (1, 77, 8)
        assert step.tolist() == [999]
        second = torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
        output = noise + 0.3 * second if self.copies else 0.07 * noise + second
        return type("Output", (), {"sample": output})


def test_prediction_type_is_measured() -> None:
    assert measure_prediction_type(Denoiser(copies=True)) == "epsilon"
    assert measure_prediction_type(Denoiser(copies=False)) == "v_prediction"
