"""Downloads that survive dropped connections and killed processes.

pooch verifies the checksum and puts the file in its place; `Resuming` is the downloader it calls.
An attempt asks for the rest of the file and checks that it is unchanged; with a server that answers
with the whole file it starts over.
"""

import glob
import hashlib
import html
import itertools
import os
import re
import sys
import threading
from pathlib import Path

import pooch
import requests
from tqdm import tqdm

from ..datasets.sources import Address
from ..utils import errors
from ..utils.version import __version__

BLOCK = 1 << 15
HEADERS = {"User-Agent": f"advprompt/{__version__}", "Accept-Encoding": "identity"}
ATTEMPTS = 5  # in a row that bring no new byte
PAUSE = 1.0  # seconds before the second attempt; doubles from there, to a minute
TIMEOUT = 60.0  # seconds of a connection that sends nothing


class DownloadError(errors.UserError):
    """This address does not give the file; trying it again at once would not help."""


class Stopped(Exception):
    """Somebody asked to stop."""


class _Dropped(Exception):
    """The connection failed or the server was busy; trying again may help."""


class Progress(tqdm):
    """The progress bar of one file, which can be stopped from another thread."""

    stop = threading.Event()  # replaced by that of all files that are fetched together

    def show(self, doing: str, done: int, total: int | None) -> None:
        """Show how much is done; raise `Stopped` once ``stop`` is set."""
        self.set_postfix_str(doing, refresh=False)
        self.total = total or self.total
        self.update(done - self.n)
        self.pause(0)

    def pause(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Stopped


class Resuming:
    """A downloader for pooch that resumes an earlier download of the same version of a file.

    What has arrived lies in ``NAME.VERSION.part``, where VERSION stands for the address, the length
    and the server's mark of the file, an ETag or a date.
    """

    def __init__(self, address: Address, folder: Path, bar: Progress):
        self.address, self.bar = address, bar
        self.folder, self.mixed = folder, False  # put together from several answers

    def __call__(self, url: str, output_file: str, _pooch) -> None:
        failures, best = 0, self.size
        while True:
            try:
                return os.replace(self.attempt(url), output_file)
            except _Dropped as error:
                failures = 1 if self.size > best else failures + 1
                best = max(best, self.size)
                if failures >= ATTEMPTS:
                    raise DownloadError(f"{error}; gave up after {failures} attempts") from error
                pause = min(PAUSE * 2 ** (failures - 1), 60)
                tqdm.write(f"{self.address.name}: {error}; trying again in {pause:g} s", sys.stderr)
                self.bar.pause(pause)

    @property
    def parts(self) -> list[Path]:
        """The partial file, if there is one."""
        return list(self.folder.glob(f"{glob.escape(self.address.name)}.*.part"))

    @property
    def size(self) -> int:
        return sum(part.stat().st_size for part in self.parts)

    def discard(self) -> None:
        for part in self.parts:
            part.unlink()

    def attempt(self, url: str) -> Path:
        """Fetch what is missing and return the whole file.

        Raises:
            _Dropped: trying again may help.
            DownloadError: it would not.
        """
        headers = HEADERS | ({"Range": f"bytes={self.size}-"} if self.size else {})
        try:
            with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                return self.receive(response)
        except requests.RequestException as error:
            raise _Dropped(f"the connection failed after {self.size:,} bytes ({error})") from error

    def receive(self, response: requests.Response) -> Path:
        """Write the body of an answer to the partial file."""
        code, said = response.status_code, response.headers
        if response.url.startswith("http:") and self.address.url.startswith("https:"):
            raise DownloadError(f"it leads to '{response.url}', which is not encrypted")
        if code not in (200, 206, 416):
            busy = code in (408, 425, 429) or code >= 500
            raise (_Dropped if busy else DownloadError)(
                f"the server answers {code} ({response.reason})"
            )
        response.raw.enforce_content_length = False  # keep what a dropped connection brought
        blocks = response.iter_content(BLOCK)
        head = next(blocks, b"")
        page = code == 200 and head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html"))
        if page or (code != 416 and "html" in said.get("Content-Type", "")):
            title = re.search(r"<title>([^<]*)", head.decode("utf-8", "replace"))
            named = f" ('{html.unescape(title[1]).strip()[:100]}')" if title else ""
            raise DownloadError(f"the server sent a web page instead of the file{named}")
        etag, length = said.get("ETag", "W/"), said.get("Content-Length", "")
        mark = said.get("Last-Modified", "") if etag.startswith("W/") else etag
        if code != 200:
            length = said.get("Content-Range", "").rpartition("/")[2]
        length = int(length) if length.isdigit() else None
        version = hashlib.sha256(f"{self.address.url} {length} {mark}".encode()).hexdigest()[:12]
        part = self.folder / f"{self.address.name}.{version}.part"
        self.mixed = code != 200
        if self.mixed and not (
            part.is_file()
            and (mark or self.address.checksum)
            and said.get("Content-Range", "").startswith(f"bytes {part.stat().st_size}-")
        ):
            self.discard()
            raise _Dropped("the file may have changed on the server, so it starts over")
        if code == 200:
            if self.address.checksum and length not in (None, self.address.size):
                raise DownloadError(
                    f"the server has a file of {length:,} bytes, expected {self.address.size:,}: "
                    "it is another file than the one whose checksum is known"
                )
            self.discard()
        with open(part, "ab") as out:
            for block in itertools.chain((head,), blocks):
                out.write(block)
                self.bar.show("downloading", out.tell(), length)
        size = part.stat().st_size
        if length is not None and size < length:
            raise _Dropped(f"the connection dropped after {size:,} of {length:,} bytes")
        return part


def download(address: Address, folder: Path, bar: Progress) -> Path:
    """Fetch a file into ``folder``, resuming what an earlier call left, and return its path.

    The file only ever exists as a whole; one that exists is verified if its checksum is known.

    Raises:
        DownloadError: this address does not give the file; the text says why.
        OSError: the disk is full or cannot be written to; what has arrived is kept.
        Stopped: ``bar.stop`` was set; what has arrived is kept.
    """
    pooch.get_logger().setLevel("WARNING")
    fetcher = Resuming(address, folder, bar)
    known = address.checksum or None
    for again in (True, False):
        try:
            pooch.retrieve(address.url, known, address.name, folder, downloader=fetcher)
            break
        except ValueError as error:  # of pooch: the checksum is wrong, and the file is deleted
            if not (again and fetcher.mixed):
                raise DownloadError(f"its checksum is wrong (expected {known})") from error
            tqdm.write(f"{address.name}: the checksum is wrong, so it starts over", sys.stderr)
    return folder / address.name
