import pytest
from grammar import join_words, mend_article, pluralize, strip_article, with_article


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("red dress", "a red dress"),
        ("orange background", "an orange background"),
        ("umbrella", "an umbrella"),
        ("school uniform", "a school uniform"),
        ("unicorn", "a unicorn"),
        ("brown overalls", "brown overalls"),
        ("gray pajamas", "gray pajamas"),
        ("armor", "armor"),
        ("rc car", "an rc car"),
    ],
)
def test_article_fits_the_noun(words, expected):
    assert with_article(words) == expected


@pytest.mark.parametrize(
    ("phrase", "plural"),
    [
        ("a red apple", "red apples"),
        ("a slice of pizza", "slices of pizza"),
        ("a person lifting weights", "people lifting weights"),
        ("a woman detective with dark skin tone", "women detectives with dark skin tone"),
        ("a cat with tears of joy", "cats with tears of joy"),
        ("an office building", "office buildings"),
        ("a peach", "peaches"),
        ("a strawberry", "strawberries"),
        ("a snowman", "snowmen"),
        ("a mouse", "mice"),
        ("an octopus", "octopuses"),
        ("french fries", ""),
        ("cooked rice", ""),
        ("a locked with pen", ""),
        ("a twelve-thirty", ""),
        ("a regional indicator a", ""),
    ],
)
def test_plural_is_right_or_missing(phrase, plural):
    assert pluralize(phrase) == plural


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("person lifting weights", "a person lifting weights"),
        ("a hourglass", "an hourglass"),
        ("french fries", "french fries"),
        ("a red apple", "a red apple"),
    ],
)
def test_captions_get_the_article_that_they_lack(phrase, expected):
    assert mend_article(phrase) == expected


def test_words_are_joined_and_articles_stripped():
    assert join_words(["a"]) == "a"
    assert join_words(["a", "b"]) == "a and b"
    assert join_words(["a", "b", "c"]) == "a, b and c"
    assert strip_article("an apple") == "apple"
