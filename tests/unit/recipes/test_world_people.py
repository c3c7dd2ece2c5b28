import random
from dataclasses import replace

import numpy as np
import pytest
from palette import EYES, HAIR, NAMED, SKIN
from people.attributes import (
    EXPRESSIONS,
    EYE_SHAPES,
    EYEWEAR,
    FRAMINGS,
    FRINGES,
    HAIR_STYLES,
    HEADWEAR,
    HELD,
    HOLDOUTS,
    NECKWEAR,
    NEVER_DRAWN,
    OUTFITS,
    POSES,
    RENDERINGS,
    find_holdout,
    sample_holdout,
    sample_person,
)
from people.captions import person_captions, person_sentence, person_tags, short_person_tags
from people.drawing import draw_person
from people.framing import Frame, find_visible, frame_figure, frame_person
from people.plan import bend_arm, plan_body

PLAIN = replace(
    sample_person(random.Random(1)),
    kind="girl",
    skin="light skin",
    hair_style="short hair",
    hair_color="black",
    fringe="straight",
    eye_color="blue",
    outfit="dress",
    outfit_color="red",
    second_color="yellow",
    expression="smiling",
    pose="standing",
    framing="full body",
    headwear="",
    eyewear="",
    neckwear="",
    held="",
    held_color="green",
    blush=False,
    rendering="flat color",
    eye_shape="oval",
    head_height=0.4,
    seed=6,
)
VALUES = {
    "kind": ("girl", "boy"),
    "skin": tuple(SKIN),
    "hair_style": HAIR_STYLES,
    "hair_color": tuple(HAIR),
    "fringe": FRINGES,
    "eye_color": tuple(EYES),
    "outfit": OUTFITS,
    "outfit_color": tuple(NAMED),
    "expression": EXPRESSIONS,
    "pose": POSES,
    "framing": FRAMINGS,
    "headwear": ("", *HEADWEAR),
    "eyewear": ("", *EYEWEAR),
    "neckwear": ("", *NECKWEAR),
    "held": ("", *HELD),
    "rendering": RENDERINGS,
    "eye_shape": EYE_SHAPES,
    "blush": (False, True),
}
BASES = {
    "kind": {"outfit": "school uniform"},
    "held_color": {"held": "ball"},
    # Eyes, fringes and the like are a few pixels of a whole person.
    "eye_color": {"framing": "portrait"},
}


def draw(person, side=96):
    return draw_person(person, side, frame_person(person, random.Random(0)))


def tags_of(person, frame=None):
    frame = frame or frame_person(person, random.Random(0))
    return person_tags(person, find_visible(person, frame))


@pytest.mark.parametrize("attribute", VALUES)
def test_each_value_of_an_attribute_changes_the_picture(attribute):
    base = replace(PLAIN, **BASES.get(attribute, {}))
    pictures = {
        value: draw(replace(base, **{attribute: value})).tobytes() for value in VALUES[attribute]
    }
    # Two outfits may differ below the frame only; none may look like another one.
    assert len(set(pictures.values())) == len(VALUES[attribute])


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("skin", lambda value: value),
        ("hair_style", lambda value: value),
        ("hair_color", lambda value: f"{value} hair"),
        ("eye_color", lambda value: f"{value} eyes"),
        ("outfit_color", lambda value: f"{value} dress"),
        ("expression", lambda value: "neutral expression" if value == "neutral" else value),
        ("pose", lambda value: value),
        ("framing", lambda value: value),
        ("rendering", lambda value: value),
        ("eyewear", lambda value: value or "red dress"),
        ("held", lambda value: f"holding green {value}" if value else "red dress"),
    ],
)
def test_tags_say_each_value_of_an_attribute(attribute, words):
    for value in VALUES[attribute]:
        assert words(value) in tags_of(replace(PLAIN, **{attribute: value})), value


def test_tags_say_colors_of_garments_accessories_and_shoes():
    person = replace(PLAIN, outfit="shirt and skirt", headwear="cap", headwear_color="blue")
    tags = tags_of(replace(person, neckwear="scarf"))
    assert {"red shirt", "yellow skirt", "blue cap", "green scarf"} <= set(tags)
    assert f"{plan_body(person).shoe_color} shoes" in tags


@pytest.mark.parametrize("outfit", OUTFITS)
def test_outfits_are_named_in_tags_and_sentence(outfit):
    person = replace(PLAIN, outfit=outfit)
    visible = find_visible(person, frame_person(person, random.Random(0)))
    sentence = person_sentence(person, visible)
    for garment in outfit.split(" and "):
        assert any(tag.endswith(garment) for tag in person_tags(person, visible))
        assert garment in sentence


def test_portrait_is_silent_about_what_is_cut_off():
    for index in range(200):
        person = replace(sample_person(random.Random(index)), framing="portrait")
        tags = tags_of(person, frame_person(person, random.Random(index)))
        assert not any(tag.endswith((" shoes", " skirt", " shorts", "jeans")) for tag in tags)
        assert not {"standing", "walking", "hands on hips"} & set(tags)


def test_pose_and_held_thing_are_said_only_where_the_hand_is_in_the_picture():
    said = set()
    for index in range(300):
        person = sample_person(random.Random(index))
        frame = frame_person(person, random.Random(index))
        visible = find_visible(person, frame)
        said.add(visible.pose)
        if visible.pose and person.pose in ("waving", "pointing", "arms up"):
            assert frame.shows(bend_arm(person, plan_body(person), 1).hand)
    assert said == {True, False}


