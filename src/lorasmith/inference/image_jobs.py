"""The images of one call: the prompt, seed and init image of each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from lorasmith.core.errors import ConfigError
from lorasmith.inference.options import check_num_images, resolve_seed
from lorasmith.inference.prompts.parse_prompt import Prompt, parse_prompt

if TYPE_CHECKING:
    import torch

    from lorasmith.inference.init_image import InitImage

T = TypeVar("T")


@dataclass(frozen=True)
class ImageJob:
    """One image to generate."""

    index: int
    """Its index in the call's result."""
    prompt: Prompt
    seed: int
    """Of its random numbers."""
    init_image: "InitImage | None" = None
    """What it starts from; None starts from noise."""
    generator: "torch.Generator | None" = None
    """Draws its random numbers; None is a fresh one with the seed."""


def make_image_jobs(
    prompts: Sequence[str | Prompt],
    seed: int | Sequence[int] = 0,
    num_images_per_prompt: int = 1,
    init_image: "InitImage | None" = None,
    generator: "torch.Generator | Sequence[torch.Generator] | None" = None,
) -> list[ImageJob]:
    """Return one job per image for `Pipeline.generate`: prompts parsed, seeds assigned.

    Args:
        prompts: as written, or parsed already (`make_plain_prompt` of a caption).
        seed: of image 0, -1 for a random one; image k gets ``seed + k``. Or one seed per image.
        num_images_per_prompt: images per prompt.
        init_image: what all of them start from; None starts from noise.
        generator: one per image, in place of seeds.

    Raises:
        ConfigError: no prompt, a malformed one, or a seed or count out of range.
    """
    check_num_images(num_images_per_prompt)
    if not prompts:
        raise ConfigError("prompt: the list is empty; give at least one prompt")
    parsed = [
        prompt if isinstance(prompt, Prompt) else parse_prompt(prompt)
        for prompt in prompts
        for _ in range(num_images_per_prompt)
    ]
    generators = _list_generators(generator, len(parsed))
    if generator is not None:
        seeds = [item.initial_seed() for item in generators if item is not None]
    else:
        seeds = _list_seeds(seed, len(parsed))
    return [
        ImageJob(index, prompt, seeds[index], init_image, generators[index])
        for index, prompt in enumerate(parsed)
    ]


def _list_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    if isinstance(seed, int):
        first = resolve_seed(seed)
        return [resolve_seed(first + index) for index in range(count)]
    seeds = list(seed)
    if len(seeds) != count:
        raise ConfigError(f"seed: {len(seeds)} seeds for {count} images; give one for each")
    return [resolve_seed(item) for item in seeds]


def _list_generators(
    generator: "torch.Generator | Sequence[torch.Generator] | None", count: int
) -> "list[torch.Generator | None]":
    if generator is None:
        return [None] * count
    generators = list(generator) if isinstance(generator, Sequence) else [generator]
    if len(generators) != count:
        raise ConfigError(
            f"generator: {len(generators)} for {count} images; give a list with one for each, "
            "or a seed"
        )
    return [*generators]


def iter_batches(
    items: Sequence[T], batch_size: int, group_key: Callable[[T], int] = lambda _: 0
) -> Iterator[Sequence[T]]:
    """Yield the items in batches, the last of a group may be smaller.

    A batch has items of one group. Groups come in the order of their keys, the items of a group in
    their own order.
    """
    for key in sorted({group_key(item) for item in items}):
        group = [item for item in items if group_key(item) == key]
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
