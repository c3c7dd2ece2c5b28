import pytest
from holdout import STYLES, WITHHELD, holdout_of, stricter


@pytest.mark.parametrize(
    ("codepoint", "expected"),
    [
        ("1F419", "octopus"),
        ("1F335", "cactus"),
        ("1F996", "t-rex"),
        ("1F468-200D-1F373", "cook"),
        ("1F9D1-1F3FD-200D-1F373", "cook"),
        ("1F469-200D-1F9B1", "curly-hair"),
        ("1F468-1F3FF-200D-1F9B1", "curly-hair"),
        ("1F3B8", WITHHELD),
        ("1F916", WITHHELD),
        ("1F99E", WITHHELD),
        ("1F9DC", WITHHELD),
        ("1F9DC-1F3FB-200D-2640", WITHHELD),
        ("1F469-1F3FB-200D-1F692", WITHHELD),
        ("1F9D1-200D-1F9B0", WITHHELD),
    ],
)
@pytest.mark.parametrize("style", ["noto", "fluent3d", "streamline"])
def test_subjects_are_held_out_in_every_style(style, codepoint, expected):
    assert holdout_of(style, codepoint, "any name") == expected


@pytest.mark.parametrize(
    ("codepoint", "name"),
    [
        ("1F373", "cooking"),
        ("1F35A", "cooked rice"),
        ("1F36A", "cookie"),
        ("1F1E8-1F1F0", "flag for cook islands"),
        ("1F52A", "kitchen knife"),
        ("27B0", "curly loop"),
        ("1F4C3", "page with curl"),
        ("1F995", "sauropod"),
        ("1F991", "squid"),
        ("1F692", "fire engine"),
        ("1FADA", "ginger root"),
        ("1F468-200D-1F9B3", "man white hair"),
        (None, "merge branches"),
    ],
)
def test_similar_images_are_not_held_out(codepoint, name):
    assert holdout_of("noto", codepoint, name) == ""


@pytest.mark.parametrize("style", sorted(STYLES))
def test_complete_styles_are_held_out(style):
    assert holdout_of(style, "1F436", "dog face") == style
    assert holdout_of(style, None, "paint brush") == style


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("modern music bass guitar", WITHHELD),
        ("cleaning robot vacuum", WITHHELD),
        ("safety call firefighters", WITHHELD),
        ("small Cactus in a pot", "cactus"),
        ("octopus", "octopus"),
    ],
)
def test_icons_without_codepoint_are_identified_by_words(name, expected):
    assert holdout_of("freehand", None, name) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("", "cook", "cook"),
        ("fluent-mono", "cook", "cook"),
        ("cook", "fluent-mono", "cook"),
        ("fluent-mono", WITHHELD, WITHHELD),
        (WITHHELD, "cook", WITHHELD),
        ("", "", ""),
    ],
)
def test_stricter_of_two_hold_outs(first, second, expected):
    assert stricter(first, second) == expected
