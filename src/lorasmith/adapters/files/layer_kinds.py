"""What the adapter of one layer may be in a file, and the dense change of the weight that it means.

Every kind but DoRA says by itself what it adds to a weight. DoRA (arXiv:2402.09353) replaces the
weight's length along one axis, so what it adds depends on the weight that it was made for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Kind = Literal["LoRA", "LoCon", "LoHa", "LoKr", "full"]
Parts = Mapping[str, torch.Tensor]
_TINY = torch.finfo(torch.float32).tiny


class LoraLayer(NamedTuple):
    """The two factors of one layer as a file holds them; the common kind."""

    down: torch.Tensor
    """``[r, in]`` or ``[r, in, k, k]``."""
    up: torch.Tensor
    """``[out, r]`` or ``[out, r, 1, 1]``."""
    alpha: float
    """The scale is alpha / r."""

    @property
    def kind(self) -> Kind:
        """Its name."""
        return "LoRA"

    @property
    def rank(self) -> int:
        """Inner width."""
        return len(self.down)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the matrix that is added."""
        return len(self.up), self.down[0].numel()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return its tensors by their suffix in kohya naming, without alpha."""
        return {"lora_down.weight": self.down, "lora_up.weight": self.up}

    def dense(self) -> torch.Tensor:
        """Return (alpha / r) B A, float32 ``[out, in]`` or ``[out, in, k, k]``."""
        product = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return (self.alpha / self.rank * product).reshape(len(self.up), *self.down.shape[1:])


@dataclass(frozen=True)
class OtherLayer:
    """An adapter of another kind, in the tensors that its file has."""

    kind: Kind
    """LoCon with a middle factor, LoHa, LoKr, or a whole difference of weights."""
    parts: Parts
    """Its tensors by their suffix in kohya naming."""
    alpha: float
    """The scale is alpha / rank; of a kind without a rank it is 1."""

    @property
    def rank(self) -> int:
        """Inner width of its factors; 0 where it has none."""
        return _RANKS[self.kind](self.parts)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the matrix that is added."""
        return tuple(self.dense().flatten(1).shape)  # type: ignore[return-value]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return its tensors by their suffix, without alpha."""
        return dict(self.parts)

    def dense(self) -> torch.Tensor:
        """Return what it adds, float32 ``[out, in]``, ``[out, in, k, k]`` or ``[out, in k k]``.

        Raises:
            RuntimeError: the tensors do not fit each other.
        """
        scale = self.alpha / self.rank if self.rank else 1.0
        return scale * _DENSE[self.kind]({key: part.float() for key, part in self.parts.items()})


PlainLayer = LoraLayer | OtherLayer
"""A kind that says by itself what it adds."""


