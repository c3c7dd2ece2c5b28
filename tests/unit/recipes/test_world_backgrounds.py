import random

import numpy as np
import pytest
from backgrounds import COLORS, PHOTOGRAPHIC, draw_background
from palette import NAMED, vary
from photographs import Photograph, cut_square, describe_square
from PIL import Image
from scenes import SCENES
from textures import draw_dead_leaves, draw_noise

SIDE = 128


@pytest.fixture(scope="module")
def backgrounds():
    photograph = Photograph(Image.new("RGB", (190, 170), (1, 2, 3)), "dog")
    made = [draw_background(SIDE, random.Random(seed), [photograph]) for seed in range(450)]
    return [(np.asarray(image).astype(int), words) for image, words in made]


def color_of(words):
    plain = words.removesuffix(" background").removesuffix(" gradient").removesuffix(" and white")
    return plain.removeprefix("striped ").removeprefix("dotted ").removeprefix("checkered ")


def near(pixels, color, distance):
    return np.abs(pixels - NAMED[color]).max(-1) <= distance


def test_plain_backgrounds_have_the_color_that_is_said(backgrounds):
    seen = set()
    for pixels, words in backgrounds:
        if (color := words.removesuffix(" background")) in COLORS:
            assert near(pixels, color, 15).all()
            seen.add(color)
    assert seen == set(COLORS)


def test_gradients_are_around_the_color_that_is_said(backgrounds):
    checked = 0
    for pixels, words in backgrounds:
        if "gradient" in words:
            color = np.array(NAMED[color_of(words)])
            lightest, darkest = pixels.max((0, 1)), pixels.min((0, 1))
            assert (darkest <= color + 12).all()
            assert (lightest >= color - 12).all()
            checked += 1
    assert checked > 10


def test_patterns_show_their_colors(backgrounds):
    kinds = set()
    for pixels, words in backgrounds:
        kind = words.split()[0]
        if kind not in ("striped", "dotted", "checkered"):
            continue
        kinds.add((kind, "and white" in words))
        assert near(pixels, color_of(words), 30).mean() > 0.15, words
        if "and white" in words:
            assert (pixels > 250).all(-1).mean() > 0.02, words
    assert len(kinds) == 6


@pytest.mark.parametrize("color", ["white", "gray", "black", "red", "beige"])
def test_named_colors_vary_but_neutral_ones_keep_no_hue(color):
    rng = random.Random(0)
    made = np.array([vary(NAMED[color], rng) for _ in range(200)])
    assert 14 <= np.abs(made - NAMED[color]).max() <= 17
    spread = (made - NAMED[color]).std(0)
    assert spread.min() > 2
    tints = np.ptp(made - np.array(NAMED[color]), axis=1).max()
    assert tints <= 9 if color in ("white", "gray", "black") else tints > 15


def test_white_scenes_and_photographs_are_named(backgrounds):
    words = {words for _, words in backgrounds}
    assert {f"{name} background" for name in SCENES} <= words
    assert all((pixels == 255).all() for pixels, name in backgrounds if name == "white background")
    assert all((pixels == (1, 2, 3)).all() for pixels, name in backgrounds if name == PHOTOGRAPHIC)


def test_no_photograph_is_used_where_there_are_none():
    assert PHOTOGRAPHIC not in {draw_background(8, random.Random(s))[1] for s in range(200)}


def test_squares_are_inside_the_photograph_and_tell_their_share():
    photograph = Image.fromarray(np.random.default_rng(0).integers(1, 255, (60, 80, 3), np.uint8))
    shares = []
    for seed in range(50):
        image, share = cut_square(photograph, 32, random.Random(seed))
        assert image.size == (32, 32)
        shares.append(share)
    assert min(shares) >= 32 / 60
    assert max(shares) <= 1.0
    assert max(shares) - min(shares) > 0.2


def test_small_squares_do_not_claim_to_show_the_subject():
    assert describe_square("rc car", 0.9)[0] == "a photo of an rc car"
    assert describe_square("pink sunglasses", 0.9)[0] == "a photo of pink sunglasses"
    assert describe_square("dog", 0.4)[0] == "a close-up photo"


@pytest.mark.parametrize("draw", [draw_dead_leaves, draw_noise])
def test_textures_are_varied_and_repeatable(draw):
    first, again = (np.asarray(draw(64, random.Random(4))) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape == (64, 64, 3)
    assert first.std() > 10
    assert not np.array_equal(first, np.asarray(draw(64, random.Random(5))))
