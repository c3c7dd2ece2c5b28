"""Projecting a LoRA's cross-attention keys and values onto its trigger word, in closed form.

For programs without trigger gating. Keys and values read text embeddings x, one per token, and add
B A x. The down matrix A' that changes the output at the tag's tokens least, and has little effect
at all other tokens, minimises

    E_tag |A' x - A x|^2 + lambda E_other |A' x|^2

and is A' = A S_tag (S_tag + lambda S_other)^-1, with S = E x x^T: set the derivative with respect
to A' to zero. Shapes, ranks and keys stay, so the file stays an ordinary LoRA file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.gating.trigger_tokens import mark_tag_tokens
from lorasmith.adapters.kinds.base import AdapterLayer
from lorasmith.adapters.kinds.lora import LoraLayer, as_lora
from lorasmith.core.errors import DataError, WeightsError
from lorasmith.models.text.long_prompts import count_chunks, encode_prompts
from lorasmith.models.text.prompt_spans import unweighted_prompt

if TYPE_CHECKING:
    from lorasmith.models.model import Model

_MIN_ENERGY_SHARE = 1e-10
"""Directions with less than this share of the strongest direction's energy count as unseen."""
_TEXT_LAYERS = ("attn2_to_k", "attn2_to_v")


@dataclass(frozen=True)
class SecondMoments:
    """Second moments of text embeddings, float64 ``[width, width]``."""

    tag: torch.Tensor
    """Of the tokens that depend on the tag."""
    other: torch.Tensor
    """Of the tokens of texts without it."""


@dataclass(frozen=True)
class ProjectionResult:
    """A LoRA's layers after the projection, and its effect."""

    layers: Mapping[str, AdapterLayer]
    """All layers; those that do not read text are unchanged."""
    projected_layers: int
    """Number of projected layers."""
    leak_before: float
    """E_other |B A x|^2 / E_tag |B A x|^2, over all projected layers together."""
    leak_after: float
    """The same with A'."""
    retained: float
    """E_tag |B A' x|^2 / E_tag |B A x|^2."""


def compute_second_moment(embeddings: torch.Tensor) -> torch.Tensor:
    """Return E x x^T of embeddings ``[N, width]``, float64 ``[width, width]``."""
    x = embeddings.double()
    return x.T @ x / len(x)


def project_down(down: torch.Tensor, moments: SecondMoments, regularization: float) -> torch.Tensor:
    """Return A' for a down matrix A ``[r, width]``, in its dtype.

    Directions that occur in neither kind of text are dropped: the inverse is a pseudo-inverse.

    Args:
        down: any dtype.
        moments: of the text encoder that the layer reads.
        regularization: lambda, above 0; a larger value leaks less and retains less.
    """
    inverse = torch.linalg.pinv(
        moments.tag + regularization * moments.other, rtol=_MIN_ENERGY_SHARE, hermitian=True
    )
    projected: torch.Tensor = down.double() @ moments.tag @ inverse
    return projected.to(down.dtype)


def project_layers(
    layers: Mapping[str, AdapterLayer], moments: SecondMoments, regularization: float
) -> ProjectionResult:
    """Project all layers of a LoRA that read text.

    Raises:
        WeightsError: there are none, their width is not that of the moments, or one is no plain
            LoRA layer.
    """
    projected: dict[str, AdapterLayer] = dict(layers)
    energy = torch.zeros(4, dtype=torch.float64)  # other and tag, before and after
    names = [name for name in layers if name.endswith(_TEXT_LAYERS)]
    if not names:
        raise WeightsError(
            "no layer of the LoRA reads text (attn2_to_k, attn2_to_v), so there is nothing to "
            "project"
        )
    for name in names:
        before = as_lora(layers[name])
        if before is None or before.down.ndim != 2:
            raise WeightsError(f"{name}: only plain LoRA layers can be projected")
        if before.down.shape[1] != len(moments.tag):
            raise WeightsError(
                f"{name}: it reads text of width {before.down.shape[1]}, the model's has "
                f"{len(moments.tag)}; name the right model with --model"
            )
        after = replace(before, down=project_down(before.down, moments, regularization))
        projected[name] = after
        energy += torch.stack([
            delta_energy(before, moments.other), delta_energy(before, moments.tag),
            delta_energy(after, moments.other), delta_energy(after, moments.tag),
        ])  # fmt: skip
    other, tag, other_after, tag_after = (float(value) for value in energy)
    return ProjectionResult(
        projected,
        len(names),
        leak_before=_ratio(other, tag),
        leak_after=_ratio(other_after, tag_after),
        retained=_ratio(tag_after, tag),
    )


def delta_energy(layer: LoraLayer, moment: torch.Tensor) -> torch.Tensor:
    """Return E |s B A x|^2 = s^2 tr(B A S A^T B^T), a float64 scalar."""
    down, up = layer.down.double(), layer.up.double()
    inner = down @ moment @ down.T
    scale = layer.alpha / len(down)
    return scale**2 * ((up.T @ up) * inner).sum()


def measure_moments(
    model: "Model", tag: str, tagged_texts: Sequence[str], other_texts: Sequence[str]
) -> SecondMoments:
    """Return the second moments of a model's text embeddings with and without a tag.

    In texts with the tag, only tokens from the tag on count: CLIP reads from left to right, so the
    embeddings before the tag do not depend on it.

    Args:
        model: its text encoders are used on their device.
        tag: the trigger words.
        tagged_texts: captions with the tag.
        other_texts: texts without it.

    Raises:
        DataError: the tag is in no caption, or there are no other texts.
    """
    tokenizer = model.main_tokenizer
    prompts = [unweighted_prompt(text) for text in tagged_texts]
    window = int(tokenizer.model_max_length)
    contexts = torch.cat([encoded.context for encoded in encode_prompts(model, prompts)])
    masks = [
        mark_tag_tokens(tokenizer, tag, [prompt], count_chunks(tokenizer, prompt))
        for prompt in prompts
    ]
    # Each window of a long caption is encoded separately, and does not depend on the other windows.
    is_from_tag_on = (torch.cat(masks, dim=1).view(-1, window).cumsum(dim=1) > 0).flatten()
    if not bool(is_from_tag_on.any()):
        raise DataError(f"the tag {tag!r} is in none of the {len(tagged_texts)} captions")
    if not other_texts:
        raise DataError("there is no text without the tag to compare with")
    others = encode_prompts(model, [unweighted_prompt(text) for text in other_texts])
    return SecondMoments(
        compute_second_moment(contexts[is_from_tag_on.to(contexts.device)]).cpu(),
        compute_second_moment(torch.cat([encoded.context for encoded in others])).cpu(),
    )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")
