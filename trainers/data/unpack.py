"""Unpacking archives that nobody vouches for: nothing is written outside the given folder."""

import gzip
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

from .download import DownloadError, Progress

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)
_CLASH = (FileExistsError, NotADirectoryError, IsADirectoryError)


def unpack(path: Path, folder: Path, wanted: Collection[str], bar: Progress) -> None:
    """Extract files and whole folders, named by their paths in a zip or tar, into ``folder``.

    Raises:
        DownloadError: the archive is damaged, or holds a device or a link out of the folder.
        OSError: the disk is full or cannot be written to.
    """
    size = path.stat().st_size

    def is_wanted(name: str) -> bool:
        bar.show("unpacking", raw.tell(), size)
        plain = posixpath.normpath(name)
        return any(plain == one or plain.startswith(f"{one}/") for one in wanted)

    def chosen(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo | None:
        return tarfile.data_filter(member, target) if is_wanted(member.name) else None

    try:
        with open(path, "rb") as raw:
            if raw.read(2) == b"PK":
                with zipfile.ZipFile(raw) as archive:
                    archive.extractall(folder, filter(is_wanted, archive.namelist()))
            else:
                raw.seek(0)
                with tarfile.open(fileobj=raw) as archive:
                    archive.extractall(folder, filter=chosen)
                    while archive.fileobj.read(1 << 20):  # to the end, where gzip's checksum is
                        pass
    except (*_DAMAGE, RuntimeError, LookupError, ValueError) as error:
        reason = error or type(error).__name__
        raise DownloadError(f"the archive is damaged or unsafe ({reason})") from error
    except _CLASH as error:
        raise DownloadError(f"the archive has '{error.filename}' twice, not both files") from error
