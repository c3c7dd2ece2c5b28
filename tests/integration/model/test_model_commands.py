"""`lorasmith model info` and `model convert` on folders, single files and what is neither."""

import json
import pickle
from pathlib import Path

import pytest

from helpers.published_files import file_shapes, write_sparse
from lorasmith.cli import run


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    status = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_model_converted_there_and_back_draws_the_same_image(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "made" / "photo.safetensors", tmp_path / "photo"
    assert "SD 1.x as a single file" in shown(capsys, "model", "convert", tiny_model, file)
    assert "SD 1.x as a folder" in shown(capsys, "model", "convert", file, folder)
    pictures = []
    for model in (tiny_model, file, folder):
        out = tmp_path / f"out{len(pictures)}"
        arguments = ["-m", model, "--steps", "1", "-n", "1", "--device", "cpu", "--out", out]
        shown(capsys, "generate", "a red apple", *arguments)
        from PIL import Image

        pictures.append(Image.open(out / "0000.png").tobytes())
    assert pictures[0] == pictures[1] == pictures[2]


def test_info_describes_a_single_file(
    tiny_sdxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "xl.safetensors"
    shown(capsys, "model", "convert", tiny_sdxl, file, "--precision", "fp16")
    text = shown(capsys, "model", "info", file)
    assert "Model      SDXL, predicts epsilon, single file, hash " in text
    assert "text_encoder_2 F16 (53)" in text
    info = json.loads(shown(capsys, "model", "info", file, "--json"))
    assert (info["family"], info["prediction_type"]) == ("sdxl", "epsilon")
    assert len(info["hash"]) == 10
    assert "Size of the parts" in text
    assert list(info["sizes"]) == ["unet", "vae", "text_encoder", "text_encoder_2", "all"]
    assert all(size["stored"] == size["fp16"] for size in info["sizes"].values())
    assert info["sizes"]["all"]["fp32"] == 4 * info["parameters"]
    assert [part["name"] for part in info["parts"]] == [
        "unet", "vae", "text_encoder", "text_encoder_2",
    ]  # fmt: skip


def test_info_names_inpainting_and_refiner_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorasmith.inference.outputs import png_metadata

    monkeypatch.setattr(
        png_metadata, "compute_model_hash", lambda path: "0123456789"
    )  # gigabytes of zeros
    for name, title in (
        ("sd1-inpainting", "SD 1.x inpainting, predicts epsilon"),
        ("sdxl-refiner", "SDXL refiner, predicts epsilon"),
        ("sd2-v", "SD 2.x, what it predicts is not said (measured when loaded)"),
    ):
        path = write_sparse(tmp_path / f"{name}.safetensors", file_shapes(name))
        assert f"Model      {title}" in shown(capsys, "model", "info", path)
        path.unlink()


def test_refiner_does_not_draw_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from helpers.tiny_models import make_tiny

    folder = make_tiny(tmp_path / "refiner", "sdxl-refiner")
    line = refused(capsys, "generate", "an apple", "-m", folder, "--out", tmp_path / "out")
    assert "this is an SDXL refiner" in line


def test_impossible_conversions_are_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled = tmp_path / "model.ckpt"
    pickled.write_bytes(pickle.dumps({"state_dict": {}}))
    out = tmp_path / "out"
    assert "this is a pickled file" in refused(capsys, "model", "convert", pickled, out)
    assert "docs/models.md says how" in refused(capsys, "model", "info", pickled)
    line = refused(capsys, "model", "convert", tiny_model, tmp_path / "new.ckpt")
    assert "pickled files are not written; end the name in .safetensors" in line
    (tmp_path / "taken").mkdir()
    line = refused(capsys, "model", "convert", tiny_model, tmp_path / "taken")
    assert line.endswith("something is there already; choose another name")
    assert "only Hugging Face ids" in refused(
        capsys, "model", "convert", tiny_model, out, "--download"
    )
    unet = {k: v for k, v in file_shapes("sd1").items() if k.startswith("model.")}
    line = refused(capsys, "model", "info", write_sparse(tmp_path / "u.safetensors", unet))
    assert "this is a U-Net alone; expected a whole model in one file" in line
    assert not out.exists()
