"""Steps of several features at once: one pass of the model, and an optimizer for each feature."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import torch

from lorasmith.training.batch import Batch
from lorasmith.training.losses import Noise
from lorasmith.training.session import Session
from lorasmith.training.step import Figures, Share, backward, losses_together

Piece = tuple[Session, int, Share]
"""A feature, the size of its whole batch, and a part of that."""


def advance_together(sessions: Sequence[Session]) -> list[tuple[Figures, int]]:
    """Take the next step of several features; return each one's figures and count of pictures.

    Each takes the step that it would take by itself: its own pictures and random numbers, the mean
    over its own batch, clipped by its own norm, with its own optimizer. What they share is the
    pass of the frozen model. (Adapter dropout is the exception: its numbers are drawn for the
    pass as a whole.)
    """
    numbers = [session.prepare() for session in sessions]
    for session in sessions:
        session.step_once.begin()
    parts = [session.parts(own) for session, own in zip(sessions, numbers, strict=True)]
    for round_ in zip_longest(*parts):
        for pieces in _alike(_pieces(sessions, numbers, round_)):
            backward(_loss_of(pieces))
    return [
        (session.taken(session.step_once.finish()), len(own))
        for session, own in zip(sessions, numbers, strict=True)
    ]


def _pieces(
    sessions: Sequence[Session],
    numbers: Sequence[torch.Tensor],
    round_: Sequence[tuple[Batch, Noise] | None],
) -> Iterator[Piece]:
    for session, own, part in zip(sessions, numbers, round_, strict=True):
        if part is not None:  # another feature has more parts
            yield session, len(own), session.step_once.share(*part)


def _alike(pieces: Iterator[Piece]) -> list[list[Piece]]:
    """Group parts that one pass can do: of one task, and latents of one shape."""
    groups: dict[tuple[str, torch.Size], list[Piece]] = {}
    for piece in pieces:
        batch = piece[2].batch
        groups.setdefault((batch.task, batch.clean.shape[1:]), []).append(piece)
    return list(groups.values())


def _loss_of(pieces: Sequence[Piece]) -> torch.Tensor:
    """Return the sum of the features' losses: no feature's weights are in another's loss."""
    found = losses_together([share for _, _, share in pieces])
    losses = [
        session.step_once.take(share.batch, own, whole)
        for (session, whole, share), own in zip(pieces, found, strict=True)
    ]
    return torch.stack(losses).sum()
