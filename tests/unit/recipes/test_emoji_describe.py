import numpy as np
from describe import describe_style

from helpers.emoji_samples import emoji, icon, style


def picture(rgb, side=40):
    canvas = np.full((128, 128, 3), 255, np.uint8)
    canvas[40 : 40 + side, 40 : 40 + side] = rgb
    return canvas


RED, BLUE, GREEN = (picture(rgb) for rgb in ((215, 40, 45), (50, 120, 220), (70, 160, 60)))


def test_row_says_what_the_icon_shows():
    described = describe_style([(icon("hammer", emoji("hammer", "1F528")), RED)])
    (row,) = described.rows
    assert row["role"] == "base"
    assert row["holdout"] == ""
    assert (row["style"], row["icon"], row["codepoint"]) == ("noto", "hammer", "1F528")
    assert row["caption"] == row["captions"][0] == "a hammer, noto style"
    assert row["colours"] == ["red"]
    assert np.array_equal(described.pictures[0], RED)


def test_blank_and_faint_images_are_left_out():
    nearly_white = picture((250, 250, 250))
    drawn = [(icon("nothing"), None), (icon("ghost"), nearly_white), (icon("dot"), picture(0, 2))]
    described = describe_style(drawn)
    assert described.rows == []
    assert described.empty == ["nothing", "ghost", "dot"]


def test_second_of_two_equal_images_is_only_named():
    drawn = [
        (icon("guard", emoji("guard", "1F482")), RED),
        (icon("man-guard", emoji("man guard", "1F482-200D-2642")), RED.copy()),
        (icon("hammer", emoji("hammer", "1F528")), BLUE),
    ]
    described = describe_style(drawn)
    assert [row["icon"] for row in described.rows] == ["guard", "hammer"]
    assert described.rows[0]["also"] == ["man guard"]
    assert described.duplicates == ["man-guard"]


def test_held_out_rows_are_marked():
    drawn = [
        (icon("cactus", emoji("cactus", "1F335")), GREEN),
        (icon("brush", None, style("freehand")), RED),
    ]
    rows = describe_style(drawn).rows
    assert [(row["role"], row["holdout"]) for row in rows] == [
        ("holdout", "cactus"),
        ("holdout", "freehand"),
    ]


def test_withheld_images_are_in_no_row():
    drawn = [
        (icon("robot", emoji("robot", "1F916")), BLUE),
        (icon("person", emoji("person", "1F9D1")), RED),
        # Drawn in black and white, red hair looks like any hair: the image goes as well.
        (icon("person-red-hair", emoji("person: red hair", "1F9D1-200D-1F9B0")), RED.copy()),
        (icon("hammer", emoji("hammer", "1F528")), GREEN),
    ]
    described = describe_style(drawn)
    assert [row["icon"] for row in described.rows] == ["hammer"]
    assert described.withheld == ["robot", "person"]
    assert len(described.pictures) == 1