@dataclass(frozen=True)
class DoraLayer:
    """Another adapter V and the lengths that the sum of weight and V is brought to."""

    inner: PlainLayer
    """What changes the direction."""
    magnitude: torch.Tensor
    """The lengths, ``[out]``, or ``[in]`` if they are along the input."""
    on_input: bool
    """Whether columns are meant (lengths over all outputs), as in early LyCORIS and OneTrainer."""

    @property
    def kind(self) -> str:
        """Its name."""
        return "DoRA" if isinstance(self.inner, LoraLayer) else f"DoRA of {self.inner.kind}"

    @property
    def rank(self) -> int:
        """That of what changes the direction."""
        return self.inner.rank

    @property
    def alpha(self) -> float:
        """Likewise."""
        return self.inner.alpha

    @property
    def sides(self) -> tuple[int, int]:
        """Likewise."""
        return self.inner.sides

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return its tensors by their suffix in kohya naming, without alpha.

        There, lengths have as many dimensions as the weight, all 1 but their own.
        """
        tensors = self.inner.tensors()
        # Factors of a whole kernel tell the number of dimensions; LoHa's may be flat, and readers
        # add the missing ones.
        extra = max(tensor.ndim for tensor in tensors.values()) - 2
        shape = (1, -1) if self.on_input else (-1, 1)
        return tensors | {"dora_scale": self.magnitude.reshape(*shape, *[1] * extra)}


Layer = LoraLayer | OtherLayer | DoraLayer
"""The adapter of one layer."""


def dense_delta(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """Return what an adapter at full strength adds to a layer's weight, float32, of its shape.

    DoRA: m V / |V| - W with V = W + s B A, lengths over all but one axis.

    Args:
        layer: the adapter.
        weight: the weight of the layer in the base model, ``[out, in]`` or ``[out, in, k, k]``.

    Raises:
        ValueError: the adapter has another shape; both are named.
    """
    if not isinstance(layer, DoraLayer):
        return _shaped(layer, weight)
    base = weight.detach().float()
    turned = base + _shaped(layer.inner, weight)
    kept = 1 if layer.on_input else 0
    if len(layer.magnitude) != weight.shape[kept]:
        raise ValueError(
            f"{len(layer.magnitude)} DoRA magnitudes do not fit a layer of shape "
            f"{list(weight.shape)}"
        )
    others = [axis for axis in range(weight.ndim) if axis != kept]
    lengths: torch.Tensor = torch.linalg.vector_norm(turned, dim=others, keepdim=True)
    wanted = layer.magnitude.to(base).reshape(lengths.shape)
    stretched: torch.Tensor = turned * (wanted / lengths.clamp_min(_TINY))
    return stretched - base


def _shaped(layer: PlainLayer, weight: torch.Tensor) -> torch.Tensor:
    delta = layer.dense().to(weight.device)
    rows, columns = len(weight), weight[0].numel()
    if tuple(delta.flatten(1).shape) != (rows, columns):
        raise ValueError(
            f"{layer.kind} of shape {list(delta.shape)} does not fit a layer of shape "
            f"{list(weight.shape)}"
        )
    return delta.reshape(weight.shape)


# --- the formulas ---------------------------------------------------------------------------


def _locon(parts: Parts) -> torch.Tensor:
    """Return up x (mid x down) of a CP-decomposed convolution: mid ``[r, r, k, k]``."""
    down, up = parts["lora_down.weight"].flatten(1), parts["lora_up.weight"].flatten(1)
    return _tucker(parts["lora_mid.weight"], up.T, down)


def _loha(parts: Parts) -> torch.Tensor:
    """Return (A1 B1) * (A2 B2), element by element (FedPara, arXiv:2108.06098)."""
    return _hada_half(parts, "1") * _hada_half(parts, "2")


def _hada_half(parts: Parts, number: str) -> torch.Tensor:
    left, right = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
    core = parts.get(f"hada_t{number}")
    if core is None:
        return left @ right.flatten(1)
    return _tucker(core, left, right)


def _lokr(parts: Parts) -> torch.Tensor:
    """Return the Kronecker product of W1 and W2, each of them whole or in factors.

    LyCORIS, arXiv:2309.14859. Of a convolution, W2 carries the kernel.
    """
    first, second = _kron_half(parts, "1"), _kron_half(parts, "2")
    kernel = second.shape[2:]
    blocks = first.reshape(len(first), 1, -1, 1, *[1] * len(kernel)) * second[None, :, None]
    return blocks.reshape(len(first) * len(second), -1, *kernel)


def _kron_half(parts: Parts, number: str) -> torch.Tensor:
    whole = parts.get(f"lokr_w{number}")
    if whole is not None:
        return whole
    left, right = parts[f"lokr_w{number}_a"], parts[f"lokr_w{number}_b"]
    core = parts.get(f"lokr_t{number}")
    return left @ right if core is None else _tucker(core, left, right)


def _tucker(core: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the kernel of a core ``[r, r, k, k]`` and factors ``[r, out]`` and ``[r, in]``."""
    kernel: torch.Tensor = torch.einsum("ijkl,ip,jr->prkl", core, left, right)
    return kernel


def _lokr_rank(parts: Parts) -> int:
    factors = [parts[key] for key in ("lokr_w2_b", "lokr_w1_b") if key in parts]
    return len(factors[0]) if factors else 0


_DENSE: dict[str, Callable[[Parts], torch.Tensor]] = {
    "LoCon": _locon,
    "LoHa": _loha,
    "LoKr": _lokr,
    "full": lambda parts: parts["diff"],
}
_RANKS: dict[str, Callable[[Parts], int]] = {
    "LoCon": lambda parts: len(parts["lora_down.weight"]),
    "LoHa": lambda parts: len(parts["hada_w1_b"]),
    "LoKr": _lokr_rank,
    "full": lambda parts: 0,
}
PARTS: dict[Kind, tuple[frozenset[str], frozenset[str]]] = {
    "LoRA": (frozenset({"lora_down.weight", "lora_up.weight"}), frozenset()),
    "LoCon": (frozenset({"lora_down.weight", "lora_up.weight", "lora_mid.weight"}), frozenset()),
    "LoHa": (
        frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
        frozenset({"hada_t1", "hada_t2"}),
    ),
    "LoKr": (frozenset(), frozenset(f"lokr_{w}" for w in (
        "w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2",
    ))),
    "full": (frozenset({"diff"}), frozenset()),
}  # fmt: skip
"""The tensors of each kind, by suffix: those that it must have, and those that it may have."""
