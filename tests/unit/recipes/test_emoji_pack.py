import json
import tarfile
import zlib

import numpy as np
import pytest
from captions import write_caption
from compare import compare_packs, main, psnr
from describe import make_row
from pack import PackError, decode_picture, encode_picture, read_pack, write_pack

from helpers.emoji_samples import emoji, icon


def row(name, codepoint="1F528"):
    shown = icon(name, emoji(name, codepoint))
    return make_row(shown, write_caption(shown, ["red"]), ["red"])


def picture(seed):
    canvas = np.full((128, 128, 3), 255, np.uint8)
    canvas[20:100, 30:90] = np.random.default_rng(seed).integers(0, 255, 3)
    return canvas


@pytest.fixture
def packed(tmp_path):
    def make(file_name, names, seeds=None):
        path = tmp_path / file_name
        images = [encode_picture(picture(seed)) for seed in seeds or range(len(names))]
        write_pack(path, [row(name) for name in names], images, "credits\n")
        return path

    return make


def test_what_is_packed_is_read_back(packed):
    path = packed("a.tar", ["hammer", "naïve axe"])
    rows, images = read_pack(path)
    assert [r["name"] for r in rows] == ["hammer", "naïve axe"]
    assert [r["id"] for r in rows] == [0, 1]
    assert rows[1]["off"] == rows[0]["len"] == len(images[0])
    for seed, image in enumerate(images):
        decoded = decode_picture(image)
        assert decoded.shape == (128, 128, 3)
        assert psnr(decoded, picture(seed)) > 35


def test_members_are_readable_with_the_standard_library(packed):
    with tarfile.open(packed("a.tar", ["hammer"])) as archive:
        assert archive.getnames() == ["meta.jsonl.zlib", "images.bin", "ATTRIBUTION.txt"]
        lines = zlib.decompress(archive.extractfile("meta.jsonl.zlib").read()).decode().split("\n")
        assert archive.extractfile("ATTRIBUTION.txt").read() == b"credits\n"
    assert json.loads(lines[0])["icon"] == "hammer"


def test_packing_twice_gives_the_same_bytes_and_leaves_no_partial_file(packed, tmp_path):
    first, second = packed("a.tar", ["hammer", "axe"]), packed("b.tar", ["hammer", "axe"])
    assert first.read_bytes() == second.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "b.tar"}


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "noise.tar"
    path.write_bytes(b"noise" * 300)
    with pytest.raises(PackError, match=r"noise\.tar is not a pack"):
        read_pack(path)


def test_equal_packs_compare_equal(packed, capsys):
    path = packed("a.tar", ["hammer", "axe"])
    assert main([str(path), str(path)]) == 0
    assert "2 rows in both, in the same order" in capsys.readouterr().out


def test_differences_are_found(packed, capsys):
    first = packed("a.tar", ["hammer", "axe", "saw"])
    second = packed("b.tar", ["axe", "hammer", "drill"], seeds=[7, 0, 2])
    result = compare_packs(first, second)
    assert result.only_first == [("noto", "saw")]
    assert result.only_second == [("noto", "drill")]
    assert not result.same_order
    assert result.differing == {}
    assert result.psnr["noto", "hammer"] == 99.0
    assert result.psnr["noto", "axe"] < 30
    assert main([str(first), str(second)]) == 1
    assert "1 rows only in the second" in capsys.readouterr().out


def test_differing_words_are_listed_by_field(tmp_path):
    image = encode_picture(picture(0))
    first, second = row("hammer"), row("hammer", "1F335")
    write_pack(tmp_path / "a.tar", [first], [image], "")
    write_pack(tmp_path / "b.tar", [second], [image], "")
    result = compare_packs(tmp_path / "a.tar", tmp_path / "b.tar")
    assert set(result.differing) == {"codepoint", "role", "holdout"}
    assert result.differing["holdout"] == [(("noto", "hammer"), "", "cactus")]


def test_psnr_of_images_of_different_size_is_zero():
    assert psnr(np.zeros((2, 2, 3), np.uint8), np.zeros((3, 3, 3), np.uint8)) == 0.0
