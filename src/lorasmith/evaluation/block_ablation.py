"""How much each block of a LoRA contributes: switched off, and active alone.

Measured on predictions for the same noisy latents (`FixedNoisePredictor`): a generated image would
add the randomness of sampling. With e the prediction of the model with the full LoRA, e_0 that of
the base model, e_-b that without block b and e_b that with block b alone:

- switched off: ||e - e_-b||^2 / ||e - e_0||^2, what is missing without the block;
- alone: ||e_b - e_0||^2 / ||e - e_0||^2, what the block does by itself.

Blocks work on each other's results, so neither column adds up to 1.
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
from lorasmith.adapters.nn.lora import Adapter
from lorasmith.adapters.targeting.selectors import LAYER_KINDS, TEXT
from lorasmith.core.errors import WeightsError
from lorasmith.evaluation.fixed_noise import FixedNoisePredictor

if TYPE_CHECKING:
    from lorasmith.models.load import Model

BlockGrouping = Literal["block", "piece", "kind"]
"""``block``: down.1, mid, up.0. ``piece``: IN04, MID, OUT05. ``kind``: cross-attention, ff, ..."""

_OUTSIDE = "outside"
_PLAIN_KINDS = ("cross-attention", "self-attention", "ff", "conv")


@dataclass(frozen=True)
class BlockContribution:
    """What one block of a LoRA does."""

    block: str
    """Its name, which is a target in `lora.targets` too."""
    layers: int
    """Layers of the LoRA in it."""
    norm: float
    """Frobenius norm of what they add to the weights."""
    switched_off: float
    """Share of the LoRA's effect that is missing without it."""
    alone: float
    """Effect of the block by itself, as a share of the whole LoRA's."""


@dataclass(frozen=True)
class AblationResult:
    """A LoRA taken apart."""

    effect: float
    """||e - e_0||^2 / ||e_0||^2: what the whole LoRA changes."""
    blocks: tuple[BlockContribution, ...]
    """In the order of the data."""


class BlockAblation:
    """A LoRA that is to be taken apart."""

    def __init__(self, model: "Model", file: LoraFile, by: BlockGrouping = "block") -> None:
        """Sort its layers into blocks.

        Raises:
            WeightsError: the file does not fit the model.
        """
        self._file = file
        self._found: FittedLora = fit_to_model(model, file)
        groups: dict[str, list[str]] = {}
        for name, place in self._found.refs.items():
            groups.setdefault(block_name(place, by), []).append(name)
        self._groups = {block: groups[block] for block in sorted(groups, key=_order)}

    def __len__(self) -> int:
        """How many questions `run` asks."""
        return 2 + 2 * len(self._groups)

    @torch.no_grad()
    def run(
        self,
        noise: FixedNoisePredictor,
        texts: Sequence[str],
        progress: Callable[[int], object] | None = None,
    ) -> AblationResult:
        """Switch the LoRA off block by block.

        Args:
            noise: pictures that the network is asked about; its model is without adapters.
            texts: one for each of them.
            progress: called with 1 for each question.

        Raises:
            WeightsError: the LoRA changes nothing under these texts.
        """

        def ask() -> torch.Tensor:
            answer = noise.predict(texts).double()
            if progress is not None:
                progress(1)
            return answer

        base = ask()
        attached = inject_adapters(self._found.refs, self._found.adapters)
        try:
            full = ask()
            whole = _square(full - base)
            if whole == 0.0:
                raise WeightsError(
                    f"{self._file.path}: it changes nothing under these prompts; name others"
                )
            blocks = []
            for block, names in self._groups.items():
                inside = [self._found.adapters[name] for name in names]
                rest = [one for name, one in self._found.adapters.items() if name not in names]
                off, alone = _asked_without(inside, ask), _asked_without(rest, ask)
                missing, own = _square(full - off) / whole, _square(alone - base) / whole
                blocks.append(BlockContribution(block, len(inside), _norm(inside), missing, own))
        finally:
            attached.detach()
        return AblationResult(whole / _square(base), tuple(blocks))


def block_name(place: LayerRef, by: BlockGrouping) -> str:
    """Return the block that a layer counts to."""
    if place.part != UNET:
        return TEXT
    if by == "piece":
        return place.block or _OUTSIDE
    if by == "kind":
        found = (
            kind
            for kind in _PLAIN_KINDS
            if any(fnmatchcase(f".{place.path}", pattern) for pattern in LAYER_KINDS[kind])
        )
        return next(found, "projections" if ".attentions." in place.path else _OUTSIDE)
    side, _, rest = place.path.partition(".")
    if side == "mid_block":
        return "mid"
    if side in ("down_blocks", "up_blocks"):
        return f"{side.removesuffix('_blocks')}.{rest.partition('.')[0]}"
    return _OUTSIDE


def _asked_without(adapters: Sequence[Adapter], ask: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return the predictions with some adapters off."""
    for adapter in adapters:
        adapter.strength = 0.0
    try:
        return ask()
    finally:
        for adapter in adapters:
            adapter.strength = 1.0


def _square(tensor: torch.Tensor) -> float:
    return float(tensor.square().sum())


def _norm(adapters: Sequence[Adapter]) -> float:
    squares = [float(one.delta_weight().double().square().sum()) for one in adapters]
    return float(sum(squares) ** 0.5)


def _order(block: str) -> tuple[int, str]:
    starts = (TEXT, "down", "IN", "mid", "MID", "up", "OUT")
    found = (n for n, start in enumerate(starts) if block.startswith(start))
    return next(found, len(starts)), block
