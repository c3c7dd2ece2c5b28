import hashlib
from pathlib import Path

import pytest

from lorasmith.core.errors import OutputError
from lorasmith.core.files import atomic_write, ensure_writable_folder, sha256_file, write_text


def test_atomic_write_replaces_a_file_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "first")

    def write_half() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("seco", encoding="utf-8")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert path.read_text(encoding="utf-8") == "first"
    write_text(path, "ünal")
    assert path.read_text(encoding="utf-8") == "ünal"
    assert [child.name for child in path.parent.iterdir()] == ["a.txt"]


def test_temporary_file_keeps_its_suffix(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path
        temporary.touch()


def test_ensure_writable_folder_creates_or_refuses(tmp_path: Path) -> None:
    assert ensure_writable_folder(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"cannot write to folder .*choose another --out"):
            ensure_writable_folder(path)


def test_hash_covers_the_full_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000  # more than two pieces
    (tmp_path / "f").write_bytes(data)
    positions: list[int] = []
    assert sha256_file(tmp_path / "f", positions.append) == hashlib.sha256(data).hexdigest()
    assert sum(positions) == len(data)
    assert len(positions) > 2


def test_replaced_file_has_the_users_permissions(tmp_path: Path) -> None:
    """Whatever wrote the temporary file (safetensors writes with mode 0600)."""
    plain = tmp_path / "plain"
    plain.touch()
    with atomic_write(tmp_path / "out") as temporary:
        temporary.unlink()
        temporary.touch(mode=0o600)
    assert (tmp_path / "out").stat().st_mode == plain.stat().st_mode
