"""``lorasmith pretrain report``: metrics and contact sheets of a pretrained base model."""

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
    tensor_to_pil,
)
from lorasmith.evaluation.metrics.image import pooled_psnr
from lorasmith.inference.pipeline import Pipeline, load_pipeline
from lorasmith.loops.progress import progress_bar
from lorasmith.loops.tracking import read_log
from lorasmith.models.image_encoder import load_clip, load_image_encoder, load_tokenizer
from lorasmith.models.load import load_network
from lorasmith.pretraining.dataset import select_rows
from lorasmith.pretraining.perceptual.loss import PerceptualLoss
from lorasmith.pretraining.report_markdown import BaseModelResults, VaeRunResult, render_markdown
from lorasmith.reports.contact_sheet import make_contact_sheet

NUM_TRAINING_CAPTIONS = 256
NUM_UNSEEN_CAPTIONS = 64
NUM_SHEET_IMAGES = 64
NUM_RECONSTRUCTIONS = 24
NUM_INFERENCE_STEPS, GUIDANCE_SCALE = 30, 5.0


@dataclass(frozen=True)
class ComparedNetworks:
    """Other networks to measure besides the model's own, by name."""

    vaes: Mapping[str, Path]
    """Folders that hold a ``vae/``."""
    unets: Mapping[str, Path]
    """Folders of a U-Net alone, for instance ``unet_without_ema``."""
    vae_runs: Mapping[str, Path] = field(default_factory=dict)
    """Folders of short runs of `pretrain vae`, for the table of architectures."""
    appendix: Path | None = None
    """A Markdown file for the end of the report, such as a description of the sheets."""

    def check(self) -> None:
        """Check that all networks exist, before minutes of measuring begin.

        Raises:
            WeightsError: a folder lacks its file; the message names the option and the file.
        """
        required = [("--unet", folder / "config.json") for folder in self.unets.values()]
        required += [("--vae", folder / "vae/config.json") for folder in self.vaes.values()]
        required += [("--table", folder / "vae/config.json") for folder in self.vae_runs.values()]
        for option, file in required:
            if not file.is_file():
                raise WeightsError(f"{option}: there is no {file}; name the folder that has it")


def write_report(
    run: UnetPretrainConfig,
    model: Path | None,
    out: Path,
    compared: ComparedNetworks,
    device: str = "auto",
) -> Path:
    """Measure a model, write ``out`` (Markdown) and the sheets beside it; return ``out``.

    Args:
        run: the settings that the U-Net was trained with; they define the validation rows.
        model: a diffusers folder with an image encoder; None is the embedded model.
        out: the Markdown file.
        compared: other networks to measure, and text to append.
        device: where to compute.

    Raises:
        DataError: there are too few rows for the fixed sets of captions.
        WeightsError: a network to compare with does not exist.
    """
    ensure_writable_folder(out.parent)
    compared.check()
    appendix = "" if compared.appendix is None else compared.appendix.read_text(encoding="utf-8")
    training, validation = select_rows(run.data)
    pipe = load_pipeline(model, device)
    side = pipe.model.default_size
    vaes, sheet = _measure_vaes(pipe, validation, side, compared)
    sheet.save(out.with_name("reconstructions.png"), optimize=True)
    captions = _CaptionSets(
        sample_training_rows(training, NUM_TRAINING_CAPTIONS),
        sample_unseen_rows(training, validation, NUM_UNSEEN_CAPTIONS),
        side,
    )
    seen, unseen = _measure_unets(pipe, captions, compared, out)
    validation_captions = [row.caption for row in validation]
    results = BaseModelResults(
        training_rows=len(training),
        validation_rows=len(validation),
        sampling=(
            f"{NUM_INFERENCE_STEPS} DDIM steps, guidance {GUIDANCE_SCALE}, image k from seed k."
        ),
        vaes=vaes,
        vae_runs=_measure_vae_runs(compared.vae_runs, validation),
        retrieval=_measure_retrieval(pipe, _load_images(validation, side), validation_captions),
        seen=seen,
        unseen=unseen,
    )
    write_text(out, render_markdown(results, appendix))
    return out


def sample_training_rows(training: Sequence[Row], count: int) -> list[Row]:
    """Return a fixed sample of training rows with different captions."""
    distinct = {row.caption: row for row in sorted(training, key=_hash_order)}
    return _take(list(distinct.values()), count, "training rows")


def sample_unseen_rows(training: Sequence[Row], validation: Sequence[Row], count: int) -> list[Row]:
    """Return validation rows whose concept and style were both trained on, but not together."""
    names = {row.columns.get("name") for row in training}
    styles = {row.columns.get("style") for row in training}
    matches = [
        row
        for row in validation
        if row.columns.get("name") in names and row.columns.get("style") in styles
    ]
    distinct = {row.caption: row for row in sorted(matches, key=_hash_order)}
    return _take(list(distinct.values()), count, "validation rows of known concepts")


