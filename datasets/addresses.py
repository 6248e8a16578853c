"""What is known of the files of a data set: `Address`, `Piece` and `Source`, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from .base import CoOpDataset

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Address:
    """One place that serves a file.

    Attributes:
        size: bytes, about where no digest goes with it; None where nobody recorded it.
        digests: hex SHA-256 or MD5 of the file; any one of them will do. Empty: none is known.
        file: the file's name; by default the last part of the address.
        inner: path of the archive that is wanted inside this archive.
        top: folder inside the archive, with a / at its end, that holds what the piece makes.
        renames: (path inside the archive, path below the data set's folder) where they differ.
        page: where a person can get the file in a browser; by default the address.
        asks: Google Drive, which may ask for a confirmation before it sends a large file.
        tried: when this project last fetched it, "" for never.
    """

    url: str
    size: int | None = None
    digests: tuple[str, ...] = ()
    file: str = ""
    inner: str = ""
    top: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    page: str = ""
    asks: bool = False
    tried: str = ""

    @property
    def name(self) -> str:
        """The name of the file, such as ``images.tar.gz``."""
        return self.file or unquote(urlsplit(self.url).path.rpartition("/")[2])

    @property
    def is_archive(self) -> bool:
        return self.name.lower().endswith(ARCHIVES)

    def inside(self, target: str) -> str:
        """Return the path inside the archive of what becomes ``target``."""
        return next((old for old, new in self.renames if new == target), self.top + target)


def drive(identifier: str, file: str, size: int | None = None, *digests: str, **facts) -> Address:
    """Return the address of a file that is shared on Google Drive."""
    return Address(
        f"https://drive.usercontent.google.com/download?id={identifier}&export=download&confirm=t",
        size,
        digests,
        file,
        page=f"https://drive.google.com/file/d/{identifier}",
        asks=True,
        **facts,
    )


@dataclass(frozen=True)
class Piece:
    """Files that come together: an archive and what it makes, or a single file.

    Attributes:
        makes: paths below the data set's folder.
        addresses: tried in this order; empty where nothing can be fetched.
        annotation: only needed where CoOp's split file is absent.
        shared: folder of another data set whose copy serves as well.
        by_hand: what to get where, for a piece without an address.
    """

    makes: tuple[str, ...]
    addresses: tuple[Address, ...] = ()
    annotation: bool = False
    shared: str = ""
    by_hand: str = ""


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        name: as in ``configs/datasets``.
        class_name: of the class below `CoOpDataset`.
        classes, sizes: number of classes, of training, validation and test images.
        terms: terms of use in a few words; the publisher's page decides.
        page: the publisher's page.
        pieces: all files but CoOp's split file.
        split: CoOp's split file on Google Drive, "" where there is none.
        folders: image folder, class folders in it (0: none) and images, to count where no split
            file says what must be there; empty: the class's image folder with all images.
    """

    name: str
    class_name: str
    classes: int
    sizes: tuple[int, int, int]
    terms: str
    page: str
    pieces: tuple[Piece, ...]
    split: str = ""
    folders: tuple[tuple[str, int, int], ...] = ()

    @property
    def data_class(self) -> type[CoOpDataset]:
        """The class of the data set, which knows its folder, image folder and split file."""
        return next(c for c in subclasses(CoOpDataset) if c.__name__ == self.class_name)

    @property
    def all_pieces(self) -> tuple[Piece, ...]:
        """The pieces, CoOp's split file first."""
        if not self.split:
            return self.pieces
        file = self.data_class.split_file
        return (Piece((file,), (drive(self.split, file),)), *self.pieces)


def subclasses(cls: type) -> Iterator[type]:
    """Yield all classes below ``cls``."""
    for below in cls.__subclasses__():
        yield below
        yield from subclasses(below)
