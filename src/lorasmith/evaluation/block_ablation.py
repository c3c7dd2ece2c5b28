"""How much each block of a LoRA contributes: switched off, and active alone.

Measured on predictions for the same noisy latents (`FixedNoisePredictor`): a generated image would
add the randomness of sampling. With e the prediction of the model with the full LoRA, e_0 that of
the base model, e_-b that without block b and e_b that with block b alone:

- switched off: ||e - e_-b||^2 / ||e - e_0||^2, what is missing without the block;
- alone: ||e_b - e_0||^2 / ||e - e_0||^2, what the block does alone.

Blocks depend on each other's outputs, so neither column adds up to 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

import torch

from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.injection.compatibility import FittedLora, fit_to_model
from lorasmith.adapters.injection.inject import inject_adapters
from lorasmith.adapters.naming.layer_names import UNET, LayerRef
from lorasmith.adapters.naming.unet_blocks import block_sort_key
from lorasmith.adapters.nn.lora import Adapter
from lorasmith.adapters.targeting.selectors import LAYER_KINDS, TEXT
from lorasmith.core.errors import WeightsError
from lorasmith.evaluation.fixed_noise import FixedNoisePredictor

if TYPE_CHECKING:
    from lorasmith.models.model import Model

BlockGrouping = Literal["block", "lbw", "kind"]
"""``block``: down.1, mid, up.0. ``lbw``: IN04, MID, OUT05, the blocks of block weights. ``kind``:
cross-attention, ff, ..."""

_OUTSIDE = "outside"
_ATTENTION_FF_CONV = ("cross-attention", "self-attention", "ff", "conv")


@dataclass(frozen=True)
class BlockContribution:
    """The effect of one block of a LoRA."""

    block: str
    """Its name, which can be used in `lora.targets`."""
    layers: int
    """The LoRA's layers in it."""
    norm: float
    """Frobenius norm of their weight changes."""
    switched_off: float
    """Share of the LoRA's effect that is missing without it."""
    alone: float
    """The block's effect alone, as a share of the full LoRA's."""


@dataclass(frozen=True)
class AblationResult:
    """The effect of a LoRA, block by block."""

    effect: float
    """||e - e_0||^2 / ||e_0||^2: what the full LoRA changes."""
    blocks: tuple[BlockContribution, ...]
    """In the order of the forward pass."""


class BlockAblation:
    """Measures the contribution of each block of a LoRA."""

    def __init__(self, model: "Model", file: LoraFile, by: BlockGrouping = "block") -> None:
        """Group the LoRA's layers into blocks.

        Raises:
            WeightsError: the file does not fit the model.
        """
        self._file = file
        self._lora: FittedLora = fit_to_model(model, file)
        blocks: dict[str, list[str]] = {}
        for name, ref in self._lora.refs.items():
            blocks.setdefault(block_name(ref, by), []).append(name)
        self._blocks = {block: blocks[block] for block in sorted(blocks, key=block_sort_key)}

    def __len__(self) -> int:
        """Return how many predictions `run` makes."""
        return 2 + 2 * len(self._blocks)

    @torch.no_grad()
    def run(
        self,
        predictor: FixedNoisePredictor,
        prompts: Sequence[str],
        progress: Callable[[int], object] | None = None,
    ) -> AblationResult:
        """Switch the LoRA off block by block.

        Args:
            predictor: its model has no adapters attached.
            prompts: one for each image of the predictor.
            progress: called with 1 after each prediction.

        Raises:
            WeightsError: the LoRA changes nothing with these prompts.
        """

        def predict() -> torch.Tensor:
            prediction = predictor.predict(prompts).double()
            if progress is not None:
                progress(1)
            return prediction

        base = predict()
        attached = inject_adapters(self._lora.refs, self._lora.adapters)
        try:
            full = predict()
            effect = _squared_norm(full - base)
            if effect == 0.0:
                raise WeightsError(
                    f"{self._file.path}: it changes nothing with these prompts; name others"
                )
            contributions = [self._measure(block, base, full, predict) for block in self._blocks]
        finally:
            attached.detach()
        return AblationResult(effect / _squared_norm(base), tuple(contributions))

    def _measure(
        self,
        block: str,
        base: torch.Tensor,
        full: torch.Tensor,
        predict: Callable[[], torch.Tensor],
    ) -> BlockContribution:
        names, adapters = set(self._blocks[block]), self._lora.adapters
        inside = [adapters[name] for name in self._blocks[block]]
        outside = [adapter for name, adapter in adapters.items() if name not in names]
        without_block = _predict_without(inside, predict)
        block_alone = _predict_without(outside, predict)
        effect = _squared_norm(full - base)
        return BlockContribution(
            block=block,
            layers=len(inside),
            norm=_weight_norm(inside),
            switched_off=_squared_norm(full - without_block) / effect,
            alone=_squared_norm(block_alone - base) / effect,
        )


def block_name(ref: LayerRef, by: BlockGrouping) -> str:
    """Return the block that a layer belongs to."""
    if ref.part != UNET:
        return TEXT
    if by == "lbw":
        return ref.block or _OUTSIDE
    if by == "kind":
        return _kind_of_layer(ref.path)
    side, _, path = ref.path.partition(".")
    if side == "mid_block":
        return "mid"
    if side in ("down_blocks", "up_blocks"):
        return f"{side.removesuffix('_blocks')}.{path.partition('.')[0]}"
    return _OUTSIDE


def _kind_of_layer(path: str) -> str:
    for kind in _ATTENTION_FF_CONV:
        if any(fnmatchcase(f".{path}", pattern) for pattern in LAYER_KINDS[kind]):
            return kind
    return "projections" if ".attentions." in path else _OUTSIDE


def _predict_without(
    adapters: Sequence[Adapter], predict: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Return the predictions with some adapters switched off."""
    for adapter in adapters:
        adapter.strength = 0.0
    try:
        return predict()
    finally:
        for adapter in adapters:
            adapter.strength = 1.0


def _squared_norm(tensor: torch.Tensor) -> float:
    return float(tensor.square().sum())


def _weight_norm(adapters: Sequence[Adapter]) -> float:
    squares = [float(adapter.delta_weight().double().square().sum()) for adapter in adapters]
    return float(sum(squares) ** 0.5)
