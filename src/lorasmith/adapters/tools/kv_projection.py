"""Making a LoRA's keys and values of cross-attention answer to its tag alone, in closed form.

For programs that have no gates. Keys and values read text embeddings x, one per token, and add
B A x. The down-matrix that changes what it did at the tag's tokens least, while doing little at
all other tokens, minimises

    E_tag |A' x - A x|^2 + lambda E_other |A' x|^2

and is A' = A S_tag (S_tag + lambda S_other)^-1, with S = E x x^T: set the derivative with respect
to A' to zero. Shapes, ranks and keys stay; the file stays an ordinary LoRA.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from lorasmith.adapters.gating.trigger_tokens import mark_tag_tokens
from lorasmith.adapters.kinds.base import AdapterLayer
from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.core.errors import DataError, WeightsError
from lorasmith.models.text.long_prompts import encode_prompts, prompt_token_ids
from lorasmith.models.text.prompt_spans import unweighted_prompt

if TYPE_CHECKING:
    from lorasmith.models.load import Model

_NOTHING = 1e-10
"""Directions with less than this share of the strongest one's energy count as never seen."""
_READS_TEXT = ("attn2_to_k", "attn2_to_v")


@dataclass(frozen=True)
class SecondMoments:
    """Second moments of text embeddings, float64 ``[width, width]``."""

    tag: torch.Tensor
    """Of the tokens that know of the tag."""
    other: torch.Tensor
    """Of tokens of texts without it."""


@dataclass(frozen=True)
class ProjectionResult:
    """A LoRA's layers after the projection, and what it changed."""

    layers: Mapping[str, AdapterLayer]
    """All layers; those that do not read text are as they were."""
    projected_layers: int
    """How many were projected."""
    leak_before: float
    """E_other |B A x|^2 / E_tag |B A x|^2, over all of them together."""
    leak_after: float
    """The same with A'."""
    retained: float
    """E_tag |B A' x|^2 / E_tag |B A x|^2."""


def compute_second_moment(embeddings: torch.Tensor) -> torch.Tensor:
    """Return E x x^T of embeddings ``[N, width]``, float64 ``[width, width]``."""
    x = embeddings.double()
    return x.T @ x / len(x)


def project_down(down: torch.Tensor, moments: SecondMoments, regularization: float) -> torch.Tensor:
    """Return A' for a down-matrix A ``[r, width]``, in its dtype.

    Directions that neither kind of text has are left out: the inverse is a pseudo-inverse.

    Args:
        down: any dtype.
        moments: of the text encoder that the layer reads.
        strength: lambda, above 0; larger leaks less and keeps less.
    """
    inverse = torch.linalg.pinv(
        moments.tag + regularization * moments.other, rtol=_NOTHING, hermitian=True
    )
    projected: torch.Tensor = down.double() @ moments.tag @ inverse
    return projected.to(down.dtype)


def project_layers(
    layers: Mapping[str, AdapterLayer], moments: SecondMoments, regularization: float
) -> ProjectionResult:
    """Project all layers of a LoRA that read text.

    Raises:
        WeightsError: there are none, their width is not that of the moments, or one is of a kind
            that has no down-matrix.
    """
    found: dict[str, AdapterLayer] = dict(layers)
    energy = torch.zeros(4, dtype=torch.float64)  # other and tag, before and after
    reading = [name for name in layers if name.endswith(_READS_TEXT)]
    if not reading:
        raise WeightsError(
            "no layer of the LoRA reads text (attn2_to_k, attn2_to_v), so there is nothing to "
            "project"
        )
    for name in reading:
        layer = layers[name].as_lora()
        if layer is None or layer.down.ndim != 2:
            raise WeightsError(f"{name}: only plain LoRA layers can be projected")
        if layer.down.shape[1] != len(moments.tag):
            raise WeightsError(
                f"{name}: it reads text of width {layer.down.shape[1]}, the model's has "
                f"{len(moments.tag)}; name the right model with --model"
            )
        new = replace(layer, down=project_down(layer.down, moments, regularization))
        found[name] = new
        energy += torch.stack([
            delta_energy(layer, moments.other), delta_energy(layer, moments.tag),
            delta_energy(new, moments.other), delta_energy(new, moments.tag),
        ])  # fmt: skip
    other, tag, other_after, tag_after = (float(value) for value in energy)
    return ProjectionResult(
        found,
        len(reading),
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
    model: "Model", tag: str, texts: Sequence[str], others: Sequence[str]
) -> SecondMoments:
    """Return the second moments of a model's text embeddings with and without a tag.

    Of texts with the tag those tokens count that know of it: CLIP reads from left to right, so the
    tokens before the tag are what they are without it.

    Args:
        model: its text encoders are used where they are.
        tag: the words.
        texts: captions with the tag.
        others: texts without it.

    Raises:
        DataError: the tag is in none of the texts, or there are no others.
    """
    tokenizer, passages = model.main_tokenizer, [unweighted_prompt(text) for text in texts]
    window = int(tokenizer.model_max_length)
    contexts = torch.cat([one.context for one in encode_prompts(model, passages)])
    places = [
        mark_tag_tokens(tokenizer, tag, prompt_token_ids(tokenizer, one)[None]) for one in passages
    ]
    # Each chunk of a long caption is encoded by itself, and knows nothing of the others.
    knowing = (torch.cat(places, dim=1).view(-1, window).cumsum(dim=1) > 0).flatten()
    if not bool(knowing.any()):
        raise DataError(f"the tag {tag!r} is in none of the {len(texts)} captions")
    if not others:
        raise DataError("there is no text without the tag to compare with")
    plain = encode_prompts(model, [unweighted_prompt(text) for text in others])
    return SecondMoments(
        compute_second_moment(contexts[knowing.to(contexts.device)]).cpu(),
        compute_second_moment(torch.cat([one.context for one in plain])).cpu(),
    )


def _ratio(one: float, other: float) -> float:
    return one / other if other > 0 else float("nan")
