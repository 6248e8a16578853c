"""Downloads that survive dropped connections, killed processes and servers that lie.

What has arrived lies in ``NAME.part``, with what the server said of the file in
``NAME.part.json``. The next attempt asks for the rest, under the condition that the file is still
the same one; a server that answers with the whole file starts over. The file gets its name once
all of it is there and its checksum, where one is known, is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import html.parser
import http.client
import json
import os
import re
import shutil
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..utils import errors, version
from ..utils import io as files
from .unpack import BLOCK, Stopped, disk_error

HEAD = 512  # bytes that tell an archive from a web page
_MAGIC = {  # file name's end -> what tells that the content may be of that kind
    ".zip": lambda head: head.startswith(b"PK"),
    ".gz": lambda head: head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar",
    ".tgz": lambda head: head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar",
    ".tar": lambda head: head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar",
    ".mat": lambda head: head.startswith(b"MATLAB"),
    ".json": lambda head: head.lstrip()[:1] in (b"{", b"["),
    ".txt": lambda head: not head.lstrip().startswith(b"<"),
}
_DROPPED = (OSError, http.client.HTTPException)


class DownloadError(errors.UserError):
    """This address does not give the file; trying it again at once would not help."""


class Dropped(Exception):
    """The connection failed, or the server was busy; trying again may help."""

    def __init__(self, why: str, pause: float = 0.0):
        super().__init__(why)
        self.pause = pause  # seconds that the server asked for


class _Page(Exception):
    """A web page came instead of the file."""

    def __init__(self, text: str, url: str):
        super().__init__(text)
        self.text, self.url = text, url


@dataclass(frozen=True)
class Rules:
    """How patient a download is, in seconds and numbers."""

    attempts: int = 5  # in a row without a byte more than before
    pause: float = 1.0  # before the second attempt; doubles from there
    longest_pause: float = 60.0
    timeout: float = 60.0  # of a connection that says nothing


@dataclass
class Monitor:
    """Where a download reports to and what can stop it; all calls come from its own thread."""

    # what is being done, bytes done, bytes in all if known
    progress: Callable[[str, int, int | None], None] = lambda doing, done, total: None
    tell: Callable[[str], None] = lambda line: None
    stop: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Stopped


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DownloadError(f"'{req.full_url}' leads to '{newurl}', which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https alone: no redirect may lead to file: or ftp:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        _Redirects,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def digest_of(path: Path, kinds: tuple[str, ...], monitor: Monitor) -> dict[str, str]:
    """Return the hex digests of a file, by the names of hashlib."""
    done, hashes = 0, {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    size = path.stat().st_size
    with open(path, "rb") as handle:
        while block := handle.read(BLOCK):
            for value in hashes.values():
                value.update(block)
            done += len(block)
            monitor.progress("checking", done, size)
            if monitor.stop.is_set():
                raise Stopped
    return {kind: value.hexdigest() for kind, value in hashes.items()}


class _State:
    """What is known of a partial file: its address, its length and the server's mark of it."""

    def __init__(self, part: Path):
        self.part, self.path = part, part.with_name(part.name + ".json")
        self.joined = self.part.is_file()  # whether what is there came from several answers

    def read(self, url: str) -> dict:
        """Return what was kept for this address; {} where the partial file is of no use."""
        try:
            state = json.loads(self.path.read_text(encoding="utf-8"))
            return state if state["url"] == url and self.part.is_file() else {}
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def write(self, **values) -> None:
        files.write_json(self.path, values)

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.joined = False

    @property
    def size(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0


def _validator(headers) -> str | None:
    """Return what tells this version of the file from others: a strong ETag, else a date."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _number(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdigit() else None


def _content_range(headers) -> tuple[int, int | None] | None:
    """Return where a partial answer begins and the length of the whole file, if it says so."""
    found = re.fullmatch(r"\s*bytes (\d+)-\d+/(\d+|\*)\s*", headers.get("Content-Range") or "")
    return (int(found[1]), _number(found[2])) if found else None


class _Form(html.parser.HTMLParser):
    """Google Drive's page that asks whether to download a file that it cannot scan."""

    def __init__(self, text: str):
        super().__init__()
        self.action, self.fields, self.title, self._in_title = "", {}, "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self._in_title = tag == "title"
        if tag == "form" and not self.action:
            self.action = values.get("action") or ""
        elif tag == "input" and self.action and values.get("name"):
            self.fields[values["name"]] = values.get("value") or ""

    def handle_data(self, data):
        if self._in_title:
            self.title += data.strip()

    def handle_endtag(self, tag):
        self._in_title = False


def _confirmed(page: _Page) -> str | None:
    """Return the address behind the page's form, where it stays on the page's own server."""
    form = _Form(page.text)
    url = urllib.parse.urljoin(page.url, form.action)
    parts, own = urllib.parse.urlsplit(url), urllib.parse.urlsplit(page.url)
    if not form.action or not form.fields or (parts.scheme, parts.netloc) != own[:2]:
        return None
    return parts._replace(query=urllib.parse.urlencode(form.fields)).geturl()


def _ask(url: str, headers: dict, rules: Rules):
    """Open an address; raise `Dropped` for what may pass and `DownloadError` for the rest."""
    agent = {"User-Agent": f"advprompt/{version.__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=agent | headers)
    try:
        return _opener().open(request, timeout=rules.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            return None
        what = f"the server answers {error.code} ({error.reason})"
        if error.code in (408, 425, 429) or error.code >= 500:
            pause = _number(error.headers.get("Retry-After")) or 0
            raise Dropped(what, pause) from error
        raise DownloadError(what) from error
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DownloadError(f"the server's certificate is not valid ({reason})") from error
        raise Dropped(f"no connection ({reason})") from error
    except ValueError as error:
        raise DownloadError(f"the address is wrong ({error})") from error
    except _DROPPED as error:
        raise Dropped(f"no connection ({error or type(error).__name__})") from error


def _attempt(address, url: str, state: _State, monitor: Monitor, rules: Rules) -> None:
    """Fetch what is still missing of the file; return once all of it is there."""
    saved = state.read(address.url)
    mark, start = saved.get("validator"), state.size
    if not saved or not (mark or address.digests):
        start = 0  # nothing would tell whether both parts are of one file
    if start and start == saved.get("length"):
        return
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and mark:
        headers["If-Range"] = mark
    response = _ask(url, headers, rules)
    if response is None:
        state.discard()
        raise Dropped("the server has less of the file than before, so it starts over")
    with response:
        said, length = response.headers, _number(response.headers.get("Content-Length"))
        try:
            head = response.read(HEAD)
        except _DROPPED as error:
            raise Dropped(f"the connection dropped ({error or type(error).__name__})") from error
        if response.status == 206:
            place = _content_range(said)
            changed = mark and _validator(said) not in (None, mark)
            if place != (start, saved.get("length")) or changed:
                state.discard()
                raise Dropped("the file changed on the server, so it starts over")
            length = place[1]
        else:
            start = 0
            if length is not None and len(head) < min(HEAD, length):
                raise Dropped(f"the connection dropped after {len(head)} of {length:,} bytes")
        _check_kind(address, start, head, response)
        if address.size and address.digests and length not in (None, address.size):
            raise DownloadError(
                f"the server has a file of {length:,} bytes, expected {address.size:,}: it is "
                "another file than the one whose checksum is known"
            )
        _check_space(state.part.parent, (length or 0) - start)
        try:
            if not start:
                state.discard()
                state.part.touch()
                state.write(url=address.url, validator=_validator(said), length=length)
            state.joined |= start > 0
            with open(state.part, "ab") as out:
                _pour(response, head, out, start, length, monitor)
        except OSError as error:
            raise disk_error(error, state.part.parent) from error
    if length is not None and state.size < length:
        raise Dropped(f"the connection dropped after {state.size:,} of {length:,} bytes")


def _check_kind(address, start: int, head: bytes, response) -> None:
    """Refuse a web page or anything else that is not the kind of file that was asked for."""
    page = response.headers.get_content_type() in ("text/html", "application/xhtml+xml")
    if not page and start:
        return
    end = next((end for end in _MAGIC if address.name.lower().endswith(end)), None)
    if page or head.lstrip()[:9].lower() in (b"<!doctype", b"<html") or b"<html" in head.lower():
        with contextlib.suppress(*_DROPPED):
            head += response.read(1 << 18)
        raise _Page(head.decode("utf-8", "replace"), response.url)
    if end and not _MAGIC[end](head):
        raise DownloadError(f"what the server sent is no {end} file (it begins with {head[:12]!r})")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise errors.UserError(
            f"the disk of '{folder}' is full: {free:,} bytes are free, {needed:,} more are to be "
            "downloaded; free some space, then run the same command again"
        )


def _pour(response, head: bytes, out, start: int, length: int | None, monitor: Monitor) -> None:
    """Write what arrives; failures to read are `Dropped`, failures to write are left alone."""
    done, block = start, head
    while block:
        out.write(block)
        done += len(block)
        monitor.progress("downloading", done, length)
        if monitor.stop.is_set():
            raise Stopped
        try:
            block = response.read1(BLOCK)
        except _DROPPED as error:
            of = f" of {length:,}" if length else ""
            raise Dropped(f"the connection dropped after {done:,}{of} bytes") from error
    out.flush()
    os.fsync(out.fileno())


def _persist(address, state: _State, monitor: Monitor, rules: Rules) -> None:
    """Attempt until all is there, or until too many attempts in a row brought nothing."""
    url, failures, best = address.url, 0, state.size
    while True:
        try:
            return _attempt(address, url, state, monitor, rules)
        except _Page as page:
            confirmed = _confirmed(page) if address.asks and url == address.url else None
            if not confirmed:
                title = _Form(page.text).title
                raise DownloadError(
                    "the server sent a web page instead of the file"
                    + (f" ('{title[:100]}')" if title else "")
                ) from page
            url = confirmed
        except Dropped as error:
            failures = 1 if state.size > best else failures + 1
            best = max(best, state.size)
            if failures >= rules.attempts:
                raise DownloadError(f"{error}; gave up after {failures} attempts") from error
            pause = min(rules.longest_pause, max(error.pause, rules.pause * 2 ** (failures - 1)))
            monitor.tell(f"{address.name}: {error}; trying again in {pause:g} s")
            monitor.wait(pause)


def verify(address, path: Path, monitor: Monitor) -> str:
    """Return the SHA-256 of a file after holding it against the checksums that are known.

    Raises:
        DownloadError: none of them is right.
    """
    seen = digest_of(path, ("sha256", "md5"), monitor)
    if address.digests and not set(address.digests) & set(seen.values()):
        raise DownloadError(
            f"its checksum is wrong (SHA-256 {seen['sha256']}, expected {address.digests[0]})"
        )
    return seen["sha256"]


def download(address, target: Path, monitor=None, rules: Rules | None = None) -> str:
    """Fetch ``address`` into the file ``target``, going on where an earlier call was cut.

    Args:
        address: an `Address` of ``datasets/addresses.py``.
        target: only ever there as a whole; a call that finds it verifies it.

    Returns:
        the file's SHA-256.

    Raises:
        DownloadError: this address does not give the file; the text says why.
        UserError: the disk is full or cannot be written to.
        Stopped: ``monitor.stop`` was set; what has arrived is kept.
    """
    monitor, rules = monitor or Monitor(), rules or Rules()
    state = _State(target.with_name(target.name + ".part"))
    if target.is_file():
        with contextlib.suppress(DownloadError):
            return verify(address, target, monitor)
        target.unlink()
    for again in (True, False):
        _persist(address, state, monitor, rules)
        try:
            digest = verify(address, state.part, monitor)
            break
        except DownloadError:
            again = again and state.joined
            state.discard()
            if not again:
                raise
            monitor.tell(f"{address.name}: the checksum is wrong, so it starts over")
    os.replace(state.part, target)
    state.discard()
    return digest
