"""The base model's report as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorasmith.evaluation.base_model import RetrievalMetrics, VaeMetrics

Line = Sequence[str]


@dataclass(frozen=True)
class VaeRunResult:
    """One row of the table of autoencoder architectures."""

    name: str
    channels: int
    """Latent channels."""
    factor: int
    """Down-sampling factor."""
    resolution: int
    """Side of its training images, at which it is measured."""
    steps: int
    psnr: float
    """Pooled PSNR of the averaged weights, dB."""
    psnr_without_ema: float | None
    """The same of the plain weights, if they were saved."""


@dataclass(frozen=True)
class BaseModelResults:
    """Everything that the report prints."""

    training_rows: int
    validation_rows: int
    sampling: str
    """How the images were generated, in words."""
    vaes: Mapping[str, VaeMetrics]
    vae_runs: Sequence[VaeRunResult]
    retrieval: RetrievalMetrics
    seen: Mapping[str, RetrievalMetrics]
    unseen: Mapping[str, RetrievalMetrics]


def render_markdown(results: BaseModelResults, appendix: str = "") -> str:
    """Return the report; ``appendix`` is Markdown that is added to its end."""
    sections = [
        _introduction(results),
        _vae_section(results),
        _clip_section(results),
        _unet_section(results),
    ]
    return "\n\n".join([*sections, appendix.strip()]).strip() + "\n"


def _introduction(results: BaseModelResults) -> str:
    return (
        "# What the base model can do\n\n"
        f"Written by `lorasmith pretrain report`. The model was trained on "
        f"{results.training_rows:,} rows; metrics are of the other {results.validation_rows}, "
        "unless it says otherwise."
    )


def _vae_section(results: BaseModelResults) -> str:
    rows = [
        (
            name,
            f"{vae.mean_psnr:.2f}",
            f"{vae.pooled_psnr:.2f}",
            f"{vae.perceptual:.4f}",
            f"{vae.latent_std:.3f}",
        )
        for name, vae in results.vaes.items()
    ]
    header = (
        "autoencoder",
        "PSNR dB, mean of images",
        "PSNR dB, pooled",
        "perceptual",
        "scaled std",
    )
    text = (
        "## Autoencoder\n\n" + _table(header, rows) + "\n\n"
        "*Pooled* is the PSNR of the mean squared error over all images together; *perceptual* "
        "is the LPIPS-style distance in the image encoder's features (lower is better); *scaled "
        "std* is the latents' standard deviation times the scaling factor.\n\n"
        "`reconstructions.png`: each validation image beside its reconstructions, in the order "
        "of the table."
    )
    return text + _vae_run_section(results.vae_runs) if results.vae_runs else text


def _vae_run_section(runs: Sequence[VaeRunResult]) -> str:
    rows = [
        (
            run.name, f"f{run.factor}", str(run.channels), f"{run.steps} at {run.resolution} px",
            f"{run.psnr:.2f}",
            "-" if run.psnr_without_ema is None else f"{run.psnr_without_ema:.2f}",
        )
        for run in runs
    ]  # fmt: skip
    header = ("run", "scale factor", "latent channels", "steps", "PSNR dB, pooled", "without EMA")
    return (
        "\n\n### Architectures at a short equal budget\n\n"
        "Small autoencoders, trained briefly with the same settings: compare them only with each "
        "other.\n\n" + _table(header, rows)
    )


def _clip_section(results: BaseModelResults) -> str:
    retrieval = results.retrieval
    return (
        "## Text and image encoder\n\n"
        f"Validation images: own caption nearest of {retrieval.candidates} for "
        f"{retrieval.top1:.1%}, among the nearest five for {retrieval.top5:.1%}."
    )


def _unet_section(results: BaseModelResults) -> str:
    kinds = (
        ("trained on", results.seen),
        ("style and concept never seen together", results.unseen),
    )
    rows = [
        (
            name, kind, str(retrieval.queries), str(retrieval.candidates),
            f"{retrieval.top1:.1%}", f"{retrieval.top5:.1%}",
        )
        for kind, retrievals in kinds
        for name, retrieval in retrievals.items()
    ]  # fmt: skip
    header = ("U-Net", "captions", "images", "candidates", "own caption nearest", "among nearest 5")
    return (
        f"## Images for captions\n\n{results.sampling} The image encoder retrieves each image's "
        "caption.\n\n" + _table(header, rows) + "\n\n"
        "`sheet.png`: the first 64 of the trained captions, the original image left, the "
        "generated one right. `sheet_unseen.png`: the same for the pairs that were never seen "
        "together."
    )


def _table(header: Line, rows: Sequence[Line]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
