import importlib.util
from multiprocessing.pool import ThreadPool

import pytest
from pack import read_pack
from PIL import Image
from sources import Package, Sources

from helpers.emoji_samples import style, write_unicode_packages
from helpers.paths import EMBEDDED_RECIPE

pytest.importorskip("resvg_py", reason="resvg_py, the SVG renderer, is missing")


@pytest.fixture(scope="module")
def recipe():
    # Loaded from its file: a plain `import build` could find the PyPA package of that name.
    spec = importlib.util.spec_from_file_location(
        "emoji_build", EMBEDDED_RECIPE / "data" / "build.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sources():
    package = Package("@example/icons", "1.0.0", "sha512", "sha1", ())
    return Sources(packages=(package,), styles=(style("3d"),))


@pytest.fixture
def work(tmp_path, recipe, monkeypatch):
    """A work folder in which nothing has to be downloaded."""
    emojibase, emojilib = write_unicode_packages(tmp_path)
    assets = tmp_path / "icons" / "assets"
    assets.mkdir(parents=True)
    for code, colour in (("1f44b", "#ffcc33"), ("1f44b-1f3fb", "#ffe0bd"), ("e000", "#00000000")):
        sheet = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        sheet.paste(colour, (16, 16, 48, 48))
        sheet.save(assets / f"{code}.webp", lossless=True)
    folders = {
        "emojibase-data": emojibase,
        "emojilib": emojilib,
        "@example/icons": assets.parent,
    }
    monkeypatch.setattr(recipe, "fetch_all", lambda packages, work: folders)
    return tmp_path / "work"


def build(recipe, sources, work, out):
    with ThreadPool(1) as pool:
        return recipe.build(sources, work, out, pool)


def test_build_packs_what_the_packages_hold(recipe, sources, work, tmp_path, capsys):
    counts = build(recipe, sources, work, tmp_path / "out" / "emoji.tar")
    rows, _ = read_pack(tmp_path / "out" / "emoji.tar")
    assert counts == {"": 2}
    assert [row["name"] for row in rows] == ["waving hand", "waving hand: light skin tone"]
    assert rows[0]["caption"] == "a waving hand, 3d style"
    assert "3d: 2 pictures; left out 1 empty" in capsys.readouterr().out


def test_second_run_reuses_the_rendered_images(recipe, sources, work, tmp_path, monkeypatch):
    build(recipe, sources, work, tmp_path / "first.tar")
    monkeypatch.setattr(recipe, "draw", None)  # drawing again would fail
    build(recipe, sources, work, tmp_path / "second.tar")
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()


def test_images_of_another_package_version_are_rendered_again(
    recipe, sources, work, tmp_path, monkeypatch
):
    build(recipe, sources, work, tmp_path / "first.tar")
    drawn = []
    original = recipe.draw
    monkeypatch.setattr(
        recipe, "draw", lambda *arguments: drawn.append(arguments) or original(*arguments)
    )
    newer = Package("@example/icons", "1.0.1", "other", "other", ())
    build(recipe, Sources((newer,), sources.styles), work, tmp_path / "second.tar")
    assert len(drawn) == 3


def test_refused_download_is_one_readable_line(recipe, monkeypatch, capsys, tmp_path):
    def refuse(packages, work):
        raise recipe.FetchError("the tarball is not as pinned")

    monkeypatch.setattr(recipe, "fetch_all", refuse)
    command = ["build.py", "--work", str(tmp_path), "--out", str(tmp_path / "x"), "--workers", "1"]
    monkeypatch.setattr("sys.argv", command)
    assert recipe.main() == 1
    assert capsys.readouterr().err == "error: the tarball is not as pinned\n"
