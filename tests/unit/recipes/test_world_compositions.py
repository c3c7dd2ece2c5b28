import random

import numpy as np
import pytest
import things as things_module
from compositions import KINDS, compose
from people.attributes import find_holdout
from things import LINE_ART, choose_thing, cut_emoji, draw_person_thing

from helpers.world_samples import COLORS, make_emoji

RED = make_emoji("red", "a red ball, noto style")
BLUE = make_emoji("blue", "a blue ball, noto style")


def center(image, color):
    """Return the mean place of a color, or None where it is not to be seen."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    places = np.argwhere(np.abs(pixels - COLORS[color]).max(-1) < 14)
    return places.mean(0)[::-1] if len(places) > 60 else None


@pytest.fixture(scope="module")
def pairs():
    made = [compose([RED, BLUE], 64, random.Random(seed), [], "pair") for seed in range(50)]
    # Backgrounds in the colors of the balls would hide them.
    return [item for item in made if not {"red", "blue"} & set(background(item).split())]


def background(item):
    return next(part for part in item.captions[0].split(", ") if part.endswith("background"))


def test_relation_is_that_of_the_places(pairs):
    relations = set()
    for item in pairs:
        red, blue = center(item.image, "red"), center(item.image, "blue")
        assert red is not None
        assert blue is not None
        for caption in item.captions:
            for words, axis, sign in (
                ("left of", 0, 1),
                ("right of", 0, -1),
                ("above", 1, 1),
                ("below", 1, -1),
            ):
                if f" {words} " not in caption:
                    continue
                first, second = (red, blue) if caption.startswith("a red ball") else (blue, red)
                assert (second[axis] - first[axis]) * sign > 15, caption
                relations.add(words)
    assert relations == {"left of", "right of", "above", "below"}


def test_pairs_are_two_different_things(pairs):
    assert all({"red ball", "blue ball"} <= set(item.captions[3].split(", ")) for item in pairs)


def test_place_of_a_single_thing_is_the_one_that_is_said():
    seen = set()
    for seed in range(90):
        item = compose([RED], 64, random.Random(seed), [], "single")
        place = center(item.image, "red")
        if "red" in background(item) or "line" in item.captions[0] or place is None:
            continue
        x, y = place / 64
        caption = item.captions[0]
        checks = {
            "on the left": x < 0.45,
            "on the right": x > 0.55,
            "at the top": y < 0.45,
            "at the bottom": y > 0.55,
        }
        for words, holds in checks.items():
            if words in caption:
                assert holds, caption
                assert words in item.captions[1].split(", ")
                seen.add(words)
        if not any(words in caption for words in checks):
            assert abs(x - 0.5) < 0.06
            assert abs(y - 0.5) < 0.06
    assert len(seen) == 4


def test_two_of_a_kind_are_counted():
    item = compose([BLUE], 64, random.Random(3), [], "two of a kind")
    assert item.captions[0].startswith("two blue balls, ")
    pixels = np.asarray(item.image).astype(int)
    columns = (np.abs(pixels - COLORS["blue"]).max(-1) < 14).any(0)
    assert columns[:32].any()
    assert columns[32:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_says_its_background_in_tags_and_sentences(kind):
    for seed in range(6):
        item = compose([RED, BLUE], 64, random.Random(seed), [], kind)
        assert item.kind == kind
        assert item.image.size == (64, 64)
        assert all("background" in caption for caption in item.captions)
        assert not any(
            broken in caption
            for caption in item.captions
            for broken in (" a orange", " a armor", "  ", ", ,", "a a ")
        )


def test_person_and_thing_are_both_in_words_and_style_too():
    item = compose([RED], 64, random.Random(0), [], "person and thing")
    tags = item.captions[3].split(", ")
    assert {"1girl", "1boy"} & set(tags)
    assert "ball" in tags[0] or any(tag.endswith("ball") for tag in tags)


def test_two_girls_are_counted():
    counts = set()
    for seed in range(12):
        tags = compose([RED], 32, random.Random(seed), [], "two people").captions[3].split(", ")
        counts.add(tuple(tag for tag in tags if tag in ("1girl", "2girls", "1boy", "2boys")))
    assert counts <= {("2girls",), ("2boys",), ("1girl", "1boy"), ("1boy", "1girl")}
    assert ("2girls",) in counts


def test_line_drawings_and_recolored_things_name_no_old_color():
    styles = set()
    for seed in range(50):
        thing = choose_thing([RED], random.Random(seed))
        if thing.style == LINE_ART:
            assert thing.tags == ("ball",)
            assert thing.phrase == "a line drawing of a ball"
        elif "red" not in thing.phrase:
            assert thing.tags[0].endswith(" ball")
            image = np.asarray(thing.image)
            assert np.abs(image[image[..., 3] == 255][:, :3].mean(0) - COLORS["red"]).max() > 40
        styles.add((thing.style, "red" in thing.phrase))
    assert len(styles) == 3


def test_people_are_not_recolored_and_keep_their_skin_tone_in_words():
    for noun, expected in (
        ("nurse with dark skin tone", {"a nurse with dark skin tone"}),
        ("nurse", {"a nurse", "a line drawing of a nurse"}),
    ):
        nurse = make_emoji("red", f"a {noun}, noto style", "people & body")
        made = {choose_thing([nurse], random.Random(seed)).phrase for seed in range(40)}
        assert made == expected


def test_article_of_a_person_in_s_is_mended():
    thing = cut_emoji(make_emoji("red", "person lifting weights, noto style"))
    assert thing.phrase == "a person lifting weights"


def test_people_in_compositions_are_no_holdouts(monkeypatch):
    drawn = []

    def record(person, side, frame):
        drawn.append(person)
        return things_module.Image.new("RGBA", (side, side), (0, 0, 0, 255))

    monkeypatch.setattr(things_module, "draw_person", record)
    for seed in range(400):
        draw_person_thing(random.Random(seed), 8)
    assert len(drawn) == 400
    assert {find_holdout(person) for person in drawn} == {""}
