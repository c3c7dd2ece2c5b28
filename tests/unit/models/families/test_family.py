"""The families' facts against the published models' figures, on the meta device."""

from types import SimpleNamespace

import pytest

from helpers.published_files import VARIANTS, empty_parts
from helpers.published_sizes import CLIP_G, CLIP_H, CLIP_L, UNETS
from lorasmith.core.errors import WeightsError
from lorasmith.models.families.builtin import MINIATURE
from lorasmith.models.families.family import ModelVariant, detect_unet_family
from lorasmith.models.files.configs import CLASSES, component_config, model_index
from lorasmith.models.files.open import open_source
from lorasmith.models.files.source import detect_variant
from lorasmith.models.image_sizes import ImageSizes
from lorasmith.models.unet_tree import count_parameters
from lorasmith.registries import MODEL_FAMILIES

PARAMETERS = {
    # U-Net, autoencoder, text encoders
    "sd1": (859_520_964, 83_653_863, 123_060_480),
    "sd1-inpainting": (859_535_364, 83_653_863, 123_060_480),
    "sd2-base": (865_910_724, 83_653_863, 340_387_840),
    "sd2-v": (865_910_724, 83_653_863, 340_387_840),
    "sd2-inpainting": (865_925_124, 83_653_863, 340_387_840),
    "sdxl": (2_567_463_684, 83_653_863, 123_060_480, 694_659_840),
    "sdxl-inpainting": (2_567_478_084, 83_653_863, 123_060_480, 694_659_840),
    "sdxl-refiner": (2_259_526_660, 83_653_863, 694_659_840),
}
"""Of the published models."""
TITLES = {
    "sd1": "SD 1.x",
    "sd1-inpainting": "SD 1.x inpainting",
    "sd2-base": "SD 2.x base",
    "sd2-v": "SD 2.x 768-v",
    "sd2-inpainting": "SD 2.x inpainting",
    "sdxl": "SDXL",
    "sdxl-inpainting": "SDXL inpainting",
    "sdxl-refiner": "SDXL refiner",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_published_models_have_known_parameters_and_configs(name: str) -> None:
    variant = VARIANTS[name]
    networks = empty_parts(variant)
    assert tuple(map(count_parameters, networks.values())) == PARAMETERS[name]
    assert {part: type(network).__name__ for part, network in networks.items()} == {
        part: CLASSES[part] for part in networks
    }
    scheduler = component_config(variant, "scheduler")
    assert detect_variant(component_config(variant, "unet"), scheduler, "m") == variant
    assert variant.title == TITLES[name]
    assert variant.native_size == (1024 if "sdxl" in name else 768 if name == "sd2-v" else 512)
    unet, vae = networks["unet"].config, networks["vae"].config
    assert unet.sample_size * 8 == vae.sample_size == variant.native_size
    assert vae.scaling_factor == (0.13025 if "sdxl" in name else 0.18215)


@pytest.mark.parametrize(("name", "other"), [("sd1", "sd15"), ("sd2-v", "sd21"), ("sdxl", "sdxl")])
def test_configs_equal_those_of_the_test_helpers(name: str, other: str) -> None:
    config = component_config(VARIANTS[name], "unet")
    for key, value in UNETS[other].items():
        actual = config[key]
        assert actual == (list(value) if isinstance(value, tuple) else value), key


def test_text_encoders_equal_the_published_configs() -> None:
    facts = {name: MODEL_FAMILIES.get(name).text_encoders for name in ("sd1", "sd2", "sdxl")}
    for encoder, config in (
        (facts["sd1"]["text_encoder"], CLIP_L),
        (facts["sd2"]["text_encoder"], CLIP_H),
        (facts["sdxl"]["text_encoder"], CLIP_L),
        (facts["sdxl"]["text_encoder_2"], CLIP_G),
    ):
        assert encoder.width == config["hidden_size"]
        assert 4 * encoder.width == config["intermediate_size"]
        assert encoder.num_layers == config["num_hidden_layers"]
        assert encoder.num_heads == config["num_attention_heads"]
        assert encoder.projection_dim == config["projection_dim"]


def test_size_conditioning_of_each_family() -> None:
    for family, facts in MODEL_FAMILIES.load_all().items():
        pooled = sum(t.projection_dim for t in facts.text_encoders.values() if t.feeds_unet)
        config = component_config(ModelVariant(family), "unet")
        added_dim = config.get("projection_class_embeddings_input_dim", 0)
        assert added_dim == {"sdxl": 2816, "sdxl-refiner": 2560}.get(family, 0)
        assert added_dim == pooled + 256 * facts.unet.num_time_ids
        assert facts.unet.cross_attention_dim == sum(t.width for t in facts.text_encoders.values())


def test_miniature_equals_the_embedded_model() -> None:
    """Compare with the configs beside the embedded weights."""
    source = open_source()
    unet, vae, text = (source.config(part) for part in ("unet", "vae", "text_encoder"))
    assert tuple(unet["block_out_channels"]) == MINIATURE.unet.channels
    attended = tuple(int(kind.startswith("CrossAttn")) for kind in unet["down_block_types"])
    assert (attended, unet["transformer_layers_per_block"]) == (
        MINIATURE.unet.transformer_layers,
        1,
    )
    assert unet["cross_attention_dim"] == MINIATURE.unet.cross_attention_dim == text["hidden_size"]
    assert (unet["attention_head_dim"], unet["use_linear_projection"]) == (8, False)
    assert (MINIATURE.unet.num_heads, MINIATURE.unet.use_linear_projection) == (8, False)
    (encoder,) = MINIATURE.text_encoders.values()
    assert (encoder.width, encoder.num_layers, encoder.num_heads, encoder.projection_dim) == tuple(
        text[key] for key in
        ("hidden_size", "num_hidden_layers", "num_attention_heads", "projection_dim")
    )  # fmt: skip
    assert ImageSizes.read().default == MINIATURE.native_sizes[0]
    assert vae["scaling_factor"] == MINIATURE.scaling_factor
    assert source.variant == ModelVariant("sd1", prediction_type=MINIATURE.prediction_types[0])


def test_refiner_has_one_text_encoder() -> None:
    index = model_index(VARIANTS["sdxl-refiner"])
    assert index["text_encoder"] == index["tokenizer"] == [None, None]
    assert index["text_encoder_2"] == ["transformers", "CLIPTextModelWithProjection"]
    assert index["requires_aesthetics_score"] is True


def test_unet_of_no_family_is_refused() -> None:
    image = SimpleNamespace(addition_embed_type="image")
    with pytest.raises(WeightsError, match="m: its U-Net needs image inputs"):
        detect_unet_family(image, "m")
    with pytest.raises(WeightsError, match="InstructPix2Pix model \\(8 input channels\\)"):
        detect_variant({"in_channels": 8}, {}, "m")
    with pytest.raises(
        WeightsError, match="no known kind \\(3 input channels\\); expected 4, or 9"
    ):
        detect_variant({"in_channels": 3}, {}, "m")
