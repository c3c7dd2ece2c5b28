"""The base model's report as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorasmith.evaluation.base_model import RetrievalMetrics, VaeMetrics

Line = Sequence[str]


@dataclass(frozen=True)
class ShortVae:
    """One line of the table of autoencoder shapes."""

    name: str
    channels: int
    """Latent channels."""
    factor: int
    """Down-sampling factor."""
    resolution: int
    """Side of its training pictures, at which it is measured."""
    steps: int
    psnr: float
    """Pooled PSNR of the averaged weights, dB."""
    psnr_without_ema: float | None
    """The same of the plain weights, if they were kept."""


@dataclass(frozen=True)
class Measured:
    """Everything that the report prints."""

    training_rows: int
    validation_rows: int
    sampling: str
    """How the pictures were drawn, in words."""
    vaes: Mapping[str, VaeMetrics]
    short_vaes: Sequence[ShortVae]
    retrieval: RetrievalMetrics
    seen: Mapping[str, RetrievalMetrics]
    unseen: Mapping[str, RetrievalMetrics]


def render(measured: Measured, appended: str = "") -> str:
    """Return the report; ``appended`` is Markdown that goes at its end, such as what an eye saw."""
    sections = [_head(measured), _vaes(measured), _towers(measured), _pictures(measured)]
    return "\n\n".join([*sections, appended.strip()]).strip() + "\n"


def _head(m: Measured) -> str:
    return (
        "# What the base model can do\n\n"
        f"Written by `lorasmith pretrain report`. {m.training_rows:,} rows were trained on; the "
        f"figures are on the other {m.validation_rows}, except where it says otherwise."
    )


def _vaes(m: Measured) -> str:
    lines = [
        (
            name,
            f"{v.mean_psnr:.2f}",
            f"{v.pooled_psnr:.2f}",
            f"{v.perceptual:.4f}",
            f"{v.latent_std:.3f}",
        )
        for name, v in m.vaes.items()
    ]
    head = (
        "autoencoder",
        "PSNR dB, mean of pictures",
        "PSNR dB, pooled",
        "perceptual",
        "scaled std",
    )
    text = (
        "## Autoencoder\n\n" + _table(head, lines) + "\n\n"
        "*Pooled* is the PSNR of the mean squared error over all pictures together; *perceptual* "
        "is the LPIPS-style distance in the image tower's features (lower is better); *scaled std* "
        "is the latents' standard deviation times the scaling factor.\n\n"
        "`reconstructions.png`: each validation picture beside its reconstructions, in the order "
        "of the table."
    )
    return text + _short_vaes(m.short_vaes) if m.short_vaes else text


def _short_vaes(short: Sequence[ShortVae]) -> str:
    lines = [
        (
            v.name, f"f{v.factor}", str(v.channels), f"{v.steps} at {v.resolution} px",
            f"{v.psnr:.2f}", "-" if v.psnr_without_ema is None else f"{v.psnr_without_ema:.2f}",
        )
        for v in short
    ]  # fmt: skip
    head = ("run", "down-sampling", "latent channels", "steps", "PSNR dB, pooled", "without EMA")
    return (
        "\n\n### Shapes at a short equal budget\n\n"
        "Small autoencoders, trained alike and briefly: for comparison among themselves.\n\n"
        + _table(head, lines)
    )


def _towers(m: Measured) -> str:
    r = m.retrieval
    return (
        "## Towers\n\n"
        f"Validation pictures: own caption nearest of {r.candidates} for {r.top1:.1%}, among the "
        f"nearest five for {r.top5:.1%}."
    )


def _pictures(m: Measured) -> str:
    kinds = (("trained on", m.seen), ("style and concept never seen together", m.unseen))
    lines = [
        (name, kind, str(r.queries), str(r.candidates), f"{r.top1:.1%}", f"{r.top5:.1%}")
        for kind, figures in kinds
        for name, r in figures.items()
    ]
    head = ("U-Net", "captions", "pictures", "candidates", "own caption nearest", "among nearest 5")
    return (
        f"## Pictures for captions\n\n{m.sampling} The image tower looks each picture's caption "
        "up.\n\n" + _table(head, lines) + "\n\n"
        "`sheet.png`: the first 64 of the trained captions, the true picture left, the drawn one "
        "right. `sheet_unseen.png`: the same for the pairs that were never seen together."
    )


def _table(head: Line, lines: Sequence[Line]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