@pytest.mark.parametrize(
    "change",
    [
        {"expression": "closed eyes"},
        {"expression": "laughing"},
        {"eyewear": "sunglasses"},
        {"eye_shape": "dot"},
        {"rendering": "line art"},
    ],
)
def test_color_of_eyes_that_show_none_is_not_said(change):
    assert "blue eyes" in tags_of(PLAIN)
    assert not any(tag.endswith("blue eyes") for tag in tags_of(replace(PLAIN, **change)))


def test_line_art_has_no_colors_in_picture_and_words():
    for index in range(40):
        person = replace(sample_person(random.Random(index)), rendering="line art", blush=True)
        frame = frame_person(person, random.Random(index))
        pixels = np.asarray(draw_person(person, 96, frame)).astype(int)
        spread = pixels[..., :3].max(-1) - pixels[..., :3].min(-1)
        assert spread[pixels[..., 3] > 128].max() <= 8  # outlines are nearly gray
        captions = person_captions(
            person, find_visible(person, frame), "white background", random.Random(0)
        )
        words = set(" ".join(captions).replace("white background", "").replace(",", "").split())
        assert not words & {*NAMED, *HAIR, "gold", "blush", "amber"}


def test_bangs_under_a_hat_are_not_said():
    assert "straight bangs" in tags_of(PLAIN)
    assert "straight bangs" not in tags_of(replace(PLAIN, headwear="beanie"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "a smiling girl with short black hair wearing a red dress, standing"),
        (
            {"outfit": "overalls", "hair_style": "double bun", "expression": "angry"},
            "an angry girl with black hair in two buns wearing red overalls, standing",
        ),
        (
            {"kind": "boy", "hair_style": "bald", "expression": "neutral", "outfit": "armor"},
            "a bald boy wearing armor, with a neutral expression, standing",
        ),
        (
            {
                "hair_style": "bob cut",
                "outfit": "t-shirt and jeans",
                "headwear": "cap",
                "headwear_color": "orange",
                "eyewear": "glasses",
                "pose": "waving",
                "held": "umbrella",
                "expression": "closed eyes",
            },
            "a girl with a black bob cut wearing a red t-shirt, jeans, an orange cap and glasses, "
            "with closed eyes, waving, holding a green umbrella",
        ),
        (
            {"rendering": "line art", "hair_style": "long hair", "held": "ball"},
            "a smiling girl with long hair wearing a dress, standing, holding a ball",
        ),
    ],
)
def test_sentence_is_plain_english(change, sentence):
    person = replace(PLAIN, **change)
    visible = find_visible(person, frame_person(person, random.Random(0)))
    assert person_sentence(person, visible) == sentence


def test_captions_end_in_the_background_and_begin_with_all_tags():
    visible = find_visible(PLAIN, frame_person(PLAIN, random.Random(0)))
    captions = person_captions(PLAIN, visible, "orange background", random.Random(0))
    assert captions[0] == ", ".join([*person_tags(PLAIN, visible), "orange background"])
    assert sorted(captions[1].split(", ")) == sorted(captions[0].split(", "))
    assert captions[4].endswith(", on an orange background")
    assert len(captions) == 6


def test_short_tags_are_among_all_tags():
    person = replace(PLAIN, held="star", headwear="crown")
    visible = find_visible(person, frame_figure(person))
    short, tags = short_person_tags(person, visible), person_tags(person, visible)
    assert set(short) < set(tags)


def test_holdouts_are_never_sampled():
    rng = random.Random(0)
    assert {find_holdout(sample_person(rng)) for _ in range(2000)} == {""}


@pytest.mark.parametrize("name", HOLDOUTS)
def test_holdout_is_recognized_and_visible(name):
    person = sample_holdout(name, random.Random(0))
    assert find_holdout(person) == name
    assert person.shows_eye_color
    other = replace(person, hair_color="brown")
    assert find_holdout(other) == ""


def test_character_with_closed_eyes_is_its_holdout_too():
    person = replace(PLAIN, hair_style="twin tails", hair_color="teal", eye_color="green")
    assert find_holdout(person) == ""
    assert find_holdout(replace(person, expression="laughing")) == NEVER_DRAWN


def test_people_have_nothing_that_emoji_hold_out():
    words = " ".join([*HAIR, *HAIR_STYLES, *OUTFITS, *HEADWEAR])
    assert "red" not in HAIR
    assert not {"curly", "cook", "chef", "apron"} & set(words.split())


def test_hats_and_held_things_are_not_cut_off():
    for index in range(120):
        person = sample_person(random.Random(index))
        if person.framing == "full body":
            frame = frame_person(person, random.Random(index))
            alpha = np.asarray(draw_person(person, 128, frame))[..., 3]
            assert alpha[0].max() == 0, index
            assert alpha[:, 0].max() == alpha[:, -1].max() == 0, index
            assert alpha[-1].max() == 0, index


@pytest.mark.parametrize(
    ("change", "vanishes"),
    [
        ({}, False),
        ({"outfit_color": "white"}, True),
        ({"outfit_color": "white", "rendering": "outlined"}, False),
        ({"outfit_color": "white", "outfit": "armor"}, False),
        ({"outfit": "lab coat", "rendering": "shaded"}, True),
        ({"hair_color": "white"}, True),
    ],
)
def test_white_without_outline_is_told(change, vanishes):
    assert replace(PLAIN, **change).vanishes_on_white == vanishes


def test_frame_tells_what_is_outside():
    frame = Frame(scale=2.0, x=0.5, y=0.1)
    assert frame.bottom == pytest.approx(0.45)
    assert frame.shows((0.0, 0.2))
    assert not frame.shows((0.3, 0.2))
    assert not frame.shows((0.0, 0.46))
