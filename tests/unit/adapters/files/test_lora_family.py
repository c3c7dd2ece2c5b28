"""Which models a LoRA file is for, by the names of its layers."""

from pathlib import Path

import pytest

from lorasmith.adapters.files.lora_family import detect_lora_family
from lorasmith.adapters.files.lora_file import LoraFile

DEEP = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
EDGE = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"


def detect(*names: str) -> tuple[str | None, str]:
    """Return the family of a file with these layers; their shapes say nothing."""
    return detect_lora_family(LoraFile(Path("x"), dict.fromkeys(names, Layer()), {}))  # type: ignore[arg-type]


class Layer:
    """An adapter whose width is no model's."""

    matrix_shape = (8, 8)


@pytest.mark.parametrize(
    ("names", "family"),
    [
        ([DEEP], "sdxl"),
        (["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"], "sdxl"),
        ([EDGE], None),
        ([EDGE, "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"], None),
        (["lora_unet_output_blocks_11_1_transformer_blocks_0_attn1_to_q"], None),
        (["lora_unet_output_blocks_6_1_transformer_blocks_0_attn1_to_q"], None),
        (["lora_unet_output_blocks_2_2_conv"], "sdxl"),
        (["lora_unet_input_blocks_11_0_in_layers_2"], None),
    ],
)
def test_original_block_names_mean_sdxl_only_where_it_has_such_blocks(
    names: list[str], family: str | None
) -> None:
    assert detect(*names)[0] == family
