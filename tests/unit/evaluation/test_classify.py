"""Zero-shot classification: the formula, the labels, the files."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorasmith.core.errors import ConfigError, WeightsError
from lorasmith.evaluation.classify import ClassifiedImage, classify_images, parse_labels


class ColourExtractor:
    """Features are mean colours; texts are words for colours."""

    name = "colours"
    logit_scale = 3.0
    words = ("red", "green", "blue")

    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = [image.resize((1, 1)).getpixel((0, 0)) for image in images]
        return torch.tensor(pixels, dtype=torch.float32)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor | None:
        return torch.tensor([[float(word in text) for word in self.words] for text in texts])


class TextlessExtractor(ColourExtractor):
    def text_features(self, texts: Sequence[str]) -> torch.Tensor | None:
        return None


def classified(
    *paths: Path, labels: Sequence[str] = ("red", "blue"), template: str = "{}"
) -> list[ClassifiedImage]:
    return list(classify_images(paths, labels, ColourExtractor(), template))


def save(path: Path, colour: str | tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)
    return path


def test_probabilities_are_a_softmax_with_the_scale(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", (200, 0, 150))
    (result,) = classified(path)
    logits = 3.0 * torch.tensor([200.0, 150.0]) / 250.0
    assert list(result.probabilities) == ["red", "blue"]
    expected = logits.softmax(0).tolist()
    assert list(result.probabilities.values()) == pytest.approx(expected, rel=1e-5)
    assert result.ranking()[0][0] == "red"


def test_label_is_put_into_the_template(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", "blue")
    (result,) = classified(path, labels=("re", "blu"), template="a {}e thing")
    # "a ree thing" has no colour in it; "a blue thing" has.
    assert result.ranking()[0][0] == "blu"
    with pytest.raises(ConfigError, match=r"--template: 'noto style' has no \{\}"):
        classified(path, template="noto style")


def test_folder_gives_its_images_in_order_without_masks(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "sub/c.png", "a.mask.png", ".hidden.png"):
        save(tmp_path / name, "red")
    (tmp_path / "a.txt").write_text("a red picture", encoding="utf-8")
    names = [result.path.relative_to(tmp_path).as_posix() for result in classified(tmp_path)]
    assert names == ["a.png", "b.png", "sub/c.png"]


def test_bad_picture_stops_no_other(tmp_path: Path) -> None:
    good = [save(tmp_path / f"{number:02}.png", "red") for number in range(10)]
    good[3].write_bytes(b"not a picture")
    good[8].write_bytes(good[7].read_bytes()[:40])
    (tmp_path / "empty").mkdir()
    results = classified(tmp_path, tmp_path / "absent.png", tmp_path / "empty")
    problems = {result.path.name: result.problem for result in results if result.problem}
    assert set(problems) == {"03.png", "08.png", "absent.png", "empty"}
    assert problems["03.png"].startswith("cannot be decoded")
    assert problems["absent.png"] == "cannot be read (No such file or directory)"
    assert problems["empty"] == "there are no images in this folder"
    assert sum(result.ranking()[:1] != [] for result in results) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [("a dog", "at least two"), (" , ", "at least two"), ("a dog, a cat,a dog", "is there twice")],
)
def test_labels_that_leave_no_choice_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"--labels: .*{message}"):
        parse_labels(text)


def test_labels_are_split_at_commas() -> None:
    assert parse_labels(" a dog, a  cat ,,a bird") == ["a dog", "a  cat", "a bird"]


def test_extractor_without_a_text_encoder_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", "red")
    with pytest.raises(WeightsError, match="colours: has no text encoder"):
        list(classify_images([path], ["red", "blue"], TextlessExtractor()))
