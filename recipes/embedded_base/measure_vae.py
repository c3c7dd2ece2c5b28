"""Measure autoencoders on every domain: PSNR, background color, perceptual distance, latent scale.

    python measure_vae.py --pack work/world128.tar --folder character=FOLDER --folder photos=FOLDER
        --out work/vae_figures work/vae_a work/vae_b

Writes `vae.json`, `vae.md` and one sheet of originals and reconstructions for each domain.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent / "data"))

from pack import decode_picture, read_pack

from lorasmith.data.images.open_image import open_image
from lorasmith.data.reading.filters import hash_fraction
from lorasmith.models.image_encoder import load_image_encoder
from lorasmith.pretraining.perceptual.loss import PerceptualLoss

VALIDATION_SHARE = 0.03
MOST_IMAGES = 256
DOMAINS = {"people": "people", "composition": "compositions", "photograph": "photograph crops"}
COLUMNS = {
    "psnr": ("PSNR (dB)", 2),
    "psnr_p10": ("lowest tenth", 2),
    "background_error": ("corner color error (of 255)", 2),
    "perceptual": ("perceptual", 4),
    "latent_std": ("std of scaled latents", 3),
}
"""Titles and digits of the figures in the table."""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vaes", nargs="+", type=Path, help="folders of diffusers autoencoders")
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--folder", action="append", default=[], help="NAME=FOLDER of pictures")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    domains = read_validation_rows(options.pack)
    for item in options.folder:
        name, _, folder = item.partition("=")
        domains[name] = read_folder(Path(folder), 128)
        if name == "photos":
            domains["photos at 256"] = read_folder(Path(folder), 256)
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures: dict[str, dict[str, dict[str, float]]] = {}
    sheets: dict[str, list[torch.Tensor]] = {name: [images] for name, images in domains.items()}
    for path in options.vaes:
        figures[str(path)] = {}
        for name, images in domains.items():
            figures[str(path)][name], rebuilt = measure(path, images, device)
            sheets[name].append(rebuilt)
    (options.out / "vae.json").write_text(json.dumps(figures, indent=1))
    (options.out / "vae.md").write_text(format_table(figures))
    print(format_table(figures))
    for name, rows in sheets.items():
        write_sheet(rows, options.out / f"{name.replace(' ', '_')}.jpg")


def read_validation_rows(pack: Path) -> dict[str, torch.Tensor]:
    """Return uint8 images ``[N, 3, 128, 128]`` of validation rows by domain."""
    rows, files = read_pack(pack)
    chosen: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        held_out = row["holdout"] if row["style"].startswith("people-") else ""
        if (
            row["role"] == "base"
            and hash_fraction(f"{row['style']}/{row['icon']}") < VALIDATION_SHARE
        ):
            domain = DOMAINS.get(row["style"], "" if row["style"] == "texture" else "emoji")
        else:
            domain = "people, unseen combinations" if held_out else ""
        if domain:
            chosen.setdefault(domain, []).append(index)
    return {
        name: torch.stack(
            [_to_tensor(decode_picture(files[index])) for index in indices[:MOST_IMAGES]]
        )
        for name, indices in sorted(chosen.items())
    }


def read_folder(folder: Path, side: int) -> torch.Tensor:
    """Return scaled center squares of all pictures below a folder, uint8 ``[N, 3, side, side]``."""
    images = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in (".png", ".jpg", ".jpeg", ".avif"):
            continue
        picture = open_image(file).convert("RGB")
        edge = min(picture.size)
        left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
        square = picture.crop((left, top, left + edge, top + edge))
        images.append(_to_tensor(np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))))
    return torch.stack(images)


@torch.no_grad()
def measure(
    path: Path, images: torch.Tensor, device: torch.device
) -> tuple[dict[str, float], torch.Tensor]:
    """Return the figures of one autoencoder on one domain, and the reconstructions (uint8)."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(path).float().to(device).eval()
    perceptual = PerceptualLoss(load_image_encoder(None).to(device))
    rebuilt, scales, distances = [], [], []
    for batch in images.split(16):
        pixels = batch.to(device).float() / 127.5 - 1.0
        latents = vae.encode(pixels).latent_dist.mean
        decoded = vae.decode(latents).sample.clamp(-1, 1)
        scales.append((latents * vae.config.scaling_factor).float().flatten(1))
        distances += [
            float(perceptual(a[None], b[None])) for a, b in zip(pixels, decoded, strict=True)
        ]
        rebuilt.append(((decoded + 1) * 127.5).round().to(torch.uint8).cpu())
    result = torch.cat(rebuilt)
    error = (result.float() - images.float()).square().mean((1, 2, 3))
    psnr = 10 * torch.log10(255.0**2 / error.clamp(min=1e-3))
    return {
        "psnr": float(psnr.mean()),
        "psnr_p10": float(psnr.quantile(0.1)),
        "background_error": background_error(images, result),
        "perceptual": float(np.mean(distances)),
        "latent_std": float(torch.cat(scales).std()),
    }, result


def background_error(images: torch.Tensor, rebuilt: torch.Tensor) -> float:
    """Return the mean error (of 255) of the mean color of the four 8 x 8 corners."""
    errors = []
    for rows in (slice(0, 8), slice(-8, None)):
        for columns in (slice(0, 8), slice(-8, None)):
            before, after = (
                batch[:, :, rows, columns].float().mean((2, 3)) for batch in (images, rebuilt)
            )
            errors.append((before - after).abs().mean())
    return float(torch.stack(errors).mean())


def format_table(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return a Markdown table of all figures."""
    titles = ["autoencoder", "domain", *(title for title, _ in COLUMNS.values())]
    lines = [titles, ["---"] * len(titles)]
    for path, domains in figures.items():
        for name, row in domains.items():
            cells = [f"{row[key]:.{digits}f}" for key, (_, digits) in COLUMNS.items()]
            lines.append([path, name, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_sheet(rows: list[torch.Tensor], path: Path, columns: int = 12) -> None:
    """Write originals above their reconstructions, twelve columns."""
    picked = torch.linspace(0, len(rows[0]) - 1, min(columns, len(rows[0]))).long()
    grid = torch.cat([torch.cat(list(batch[picked]), dim=-1) for batch in rows], dim=-2)
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(path, quality=92)


def _to_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1)


if __name__ == "__main__":
    main()
