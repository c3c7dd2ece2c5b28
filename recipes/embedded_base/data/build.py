"""Rebuild the captioned emoji images from public npm packages.

    pip install -r requirements.txt
    python build.py --work DIR --out emoji128.tar

Downloads and rendered images stay below the work folder, and a second run reuses them.
"""

import argparse
import hashlib
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import numpy.typing as npt
from catalogue import Icon, collect_icons
from describe import Described, describe_style
from fetch import FetchError, fetch_all
from pack import Row, encode_picture, write_pack
from render import SIZE, Picture, draw, frame_pixels
from sources import Package, Sources, load_sources
from unicode_table import load_emoji_table

FOLDER = Path(__file__).parent


def build(sources: Sources, work: Path, out: Path, pool: Pool) -> Counter[str]:
    """Do all steps; return the number of images of each hold-out ('' for none)."""
    say(f"fetching {len(sources.packages)} packages")
    folders = fetch_all(sources.packages, work)
    table = load_emoji_table(folders["emojibase-data"], folders["emojilib"])
    icons = collect_icons(sources, folders, table)
    say(f"{sum(map(len, icons.values()))} icons in {len(icons)} styles")
    rows: list[Row] = []
    images: list[bytes] = []
    for style in sources.styles:
        package = sources.package(style.package)
        pictures = draw_style(icons[style.id], package, work / "pictures" / style.id, pool)
        described = describe_style(zip(icons[style.id], pictures, strict=True))
        images += pool.map(encode_picture, described.pictures, 16)
        rows += described.rows
        report_style(style.id, described)
    write_pack(out, rows, images, (FOLDER / "ATTRIBUTION.txt").read_text(encoding="utf-8"))
    return Counter(row["holdout"] for row in rows)


def draw_style(
    icons: Sequence[Icon], package: Package, cache: Path, pool: Pool
) -> list[Picture | None]:
    """Render the icons of one style, or load the images of an earlier run."""
    key = drawing_key(icons, package)
    stored = cache.with_suffix(".npz")
    if stored.exists():
        with np.load(stored) as arrays:
            if str(arrays["key"]) == key:
                return unstack(arrays["pictures"], arrays["blank"])
    artworks = [icon.artwork for icon in icons]
    frame = frame_pixels(artworks, pool)
    pictures: list[Picture | None] = pool.starmap(draw, [(art, frame) for art in artworks], 16)
    stored.parent.mkdir(parents=True, exist_ok=True)
    blank = np.zeros((SIZE, SIZE, 3), np.uint8)
    stack = np.stack([blank if picture is None else picture for picture in pictures])
    partial = cache.with_suffix(".partial.npz")
    np.savez_compressed(partial, key=key, pictures=stack, blank=[p is None for p in pictures])
    partial.replace(stored)
    return pictures


def unstack(pictures: npt.NDArray[np.uint8], blank: npt.NDArray[np.bool_]) -> list[Picture | None]:
    """Undo the stacking of `draw_style`."""
    return [None if b else picture for picture, b in zip(pictures, blank, strict=True)]


def drawing_key(icons: Sequence[Icon], package: Package) -> str:
    """Hash everything that determines a style's rendering; images with another key are outdated."""
    parts = [package.sha512, version("resvg_py"), version("pillow"), *(icon.name for icon in icons)]
    digest = hashlib.sha256("\n".join(parts).encode())
    digest.update((FOLDER / "render.py").read_bytes())
    return digest.hexdigest()


def report_style(style_id: str, described: Described) -> None:
    """Print one line about a finished style."""
    say(
        f"{style_id}: {len(described.rows)} pictures; left out {len(described.empty)} empty, "
        f"{len(described.duplicates)} identical, {len(described.withheld)} withheld"
    )


_START = time.monotonic()


def say(text: str) -> None:
    """Print a progress line with the seconds since the start."""
    print(f"{time.monotonic() - _START:6.0f} s  {text}", flush=True)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate files")
    parser.add_argument("--out", type=Path, required=True, help="the tar file to write")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes to use")
    return parser.parse_args(arguments)


def main() -> int:
    """Run from the command line."""
    options = parse_arguments()
    with multiprocessing.Pool(options.workers) as pool:
        try:
            holdouts = build(load_sources(), options.work, options.out, pool)
        except FetchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    base = holdouts.pop("", 0)
    holdout_counts = ", ".join(f"{name} {count}" for name, count in sorted(holdouts.items()))
    say(f"{options.out}: {base} base pictures; held out: {holdout_counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
