"""Unpack an archive without trusting it."""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from csflow.data.image_files import SUFFIXES, has_signature, is_image, opens_as_image, say_left_out
from csflow.errors import DataError

ARCHIVES = (".tar", ".tar.xz", ".tar.gz", ".tgz", ".zip")


def extract(archive: Path, target: Path) -> None:
    """Unpack the images, ``.txt`` and ``.csv`` files of an archive, and say what is left out.

    Nothing is written outside of ``target``.

    Raises:
        DataError: If the archive is of an unknown kind, damaged, or contains links or paths that lead out.
    """
    if not archive.name.lower().endswith(ARCHIVES):
        raise DataError(f"{archive} is neither a folder nor an archive ({', '.join(ARCHIVES)}).")
    left_out: dict[str, str] = {}
    try:
        for name, file in _members(archive):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
                raise DataError(f"{archive} holds the unsafe path {name!r}. Do not trust it.")
            head = file.read(16)
            known = is_image(Path(name)) or path.suffix.lower() in {".txt", ".csv"}
            if path.name.startswith(".") or not (known or has_signature(head)):
                if not path.name.startswith(".") or path.suffix.lower() in SUFFIXES:
                    left_out[name] = "hidden" if path.name.startswith(".") else "not an image"
                continue
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            with (target / path).open("wb") as copy:
                copy.write(head)
                shutil.copyfileobj(file, copy)
            if not known and not opens_as_image(target / path):
                (target / path).unlink()
                left_out[name] = "not an image"
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}. Download it again.") from error
    say_left_out(left_out, "import", archive)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the name and the content of each regular file.

    Raises:
        DataError: If a member is a link or a device.
    """
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as package:
            for entry in package.infolist():
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise DataError(f"{archive} holds {entry.filename!r}, a link. Expected plain files.")
                if not entry.is_dir():
                    with package.open(entry) as content:
                        yield entry.filename, content
        return
    with tarfile.open(archive) as bundle:
        for member in bundle:
            if not member.isfile() and not member.isdir():
                raise DataError(f"{archive} holds {member.name!r}, a link or device. Expected plain files.")
            file = bundle.extractfile(member)
            if file is not None:
                yield member.name, file
