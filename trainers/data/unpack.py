"""Unpacking archives that nobody vouches for: nothing is written outside the given folder."""

from __future__ import annotations

import gzip
import re
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

from .download import DownloadError, Progress

RATIO = 20  # how many times its own size an archive may unpack to; images hardly shrink
FLOOR = 1 << 30  # bytes that any archive may unpack to
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)
_CLASH = (FileExistsError, NotADirectoryError, IsADirectoryError)


def unpack(path: Path, folder: Path, wanted: Collection[str], bar: Progress) -> None:
    """Extract files and whole folders, named by their paths in a zip or tar, into ``folder``.

    Raises:
        DownloadError: the archive is damaged, has a member with an absolute path or ``..``, a
            link out of the folder or a device, or far more content than its size allows.
        OSError: the disk is full or cannot be written to.
    """
    size = path.stat().st_size
    left = max(FLOOR, RATIO * size)

    def check(name: str, unpacked: int) -> bool:
        """Return True if a member is wanted."""
        nonlocal left
        bar.show("unpacking", raw.tell(), size)
        parts = re.split(r"[/\\]", name)
        if not parts[0] or ":" in parts[0] or ".." in parts:
            raise DownloadError(f"the archive has a member '{name[:200]}', outside its folder")
        left -= unpacked
        if left < 0:
            raise DownloadError("the archive unpacks to far more than it should")
        plain = "/".join(part for part in parts if part not in ("", "."))
        return any(plain == one or plain.startswith(f"{one}/") for one in wanted)

    def chosen(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo | None:
        return tarfile.data_filter(member, target) if check(member.name, member.size) else None

    try:
        with open(path, "rb") as raw:
            if raw.read(2) == b"PK":
                with zipfile.ZipFile(raw) as archive:
                    for info in archive.infolist():
                        if check(info.filename, info.file_size):
                            archive.extract(info, folder)
            else:
                raw.seek(0)
                with tarfile.open(fileobj=raw) as archive:
                    archive.extractall(folder, filter=chosen)
                    while archive.fileobj.read(1 << 20):  # to the end, where gzip's checksum is
                        pass
    except (*_DAMAGE, RuntimeError, LookupError, ValueError) as error:
        raise DownloadError(
            f"the archive is damaged or unsafe ({error or type(error).__name__})"
        ) from error
    except _CLASH as error:
        raise DownloadError(f"the archive has '{error.filename}' twice, not both files") from error
