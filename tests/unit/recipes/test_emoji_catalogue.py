import json

import pytest
from catalogue import collect_icons, match_emoji
from sources import Sources, load_sources
from unicode_table import MIXED_TONES, EmojiTable, load_emoji_table, normalise_codepoint

from helpers.emoji_samples import emoji, style, write_unicode_packages

TONES = {1: "1F3FB", 3: "1F3FD", 5: "1F3FF"}


@pytest.fixture
def table():
    entries = [
        emoji("dog", "1F436", aliases=("puppy", "DOG FACE")),
        emoji("flag: Trinidad & Tobago", "1F1F9-1F1F9", aliases=("flag_trinidad_tobago",)),
        emoji("black flag", "1F3F4"),
        emoji("A button (blood type)", "1F170"),
        emoji("waving hand", "1F44B"),
        emoji("mixed couple", "1F46B-1F3FB-1F3FF", tone=MIXED_TONES),
        *(
            emoji(f"waving hand: tone {t}", f"1F44B-{c}", base="1F44B", tone=t)
            for t, c in TONES.items()
        ),
    ]
    return EmojiTable({entry.codepoint: entry for entry in entries})


def write_package(folder, names, characters=(), **icon):
    folder.mkdir()
    icons = {name: {"body": "<path/>", **icon} for name in names}
    (folder / "icons.json").write_text(json.dumps({"width": 64, "height": 32, "icons": icons}))
    (folder / "chars.json").write_text(json.dumps(dict(characters)))
    return folder


def collect(tmp_path, table, names, characters=(), **changes):
    folder = write_package(tmp_path / "icons", names, characters)
    sources = Sources(packages=(), styles=(style(**changes),))
    return collect_icons(sources, {"@example/icons": folder}, table)["noto"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1f9d1_200d_1f373", "1F9D1-200D-1F373"),
        ("23-fe0f-20e3", "0023-20E3"),
        ("2764-FE0F", "2764"),
    ],
)
def test_codepoints_have_a_canonical_form(text, expected):
    assert normalise_codepoint(text) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog", "1F436"),
        ("dog-face", "1F436"),
        ("puppy", "1F436"),
        ("a-button", "1F170"),
        ("flag-for-black-flag", "1F3F4"),
        ("flag-for-trinidad-and-tobago", "1F1F9-1F1F9"),
        ("hot-dog-stand", None),
    ],
)
def test_icon_names_find_their_emoji(table, name, expected):
    match = match_emoji(style(), name, None, table)
    assert (match.codepoint if match else None) == expected


def test_stated_codepoint_goes_before_the_name(table):
    assert match_emoji(style(), "dog", "1F3F4", table).name == "black flag"
    assert match_emoji(style(), "dog", "FFFFF", table).name == "dog"


def test_each_emoji_is_taken_once(tmp_path, table):
    icons = collect(tmp_path, table, ["dog", "puppy", "tree"])
    assert [(icon.name, bool(icon.emoji)) for icon in icons] == [("dog", True), ("tree", False)]
    assert icons[0].artwork.width == 64


def test_numbered_variants_are_all_taken(tmp_path, table):
    icons = collect(tmp_path, table, ["dog-1", "dog-2"], numbered_variants=True)
    assert [icon.emoji.name for icon in icons] == ["dog", "dog"]


def test_single_skin_tone_is_kept_and_always_the_same(tmp_path, table):
    names = ["waving-hand", *(f"hand-{tone}" for tone in TONES)]
    characters = {f"1f44b-{code.lower()}": f"hand-{tone}" for tone, code in TONES.items()}
    first = collect(tmp_path, table, names, characters)
    assert len(first) == 2
    assert first[0].emoji.tone == 0
    assert first[1].emoji.tone in TONES
    (tmp_path / "again").mkdir()
    assert collect(tmp_path / "again", table, names, characters) == first


@pytest.mark.parametrize(
    "name", ["apple-logo", "credit-card-visa", "unknown-flag", "elf-medium-skin-tone"]
)
def test_brands_placeholders_and_unknown_tones_are_dropped(tmp_path, table, name):
    assert collect(tmp_path, table, [name]) == []


def test_couples_of_two_tones_are_dropped(tmp_path, table):
    characters = {"1f46b-1f3fb-1f3ff": "couple"}
    assert collect(tmp_path, table, ["couple"], characters) == []


def test_icons_hidden_by_their_authors_are_dropped(tmp_path, table):
    folder = write_package(tmp_path / "icons", ["dog"], hidden=True)
    sources = Sources(packages=(), styles=(style(),))
    assert collect_icons(sources, {"@example/icons": folder}, table) == {"noto": []}


def test_style_can_be_limited_to_the_emoji_of_another(tmp_path, table):
    bitmaps = tmp_path / "bitmaps" / "assets"
    bitmaps.mkdir(parents=True)
    for code in ("1f436", "1f3f4", "1f170"):
        (bitmaps / f"{code}.webp").touch()
    vectors = write_package(tmp_path / "vectors", ["dog"])
    sources = Sources(
        packages=(),
        styles=(
            style("3d", package="b", only_emoji_of="flat", also_emoji=("1F170",)),
            style("flat", package="v"),
        ),
    )
    icons = collect_icons(sources, {"b": bitmaps.parent, "v": vectors}, table)["3d"]
    assert [icon.name for icon in icons] == ["1f170", "1f436"]


def test_emoji_table_joins_both_packages(tmp_path):
    table = load_emoji_table(*write_unicode_packages(tmp_path))
    entry = table.get("1F44B")
    assert entry.keywords == ("wave", "hello there")
    assert entry.group == "people & body"
    assert entry.aliases[0] == "wave_cldr"
    assert entry.aliases[-1] == "WAVING HAND SIGN"
    light = table.get("1F44B-1F3FB")
    assert (light.base, light.tone, light.aliases) == ("1F44B", 1, ())
    assert table.search("waving-hand-sign") == "1F44B"


def test_committed_sources_agree_with_each_other():
    sources = load_sources()
    names = {package.name for package in sources.packages}
    styles = {style.id for style in sources.styles}
    assert len(styles) == len(sources.styles) == 10
    for entry in sources.styles:
        assert entry.package in names
        assert {entry.codepoints_of, entry.only_emoji_of} <= styles | {""}
