"""Where the files of the data sets come from: ``sources.yaml`` as `Source`, `Piece`, `Address`."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Address:
    """One address of a file."""

    url: str = ""
    size: int | None = None  # bytes; approximate where there is no checksum; None: unknown
    checksum: str = ""  # hex SHA-256, or md5: and a hex MD5; "": unknown
    drive: str = ""  # identifier of a file on Google Drive, instead of url

    @property
    def page(self) -> str:
        """Where a person can get the file in a browser."""
        return f"https://drive.google.com/file/d/{self.drive}" if self.drive else self.url


@dataclass(frozen=True)
class Piece:
    """Files that belong together: an archive and its contents, or a single file."""

    makes: tuple[str, ...]  # paths relative to the data set's folder
    addresses: tuple[Address, ...] = ()  # the publisher's first; empty: see by_hand
    annotation: bool = False  # only needed where CoOp's split file is absent
    shared: str = ""  # folder of another data set whose copy can be used instead
    by_hand: str = ""  # what to get where, for a piece without an address
    classes: int = 0  # class folders in a folder of images
    images: int = 0  # in a folder of images; 0: all of the data set's


@dataclass(frozen=True)
class Source:
    """What is known of one data set."""

    config: str  # its name in configs/datasets
    short: str  # and in the scripts
    layout: dict  # attributes of its class: folders, CoOp's split file, classes
    sizes: tuple[int, int, int]  # numbers of training, validation and test images
    terms: str  # of use in a few words; the publisher's page is authoritative
    page: str
    pieces: tuple[Piece, ...]  # all its files, CoOp's split file first

    def advice(self, folder: Path) -> str:
        """Return where to get the files, as the end of a sentence."""
        places = [
            f"'{piece.makes[0]}' ({piece.addresses[0].page if piece.addresses else self.page})"
            for piece in self.pieces
            if not piece.annotation
        ]
        return f"put {', '.join(places)} into '{folder}'"


@cache
def read_sources() -> dict[str, Source]:
    """Return class name -> source of CoOp's 15 data sets."""
    text = Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8")
    return {name: _source(**facts) for name, facts in yaml.safe_load(text).items()}


def _source(files, sizes, **facts) -> Source:
    pieces = tuple(_piece(**file) for file in files)
    return Source(sizes=tuple(sizes), pieces=pieces, **facts)


def _piece(makes, addresses=(), **facts) -> Piece:
    return Piece(tuple(makes.split()), tuple(Address(**a) for a in addresses), **facts)


def find_source(cls: type) -> Source | None:
    """Return the source of a data set class; None where it has none."""
    return read_sources().get(cls.__name__)
