"""Archives that try to write where they should not, and damaged ones."""

from __future__ import annotations

import gzip
import stat
import tarfile

import pytest

from advprompt.data import unpack as module
from advprompt.data.download import DownloadError, Progress
from tests.file_server import tarred, zipped


def entry(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.devmajor, info.devminor = kind, link, 1, 3
    return info


@pytest.fixture
def unpack(tmp_path):
    """Unpack into ``tmp_path/in/out`` and return the files in there."""

    def call(archive, *wanted):
        folder = tmp_path / "in" / "out"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x").write_bytes(archive)
        module.unpack(tmp_path / "x", folder, wanted, Progress(disable=True))
        files = [p for p in folder.rglob("*") if p.is_file()]
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}

    return call


GOOD = (("a/b/1.jpg", b"one"), ("a/2.jpg", b"two"), ("c.txt", b"three"), ("aa/3.jpg", b"x"))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_only_what_is_wanted_of_a_tar_is_written(tmp_path, unpack, mode, form):
    members = [(f"./{name}", content) for name, content in GOOD]
    archive = tarred(entry("./a", tarfile.DIRTYPE), *members, mode=mode, format=form)
    assert unpack(archive, "a", "c.txt") == dict(GOOD[:3])
    mode = (tmp_path / "in/out/c.txt").stat().st_mode
    assert not stat.S_IMODE(mode) & 0o7022  # nobody else may write; no setuid


def test_only_what_is_wanted_of_a_zip_is_written(unpack):
    archive = zipped(*GOOD, ("__MACOSX/a/2.jpg", b"x"))
    assert unpack(archive, "a/b", "c.txt") == {"a/b/1.jpg": b"one", "c.txt": b"three"}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "..\\x", "C:\\x", "C:/x", "a/.."])
@pytest.mark.parametrize("pack", [tarred, zipped])
def test_names_that_leave_the_folder_write_nothing(tmp_path, unpack, pack, name):
    archive = pack(("fine.txt", b"fine"), (name, b"hostile"))
    assert unpack(archive, "fine.txt", "a") == {"fine.txt": b"fine"}
    assert {p.name for p in tmp_path.rglob("*")} == {"in", "x", "out", "fine.txt"}


LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE]
DEVICES = [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]


@pytest.mark.parametrize("kind", LINKS + DEVICES)
@pytest.mark.parametrize("link", ["/etc/passwd", "../../secret", "a/../../../secret"])
def test_devices_and_links_out_of_the_folder_are_refused(tmp_path, unpack, kind, link):
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(DownloadError, match="unsafe"):
        unpack(tarred(("a/1", b"one"), entry("a/here", kind, link)), "a")
    assert not (tmp_path / "in/out/a/here").exists()


def test_writing_through_a_link_is_impossible(tmp_path, unpack):
    """A link to a folder, then a file below the link: the classic way out."""
    (tmp_path / "target").mkdir()
    for link in (str(tmp_path / "target"), "../../target"):
        with pytest.raises(DownloadError):
            unpack(tarred(entry("l", tarfile.SYMTYPE, link), ("l/x", b"hostile")), "l")
    assert not any((tmp_path / "target").iterdir())


@pytest.mark.parametrize("part", [0.1, 0.9, 0.999, 1])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archives_that_are_cut_short_or_have_a_flipped_bit_are_refused(unpack, pack, part):
    data = bytearray(pack(("a", bytes(range(256)) * 400)))
    if part == 1:
        data[len(data) // 2 if pack is zipped else -6] ^= 1
    with pytest.raises(DownloadError, match="damaged"):
        unpack(data[: int(len(data) * part)], "a")


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"PK", b"PK\x03\x04" + b"x" * 100, gzip.compress(b"no tar at all")],
    ids=["empty", "page", "short zip", "zip", "gzip"],  # gzip writes the time into its output
)
def test_what_is_not_an_archive_is_refused(unpack, body):
    with pytest.raises(DownloadError):
        unpack(body, "a")


def test_a_file_where_a_folder_is_needed_is_refused(unpack):
    with pytest.raises(DownloadError, match="twice"):
        unpack(tarred(("a", b"1"), ("a/b", b"2")), "a")
