"""Latents of the training pictures: encoded once and gathered, or encoded in every step."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from lorasmith.config.run import TrainData
from lorasmith.core.device import put
from lorasmith.core.draws import Draws
from lorasmith.core.errors import DataError
from lorasmith.data.augment import View, draw_view, jittered
from lorasmith.data.buckets import Bucket, Placement
from lorasmith.data.cache import Entry, Layout, TensorCache, key_of
from lorasmith.data.pictures import to_signed
from lorasmith.data.placed import PlacedPictures
from lorasmith.loops.progress import progress_bar

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_RECIPE = 1
"""Part of every key: to be raised when pictures are decoded or scaled in another way."""
_AHEAD = 8
"""Pictures that are decoded while another one is encoded."""
_RESIDENT_BYTES = 4 * 2**30
"""Latents up to this size stay on the training device; more are moved to it batch by batch."""
_VIEW, _MIRROR = 0x76696577, 0x6D6972726F72
"""The streams of what is decided on the host about a picture."""


class Gathered(NamedTuple):
    """The pictures' share of a batch, as in ``Batch``."""

    clean: torch.Tensor
    mask: torch.Tensor | None
    time_ids: torch.Tensor | None


class Latents(Protocol):
    """Where the latents of a batch come from."""

    def gather(self, numbers: torch.Tensor, draws: Draws) -> Gathered:
        """Return the latents of pictures of one bucket.

        Args:
            numbers: which pictures, int64 ``[B]`` on the CPU.
            draws: this part's share of the batch's random numbers.
        """


@dataclass(frozen=True)
class Pictures:
    """The pictures of a set, and what a batch tells about them besides their latents."""

    placed: PlacedPictures
    bucket_of: Sequence[int]
    """The number of each picture's bucket."""
    hashes: Sequence[str]
    """SHA-256 of each picture's file, in hex."""
    masked: bool
    """Whether masks are wanted; only where a row has one."""
    sized: bool
    """Whether the model wants to be told sizes (SDXL)."""

    @property
    def any_mask(self) -> bool:
        """Whether batches have masks."""
        return self.masked and any(row.mask is not None for row in self.placed.rows)


