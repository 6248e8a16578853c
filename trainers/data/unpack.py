"""Unpacking of archives that nobody vouches for.

An archive is refused whole where a single member has an absolute path or ``..`` in it, is a
device or a pipe, is a link to anything but a file of the same archive, or where all members
together are far larger than the archive. No link is ever made: links within the archive become
copies. Modes and owners are not taken over.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import re
import shutil
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from ..utils import errors

RATIO = 20  # how many times its own size an archive may unpack to; images hardly shrink
FLOOR = 1 << 30  # bytes that any archive may unpack to
MEMBERS = 3_000_000
BLOCK = 1 << 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
    ValueError,
)


class BadArchive(errors.UserError):
    """The archive is damaged, hostile or not what was expected."""


class Stopped(Exception):
    """Somebody asked to stop."""


@dataclass
class Member:
    """One entry of an archive: a folder, a file, or a link to a file of the archive."""

    path: str  # normalised, relative
    size: int
    is_folder: bool = False
    link: str = ""  # path of the file it is a link to
    open: Callable[[], IO[bytes]] | None = None


def safe_path(name: str) -> str:
    """Return ``name`` as a plain relative path with / between its parts.

    Raises:
        BadArchive: it is absolute, climbs with ``..`` or holds what no file name should.
    """
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name)
    if absolute or ".." in parts or "\0" in name or any(len(part) > 255 for part in parts):
        raise BadArchive(f"it has the member '{name[:200]}', which would leave its folder")
    return "/".join(parts)


def link_target(path: str, link: str) -> str:
    """Return what a symbolic link at ``path`` points to, as a path inside the archive."""
    parts: list[str] = []
    if link.startswith(("/", "\\")):
        raise BadArchive(f"its member '{path}' is a link out of its folder, to '{link}'")
    for part in [*PurePosixPath(path).parent.parts, *re.split(r"[/\\]", link)]:
        if part == ".." and not parts:
            raise BadArchive(f"its member '{path}' is a link out of its folder, to '{link}'")
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return safe_path("/".join(parts))


def is_zip(path: Path) -> bool:
    with open(path, "rb") as handle:
        return handle.read(2) == b"PK"


def tar_members(raw: IO[bytes]) -> Iterator[Member]:
    """Yield the members of a tar, plain or compressed by gzip, in their order."""
    compressed = raw.read(2) == b"\x1f\x8b"
    if not compressed:
        raw.seek(-min(512, raw.seek(0, os.SEEK_END)), os.SEEK_END)
        if any(raw.read()):
            raise BadArchive("it is cut short: the mark at its end is missing")
    raw.seek(0)
    stream = gzip.GzipFile(fileobj=raw) if compressed else raw
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # tarfile keeps all of them otherwise
            path = safe_path(info.name)
            if info.issym():
                yield Member(path, 0, link=link_target(path, info.linkname))
            elif info.islnk():
                yield Member(path, 0, link=safe_path(info.linkname))
            elif info.isdir():
                yield Member(path, 0, is_folder=True)
            elif info.isreg():
                yield Member(path, info.size, open=lambda info=info: tar.extractfile(info))
            else:
                raise BadArchive(f"its member '{info.name}' is a device, a pipe or the like")
    while compressed and stream.read(BLOCK):  # to the end, where the checksum is
        pass


def zip_members(raw: IO[bytes]) -> Iterator[Member]:
    """Yield the members of a zip in their order."""
    with zipfile.ZipFile(raw) as archive:
        for info in archive.infolist():
            path, mode = safe_path(info.filename), info.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if info.is_dir():
                yield Member(path, 0, is_folder=True)
            elif kind == stat.S_IFLNK:
                if info.file_size > 4096:
                    raise BadArchive(f"its member '{path}' is a link that is no path")
                yield Member(path, 0, link=link_target(path, archive.read(info).decode()))
            elif kind in (0, stat.S_IFREG):
                yield Member(path, info.file_size, open=lambda i=info: archive.open(i))
            else:
                raise BadArchive(f"its member '{path}' is a device, a pipe or the like")


def _wanted(path: str, wanted: dict[str, str] | None) -> str | None:
    """Return where ``path`` goes, or None where it is not among (or below) the wanted paths."""
    if wanted is None:
        return path
    for inside, target in wanted.items():
        if path == inside or path.startswith(f"{inside}/"):
            return target + path[len(inside) :]
    return None


def _copy(source: IO[bytes], target: Path, size: int, stop: threading.Event) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # an archive may hold a file twice; the last one counts
    left = size
    with open(target, "xb") as handle:
        while left and (block := source.read(min(BLOCK, left))):
            if stop.is_set():
                raise Stopped
            handle.write(block)
            left -= len(block)
    if left:
        raise BadArchive(f"it is cut short: its member '{target.name}' lacks {left} bytes")


def unpack(
    path: Path,
    folder: Path,
    wanted: dict[str, str] | None = None,
    *,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    stop: threading.Event | None = None,
) -> None:
    """Unpack a zip, a tar or a gzipped tar, whatever its name says, into ``folder``.

    Args:
        folder: is made; must not hold anything yet.
        wanted: path inside the archive -> path below ``folder``, for files and whole folders;
            everything else is checked, but not written. None: everything as it is.
        limit: bytes that all members together may have.
        progress: told how many bytes of the archive are dealt with.
        stop: once set, `Stopped` is raised.

    Raises:
        BadArchive: its text goes on after "archive X was refused: ".
        UserError: the disk is full or the folder cannot be written to.
    """
    limit = max(FLOOR, RATIO * path.stat().st_size) if limit is None else limit
    stop = stop or threading.Event()
    links: list[tuple[str, str]] = []  # (where it goes, path inside the archive)
    sizes: dict[str, int] = {}
    total = count = 0

    def admit(size: int) -> None:
        nonlocal total
        total += size
        if total > limit:
            raise BadArchive(f"it unpacks to more than {limit:,} bytes, far more than it should")
        free = shutil.disk_usage(folder).free
        if size > free:
            raise errors.UserError(
                f"the disk of '{folder}' is full: {free:,} bytes are free and '{path.name}' needs "
                "more; free some space, then run the same command again"
            )

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            open(path, "rb") as raw,
            contextlib.closing(zip_members(raw) if is_zip(path) else tar_members(raw)) as members,
        ):
            for member in members:
                count += 1
                if count > MEMBERS:
                    raise BadArchive(f"it has more than {MEMBERS:,} members")
                if stop.is_set():
                    raise Stopped
                progress(raw.tell())
                target = _wanted(member.path, wanted)
                if member.link and target is not None:
                    links.append((target, member.link))
                admit(member.size)
                if target is None or member.link:
                    continue
                if member.is_folder:
                    (folder / target).mkdir(parents=True, exist_ok=True)
                else:
                    with member.open() as source:
                        _copy(source, folder / target, member.size, stop)
                    sizes[target] = member.size
        for target, inside in links:
            source = _wanted(inside, wanted)
            if source not in sizes:
                raise BadArchive(f"its member '{target}' is a link to '{inside}', no file in it")
            admit(sizes[source])
            with open(folder / source, "rb") as handle:
                _copy(handle, folder / target, sizes[source], stop)
    except BadArchive:
        raise
    except _DAMAGE as error:
        raise BadArchive(f"it is damaged ({error or type(error).__name__})") from error
    except OSError as error:
        if isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError)):
            raise BadArchive(
                f"it has a file and a folder of one name ({error.filename})"
            ) from error
        raise disk_error(error, folder) from error


def disk_error(error: OSError, folder) -> errors.UserError:
    """Return the sentence for a write that failed."""
    if error.errno in NO_SPACE:
        return errors.UserError(
            f"the disk of '{folder}' is full; free some space, then run the same command again "
            "(what was downloaded is kept)"
        )
    return errors.UserError(
        f"cannot write into '{folder}' ({error.strerror or error}); change its permissions or "
        "choose another folder with --root"
    )
