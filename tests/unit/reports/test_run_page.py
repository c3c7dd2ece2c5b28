"""The page of a run, from folders as runs leave them."""

import base64
import io
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from helpers.reports.noisy_curves import diverging, level
from helpers.reports.run_folders import PROMPTS, write_preview, write_run
from lorasmith.cli import run as run_command
from lorasmith.core.errors import ConfigError, DataError, OutputError
from lorasmith.reports.pages.run import write_run_page
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.run_folder import image_data_uri, read_prompt

VOID = {"meta", "img", "link", "br"}
URL_ATTRIBUTES = ("src", "href", "action", "data", "poster", "srcset", "xlink:href")


class Page(HTMLParser):
    """A parsed page, whose tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"] and data.strip():
            self.words.append(" ".join(data.split()))

    @property
    def images(self) -> list[Image.Image]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        encoded = [source.partition(";base64,")[2] for source in sources]
        return [Image.open(io.BytesIO(base64.b64decode(data))) for data in encoded]


def page_of(folder: Path) -> Page:
    path = write_run_page(RunPaths.from_name(str(folder)))
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_finished_run_has_all_sections(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "ink"))
    for words in (
        "ink", "inkmono", "The curves look healthy", "23.0%", "2 min 31 s", "1.31 M", "22",
        "14 images/s",
        "Before and after", "before", "after 250 steps", "step 0", "step 100", "step 200",
        "Training loss", "Validation loss", "base model", "best: step 250", "Learning rate",
        "0f" * 32, "ink.safetensors", "all steps done",
    ):  # fmt: skip
        assert words in page.words, words
    assert any("[train.loss]" in words for words in page.words)  # the settings
    assert sum(tag == "svg" for tag, _ in page.tags) == 4


def test_page_loads_nothing(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "ink"))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in URL_ATTRIBUTES:
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    text = (tmp_path / "ink" / "report.html").read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|https?://", text)
    shutil.move(tmp_path / "ink" / "report.html", tmp_path / "alone.html")
    assert Page((tmp_path / "alone.html").read_text()).images


def test_no_caption_becomes_markup(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "ink&lt;b")
    page = page_of(folder)
    assert PROMPTS[1] in page.words
    assert "ink&lt;b" in page.words
    assert "<script" not in (folder / "report.html").read_text()


def test_timeline_shows_every_step_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "ink")
    page = page_of(folder)
    assert len(page.images) == 2 * (2 + 4)  # before and after; 4 steps of 2 prompts
    reds = [image.convert("RGB").getpixel((0, 0))[0] for image in page.images]
    assert reds[:4] == [200, 200, 0, 0]
    assert reds[4:] == [200, 200, 120, 120, 40, 40, 0, 0]


def test_best_step_is_shown_beside_the_last(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "ink", held_out=(1.0, 0.7, 0.8, 0.9)))
    assert "best, step 100" in page.words
    assert "It memorises the training images (overfitting)" in page.words
    assert any(words.startswith("Use ink-best.safetensors") for words in page.words)


def test_long_timeline_shows_evenly_spaced_previews(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "ink")
    for step in range(300, 300 + 40):
        write_preview(folder, step, 0.5)
    page = page_of(folder)
    labels = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    rows = [label for label in labels if re.fullmatch(r"step \d+, image 1", label or "")]
    assert len(rows) == 24
    assert (rows[0], rows[-1]) == ("step 0, image 1", "step 339, image 1")
    assert any(words.startswith("24 of 44 previews are shown") for words in page.words)


@pytest.mark.parametrize(
    ("trend", "title"), [(level, "Hardly anything is learned"), (diverging, "The loss oscillates")]
)
def test_advice_is_on_the_page(tmp_path: Path, trend: object, title: str) -> None:
    folder = write_run(tmp_path / "ink", trend, held_out=(1.0, 1.0, 1.0, 1.0))  # type: ignore[arg-type]
    assert title in page_of(folder).words


def test_without_validation_images_the_fixed_noise_loss_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "ink")
    log = folder / "log.jsonl"
    log.write_text(log.read_text().replace("validation_loss", "fixed_loss"))
    page = page_of(folder)
    assert "Loss of training images on fixed noise" in page.words
    assert "Validation loss" not in page.words
    assert "best: step 250" not in page.words


def test_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "ink", finished=False)
    for name in ("log.jsonl", "previews"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = page_of(folder)
    assert "not finished" in page.words
    assert "Too short to judge" in page.words
    assert not page.images
    assert "Curves" not in page.words


def test_truncated_log_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "ink", finished=False)
    complete = page_of(folder).words
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 260, "lo')
    assert page_of(folder).words == complete


def test_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "ink")
    first = write_run_page(RunPaths.from_name(str(folder))).read_text()
    assert write_run_page(RunPaths.from_name(str(folder))).read_text() == first


def test_large_images_are_scaled_down(tmp_path: Path) -> None:
    noise = Image.frombytes("RGB", (1024, 512), os.urandom(1024 * 512 * 3))
    noise.save(tmp_path / "large.png")
    uri = image_data_uri(tmp_path / "large.png")
    assert uri.startswith("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as small:
        assert small.size == (448, 224)
    noise.resize((128, 128)).save(tmp_path / "small.png")
    encoded = base64.b64decode(image_data_uri(tmp_path / "small.png").partition(",")[2])
    assert encoded == (tmp_path / "small.png").read_bytes()


def test_prompts_are_read_from_image_metadata(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "ink")
    assert read_prompt(folder / "previews/step-000000/0001.png") == PROMPTS[1]
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert read_prompt(tmp_path / "plain.png") == ""


# --- what can be wrong ----------------------------------------------------------------------------


def test_folder_without_settings_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a run's folder \(it has no run.toml\)"):
        write_run_page(RunPaths.from_name(str(tmp_path)))
    assert not (tmp_path / "report.html").exists()


def test_damaged_files_are_errors_with_their_path(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "ink")
    paths = RunPaths.from_name(str(folder))
    image = folder / "previews/step-000100/0000.png"
    image.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"step-000100/0000\.png: cannot be read as an image"):
        write_run_page(paths)
    (folder / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary\.json"):
        write_run_page(paths)
    (folder / "run.toml").write_text("[data]\npath = 1\n")
    with pytest.raises(ConfigError, match=r"run\.toml"):
        write_run_page(paths)


def test_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "ink")
    (folder / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*report\.html"):
        write_run_page(RunPaths.from_name(str(folder)))


# --- the command ----------------------------------------------------------------------------------


def test_command_takes_a_folder_or_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "loras" / "ink")
    write_run(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    assert run_command(["report", "loras/ink"]) == 0
    assert run_command(["report", "ink"]) == 0
    assert run_command(["report", "other"]) == 0
    printed = capsys.readouterr().out.split()
    assert printed[1] == "loras/ink/report.html"
    assert Path(printed[2]) == tmp_path / "other" / "report.html"
    assert run_command(["report", "absent"]) == 1
    assert "loras/absent: not a run's folder" in capsys.readouterr().err
