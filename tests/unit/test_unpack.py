"""Archives that try to write where they should not, and damaged ones."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import threading
import types
import zipfile

import pytest

from advprompt.data import unpack as module
from advprompt.data.unpack import BadArchive, Stopped, unpack
from advprompt.utils.errors import UserError


def tar(path, *members, mode="w"):
    """Write a tar of (name, content) pairs or of TarInfo objects."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tuple):
                member, content = tarfile.TarInfo(member[0]), member[1]
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                archive.addfile(member)
    return path


def entry(name, kind, link="", **facts):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    for key, value in facts.items():
        setattr(info, key, value)
    return info


def pack_zip(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def zip_entry(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


GOOD = (("a/b/1.jpg", b"one"), ("a/2.jpg", b"two"), ("c.txt", b"three"))
GOOD_TREE = {"a/b/1.jpg": b"one", "a/2.jpg": b"two", "c.txt": b"three"}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_is_unpacked(tmp_path, mode, form):
    with tarfile.open(tmp_path / "x", mode, format=form) as archive:
        archive.addfile(entry("./a", tarfile.DIRTYPE))
        for name, content in GOOD:
            info = entry(f"./{name}", tarfile.REGTYPE, size=len(content), mode=0o6777)
            archive.addfile(info, io.BytesIO(content))
    unpack(tmp_path / "x", tmp_path / "out")
    assert tree(tmp_path / "out") == GOOD_TREE
    assert not stat.S_IMODE((tmp_path / "out/c.txt").stat().st_mode) & 0o7133  # no x, no setuid


def test_a_zip_is_unpacked_whatever_its_name(tmp_path):
    unpack(pack_zip(tmp_path / "x.tar.gz", *GOOD), tmp_path / "out")
    assert tree(tmp_path / "out") == GOOD_TREE


def test_only_what_is_wanted_is_written(tmp_path):
    path = pack_zip(tmp_path / "x.zip", *GOOD, ("a/bb/3.jpg", b"x"), ("__MACOSX/a/2.jpg", b"x"))
    unpack(path, tmp_path / "out", {"a/b": "images", "c.txt": "names.txt"})
    assert tree(tmp_path / "out") == {"images/1.jpg": b"one", "names.txt": b"three"}


def test_long_names_and_many_members(tmp_path):
    members = [(f"{'d' * 90}/{'e' * 90}/{n:05d}.jpg", b"x") for n in range(500)]
    unpack(tar(tmp_path / "x", *members), tmp_path / "out")
    assert len(tree(tmp_path / "out")) == 500


HOSTILE_NAMES = ["../x", "a/../../x", "/etc/x", "..\\x", "C:\\x", "C:/x", "a/..", "\\\\host\\x"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("pack", [tar, pack_zip])
def test_names_that_leave_the_folder_are_refused(tmp_path, pack, name):
    (tmp_path / "in").mkdir()
    path = pack(tmp_path / "in" / "x", ("fine.txt", b"fine"), (name, b"hostile"))
    with pytest.raises(BadArchive, match="would leave its folder"):
        unpack(path, tmp_path / "in" / "out", {"fine.txt": "fine.txt"})  # wanted or not
    assert {p.name for p in tmp_path.rglob("*")} <= {"in", "x", "out", "fine.txt"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("link", ["/etc/passwd", "../secret", "a/../../secret", "../../x"])
def test_links_out_of_the_folder_are_refused(tmp_path, kind, link):
    (tmp_path / "secret").write_bytes(b"secret")
    path = tar(tmp_path / "x", ("a/1", b"one"), entry("here", kind, link))
    with pytest.raises(BadArchive, match="leave its folder|link out of its folder"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out" / "here").exists()


def test_writing_through_a_link_is_impossible(tmp_path):
    """A link to a folder, then a file below the link: the classic way out."""
    (tmp_path / "target").mkdir()
    for link in (str(tmp_path / "target"), "../target", "sub"):
        path = tar(
            tmp_path / "x", ("sub/1", b"1"), entry("l", tarfile.SYMTYPE, link), ("l/x", b"hostile")
        )
        with pytest.raises(BadArchive):
            unpack(path, tmp_path / link.replace("/", "_"))
    assert not any((tmp_path / "target").iterdir())
    assert not any(p.is_symlink() for p in tmp_path.rglob("*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_within_the_archive_become_copies(tmp_path, kind):
    link = "1.jpg" if kind == tarfile.SYMTYPE else "a/1.jpg"  # relative to itself, to the top
    path = tar(tmp_path / "x", entry("a/2.jpg", kind, link), ("a/1.jpg", b"one"))
    unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {"a/1.jpg": b"one", "a/2.jpg": b"one"}
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))


def test_links_to_nothing_to_a_folder_or_in_a_circle_are_refused(tmp_path):
    for link in ("nothing", "a", "l"):
        path = tar(tmp_path / "x", ("a/1", b"one"), entry("l", tarfile.SYMTYPE, link))
        with pytest.raises(BadArchive, match="no file in it"):
            unpack(path, tmp_path / f"out_{link}")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes_are_refused(tmp_path, kind):
    path = tar(tmp_path / "x", entry("dev", kind, devmajor=1, devminor=3))
    with pytest.raises(BadArchive, match="a device, a pipe"):
        unpack(path, tmp_path / "out")
    assert not tree(tmp_path / "out")


@pytest.mark.parametrize("link", ["/etc/passwd", "../secret"])
def test_links_in_zips(tmp_path, link):
    path = pack_zip(tmp_path / "x", (zip_entry("l", stat.S_IFLNK | 0o777), link))
    with pytest.raises(BadArchive, match="link out of its folder"):
        unpack(path, tmp_path / "out")
    inside = (zip_entry("l", stat.S_IFLNK | 0o777), "1")
    unpack(pack_zip(tmp_path / "y", ("1", b"one"), inside), tmp_path / "out_y")
    assert tree(tmp_path / "out_y") == {"1": b"one", "l": b"one"}


def test_devices_in_zips_are_refused(tmp_path):
    path = pack_zip(tmp_path / "x", (zip_entry("dev", stat.S_IFCHR | 0o666), b""))
    with pytest.raises(BadArchive, match="a device, a pipe"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("pack", ["zip", "tar"])
def test_bombs_are_refused_before_they_are_written(tmp_path, pack):
    bomb = ("bomb", b"\0" * 30_000_000)
    if pack == "zip":
        path = pack_zip(tmp_path / "x", ("1", b"one"), bomb)
    else:
        path = tar(tmp_path / "x", ("1", b"one"), bomb, mode="w:gz")
    assert path.stat().st_size < 100_000
    with pytest.raises(BadArchive, match="more than 1,000,000 bytes"):
        unpack(path, tmp_path / "out", limit=1_000_000)
    assert tree(tmp_path / "out") == {"1": b"one"}


def test_a_bomb_of_links_and_one_of_members(tmp_path, monkeypatch):
    links = [entry(f"l{n}", tarfile.SYMTYPE, "1") for n in range(50)]
    with pytest.raises(BadArchive, match="more than 1,000 bytes"):
        unpack(tar(tmp_path / "x", ("1", b"x" * 100), *links), tmp_path / "out", limit=1000)
    monkeypatch.setattr(module, "MEMBERS", 10)
    with pytest.raises(BadArchive, match="more than 10 members"):
        unpack(tar(tmp_path / "y", *[(f"{n}", b"") for n in range(11)]), tmp_path / "out_y")


def test_the_limit_grows_with_the_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FLOOR", 1000)
    path = tar(tmp_path / "x", ("zeros", b"\0" * 3_000_000), mode="w:gz")
    with pytest.raises(BadArchive, match="far more than it should"):
        unpack(path, tmp_path / "out")
    unpack(tar(tmp_path / "y", ("zeros", b"\0" * 3_000_000)), tmp_path / "out_y")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("pack", ["zip", "tar", "gz"])
def test_archives_that_are_cut_short_are_refused(tmp_path, pack, part):
    members = [(f"{n}.bin", bytes(range(256)) * 40) for n in range(10)]
    if pack == "zip":
        path = pack_zip(tmp_path / "x", *members)
    else:
        path = tar(tmp_path / "x", *members, mode="w:gz" if pack == "gz" else "w")
    data = path.read_bytes()
    # the end of a plain tar is padding: nothing is lost with some of it
    path.write_bytes(data[: int((len(data) - 10_000 * (pack == "tar")) * part)])
    with pytest.raises(BadArchive, match="damaged|cut short"):
        unpack(path, tmp_path / "out")


def test_a_flipped_bit_is_found(tmp_path):
    content = bytes(range(256)) * 400
    for name, path in {
        "zip": pack_zip(tmp_path / "z", ("a", content)),
        "gz": tar(tmp_path / "g", ("a", content), mode="w:gz"),
    }.items():
        data = bytearray(path.read_bytes())
        data[len(data) // 2 if name == "zip" else -6] ^= 1
        path.write_bytes(data)
        with pytest.raises(BadArchive, match="damaged"):
            unpack(path, tmp_path / name)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"PK", b"PK\x03\x04" + b"x" * 100, gzip.compress(b"no tar at all")],
    ids=["empty", "page", "short zip", "zip", "gzip"],  # gzip writes the time into its output
)
def test_what_is_no_archive_is_refused(tmp_path, body):
    (tmp_path / "x").write_bytes(body)
    with pytest.raises(BadArchive):
        unpack(tmp_path / "x", tmp_path / "out")


def test_encrypted_zips_are_refused(tmp_path):
    path = pack_zip(tmp_path / "x", ("a", b"content"))
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the member's own header and in the list at the end
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(BadArchive, match="encrypted|password"):
        unpack(path, tmp_path / "out")


def test_a_file_where_a_folder_is_needed_is_refused(tmp_path):
    with pytest.raises(BadArchive, match="a file and a folder of one name"):
        unpack(tar(tmp_path / "x", ("a", b"1"), ("a/b", b"2")), tmp_path / "out")


def test_the_last_of_two_members_of_one_name_counts(tmp_path):
    unpack(tar(tmp_path / "x", ("a", b"1"), ("a", b"2")), tmp_path / "out")
    assert tree(tmp_path / "out") == {"a": b"2"}


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="1,000 bytes are free") as caught:
        unpack(tar(tmp_path / "x", ("a", b"1" * 2000)), tmp_path / "out")
    assert not isinstance(caught.value, BadArchive)  # the archive is not to blame


def test_progress_and_stop(tmp_path):
    path = tar(tmp_path / "x", *[(f"{n}", b"x" * 5000) for n in range(20)])
    seen, stop = [], threading.Event()
    unpack(path, tmp_path / "out", progress=seen.append)
    assert seen == sorted(seen) and 0 < seen[-1] <= path.stat().st_size
    with pytest.raises(Stopped):
        unpack(path, tmp_path / "two", progress=lambda done: stop.set(), stop=stop)
    assert len(tree(tmp_path / "two")) < 20
