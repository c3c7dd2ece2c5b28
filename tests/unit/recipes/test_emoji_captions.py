import pytest
from captions import (
    MOST_KEYWORDS,
    pick_aliases,
    pick_keywords,
    readable_name,
    with_article,
    write_caption,
)

from helpers.emoji_samples import emoji, icon, style


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grinning face", "grinning face"),
        ("T-Rex", "t-rex"),
        ("flag: Japan", "flag of japan"),
        ("flag: Côte d’Ivoire", "flag of côte d'ivoire"),
        ("keycap: 7", "keycap 7"),
        ("Japanese “bargain” button", 'japanese "bargain" button'),
        ("family", "family"),
        ("family: man, boy", "family of man and boy"),
        ("family: man, woman, girl, boy", "family of man, woman, girl and boy"),
        ("kiss: woman, woman, dark skin tone", "kiss of woman and woman with dark skin tone"),
        ("couple with heart: light skin tone", "couple with heart with light skin tone"),
        ("waving hand: medium skin tone", "waving hand with medium skin tone"),
        ("man: dark skin tone, beard", "man with dark skin tone and beard"),
    ],
)
def test_names_become_words(name, expected):
    assert readable_name(name) == expected


@pytest.mark.parametrize(
    ("name", "group", "expected"),
    [
        ("dog", "animals & nature", "a dog"),
        ("octopus", "animals & nature", "an octopus"),
        ("umbrella", "travel & places", "an umbrella"),
        ("unicorn", "animals & nature", "a unicorn"),
        ("t-rex", "animals & nature", "a t-rex"),
        ("bus", "travel & places", "a bus"),
        ("glasses", "objects", "glasses"),
        ("rolling on the floor laughing", "smileys & emotion", "a rolling on the floor laughing"),
        ("person with bunny ears", "people & body", "a person with bunny ears"),
        ("fire", "travel & places", "fire"),
        ("fire engine", "travel & places", "a fire engine"),
        ("shaved ice", "food & drink", "shaved ice"),
        ("cheese wedge", "food & drink", "cheese wedge"),
        ("thumbs up", "people & body", "thumbs up"),
        ("1st place medal", "activities", "1st place medal"),
        ("flag of japan", "flags", "the flag of japan"),
        ("keycap 7", "symbols", "keycap 7"),
        ("chequered flag", "flags", "chequered flag"),
    ],
)
def test_articles(name, group, expected):
    assert with_article(name, group) == expected


def test_caption_phrasings_use_everything_known():
    cactus = emoji(
        "cactus",
        keywords=("desert", "plant"),
        aliases=("cactus", "prickly_pear"),
        group="animals & nature",
    )
    caption = write_caption(icon("cactus", cactus), ["green"])
    assert caption.main == "a cactus, noto style"
    assert caption.phrasings[0] == caption.main
    assert set(caption.phrasings) == {
        "a cactus, noto style",
        "cactus, noto style, flat emoji",
        "flat emoji of a cactus, white background",
        caption.phrasings[3],  # keywords in an order drawn at random
        "prickly pear, noto style",
        "a cactus, green, noto style",
        "cactus, animals & nature, noto style",
    }
    assert caption.phrasings[3] in (
        "cactus, desert, plant, noto style",
        "cactus, plant, desert, noto style",
    )


def test_random_choice_depends_on_the_icon_only():
    words = tuple(f"word{i}" for i in range(9))
    first = [write_caption(icon(n, emoji("thing", keywords=words)), []) for n in "abcdef"]
    repeated = [write_caption(icon(n, emoji("thing", keywords=words)), []) for n in "abcdef"]
    assert first == repeated
    assert len({caption.phrasings for caption in first}) > 1


def test_black_and_white_images_are_not_described_by_colours():
    heart = emoji("red heart", keywords=("red", "love"), aliases=("scarlet_heart",))
    caption = write_caption(icon("red-heart", heart, style("mono", monochrome=True)), ["black"])
    assert caption.name == "heart"
    assert caption.keywords == ("love",)
    assert not any("red" in phrasing or "scarlet" in phrasing for phrasing in caption.phrasings)


def test_icons_that_are_no_emoji_are_named_by_their_file():
    drawn_as = style("freehand", numbered_variants=True, unicode=False)
    caption = write_caption(icon("paint-brush-2", None, drawn_as), [])
    assert caption.name == "paint brush"
    assert caption.phrasings == (
        "paint brush, freehand style",
        "paint brush, freehand style, flat emoji",
        "flat emoji of paint brush, white background",
    )


def test_keywords_are_limited_and_never_repeat_the_name():
    thing = emoji("thing", keywords=("thing", *(f"word{i}" for i in range(20))))
    words = pick_keywords(thing, "thing", monochrome=False)
    assert len(words) == MOST_KEYWORDS
    assert "thing" not in words


def test_aliases_are_readable_and_not_for_flags_or_skin_tones():
    aliases = ("grin", "Grinning_Face", ":D", "smile", "face_tone1", "smile")
    assert pick_aliases(emoji("grin", aliases=aliases), "grin") == ["grinning face", "smile"]
    assert pick_aliases(emoji("flag: Japan", group="flags", aliases=("jp",)), "x") == []
    assert pick_aliases(emoji("hand", tone=3, aliases=("paw",)), "hand") == []
    assert pick_aliases(None, "hand") == []
