"""Download the pinned npm packages, check them byte for byte, and unpack what is needed."""

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from sources import Package

_MARKER = ".complete"


class FetchError(RuntimeError):
    """A package could not be downloaded, or is not the one that was pinned."""


def fetch_all(packages: Iterable[Package], work: Path) -> dict[str, Path]:
    """Download and unpack `packages` below `work`; return the folder of each by package name.

    Existing packages with the right checksums are kept.
    """
    tarballs, unpacked = work / "tarballs", work / "packages"
    tarballs.mkdir(parents=True, exist_ok=True)
    folders = {}
    for package in packages:
        tarball = tarballs / package.tarball_name
        if not tarball.exists():
            download(package, tarballs)
        verify(package, tarball)
        folders[package.name] = unpack(package, tarball, unpacked / package.folder_name)
    return folders


def download(package: Package, folder: Path) -> None:
    """Fetch the tarball of one package into `folder` with the npm client."""
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError("npm is needed to download the packages: install Node.js first")
    spec = f"{package.name}@{package.version}"
    command = [npm, "pack", "--silent", "--pack-destination", str(folder.resolve()), spec]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0 or not (folder / package.tarball_name).exists():
        raise FetchError(f"npm could not download {spec}: {result.stderr.strip() or 'no reason'}")


def verify(package: Package, tarball: Path) -> None:
    """Raise `FetchError` unless the tarball has both pinned checksums."""
    data = tarball.read_bytes()
    sha512 = base64.b64encode(hashlib.sha512(data).digest()).decode("ascii")
    # SHA-1 proves nothing by itself; it is compared because older mirrors publish only that one.
    sha1 = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    if (sha512, sha1) != (package.sha512, package.sha1):
        raise FetchError(
            f"{tarball} is not {package.name}@{package.version} as pinned in sources.toml "
            f"(sha512 {sha512[:16]}..., expected {package.sha512[:16]}...): delete it and retry"
        )


def unpack(package: Package, tarball: Path, folder: Path) -> Path:
    """Extract the wanted files of a verified tarball into `folder`, and return it."""
    if not hasattr(tarfile, "data_filter"):
        sys.exit("error: archives are unpacked safely from Python 3.11.4 on; use a later Python")
    marker = folder / _MARKER
    receipt = "\n".join([package.sha512, *package.keep])
    if marker.exists() and marker.read_text(encoding="utf-8") == receipt:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(tarball, "r:gz") as archive:
        members = [
            member for m in archive.getmembers() if (member := _select_member(m, package.keep))
        ]
        archive.extractall(folder, members=members, filter="data")
    # Written last, so that an interrupted extraction is done again.
    marker.write_text(receipt, encoding="utf-8")
    return folder


def _select_member(member: tarfile.TarInfo, keep: tuple[str, ...]) -> tarfile.TarInfo | None:
    """Return the member without the tarball's top folder, or None when it is not needed."""
    parts = PurePosixPath(member.name).parts[1:]
    inner = "/".join(parts)
    if not member.isfile() or not any(fnmatchcase(inner, pattern) for pattern in keep):
        return None
    return member.replace(name=inner, deep=False)
