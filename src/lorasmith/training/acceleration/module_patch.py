"""Layers that get another class with the same parameters for a while."""

from collections.abc import Callable
from typing import Any

from torch import nn


def exchange(
    network: nn.Module, own: type, fast: type, fits: Callable[[Any], bool] | None = None
) -> None:
    """Give the layers of a class another one, those that fit.

    Args:
        network: has the layers.
        own: their class; those of its subclasses stay.
        fast: the other one, a subclass without parameters of its own.
        fits: tells of a layer whether the other class suits it; None if it always does.
    """
    for one in network.modules():
        if type(one) is own and (fits is None or fits(one)):
            one.__class__ = fast


def put_back(network: nn.Module, own: type, fast: type) -> None:
    """Give those layers their own class again."""
    for one in network.modules():
        if type(one) is fast:
            one.__class__ = own
