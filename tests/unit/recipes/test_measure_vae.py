import importlib.util
import sys

import numpy as np
import pytest
import torch
from inputs import VALIDATION_SHARE
from pack import encode_picture, write_pack

from helpers.paths import EMBEDDED_RECIPE
from helpers.world_samples import draw_disk, make_pack_row
from lorasmith.data.reading.filters import hash_fraction


@pytest.fixture(scope="module")
def measure_vae():
    path = EMBEDDED_RECIPE / "measure_vae.py"
    spec = importlib.util.spec_from_file_location("measure_vae", path)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_background_error_is_that_of_the_corners(measure_vae):
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    rebuilt = images.clone()
    rebuilt[:, :, 20:40, 20:40] = 255
    assert measure_vae.background_error(images, rebuilt) == 0.0
    rebuilt[:, :, :8, :8] = 40
    assert measure_vae.background_error(images, rebuilt) == pytest.approx(10.0)


def test_domains_are_validation_rows_and_unseen_people(measure_vae, tmp_path):
    assert measure_vae.VALIDATION_SHARE == VALIDATION_SHARE
    rows = []
    for style in ("noto", "people", "composition", "photograph", "texture"):
        for index in range(80):
            row = make_pack_row(f"{index:05d}", "red")
            rows.append({**row, "style": style})
    held_out = make_pack_row("00000", "blue", role="holdout")
    rows.append({**held_out, "style": "people-green-braids", "holdout": "green-braids"})
    rows.append({**held_out, "style": "noto", "holdout": "cactus"})
    write_pack(tmp_path / "a.tar", rows, [encode_picture(draw_disk("red"))] * len(rows), "")
    domains = measure_vae.read_validation_rows(tmp_path / "a.tar")
    expected = {
        "emoji": "noto",
        "people": "people",
        "compositions": "composition",
        "photograph crops": "photograph",
    }
    for domain, style in expected.items():
        count = sum(hash_fraction(f"{style}/{index:05d}") < VALIDATION_SHARE for index in range(80))
        assert len(domains.pop(domain, [])) == count
    assert domains.pop("people, unseen combinations").shape == (1, 3, 128, 128)
    assert not domains


def test_table_has_a_line_for_each_autoencoder_and_domain(measure_vae):
    figures = {"psnr": 30.123, "psnr_p10": 25.0, "background_error": 1.5, "perceptual": 0.01}
    figures["latent_std"] = 1.0
    lines = measure_vae.format_table({"a": {"emoji": figures}, "b": {"photos": figures}})
    assert lines.splitlines()[2] == "| a | emoji | 30.12 | 25.00 | 1.50 | 0.0100 | 1.000 |"
    assert lines.splitlines()[3].startswith("| b | photos | ")
    assert len({line.count("|") for line in lines.splitlines()}) == 1


def test_autoencoder_is_measured(measure_vae, tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )
    vae.save_pretrained(tmp_path / "vae")
    images = torch.from_numpy(np.stack([draw_disk("red"), draw_disk("blue")])).permute(0, 3, 1, 2)
    figures, rebuilt = measure_vae.measure(tmp_path / "vae", images, torch.device("cpu"))
    assert rebuilt.shape == images.shape
    error = (rebuilt.float() - images.float()).square().mean((1, 2, 3))
    assert figures["psnr"] == pytest.approx(float((10 * torch.log10(255**2 / error)).mean()))
    assert figures["perceptual"] > 0
    assert figures["latent_std"] > 0
    measure_vae.write_sheet([images, rebuilt], tmp_path / "sheet.jpg")
    with measure_vae.Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (2 * 128, 2 * 128)
