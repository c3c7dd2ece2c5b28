"""From the tensors of a LoRA file, in whatever spelling, to its layers; every key is accounted for.

The scale is alpha / rank. Where a file does not say an alpha, it is the rank.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from lorasmith.adapters.files.key_formats import (
    ALPHA,
    DORA_SCALE,
    DOWN,
    MAGNITUDE,
    MID,
    UP,
    ParsedKey,
    explain_unknown_keys,
    parse_key,
)
from lorasmith.adapters.files.layer_kinds import (
    PARTS,
    DoraLayer,
    Kind,
    Layer,
    LoraLayer,
    OtherLayer,
    PlainLayer,
)
from lorasmith.adapters.files.peft_config import PeftConfig, load_peft_config
from lorasmith.adapters.naming.module_names import parse_kohya_name
from lorasmith.core.errors import WeightsError

Tensors = Mapping[str, torch.Tensor]

_WIDE_ENOUGH = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_EXAMPLES = 3


def parse_layers(
    path: Path, tensors: Tensors, metadata: Mapping[str, str]
) -> tuple[dict[str, Layer], tuple[str, ...]]:
    """Return a file's layers by their names in kohya's underscores, and the spellings it uses.

    Raises:
        WeightsError: keys are not understood, are there twice, or are missing; tensors do not fit
            each other or are not finite; names and counts are told.
    """
    keys = _parsed(path, tensors)
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, parsed in keys.items():
        parts = groups.setdefault(parsed.layer, {})
        if parsed.suffix in parts:
            raise WeightsError(
                f"{path}: {parsed.layer} is in it twice, in two spellings, the second time as "
                f"{key}; it is no valid LoRA file"
            )
        parts[parsed.suffix] = _number(path, key, tensors[key])
    dotted = {key.layer for key in keys.values() if "." in key.raw_name}
    settings = load_peft_config(path, metadata, any(key.startswith("base_model.") for key in keys))
    layers = {
        name: _Layer(path, name, parts, settings if name in dotted else None).build()
        for name, parts in groups.items()
    }
    return layers, _spellings(keys.values())


def _parsed(path: Path, tensors: Tensors) -> dict[str, ParsedKey]:
    if not tensors:
        raise WeightsError(f"{path}: holds no LoRA (it has no tensors)")
    found = {key: parsed for key in tensors if (parsed := parse_key(key))}
    strange = [key for key in tensors if key not in found]
    if strange:
        first = ", ".join(strange[:_EXAMPLES])
        raise WeightsError(
            f"{path}: {len(strange)} of {len(tensors)} keys are no LoRA keys, first {first}; "
            f"{explain_unknown_keys(strange, bool(found))}"
        )
    return found


def _number(path: Path, key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in a number format that can be computed with."""
    if not tensor.is_floating_point() and not key.endswith(ALPHA):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise WeightsError(f"{path}: {key} holds {kind} numbers; quantised LoRAs are not supported")
    return tensor if tensor.dtype in _WIDE_ENOUGH else tensor.float()


def _spellings(keys: Iterable[ParsedKey]) -> tuple[str, ...]:
    """Return the spellings of factors; kinds that have only one are kohya's."""
    return tuple(dict.fromkeys(key.key_format for key in keys if key.key_format)) or ("kohya",)


