"""The pictures of one call: which prompt and which seed each is drawn from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from lorasmith.core.errors import ConfigError
from lorasmith.inference.options import check_count, check_seed
from lorasmith.inference.prompts.parser import Prompt, parse_prompt

if TYPE_CHECKING:
    from lorasmith.inference.init_image import InitImage

T = TypeVar("T")


@dataclass(frozen=True)
class ImageJob:
    """One picture to be drawn."""

    index: int
    """Its place in the call's result."""
    prompt: Prompt
    """What to draw."""
    seed: int
    """Where its random numbers start."""
    init_image: "InitImage | None" = None
    """What it is drawn on; None for nothing."""


def make_image_jobs(
    prompts: Sequence[str | Prompt],
    seed: int | Sequence[int],
    num_images_per_prompt: int,
    init_image: "InitImage | None" = None,
) -> list[ImageJob]:
    """Return what `Pipeline.draw` takes: one job per picture, prompts parsed, seeds assigned.

    Args:
        prompts: as written, or taken apart already (`plain_prompt` of a caption).
        seed: of picture 0, or of every picture.
        n: pictures per prompt.
        canvas: what all of them are drawn on; None for nothing.

    Raises:
        ConfigError: no prompt, a malformed one, or a seed or count out of range.
    """
    check_count(num_images_per_prompt)
    if not prompts:
        raise ConfigError("prompt: the list is empty; give at least one prompt")
    parsed = [one if isinstance(one, Prompt) else parse_prompt(one) for one in prompts]
    total = num_images_per_prompt * len(parsed)
    seeds = range(check_seed(seed), seed + total) if isinstance(seed, int) else list(seed)
    if len(seeds) != total:
        raise ConfigError(f"seed: {len(seeds)} seeds for {total} pictures; give one for each")
    return [
        ImageJob(k, parsed[k // num_images_per_prompt], check_seed(seeds[k]), init_image)
        for k in range(total)
    ]


def iter_batches(
    items: Sequence[T], size: int, kind: Callable[[T], int] = lambda _: 0
) -> Iterator[Sequence[T]]:
    """Yield the items in pieces of ``size``; the last may be shorter.

    What is in one piece is of one kind. Kinds follow each other, items of a kind are in order.
    """
    for one in sorted({kind(item) for item in items}):
        alike = [item for item in items if kind(item) == one]
        for start in range(0, len(alike), size):
            yield alike[start : start + size]
