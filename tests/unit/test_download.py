"""Downloads against a server on this machine that does what servers do at their worst."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import signal
import threading
import time
import types
import zipfile

import pytest

from advprompt.data import download as module
from advprompt.data.download import DownloadError, Monitor, Rules, download
from advprompt.data.unpack import Stopped
from advprompt.datasets.addresses import Address, drive
from advprompt.utils.errors import UserError
from tests.file_server import FileServer, Served

QUICK = Rules(attempts=3, pause=0.001, longest_pause=0.002, timeout=5)
BODY = b"PK\x03\x04" + random.Random(0).randbytes(3_000_000)
OTHER = b"PK\x03\x04" + random.Random(1).randbytes(2_900_000)
PAGE = "<!DOCTYPE html><html><head><title>Quota exceeded</title></head><body>Sorry</body></html>"


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture
def server():
    running = FileServer()
    yield running
    running.close()


@pytest.fixture
def fetch(server, tmp_path):
    """Serve one file and fetch it: ``fetch(odd=[...]) -> bytes that arrived``."""

    def call(body=BODY, digests=(), etag='"1"', monitor=None, name="a.zip", size=None, **served):
        server.files.setdefault(f"/{name}", Served(body, etag, **served))
        address = Address(server.url(f"/{name}"), size, digests)
        digest = download(address, tmp_path / name, monitor, QUICK)
        got = (tmp_path / name).read_bytes()
        assert digest == sha256(got)
        assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing else is left
        return got

    return call


def test_a_file_arrives_whole(fetch, server):
    assert fetch() == BODY
    assert server.ranges() == [None]


def test_a_file_that_is_there_is_not_fetched_again(fetch, server):
    fetch()
    fetch()
    assert len(server.requests) == 1


@pytest.mark.parametrize("cuts", [[0], [1000], [1_000_000, 500_000, 3], [2_999_999, 1, 1]])
def test_dropped_connections_resume(fetch, server, cuts):
    lines = []
    got = fetch(
        odd=[{"send": cut} for cut in cuts],
        digests=(sha256(BODY),),
        monitor=Monitor(tell=lines.append),
    )
    assert got == BODY
    assert len(lines) == len(cuts) and "trying again" in lines[0]
    sent = [len(BODY) - int(r[6:-1]) for r in server.ranges()[1:] if r]
    if cuts != [0]:
        assert sent and max(sent) < len(BODY)  # the rest was asked for, no more
        assert {headers["If-Range"] for _, headers in server.requests[-1:]} == {'"1"'}


def test_many_drops_with_progress_are_not_too_many(fetch):
    assert fetch(odd=[{"send": 200_000}] * 12) == BODY  # more than QUICK.attempts


def test_no_progress_gives_up_and_keeps_what_came(fetch, tmp_path):
    with pytest.raises(DownloadError, match="503.*3 attempts"):
        fetch(odd=[{"send": 1_000_000}, {"status": 503}, {"status": 503}])
    assert not (tmp_path / "a.zip").exists()
    assert (tmp_path / "a.zip.part").stat().st_size == 1_000_000
    assert fetch() == BODY


@pytest.mark.parametrize("digests", [(), (sha256(BODY),)])
def test_a_server_that_ignores_range_starts_the_file_over(fetch, digests):
    assert fetch(odd=[{"send": 1_000_000}, {"whole": True}], digests=digests) == BODY


def test_a_server_that_always_cuts_and_ignores_range_is_given_up(fetch):
    with pytest.raises(DownloadError, match="dropped after 1,000,000 of 3,000,004 bytes; gave up"):
        fetch(always={"send": 1_000_000, "whole": True})


@pytest.mark.parametrize("fixed", [False, True])
def test_a_file_that_changes_between_attempts_is_never_mixed(fetch, fixed):
    change = {"change": (OTHER, '"2"'), "fixed_range": fixed}
    assert fetch(odd=[{"send": 1_000_000}, change]) == OTHER


def test_a_changed_file_of_the_same_length_is_never_mixed(fetch):
    other = BODY[:4] + OTHER[4:] + BODY[len(OTHER) :]
    change = {"change": (other, '"2"'), "fixed_range": True}
    assert fetch(odd=[{"send": 1_000_000}, change]) == other


def test_without_a_mark_only_a_checksum_allows_to_resume(fetch, server, tmp_path):
    assert fetch(odd=[{"send": 1_000_000}], etag=None) == BODY
    assert server.ranges() == [None, None]
    (tmp_path / "a.zip").unlink()
    server.files.clear(), server.requests.clear()
    assert fetch(odd=[{"send": 1_000_000}], etag=None, digests=(sha256(BODY),)) == BODY
    assert server.ranges()[1].startswith("bytes=")


def test_a_weak_mark_does_not_count(fetch, server):
    assert fetch(odd=[{"send": 1_000_000}], etag='W/"1"') == BODY
    assert server.ranges() == [None, None]


def test_a_wrong_mixture_is_found_by_the_checksum_and_mended(fetch):
    """A server that swaps the file under the same mark."""
    other = OTHER + BODY[len(OTHER) :]
    odd = [{"send": 1_000_000, "change": (other, '"1"')}, {"change": (BODY, '"1"')}]
    assert fetch(odd=odd, digests=(sha256(BODY),)) == BODY


def test_a_checksum_that_stays_wrong_ends_it(fetch, server):
    with pytest.raises(DownloadError, match="checksum is wrong"):
        fetch(digests=("0" * 64,), odd=[{"send": 1_000_000}, {}, {"send": 1_000_000}])
    assert len(server.requests) == 4  # each time in two parts, and no third time


def test_a_wrong_checksum_is_refused(fetch, tmp_path):
    with pytest.raises(DownloadError, match=f"checksum is wrong.*{sha256(BODY)}.*{'0' * 64}"):
        fetch(digests=("0" * 64, "0" * 32))
    assert not any(tmp_path.iterdir())


def test_an_md5_will_do(fetch):
    assert fetch(digests=("0" * 64, hashlib.md5(BODY).hexdigest())) == BODY


def test_a_file_of_another_size_is_refused_before_it_is_downloaded(fetch, tmp_path):
    with pytest.raises(DownloadError, match="3,000,004 bytes, expected 17"):
        fetch(size=17, digests=("0" * 64,))
    assert not any(tmp_path.iterdir())
    assert fetch(size=17) == BODY  # sizes without a checksum are only for the table


@pytest.mark.parametrize("say", [3_500_000, None])
def test_a_length_that_is_never_reached(fetch, tmp_path, say):
    """Without any length the end of the connection is the end of the file."""
    if say is None:
        assert fetch(always={"say": None}) == BODY
        return
    with pytest.raises(DownloadError, match="3,000,004 of 3,500,000 bytes; gave up"):
        fetch(always={"say": say, "whole": True})
    assert not (tmp_path / "a.zip").exists()


def test_a_length_that_is_too_small_fails_the_checksum(fetch):
    with pytest.raises(DownloadError, match="checksum is wrong"):
        fetch(always={"say": 1000}, digests=(sha256(BODY),))


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({"page": PAGE}, r"web page instead of the file \('Quota exceeded'\)"),
        ({"page": PAGE, "kind": "application/zip"}, "web page instead of the file"),
        (
            {"page": "not a zip", "kind": "application/zip"},
            r"no \.zip file \(it begins with b'not a",
        ),
        ({"status": 404}, "the server answers 404"),
        ({"status": 403}, "the server answers 403"),
        ({"status": 302, "headers": {"Location": "file:///etc/passwd"}}, "answers 302|not allowed"),
    ],
)
def test_what_is_no_file_is_refused_at_once(fetch, server, tmp_path, odd, why):
    with pytest.raises(DownloadError, match=why):
        fetch(always=odd)
    assert len(server.requests) == 1 and not any(tmp_path.iterdir())


def test_a_page_that_comes_when_resuming_spoils_nothing(fetch):
    with pytest.raises(DownloadError, match="web page"):
        fetch(odd=[{"send": 1_000_000}, {"page": PAGE}])
    assert fetch() == BODY


@pytest.mark.parametrize("body", [b"\x1f\x8b" + b"x" * 600, b"x" * 257 + b"ustar" + b"x" * 400])
def test_a_plain_tar_may_be_called_tar_gz(fetch, body):
    assert fetch(body, name="a.tar.gz") == body


@pytest.mark.parametrize("name", ["a.json", "a.txt", "a.mat", "a.tgz", "a.tar"])
def test_each_kind_is_told_from_something_else(fetch, name):
    with pytest.raises(DownloadError, match="begins with b'<<<"):
        fetch(b"<<<" * 300, name=name)


def test_a_busy_server_is_asked_again_when_it_says(fetch):
    waits = []
    monitor = Monitor(tell=waits.append)
    assert fetch(odd=[{"status": 503, "headers": {"Retry-After": "1"}}], monitor=monitor) == BODY
    assert "503" in waits[0] and "0.002 s" in waits[0]  # never longer than the longest pause


def test_no_server_is_told_with_its_reason(tmp_path):
    with pytest.raises(DownloadError, match="no connection .*refused.*3 attempts"):
        download(Address("http://127.0.0.1:9/a.zip"), tmp_path / "a.zip", None, QUICK)


def test_redirects_are_followed_and_keep_the_range(fetch, server, tmp_path):
    server.files["/b.zip"] = Served(BODY, odd=[{"send": 1_000_000}])
    moved = {"status": 302, "headers": {"Location": "/b.zip"}}
    assert fetch(always=moved) == BODY
    assert server.ranges() == [None, None, "bytes=1000000-", "bytes=1000000-"]


def test_no_redirect_leaves_the_encryption():
    request = types.SimpleNamespace(full_url="https://a/b")
    with pytest.raises(DownloadError, match="not encrypted"):
        module._Redirects().redirect_request(request, None, 302, "", {}, "http://a/b")


def form(action: str) -> str:
    return (
        "<html><title>Virus scan warning</title><form id='download-form' method='get' "
        f"action='{action}'><input type='hidden' name='id' value='x'>"
        "<input type='hidden' name='uuid' value='a b'></form></html>"
    )


def test_google_drives_question_is_answered(server, tmp_path):
    server.files["/q"] = Served(b"", always={"page": form("/yes")})
    server.files["/yes?id=x&uuid=a+b"] = Served(BODY, odd=[{"send": 1_000_000}])
    address = Address(server.url("/q"), file="a.zip", asks=True)
    download(address, tmp_path / "a.zip", None, QUICK)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert server.ranges() == [None, None, "bytes=1000000-"]


@pytest.mark.parametrize(
    "action", ["http://elsewhere.example/yes", "file:///etc/passwd", "", "/q2"]
)
def test_google_drives_refusal_and_forms_that_lead_away_are_not_followed(server, tmp_path, action):
    page = form(action) if action != "/q2" else PAGE
    server.files["/q"] = Served(b"", always={"page": page})
    address = Address(server.url("/q"), file="a.zip", asks=True)
    with pytest.raises(DownloadError, match="web page instead of the file"):
        download(address, tmp_path / "a.zip", None, QUICK)
    assert len(server.requests) == 1


def test_a_second_question_is_a_refusal(server, tmp_path):
    server.files["/q"] = Served(b"", always={"page": form("/yes")})
    server.files["/yes?id=x&uuid=a+b"] = Served(b"", always={"page": form("/yes")})
    with pytest.raises(DownloadError, match="Virus scan warning"):
        download(
            Address(server.url("/q"), file="a.zip", asks=True), tmp_path / "a.zip", None, QUICK
        )
    assert len(server.requests) == 2


def test_drive_addresses():
    address = drive("ID", "split.json")
    assert address.url.startswith("https://drive.usercontent.google.com/download?id=ID&")
    assert (address.name, address.asks, address.is_archive) == ("split.json", True, False)
    assert address.page == "https://drive.google.com/file/d/ID"


def test_a_stop_keeps_what_came(fetch, server, tmp_path):
    monitor = Monitor()
    monitor.progress = lambda doing, done, total: done >= 1_000_000 and monitor.stop.set()
    with pytest.raises(Stopped):
        fetch(monitor=monitor)
    kept = (tmp_path / "a.zip.part").stat().st_size
    assert 1_000_000 <= kept < len(BODY)
    assert fetch() == BODY and server.ranges()[-1] == f"bytes={kept}-"


def test_a_stop_ends_a_pause(fetch):
    monitor = Monitor(tell=lambda line: monitor.stop.set())
    with pytest.raises(Stopped):
        fetch(odd=[{"status": 503}] * 3, monitor=monitor)


def test_a_killed_download_resumes(server, tmp_path):
    """kill -9 in the middle of a transfer, then again from another process."""
    body = BODY * 4
    hold = threading.Event()
    server.files["/a.zip"] = Served(body, always={"wait": hold})
    address, target = Address(server.url("/a.zip"), digests=(sha256(body),)), tmp_path / "a.zip"
    part = tmp_path / "a.zip.part"
    slow = Monitor(progress=lambda doing, done, total: time.sleep(0.02))
    child = multiprocessing.get_context("fork").Process(
        target=download, args=(address, target, slow, QUICK)
    )
    child.start()
    hold.set()
    deadline = time.monotonic() + 10
    while not (part.exists() and part.stat().st_size > 2_000_000):
        assert time.monotonic() < deadline and child.is_alive()
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    kept = part.stat().st_size
    assert not target.exists() and kept < len(body)
    download(address, target, None, QUICK)
    assert target.read_bytes() == body and server.ranges()[-1] == f"bytes={kept}-"


def test_a_damaged_note_beside_the_part_starts_over(fetch, tmp_path):
    for note in ("{", "[]", "{}", json.dumps({"url": "other"})):
        (tmp_path / "a.zip.part").write_bytes(b"x" * 1000)
        (tmp_path / "a.zip.part.json").write_text(note, encoding="utf-8")
        assert fetch() == BODY
        (tmp_path / "a.zip").unlink()


def test_a_part_that_is_longer_than_the_file_starts_over(fetch, server, tmp_path):
    part = tmp_path / "a.zip.part"
    part.write_bytes(b"x" * (len(BODY) + 5))
    note = {"url": server.url("/a.zip"), "validator": '"1"', "length": len(BODY)}
    (tmp_path / "a.zip.part.json").write_text(json.dumps(note), encoding="utf-8")
    assert fetch() == BODY


def test_a_full_disk_is_told_before_the_download(fetch, server, tmp_path, monkeypatch):
    usage = types.SimpleNamespace(total=10, used=0, free=1_000_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="disk of .* is full: 1,000,000 bytes are free, 3,000,004"):
        fetch()
    assert not any(tmp_path.iterdir())


def test_a_disk_that_runs_full_keeps_what_came(fetch, tmp_path, monkeypatch):
    real = module._pour

    def pour(response, head, out, *rest):
        class Full(io.RawIOBase):
            def write(self, block):
                if out.tell() > 1_000_000:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return out.write(block)

        real(response, head, Full(), *rest)

    monkeypatch.setattr(module, "_pour", pour)
    with pytest.raises(UserError, match="is full; free some space"):
        fetch()
    monkeypatch.undo()
    assert (tmp_path / "a.zip.part").stat().st_size > 1_000_000
    assert fetch() == BODY


def test_a_limit_of_file_sizes_is_a_full_disk_too(server, tmp_path):
    """A limit of the operating system, in a process of its own."""
    resource = pytest.importorskip("resource")
    server.files["/a.zip"] = Served(BODY)
    said = multiprocessing.get_context("fork").SimpleQueue()

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            download(Address(server.url("/a.zip")), tmp_path / "a.zip", None, QUICK)
        except UserError as error:
            said.put(str(error))

    child = multiprocessing.get_context("fork").Process(target=limited)
    child.start()
    child.join(10)
    assert "is full" in said.get() and not (tmp_path / "a.zip").exists()


def test_an_archive_that_was_verified_before_is_verified_again(fetch, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"damaged since")
    assert fetch(digests=(sha256(BODY),)) == BODY


def test_real_zips_look_like_zips():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "b")
    assert module._MAGIC[".zip"](buffer.getvalue())