class _Layer:
    """The tensors of one layer, on the way to what they mean."""

    def __init__(
        self,
        path: Path,
        name: str,
        parts: dict[str, torch.Tensor],
        settings: PeftConfig | None,
    ) -> None:
        self.path, self.name, self.settings = path, name, settings
        self.alpha = parts.pop(ALPHA, None)
        self.scale = parts.pop(DORA_SCALE, None)
        self.magnitude = parts.pop(MAGNITUDE, None)
        self.parts = parts

    def build(self) -> Layer:
        self._require_finite()
        plain = self._plain(self._kind())
        if self.scale is not None and self.magnitude is not None:
            raise self._error("has DoRA lengths in two spellings")
        if self.scale is not None:
            return DoraLayer(plain, self.scale.flatten(), self._is_on_input(plain, self.scale))
        if self.magnitude is not None:
            # PEFT's are [out] or, of convolutions, [1, out, 1, 1]; [1, in] was only renamed.
            renamed = self.magnitude.ndim == 2 and len(self.magnitude) == 1
            axes = (1, 0) if renamed else (0, 1)
            on_input = self._is_along(plain, self.magnitude.numel(), axes) == 1
            return DoraLayer(plain, self.magnitude.flatten(), on_input)
        return plain

    def _kind(self) -> Kind:
        """Return the kind that has these tensors."""
        present = set(self.parts)
        for kind, (needed, possible) in PARTS.items():
            if present and needed <= present <= needed | possible:
                self._require_pairs(kind)
                return kind
        partner = {DOWN: UP, UP: DOWN}
        missing = [
            other for one, other in partner.items() if one in present and other not in present
        ]
        if missing and present <= {DOWN, UP, MID}:
            raise WeightsError(
                f"{self.path}: {self.name}.{missing[0]} is missing; the file is incomplete"
            )
        raise self._error(
            f"has {', '.join(sorted(present)) or 'no factors'}, which are no adapter; the file is "
            "incomplete"
        )

    def _require_pairs(self, kind: Kind) -> None:
        """Refuse half a factorisation where parts are optional."""
        if kind == "LoHa" and ("hada_t1" in self.parts) != ("hada_t2" in self.parts):
            raise self._error("has one of hada_t1 and hada_t2; the file is incomplete")
        for half in ("lokr_w1", "lokr_w2") if kind == "LoKr" else ():
            pair = {f"{half}_a", f"{half}_b"} & set(self.parts)
            if (half in self.parts) == bool(pair) or len(pair) == 1:
                raise self._error(f"has no {half}, or only parts of it; the file is incomplete")

    def _plain(self, kind: Kind) -> PlainLayer:
        shapes = ", ".join(f"{key.split('.')[0]} {list(one.shape)}" for key, one in self._shown())
        if self.alpha is not None and self.alpha.numel() != 1:
            raise self._error(f"has impossible shapes ({shapes})")
        if kind != "LoRA":
            return self._other(kind, shapes)
        down, up = self.parts[DOWN], self.parts[UP]
        if down.ndim not in (2, 4) or up.ndim != down.ndim:
            raise self._error(f"has impossible shapes ({shapes})")
        if down.shape[0] != up.shape[1] or down.shape[0] == 0:
            raise self._error(f"has factors of different rank ({shapes})")
        return LoraLayer(down, up, self._alpha(len(down)))

    def _other(self, kind: Kind, shapes: str) -> OtherLayer:
        """Return a layer whose tensors are tried on each other, without computing anything."""
        try:
            empty = {key: part.to("meta") for key, part in self.parts.items()}
            whole = OtherLayer(kind, empty, 1.0)
            if whole.dense().ndim not in (2, 4):
                raise self._error(f"has impossible shapes ({shapes})")
        except (RuntimeError, IndexError) as error:
            raise self._error(f"has factors that do not fit each other ({shapes})") from error
        return OtherLayer(kind, dict(self.parts), self._alpha(whole.rank or 1))

    def _alpha(self, rank: int) -> float:
        if self.alpha is not None:
            return float(self.alpha)
        module = parse_kohya_name(self.name)
        told = self.settings.alpha_of(module, rank) if self.settings and module else None
        return float(rank) if told is None else told

    def _is_on_input(self, plain: PlainLayer, scale: torch.Tensor) -> bool:
        """Tell the axis of ``dora_scale`` by its shape.

        It is ``[out, 1]`` or, of early LyCORIS and OneTrainer, ``[1, in]``.
        """
        if scale.ndim > 1 and scale.numel() > 1:
            return scale.shape[0] == 1
        return self._is_along(plain, scale.numel(), (0, 1)) == 1

    def _is_along(self, plain: PlainLayer, count: int, axes: tuple[int, int]) -> int:
        """Return the first of two axes of the weight, 0 or 1, that has so many rows or columns."""
        dense = plain.sides
        kernel = max(part[0, 0].numel() for part in self.parts.values() if part.ndim > 1)
        sides = dense[0], dense[1] // kernel
        fits = [axis for axis in axes if count in (sides[axis], dense[axis])]
        if not fits:
            raise self._error(f"has {count} DoRA lengths, and {sides[0]} rows of {sides[1]}")
        return fits[0]

    def _require_finite(self) -> None:
        more = [one for one in (self.alpha, self.scale, self.magnitude) if one is not None]
        if not all(bool(torch.isfinite(one).all()) for one in (*self.parts.values(), *more)):
            raise self._error("holds values that are not finite; the file is damaged")

    def _shown(self) -> list[tuple[str, torch.Tensor]]:
        named = [(key.removeprefix("lora_"), part) for key, part in self.parts.items()]
        return named if self.alpha is None else [*named, (ALPHA, self.alpha)]

    def _error(self, what: str) -> WeightsError:
        return WeightsError(f"{self.path}: {self.name} {what}")
