"""Pictures that will look worse in training than they do in the folder, and too few of them."""

from collections.abc import Iterator

from lorasmith.data.images.buckets import Placement
from lorasmith.data.rules.facts import Facts, Finding, counted, keys_of, pictures_are

ENLARGED = 1.5
"""Pictures that are scaled up by more look blurred, and that is learned too."""
CUT_OFF = 0.25
"""Share of a picture that may be cropped away in silence."""
FEW = 10
"""Fewer pictures are usually learnt by heart."""


def tiny(facts: Facts) -> Iterator[Finding]:
    """Tell pictures that have to be enlarged a lot."""
    pairs = zip(facts.looks, facts.placements, strict=True)
    small = [(look, enlargement(placed)) for look, placed in pairs if _is_tiny(placed)]
    if small:
        worst, factor = max(small, key=lambda pair: pair[1])
        yield Finding(
            "tiny", "warning",
            f"{pictures_are(len(small))} too small for this resolution and enlarged, "
            f"{worst.row.key} ({worst.size[0]}x{worst.size[1]}) {factor:.1f} times: that looks "
            "blurred, and blur is learned; use larger pictures or a lower resolution",
            keys_of([look for look, _ in small]),
        )  # fmt: skip


def cropped(facts: Facts) -> Iterator[Finding]:
    """Tell pictures of which much is cropped away."""
    pairs = zip(facts.looks, facts.placements, strict=True)
    cut = [(look, lost(placed)) for look, placed in pairs if lost(placed) > CUT_OFF]
    if cut:
        worst, share = max(cut, key=lambda pair: pair[1])
        yield Finding(
            "cropped", "warning",
            f"{counted(len(cut), 'picture fits', 'pictures fit')} none of the sizes; more than "
            f"{CUT_OFF:.0%} is cropped away, {share:.0%} of {worst.row.key} ({worst.size[0]}x"
            f"{worst.size[1]}); crop by hand to what matters, or get more shapes from a higher "
            "resolution or data.max_aspect_ratio",
            keys_of([look for look, _ in cut]),
        )  # fmt: skip


def blank(facts: Facts) -> Iterator[Finding]:
    """Tell pictures of one colour."""
    empty = [look for look in facts.looks if look.blank]
    if empty:
        yield Finding(
            "blank", "warning",
            f"{pictures_are(len(empty))} one even colour; delete what is nothing",
            keys_of(empty),
        )  # fmt: skip


def transparent(facts: Facts) -> Iterator[Finding]:
    """Tell pictures that get a background."""
    through = [look for look in facts.looks if look.transparent]
    if through:
        yield Finding(
            "transparent", "advice",
            f"{pictures_are(len(through))} transparent in places; the colour "
            "under it is learned too (data.background_color, white by default)",
            keys_of(through),
        )  # fmt: skip


def few_pictures(facts: Facts) -> Iterator[Finding]:
    """Tell sets that are too small."""
    count = len(facts.looks)
    if 0 < count < FEW:
        yield Finding(
            "few-pictures", "advice",
            f"{pictures_are(count)} few, easily learnt by heart; 10 to 20 for a subject and 20 to "
            "50 for a style, as different as possible, work better",
        )  # fmt: skip


def enlargement(placed: Placement) -> float:
    """Return by how much a picture is scaled up; below 1 it is scaled down."""
    return max(placed.resized[0] / placed.original[0], placed.resized[1] / placed.original[1])


def lost(placed: Placement) -> float:
    """Return the share of a picture that is cropped away."""
    kept = placed.bucket.width * placed.bucket.height
    return 1.0 - kept / (placed.resized[0] * placed.resized[1])


def _is_tiny(placed: Placement) -> bool:
    return enlargement(placed) > ENLARGED