class _CaptionSets:
    """Captions to generate: trained ones, and pairs of style and concept that were never seen."""

    def __init__(self, seen: Sequence[Row], unseen: Sequence[Row], side: int) -> None:
        self.seen, self.unseen, self.side = seen, unseen, side

    def measure_retrieval(
        self, pipe: Pipeline, generated: Sequence[Image.Image]
    ) -> tuple[RetrievalMetrics, RetrievalMetrics]:
        """Return how well generated images retrieve their captions: trained ones, unseen ones."""
        images = pil_to_tensor(generated, self.side)
        trained = [row.caption for row in self.seen]
        # The unseen captions compete with trained ones, so that there are as many candidates.
        mixed = [row.caption for row in self.unseen] + trained[: len(trained) - len(self.unseen)]
        count = len(self.seen)
        return (
            _measure_retrieval(pipe, images[:count], trained),
            _measure_retrieval(pipe, images[count:], mixed),
        )

    def save_sheets(self, generated: Sequence[Image.Image], out: Path) -> None:
        """Write the two contact sheets beside ``out``."""
        for name, rows, images in (
            ("sheet.png", self.seen[:NUM_SHEET_IMAGES], generated[:NUM_SHEET_IMAGES]),
            ("sheet_unseen.png", self.unseen, generated[len(self.seen) :]),
        ):
            originals = tensor_to_pil(_load_images(rows, self.side))
            pairs = zip(originals, images, rows, strict=True)
            cells = [((original, image), row.caption) for original, image, row in pairs]
            make_contact_sheet(cells, columns=8).save(out.with_name(name), optimize=True)


def _measure_unets(
    pipe: Pipeline, captions: _CaptionSets, compared: ComparedNetworks, out: Path
) -> tuple[dict[str, RetrievalMetrics], dict[str, RetrievalMetrics]]:
    """Measure all U-Nets on trained and on unseen captions; save the sheets of the model's own."""
    own_unet = pipe.model.unet
    seen, unseen = {}, {}
    for name, unet in _load_unets(pipe, compared).items():
        pipe.model.unet = unet
        generated = _generate(pipe, captions, f"drawing ({name})")
        seen[name], unseen[name] = captions.measure_retrieval(pipe, generated)
        if unet is own_unet:
            captions.save_sheets(generated, out)
    return seen, unseen


def _measure_vaes(
    pipe: Pipeline, rows: Sequence[Row], side: int, compared: ComparedNetworks
) -> tuple[dict[str, VaeMetrics], Image.Image]:
    """Measure all autoencoders; return their metrics and a sheet of their reconstructions."""
    device = pipe.model.unet.device
    images = _load_images(rows, side).to(device)
    perceptual = PerceptualLoss(load_image_encoder(pipe.model.path)).to(device)
    vaes = {"shipped": pipe.model.vae} | {
        name: _load_vae(folder, "vae").to(device) for name, folder in compared.vaes.items()
    }
    metrics = {name: measure_vae(vae, perceptual, images) for name, vae in vaes.items()}
    order = sorted(range(len(rows)), key=lambda index: _hash_order(rows[index]))
    shown = order[:NUM_RECONSTRUCTIONS]
    columns = [
        tensor_to_pil(images[shown]),
        *(reconstruct_to_pil(vae, images[shown]) for vae in vaes.values()),
    ]
    groups = zip(zip(*columns, strict=True), shown, strict=True)
    cells = [(group, rows[index].caption) for group, index in groups]
    return metrics, make_contact_sheet(cells, columns=4)


def _measure_vae_runs(runs: Mapping[str, Path], rows: Sequence[Row]) -> list[VaeRunResult]:
    return [_measure_vae_run(name, folder, rows) for name, folder in runs.items()]


def _measure_vae_run(name: str, folder: Path, rows: Sequence[Row]) -> VaeRunResult:
    """Measure one row of the table of architectures, at the resolution of its training."""
    vae = _load_vae(folder, "vae")
    images = _load_images(rows, int(vae.config.sample_size))
    plain = folder / "vae_without_ema"
    return VaeRunResult(
        name=name,
        channels=int(vae.config.latent_channels),
        factor=2 ** (len(vae.config.block_out_channels) - 1),
        resolution=int(vae.config.sample_size),
        steps=int(read_log(folder / "log.jsonl")[-1]["step"]),
        psnr=_pooled_psnr(vae, images),
        psnr_without_ema=_pooled_psnr(_load_vae(folder, plain.name), images)
        if plain.is_dir()
        else None,
    )


def _pooled_psnr(vae: Any, images: torch.Tensor) -> float:
    return pooled_psnr(images, reconstruct(vae, images))


def _load_vae(folder: Path, subfolder: str) -> Any:
    from diffusers import AutoencoderKL

    return load_network(AutoencoderKL, folder, subfolder).eval()


def _load_images(rows: Sequence[Row], side: int) -> torch.Tensor:
    return uint8_to_signed(load_square_images(rows, side))


def _measure_retrieval(
    pipe: Pipeline, images: torch.Tensor, captions: Sequence[str]
) -> RetrievalMetrics:
    folder = pipe.model.path
    clip = load_clip(folder).to(pipe.model.unet.device)
    return measure_retrieval(clip, load_tokenizer(folder), images, captions)


def _load_unets(pipe: Pipeline, compared: ComparedNetworks) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    shipped = pipe.model.unet
    device = shipped.device
    compared_unets = {
        name: load_network(UNet2DConditionModel, folder.parent, folder.name).to(device).eval()
        for name, folder in compared.unets.items()
    }
    return {"shipped": shipped, **compared_unets}


def _generate(pipe: Pipeline, captions: _CaptionSets, title: str) -> list[Image.Image]:
    rows = [*captions.seen, *captions.unseen]
    with progress_bar(title, len(rows) * NUM_INFERENCE_STEPS) as advance:
        return pipe(
            [row.caption for row in rows],
            seed=0,
            num_inference_steps=NUM_INFERENCE_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            batch_size=16,
            progress=advance,
        )


def _hash_order(row: Row) -> str:
    """Return a sort key for a fixed random order, independent of the order in the file."""
    return hashlib.sha256(f"report:{row.key}".encode()).hexdigest()


def _take(rows: list[Row], count: int, what: str) -> list[Row]:
    if len(rows) < count:
        raise DataError(
            f"the report needs {count} {what} with different captions; there are {len(rows)}"
        )
    return rows[:count]
