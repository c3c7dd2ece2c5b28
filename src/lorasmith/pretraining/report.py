"""``lorasmith pretrain report``: what a pretrained base model can do, in figures and sheets."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lorasmith.config.pretrain import UnetPretrainConfig
from lorasmith.core.errors import DataError, WeightsError
from lorasmith.core.files import ensure_writable_folder, write_text
from lorasmith.data.images.square_images import load_square_images, uint8_to_signed
from lorasmith.data.reading.row import Row
from lorasmith.evaluation.base_model import (
    RetrievalMetrics,
    VaeMetrics,
    measure_retrieval,
    measure_vae,
    pil_to_tensor,
    reconstruct,
    reconstruct_to_pil,
)
from lorasmith.evaluation.base_model import tensor_to_pil as pictures_of
from lorasmith.evaluation.metrics.image import pooled_psnr
from lorasmith.inference.pipeline import Pipeline, load_pipeline
from lorasmith.loops.progress import progress_bar
from lorasmith.loops.tracking import read_log
from lorasmith.models.image_encoder import load_clip, load_image_encoder, load_tokenizer
from lorasmith.models.load import load_network
from lorasmith.pretraining.common import chosen_rows
from lorasmith.pretraining.report_markdown import Measured, ShortVae, render
from lorasmith.pretraining.vae_losses import PerceptualLoss
from lorasmith.reports.contact_sheet import make_contact_sheet

CAPTIONS = 256
UNSEEN = 64
SHEET = 64
RECONSTRUCTIONS = 24
STEPS, GUIDANCE = 30, 5.0


@dataclass(frozen=True)
class Compared:
    """Further networks to measure beside the model's own, by name."""

    vaes: Mapping[str, Path]
    """Folders that hold a ``vae/``."""
    unets: Mapping[str, Path]
    """Folders of a U-Net alone, for instance ``unet_without_ema``."""
    short_vaes: Mapping[str, Path] = field(default_factory=dict)
    """Folders of short runs of `pretrain vae`, for the table of shapes."""
    appended: Path | None = None
    """A Markdown file that goes at the end: what an eye saw on the sheets."""

    def check(self) -> None:
        """Look for every network before minutes of measuring begin.

        Raises:
            WeightsError: a folder does not hold what it should; the option and the file are named.
        """
        wanted = [("--unet", folder / "config.json") for folder in self.unets.values()]
        wanted += [("--vae", folder / "vae/config.json") for folder in self.vaes.values()]
        wanted += [("--table", folder / "vae/config.json") for folder in self.short_vaes.values()]
        for option, file in wanted:
            if not file.is_file():
                raise WeightsError(f"{option}: there is no {file}; name the folder that has it")


def report(
    run: UnetPretrainConfig, model: Path | None, out: Path, compared: Compared, device: str = "auto"
) -> Path:
    """Measure a model, write ``out`` (Markdown) and the sheets beside it; return ``out``.

    Args:
        run: the settings that the U-Net was trained with; they say which rows are validation.
        model: a diffusers folder with an ``image_tower/``; None is the embedded model.
        out: the Markdown file.
        compared: other networks to measure, and words to add.
        device: where to compute.

    Raises:
        DataError: too few rows for the fixed sets of captions.
        WeightsError: a network to compare with is not there.
    """
    ensure_writable_folder(out.parent)
    compared.check()
    appended = "" if compared.appended is None else compared.appended.read_text(encoding="utf-8")
    training, validation = chosen_rows(run.data)
    pipe = load_pipeline(model, device)
    side = pipe.model.default_size
    vaes, sheet = _vaes(pipe, validation, side, compared)
    sheet.save(out.with_name("reconstructions.png"), optimize=True)
    captions = _Captions(
        seen_rows(training, CAPTIONS), unseen_rows(training, validation, UNSEEN), side
    )
    own_unet = pipe.model.unet
    seen, unseen = {}, {}
    for name, unet in _unets(pipe, compared).items():
        pipe.model.unet = unet
        drawn = _draw(pipe, captions, f"drawing ({name})")
        seen[name], unseen[name] = captions.agreement(pipe, drawn)
        if unet is own_unet:
            captions.save_sheets(drawn, out)
    measured = Measured(
        training_rows=len(training),
        validation_rows=len(validation),
        sampling=f"{STEPS} DDIM steps, guidance {GUIDANCE}, picture k from seed k.",
        vaes=vaes,
        short_vaes=[_short_vae(name, at, validation) for name, at in compared.short_vaes.items()],
        retrieval=_looked_up(pipe, _true(validation, side), [row.caption for row in validation]),
        seen=seen,
        unseen=unseen,
    )
    write_text(out, render(measured, appended))
    return out


def seen_rows(training: Sequence[Row], count: int) -> list[Row]:
    """Return a fixed choice of training rows with different captions."""
    distinct = {row.caption: row for row in sorted(training, key=_lot)}
    return _first(list(distinct.values()), count, "training rows")


def unseen_rows(training: Sequence[Row], validation: Sequence[Row], count: int) -> list[Row]:
    """Return validation rows whose concept and style were both trained on, but not together."""
    names = {row.columns.get("name") for row in training}
    styles = {row.columns.get("style") for row in training}
    fit = [
        r for r in validation if r.columns.get("name") in names and r.columns.get("style") in styles
    ]
    distinct = {row.caption: row for row in sorted(fit, key=_lot)}
    return _first(list(distinct.values()), count, "validation rows of known concepts")


