"""Gates: which images of a batch, and which text tokens, a LoRA applies to.

All adapters of a LoRA share one gate. Rows that the gate excludes keep the base layer's output bit
for bit: they are copied, never multiplied by zero.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from lorasmith.core.device import to_device_async


class GatedAdapter(Protocol):
    """What a gate needs of an adapter; see `lorasmith.adapters.nn.lora.Adapter`."""

    training: bool
    reads_text: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...

    def add_to_output(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor: ...


class Gate:
    """The gate of one LoRA; fully open until it is set."""

    def __init__(self) -> None:
        self._rows: torch.Tensor | None = None
        self._token_mask: torch.Tensor | None = None
        self._is_closed = False
        self._row_span: tuple[int, int] | None = None
        self._index_cache: dict[tuple[object, ...], torch.Tensor] = {}

    @property
    def is_closed(self) -> bool:
        """Whether the LoRA applies to no row, so that nothing needs to be computed."""
        return self._is_closed

    @property
    def is_fully_open(self) -> bool:
        """Whether the LoRA applies to every row and every token."""
        return self._rows is None and self._token_mask is None and not self._is_closed

    def row_span(self, rows: int) -> tuple[int, int] | None:
        """Return the selected rows as (first, last + 1); None if they are not contiguous or tokens
        are masked.

        Args:
            rows: number of rows in the batch.
        """
        return (0, rows) if self.is_fully_open else self._row_span

    def open(self) -> None:
        """Apply the LoRA to every row and every token."""
        self._rows, self._token_mask, self._is_closed, self._row_span = None, None, False, None

    def close(self) -> None:
        """Apply the LoRA to nothing."""
        self._rows, self._token_mask, self._is_closed, self._row_span = None, None, True, None

    def set_rows(
        self,
        rows: Sequence[bool],
        device: torch.device,
        tokens: torch.Tensor | None = None,
    ) -> None:
        """Select the rows of the following batches that the LoRA applies to.

        Args:
            rows: for each row of the batch, whether the LoRA applies to it. Decided on the host.
            device: the device of the batch.
            tokens: bool ``[B, L]`` on that device: the tokens that adapters of text-reading layers
                (`Adapter.reads_text`) may change. None selects all tokens.
        """
        indices = [index for index, is_selected in enumerate(rows) if is_selected]
        self.open()
        if not indices:
            self._is_closed = True
            return
        if len(indices) < len(rows):
            self._rows = self._to_device(indices, device)
            if tokens is None and indices == list(range(indices[0], indices[-1] + 1)):
                self._row_span = (indices[0], indices[-1] + 1)
        if tokens is not None:
            mask = tokens if self._rows is None else tokens.index_select(0, self._rows)
            self._token_mask = mask.unsqueeze(-1)

    def _to_device(self, indices: Sequence[int], device: torch.device) -> torch.Tensor:
        """Return row indices on the device: the same tensor for the same rows, because captured
        CUDA graphs read it again.
        """
        key = (device, *indices)
        if key not in self._index_cache:
            self._index_cache[key] = to_device_async(torch.tensor(indices), device)  # does not wait
        return self._index_cache[key]

    def apply(self, adapter: GatedAdapter, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return a layer's output with the adapter's output added to the selected rows.

        Args:
            adapter: computes the change from rows of ``x``.
            x: the layer's input, ``[B, ...]``; ``[B, L, C]`` if it is text.
            y: the layer's output so far, ``[B, ...]``.
        """
        if self._is_closed:
            return y
        if self.is_fully_open and adapter.training and torch.is_grad_enabled():
            # Only in training: when generating, an image must not depend on the rest of its batch.
            return adapter.add_to_output(x, y)
        change: torch.Tensor = adapter(x if self._rows is None else x.index_select(0, self._rows))
        if self._token_mask is not None and adapter.reads_text:
            change = torch.where(self._token_mask, change, 0.0)
        return y + change if self._rows is None else y.index_add(0, self._rows, change)
