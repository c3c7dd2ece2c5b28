"""Feature overlap: captions with the tag or words of another feature."""

from pathlib import Path

import pytest

from lorasmith.data.reading.row import Row
from lorasmith.data.rules.feature_overlap import FeatureCaptions, check_features_overlap


def featured(tag: str, class_word: str, *captions: str) -> FeatureCaptions:
    rows = [Row(f"{tag}{k}.png", (c,), {}, Path("x")) for k, c in enumerate(captions)]
    return FeatureCaptions(tag, class_word, rows)


PLACES = ("park", "sea", "sofa", "car", "hut")
CURLY = featured("curlyqx", "person", *(f"a curlyqx person with ringlets, {p}" for p in PLACES))
COOK = featured("cookqz", "person", *(f"a cookqz person in an apron, {p}" for p in PLACES))


def reported(
    *features: FeatureCaptions, joint: bool = False
) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(f.rule, f.severity, f.files) for f in check_features_overlap(features, joint)]


def test_features_with_distinct_words_do_not_overlap() -> None:
    """They share the class word and locations, which is intended."""
    assert reported(CURLY, COOK) == []


@pytest.mark.parametrize(("joint", "severity"), [(True, "error"), (False, "warning")])
def test_tag_of_another_feature_is_reported(joint: bool, severity: str) -> None:
    overlapping = featured("cookqz", "person", "a cookqz person", "a CurlyQX cookqz person")
    assert reported(CURLY, overlapping, joint=joint) == [("other-tag", severity, ("cookqz1.png",))]


def test_words_that_go_with_another_tag_are_reported() -> None:
    rows = [row.caption for row in COOK.rows]
    rows[3] = "a cookqz person with ringlets"
    assert reported(CURLY, featured("cookqz", "person", *rows)) == [
        ("other-words", "warning", ("cookqz3.png",))
    ]


def test_word_of_nearly_all_captions_counts() -> None:
    """Nine of ten captions have it, so it becomes part of the tag's meaning."""
    captions = [f"curlyqx ringlets, place {k}" for k in range(9)] + ["curlyqx alone"]
    other = featured("cookqz", "person", "cookqz with ringlets", "cookqz")
    assert reported(featured("curlyqx", "", *captions), other)[0][2] == ("cookqz0.png",)
    fewer = [f"curlyqx ringlets, place {k}" for k in range(8)] + ["curlyqx alone", "curlyqx too"]
    assert reported(featured("curlyqx", "", *fewer), other) == []


def test_words_of_a_tag_of_several_words_are_reported() -> None:
    long = featured("red balloonqx", "", "a red balloonqx")
    assert reported(long, featured("cookqz", "", "a red cookqz"))[0][:2] == (
        "other-words",
        "warning",
    )