@torch.no_grad()
def encode_pictures(
    vae: "AutoencoderKL", pictures: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of the pictures' latents, scaled for the U-Net, float32.

    Args:
        vae: on the device where it shall run.
        pictures: float32 ``[B, 3, H, W]`` in -1..1.
    """
    posterior = vae.encode(pictures.to(vae.device, vae.dtype)).latent_dist
    scale = float(vae.config.scaling_factor)
    return posterior.mean.float() * scale, posterior.std.float() * scale


def time_ids_of(placed: Placement, view: View) -> list[float]:
    """Return SDXL's size conditioning of one picture, as in ``Batch.time_ids``."""
    (width, height), bucket = placed.original, placed.bucket
    left, top = view.corner_shown(placed)
    return [float(x) for x in (height, width, top, left, bucket.height, bucket.width)]


def shrunk(masks: torch.Tensor, downscale: int) -> torch.Tensor:
    """Average masks, uint8 ``[B, 1, H, W]``, over each latent: float32 0..1 ``[B, 1, h, w]``."""
    return F.avg_pool2d(masks.float() / 255.0, downscale)


# --- encoded once ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """The n pictures of one bucket, and behind them their n mirrored ones, if there are any."""

    mean: torch.Tensor
    deviation: torch.Tensor
    mask: torch.Tensor | None
    time_ids: torch.Tensor | None
    pictures: int


class FixedLatents:
    """Latents that were encoded before the training; a step only gathers and samples them."""

    def __init__(
        self, groups: dict[int, _Group], bucket_of: Sequence[int], flip: bool, device: torch.device
    ) -> None:
        self._groups = groups
        self._bucket_of = bucket_of
        self._flip = flip
        self._device = device
        total = sum(one.mean.nbytes + one.deviation.nbytes for one in groups.values())
        self._home = device if total <= _RESIDENT_BYTES else torch.device("cpu")
        for bucket, one in groups.items():
            groups[bucket] = _Group(
                one.mean.to(self._home),
                one.deviation.to(self._home),
                None if one.mask is None else one.mask.to(self._home),
                None if one.time_ids is None else one.time_ids.to(self._home),
                one.pictures,
            )
        seen = dict.fromkeys(groups, 0)
        within = []
        for bucket in bucket_of:
            within.append(seen[bucket])
            seen[bucket] += 1
        self._within = torch.tensor(within, device=self._home)

    def gather(self, numbers: torch.Tensor, draws: Draws) -> Gathered:
        """Return freshly sampled latents; see ``Latents``."""
        group = self._groups[self._bucket_of[int(numbers[0])]]
        which = self._within[put(numbers, self._home)]
        unit = put(draws.normal(*group.mean.shape[1:]), self._device)
        if self._flip:
            # Decided on the host, so that it need not be asked of the device for latents kept here.
            sides = [bool(torch.rand((), generator=one) < 0.5) for one in draws.of_each(_MIRROR)]
            which = which + put(torch.tensor(sides) * group.pictures, self._home)
        mean, deviation = self._rows(group.mean, which), self._rows(group.deviation, which)
        return Gathered(
            mean + deviation * unit,
            None if group.mask is None else self._rows(group.mask, which),
            None if group.time_ids is None else self._rows(group.time_ids, which),
        )

    def _rows(self, table: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        return put(table[which], self._device)


def fixed_latents(
    vae: "AutoencoderKL",
    identity: str,
    downscale: int,
    pictures: Pictures,
    flip: bool,
    cache: TensorCache,
    device: torch.device,
) -> FixedLatents:
    """Encode every picture's centre crop, and its mirror image with ``flip``.

    Args:
        vae: on the device where it shall run.
        identity: the VAE's hash.
        downscale: pixels per latent.
        pictures: the pictures.
        flip: keep mirror images too.
        cache: where latents are looked up and kept.
        device: where batches are wanted.

    Raises:
        DataError: a picture cannot be decoded, or its latents are not finite; it is named.
    """
    sides = (False, True) if flip else (False,)
    jobs = [(number, side) for side in sides for number in range(len(pictures.bucket_of))]
    channels = int(vae.config.latent_channels)
    keys, layouts = [], []
    for number, side in jobs:
        keys.append(_key(pictures, number, side, identity, str(vae.dtype)))
        bucket = pictures.placed.placements[number].bucket
        layouts.append(_layout(bucket, channels, downscale))

    def compute(places: list[int]) -> Iterator[Entry]:
        return _encoded(vae, pictures, [jobs[place] for place in places])

    with progress_bar("encoding pictures", len(jobs)) as advance:
        entries = cache.fetch(keys, layouts, compute, advance)
    groups = {}
    for bucket_number in sorted(set(pictures.bucket_of)):
        own = [
            k for k, (number, _) in enumerate(jobs) if pictures.bucket_of[number] == bucket_number
        ]
        groups[bucket_number] = _group(
            pictures, [jobs[k] for k in own], [entries[k] for k in own], downscale
        )
    return FixedLatents(groups, pictures.bucket_of, flip, device)


def _key(pictures: Pictures, number: int, mirrored: bool, identity: str, dtype: str) -> str:
    placed = pictures.placed.placements[number]
    return key_of(
        {
            "what": "latents",
            "recipe": _RECIPE,
            "picture": pictures.hashes[number],
            "background": pictures.placed.background,
            "resized": placed.resized,
            "crop": placed.crop,
            "mirrored": mirrored,
            "vae": identity,
            "dtype": dtype,
        }
    )


def _layout(bucket: Bucket, channels: int, downscale: int) -> Layout:
    shape = (channels, bucket.height // downscale, bucket.width // downscale)
    return {"mean": (torch.float32, shape), "deviation": (torch.float32, shape)}


def _encoded(
    vae: "AutoencoderKL", pictures: Pictures, jobs: Sequence[tuple[int, bool]]
) -> Iterator[Entry]:
    """Encode pictures one by one, so that what comes out does not depend on which others do."""
    for (number, mirrored), pixels in zip(jobs, _decoded(pictures, jobs), strict=True):
        signed = to_signed(pixels.flip(-1) if mirrored else pixels)
        mean, deviation = encode_pictures(vae, signed.unsqueeze(0))
        if not bool((mean + deviation).isfinite().all()):
            raise DataError(
                f"{pictures.placed.rows[number].key}: the VAE turns this picture into values that "
                "are not finite"
            )
        yield {"mean": mean[0].cpu(), "deviation": deviation[0].cpu()}


def _decoded(pictures: Pictures, jobs: Sequence[tuple[int, bool]]) -> Iterator[torch.Tensor]:
    """Decode pictures in order, a few ahead of what is asked for."""
    with ThreadPoolExecutor(max_workers=_AHEAD) as pool:
        waiting: list[Future[torch.Tensor]] = []
        for number, _ in jobs:
            waiting.append(pool.submit(pictures.placed.centre, number))
            if len(waiting) > _AHEAD:
                yield waiting.pop(0).result()
        for one in waiting:
            yield one.result()


def _group(
    pictures: Pictures, jobs: Sequence[tuple[int, bool]], entries: Sequence[Entry], downscale: int
) -> _Group:
    mask = time_ids = None
    if pictures.any_mask:
        mask = torch.cat([_mask(pictures, number, side, downscale) for number, side in jobs])
    if pictures.sized:
        placements = pictures.placed.placements
        views = [View(placements[number].crop[:2], side) for number, side in jobs]
        told = [time_ids_of(placements[n], view) for (n, _), view in zip(jobs, views, strict=True)]
        time_ids = torch.tensor(told)
    return _Group(
        torch.stack([one["mean"] for one in entries]),
        torch.stack([one["deviation"] for one in entries]),
        mask,
        time_ids,
        len({number for number, _ in jobs}),
    )


def _mask(pictures: Pictures, number: int, mirrored: bool, downscale: int) -> torch.Tensor:
    mask = pictures.placed.centre_mask(number)
    if mask is None:
        bucket = pictures.placed.placements[number].bucket
        mask = torch.full((1, bucket.height, bucket.width), 255, dtype=torch.uint8)
    return shrunk((mask.flip(-1) if mirrored else mask).unsqueeze(0), downscale)


# --- encoded in every step ------------------------------------------------------------------


class LiveLatents:
    """Pictures that are cropped or coloured anew every time, and go through the VAE in the step."""

    def __init__(
        self,
        vae: "AutoencoderKL",
        downscale: int,
        pictures: Pictures,
        data: TrainData,
        device: torch.device,
    ) -> None:
        self._vae = vae
        self._downscale = downscale
        self._pictures = pictures
        self._data = data
        self._device = device

    def gather(self, numbers: torch.Tensor, draws: Draws) -> Gathered:
        """Return latents of newly drawn crops; see ``Latents``."""
        chosen = numbers.tolist()
        placements = [self._pictures.placed.placements[number] for number in chosen]
        views = self._views(placements, draws)
        pixels, masks = self._pictures.placed.crops(chosen, [view.corner for view in views])
        mirrored = torch.tensor([view.mirrored for view in views]).view(-1, 1, 1, 1)
        shown = put(torch.where(mirrored, pixels.flip(-1), pixels), self._device).float() / 255.0
        if self._data.colour_jitter:
            shown = jittered(
                shown, put(torch.tensor([view.factors for view in views]), self._device)
            )
        mean, deviation = encode_pictures(self._vae, shown * 2.0 - 1.0)
        unit = put(draws.normal(*mean.shape[1:]), self._device)
        mask = time_ids = None
        if self._pictures.any_mask:
            whole = put(torch.where(mirrored, masks.flip(-1), masks), self._device)
            mask = shrunk(whole, self._downscale)
        if self._pictures.sized:
            told = [time_ids_of(p, view) for p, view in zip(placements, views, strict=True)]
            time_ids = put(torch.tensor(told), self._device)
        return Gathered(mean + deviation * unit, mask, time_ids)

    def _views(self, placements: Sequence[Placement], draws: Draws) -> list[View]:
        data = self._data
        return [
            draw_view(placed, data.crop == "random", data.flip, data.colour_jitter, own)
            for placed, own in zip(placements, draws.of_each(_VIEW), strict=True)
        ]


def content_hash(encoded: bytes) -> str:
    """Return the hex SHA-256 of a picture's file."""
    return hashlib.sha256(encoded).hexdigest()