class _Captions:
    """The captions that are drawn: trained ones, and pairs of style and concept never seen."""

    def __init__(self, seen: Sequence[Row], unseen: Sequence[Row], side: int) -> None:
        self.seen, self.unseen, self.side = seen, unseen, side

    def agreement(
        self, pipe: Pipeline, drawn: Sequence[Image.Image]
    ) -> tuple[RetrievalMetrics, RetrievalMetrics]:
        """Look the drawn pictures' captions up: trained ones, then unseen ones."""
        pictures = pil_to_tensor(drawn, self.side)
        trained = [row.caption for row in self.seen]
        # The unseen captions compete with trained ones, so that there are as many candidates.
        mixed = [row.caption for row in self.unseen] + trained[: len(trained) - len(self.unseen)]
        count = len(self.seen)
        return _looked_up(pipe, pictures[:count], trained), _looked_up(
            pipe, pictures[count:], mixed
        )

    def save_sheets(self, drawn: Sequence[Image.Image], out: Path) -> None:
        """Write the two contact sheets beside ``out``."""
        for name, rows, images in (
            ("sheet.png", self.seen[:SHEET], drawn[:SHEET]),
            ("sheet_unseen.png", self.unseen, drawn[len(self.seen) :]),
        ):
            true = pictures_of(_true(rows, self.side))
            pairs = zip(true, images, rows, strict=True)
            cells = [((one, other), row.caption) for one, other, row in pairs]
            make_contact_sheet(cells, columns=8).save(out.with_name(name), optimize=True)


def _vaes(
    pipe: Pipeline, rows: Sequence[Row], side: int, compared: Compared
) -> tuple[dict[str, VaeMetrics], Image.Image]:
    """Measure all autoencoders; also return a sheet of their reconstructions."""
    device = pipe.model.unet.device
    pictures = _true(rows, side).to(device)
    perceptual = PerceptualLoss(load_image_encoder(pipe.model.folder)).to(device)
    vaes = {"shipped": pipe.model.vae} | {
        name: _autoencoder(folder, "vae").to(device) for name, folder in compared.vaes.items()
    }
    figures = {name: measure_vae(vae, perceptual, pictures) for name, vae in vaes.items()}
    some = sorted(range(len(rows)), key=lambda k: _lot(rows[k]))[:RECONSTRUCTIONS]
    columns = [
        pictures_of(pictures[some]),
        *(reconstruct_to_pil(v, pictures[some]) for v in vaes.values()),
    ]
    groups = zip(zip(*columns, strict=True), some, strict=True)
    return figures, make_contact_sheet(
        [(images, rows[k].caption) for images, k in groups], columns=4
    )


def _short_vae(name: str, folder: Path, rows: Sequence[Row]) -> ShortVae:
    """Measure one line of the table of shapes, at the resolution that it was trained at."""
    vae = _autoencoder(folder, "vae")
    pictures = _true(rows, int(vae.config.sample_size))
    plain = folder / "vae_without_ema"
    return ShortVae(
        name=name,
        channels=int(vae.config.latent_channels),
        factor=2 ** (len(vae.config.block_out_channels) - 1),
        resolution=int(vae.config.sample_size),
        steps=int(read_log(folder / "log.jsonl")[-1]["step"]),
        psnr=_pooled(vae, pictures),
        psnr_without_ema=_pooled(_autoencoder(folder, plain.name), pictures)
        if plain.is_dir()
        else None,
    )


def _pooled(vae: Any, pictures: torch.Tensor) -> float:
    return pooled_psnr(pictures, reconstruct(vae, pictures))


def _autoencoder(folder: Path, part: str) -> Any:
    from diffusers import AutoencoderKL

    return load_network(AutoencoderKL, folder, part).eval()


def _true(rows: Sequence[Row], side: int) -> torch.Tensor:
    return uint8_to_signed(load_square_images(rows, side))


def _looked_up(pipe: Pipeline, pictures: torch.Tensor, captions: Sequence[str]) -> RetrievalMetrics:
    folder = pipe.model.folder
    pair = load_clip(folder).to(pipe.model.unet.device)
    return measure_retrieval(pair, load_tokenizer(folder), pictures, captions)


def _unets(pipe: Pipeline, compared: Compared) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    own = pipe.model.unet
    others = {
        name: load_network(UNet2DConditionModel, folder.parent, folder.name).to(own.device).eval()
        for name, folder in compared.unets.items()
    }
    return {"shipped": own, **others}


def _draw(pipe: Pipeline, captions: _Captions, title: str) -> list[Image.Image]:
    rows = [*captions.seen, *captions.unseen]
    with progress_bar(title, len(rows) * STEPS) as advance:
        return pipe(
            [row.caption for row in rows],
            seed=0,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            batch_size=16,
            progress=advance,
        )


def _lot(row: Row) -> str:
    """Order rows by a hash of their key: a fixed draw that does not depend on the file's order."""
    return hashlib.sha256(f"report:{row.key}".encode()).hexdigest()


def _first(rows: list[Row], count: int, what: str) -> list[Row]:
    if len(rows) < count:
        raise DataError(
            f"the report needs {count} {what} with different captions; there are {len(rows)}"
        )
    return rows[:count]
