"""Downloads against a server on this machine that does what servers do at their worst."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time

import pytest

from advprompt.data import download as module
from advprompt.data.download import DownloadError, Progress, Stopped, download
from advprompt.datasets.sources import Address
from tests.file_server import FileServer, Served

BODY = b"PK\x03\x04" + random.Random(0).randbytes(3_000_000)
OTHER = b"PK\x03\x04" + random.Random(1).randbytes(2_900_000)
PAGE = "<!DOCTYPE html><html><head><title>Quota exceeded</title></head><body>Sorry</body></html>"
CUT = 1_000_000
BLOCK = module.BLOCK  # what a dropped connection may lose


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 3)
    monkeypatch.setattr(module, "PAUSE", 0.001)
    monkeypatch.setattr(module, "TIMEOUT", 5)


@pytest.fixture
def server():
    running = FileServer()
    yield running
    running.close()


@pytest.fixture
def bar():
    with Progress(disable=True) as bar:
        bar.stop = threading.Event()
        yield bar


@pytest.fixture
def fetch(server, tmp_path, bar):
    """Serve one file and fetch it: ``fetch(odd=[...]) -> bytes that arrived``."""

    def call(body=BODY, checksum="", etag='"1"', name="a.zip", size=None, **served):
        server.files.setdefault(f"/{name}", Served(body, etag, **served))
        address = Address(server.url(f"/{name}"), size or len(body), checksum)
        assert download(address, tmp_path, bar) == tmp_path / name
        assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing else is left
        return (tmp_path / name).read_bytes()

    return call


def kept(folder) -> int:
    """Return the size of the partial file."""
    return sum(p.stat().st_size for p in folder.glob("*.part"))


def test_a_file_arrives_whole_and_is_not_fetched_again(fetch, server):
    assert fetch() == BODY == fetch()
    assert server.ranges() == [None]


@pytest.mark.parametrize("checksum", ["", sha256(BODY), f"md5:{hashlib.md5(BODY).hexdigest()}"])
@pytest.mark.parametrize("cuts", [[0], [1000], [CUT, 500_000, 3], [2_999_999, 1, 1]])
def test_dropped_connections_resume(fetch, server, cuts, checksum, capsys):
    got = fetch(odd=[{"send": cut} for cut in cuts], checksum=checksum)
    assert got == BODY
    assert capsys.readouterr().err.count("trying again") == len(cuts)
    for previous, sent in zip([r for r in server.ranges() if r], cuts, strict=False):
        assert int(previous[6:-1]) > sent - BLOCK  # the rest was asked for, little more


def test_no_progress_gives_up_and_keeps_what_came(fetch, tmp_path):
    with pytest.raises(DownloadError, match="503.*3 attempts"):
        fetch(odd=[{"send": CUT}, {"status": 503}, {"status": 503}])
    assert not (tmp_path / "a.zip").exists() and CUT - BLOCK < kept(tmp_path) <= CUT
    assert fetch() == BODY


# a body that shares its first bytes, and no more, with the one served before
MIXABLE = BODY[:4] + OTHER[4:] + BODY[len(OTHER) :]
ODD = {  # what the server does -> its answers in turn, what else it serves, the file that arrives
    "ignores the range": ([{"send": CUT}, {"whole": True}], {}, BODY),
    "has another file": ([{"send": CUT}, {"change": (OTHER, '"2"')}], {}, OTHER),
    "has one as long": ([{"send": CUT}, {"change": (MIXABLE, '"2"')}], {}, MIXABLE),
    "has no mark": ([{"send": CUT}, {"change": (MIXABLE, None)}], {"etag": None}, MIXABLE),
    "has a weak one": ([{"send": CUT}, {"change": (MIXABLE, 'W/"1"')}], {"etag": 'W/"1"'}, MIXABLE),
    "keeps the mark": (  # which the checksum finds
        [{"send": CUT, "change": (OTHER + BODY[len(OTHER) :], '"1"')}, {"change": (BODY, '"1"')}],
        {"checksum": sha256(BODY)},
        BODY,
    ),
    "says no length": ([], {"always": {"say": None}}, BODY),
}


@pytest.mark.parametrize(("odd", "served", "body"), ODD.values(), ids=ODD)
def test_what_came_of_another_file_is_never_mixed_in(fetch, odd, served, body):
    assert fetch(odd=odd, **served) == body


def test_a_checksum_that_stays_wrong_ends_it(fetch, server, tmp_path):
    with pytest.raises(DownloadError, match=f"checksum is wrong .expected {'0' * 64}"):
        fetch(checksum="0" * 64, odd=[{"send": CUT}, {}, {"send": CUT}])
    assert len(server.requests) == 4  # each time in two parts, and no third time
    assert not any(tmp_path.iterdir())


def test_a_file_of_another_size_is_refused_before_it_is_downloaded(fetch, tmp_path):
    with pytest.raises(DownloadError, match="3,000,004 bytes, expected 17"):
        fetch(size=17, checksum="0" * 64)
    assert not any(tmp_path.iterdir())
    assert fetch(size=17) == BODY  # sizes without a checksum are approximate


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({"page": PAGE}, r"web page instead of the file \('Quota exceeded'\)"),
        ({"page": PAGE, "kind": "application/zip"}, "web page instead of the file"),
        ({"status": 404}, "the server answers 404"),
    ],
)
def test_what_is_not_the_file_is_refused_at_once(fetch, server, tmp_path, odd, why):
    with pytest.raises(DownloadError, match=why):
        fetch(always=odd)
    assert len(server.requests) == 1 and not any(tmp_path.iterdir())


def test_a_page_that_comes_when_resuming_spoils_nothing(fetch):
    with pytest.raises(DownloadError, match="web page"):
        fetch(odd=[{"send": CUT}, {"page": PAGE}])
    assert fetch() == BODY


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.zip", "file:///etc/passwd"])
def test_no_server(tmp_path, bar, url):
    with pytest.raises(DownloadError, match="connection failed.*3 attempts"):
        download(Address(url), tmp_path, bar)


def test_a_length_that_is_never_reached(fetch, tmp_path):
    with pytest.raises(DownloadError, match="gave up after 3 attempts"):
        fetch(always={"say": 3_500_000, "whole": True})
    assert not (tmp_path / "a.zip").exists()


def test_redirects_are_followed_and_keep_the_range(fetch, server):
    server.files["/b.zip"] = Served(BODY, odd=[{"send": CUT}])
    assert fetch(always={"status": 302, "headers": {"Location": "/b.zip"}}) == BODY
    assert server.ranges()[:2] == [None, None] and len(set(server.ranges()[2:])) == 1


def test_no_redirect_leaves_the_encryption(server, monkeypatch, tmp_path, bar):
    get, url = module.requests.get, server.url("/a.zip")
    server.files["/a.zip"] = Served(BODY)
    monkeypatch.setattr(module.requests, "get", lambda _, **options: get(url, **options))
    with pytest.raises(DownloadError, match="not encrypted"):
        download(Address("https://a/a.zip"), tmp_path, bar)


def test_a_stop_keeps_what_came(fetch, server, tmp_path, bar, monkeypatch):
    update = bar.update
    monkeypatch.setattr(bar, "update", lambda n: (update(n), server.requests and bar.stop.set()))
    with pytest.raises(Stopped):
        fetch()
    here = kept(tmp_path)
    assert 0 < here < len(BODY)
    monkeypatch.undo()
    bar.stop.clear()
    assert fetch() == BODY and server.ranges()[-1] == f"bytes={here}-"


def test_a_killed_download_resumes(server, tmp_path, bar, monkeypatch):
    """kill -9 in the middle of a transfer, then again from another process."""
    body = BODY * 4
    server.files["/a.zip"] = Served(body)
    address = Address(server.url("/a.zip"), len(body), sha256(body))
    monkeypatch.setattr(bar, "update", lambda n: time.sleep(0.002))
    child = multiprocessing.get_context("fork").Process(
        target=download, args=(address, tmp_path, bar)
    )
    child.start()
    deadline = time.monotonic() + 10
    while kept(tmp_path) < 2_000_000:
        assert time.monotonic() < deadline and child.is_alive()
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    here = kept(tmp_path)
    assert not (tmp_path / "a.zip").exists() and here < len(body)
    assert download(address, tmp_path, bar).read_bytes() == body
    assert server.ranges()[-1] == f"bytes={here}-"


def test_files_that_are_not_what_they_seem_are_fetched_again(fetch, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"damaged since")
    (tmp_path / "a.zip.0123456789ab.part").write_bytes(b"x" * 1000)  # of another file
    assert fetch(checksum=sha256(BODY)) == BODY
