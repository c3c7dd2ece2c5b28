"""Gates: for which pictures of a batch, and at which of its tokens, a LoRA is at work.

All adapters of one LoRA share a gate. Where it is shut the layer's output is the base's, bit for
bit: the rows that a LoRA leaves alone are copied, never multiplied by zero.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lorasmith.core.device import put

if TYPE_CHECKING:
    from lorasmith.adapters.nn.lora import Adapter


class Gate:
    """The switch of one LoRA; open for everything until it is told otherwise."""

    def __init__(self) -> None:
        self._rows: torch.Tensor | None = None
        self._tokens: torch.Tensor | None = None
        self._shut = False
        self._span: tuple[int, int] | None = None
        self._known: dict[tuple[object, ...], torch.Tensor] = {}

    @property
    def shut(self) -> bool:
        """Whether no row is let through, so that nothing needs to be computed."""
        return self._shut

    @property
    def wide_open(self) -> bool:
        """Whether every row and every token is let through."""
        return self._rows is None and self._tokens is None and not self._shut

    def span(self, rows: int) -> tuple[int, int] | None:
        """Return the first row that is let through and the one after the last, where all between
        are and no tokens are chosen; None otherwise.

        Args:
            rows: how many the batch has.
        """
        return (0, rows) if self.wide_open else self._span

    def open(self) -> None:
        """Let every row and every token through."""
        self._rows, self._tokens, self._shut, self._span = None, None, False, None

    def shut_all(self) -> None:
        """Let nothing through."""
        self._rows, self._tokens, self._shut, self._span = None, None, True, None

    def let_through(
        self,
        rows: Sequence[bool],
        device: torch.device,
        tokens: torch.Tensor | None = None,
    ) -> None:
        """Let some rows of the coming batches through.

        Args:
            rows: for each row of the batch whether the LoRA is at work there. Decided on the host.
            device: where the batch is.
            tokens: for adapters that read text (`Adapter.reads_text`), bool ``[B, L]`` on that
                device: the positions that they may write to. None stands for all of them.
        """
        chosen = [number for number, wanted in enumerate(rows) if wanted]
        self.open()
        if not chosen:
            self._shut = True
            return
        if len(chosen) < len(rows):
            self._rows = self._indices(chosen, device)
            if tokens is None and chosen == list(range(chosen[0], chosen[-1] + 1)):
                self._span = (chosen[0], chosen[-1] + 1)
        if tokens is not None:
            own = tokens if self._rows is None else tokens.index_select(0, self._rows)
            self._tokens = own.unsqueeze(-1)

    def _indices(self, chosen: Sequence[int], device: torch.device) -> torch.Tensor:
        """Return row numbers on the device: always the same tensor, as recorded steps need it."""
        key = (device, *chosen)
        if key not in self._known:
            self._known[key] = put(torch.tensor(chosen), device)  # without waiting for the device
        return self._known[key]

    def add(self, adapter: "Adapter", x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return a layer's output with what an adapter adds to the rows that are let through.

        Args:
            adapter: computes what is added from rows of ``x``.
            x: the layer's input, ``[B, ...]``; ``[B, L, C]`` where it reads text.
            y: its output so far, ``[B, ...]``.
        """
        if self._shut:
            return y
        if self.wide_open and adapter.training and torch.is_grad_enabled():
            return adapter.onto(x, y)  # drawing rounds alike, whatever rows there are beside
        added: torch.Tensor = adapter(x if self._rows is None else x.index_select(0, self._rows))
        if self._tokens is not None and adapter.reads_text:
            added = torch.where(self._tokens, added, 0.0)
        return y + added if self._rows is None else y.index_add(0, self._rows, added)
