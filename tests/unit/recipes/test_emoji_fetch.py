import base64
import hashlib
import io
import tarfile
from dataclasses import replace

import fetch
import pytest
from fetch import FetchError, fetch_all, unpack, verify
from sources import Package

needs_filters = pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"), reason="unpacking needs Python 3.11.4 or later"
)


def tarball_bytes(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


FILES = {
    "package/icons.json": b"{}",
    "package/assets/a.webp": b"picture",
    "package/README.md": b"not needed",
}
DATA = tarball_bytes(FILES)


def pinned(data=DATA, keep=("icons.json", "assets/*.webp")):
    return Package(
        name="@example/icons",
        version="1.0.0",
        sha512=base64.b64encode(hashlib.sha512(data).digest()).decode(),
        sha1=hashlib.sha1(data).hexdigest(),
        keep=keep,
    )


@pytest.fixture
def tarball(tmp_path):
    path = tmp_path / "tarballs" / pinned().tarball_name
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


def test_names_follow_npm():
    assert pinned().tarball_name == "example-icons-1.0.0.tgz"


def test_pinned_bytes_are_accepted(tarball):
    """Passing is the assertion: `verify` raises for other bytes."""
    verify(pinned(), tarball)


@pytest.mark.parametrize("change", [DATA[:-1], DATA + b"\0", b"", b"\0" + DATA[1:]])
def test_corrupted_download_is_refused(tarball, change):
    tarball.write_bytes(change)
    with pytest.raises(FetchError, match=r"example-icons-1\.0\.0\.tgz is not @example/icons@1"):
        verify(pinned(), tarball)


@pytest.mark.parametrize("field", ["sha512", "sha1"])
def test_both_checksums_must_agree(tarball, field):
    other = pinned(b"other")
    wrong = replace(pinned(), **{field: getattr(other, field)})
    with pytest.raises(FetchError):
        verify(wrong, tarball)


def test_corrupted_download_is_not_unpacked(tarball, tmp_path):
    tarball.write_bytes(DATA + b"\0")
    with pytest.raises(FetchError):
        fetch_all([pinned()], tmp_path)
    assert not (tmp_path / "packages").exists()


@needs_filters
def test_only_wanted_files_are_unpacked_without_the_top_folder(tarball, tmp_path):
    folder = fetch_all([pinned()], tmp_path)["@example/icons"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files - {".complete"} == {"icons.json", "assets/a.webp"}


@needs_filters
def test_unpacking_again_does_nothing_but_repairs_what_was_interrupted(tarball, tmp_path):
    folder = unpack(pinned(), tarball, tmp_path / "out")
    (folder / "icons.json").write_bytes(b"touched")
    unpack(pinned(), tarball, folder)
    assert (folder / "icons.json").read_bytes() == b"touched"
    (folder / ".complete").unlink()
    unpack(pinned(), tarball, folder)
    assert (folder / "icons.json").read_bytes() == b"{}"


@needs_filters
def test_members_cannot_leave_the_folder(tmp_path):
    data = tarball_bytes({"package/../../escaped.json": b"x", "package/icons.json": b"{}"})
    tarball = tmp_path / "evil.tgz"
    tarball.write_bytes(data)
    with pytest.raises(tarfile.FilterError):
        unpack(pinned(data, keep=("*",)), tarball, tmp_path / "inner" / "out")
    assert not list(tmp_path.rglob("escaped.json"))


def test_missing_npm_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(FetchError, match="install Node"):
        fetch_all([pinned()], tmp_path)
