"""``advprompt data``: what is there, what is missing, and fetching it from a local server."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import types
import zipfile
from dataclasses import replace

import pytest

from advprompt.cli import data
from advprompt.data import fetching
from advprompt.data.download import Monitor, Rules
from advprompt.datasets import sources
from advprompt.datasets.addresses import Address, Piece
from advprompt.datasets.base import CoOpDataset
from advprompt.utils.entry import run_tool
from tests.conftest import REPO
from tests.file_server import FileServer, Served

PARTS = {"train": 4, "val": 2, "test": 2}
CLASSES = ("Forest", "River")
SPLIT = {
    part: [
        [f"{name}/{name}_{part}_{n}.jpg", label, name]
        for label, name in enumerate(CLASSES)
        for n in range(count // 2)
    ]
    for part, count in PARTS.items()
}
IMAGES = [row[0] for rows in SPLIT.values() for row in rows]
PIXELS = b"\xff\xd8" + bytes(range(256)) * 20


def packed_zip(folder: str, images=IMAGES) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("__MACOSX/junk", "junk")
        for name in images:
            archive.writestr(f"{folder}/{name}", PIXELS + name.encode())
    return buffer.getvalue()


def packed_tar(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(
        fetching, "RULES", Rules(attempts=3, pause=0.001, longest_pause=0.002, timeout=5)
    )
    running = FileServer()
    yield running
    running.close()


@pytest.fixture
def world(server, monkeypatch):
    """A small EuroSAT on the server: an archive with a known checksum and the split file."""
    archive, split = packed_zip("2750"), json.dumps(SPLIT).encode()
    server.files["/EuroSAT.zip"] = Served(archive)
    server.files["/split"] = Served(split, kind="application/json")
    digest = hashlib.sha256(archive).hexdigest()
    real = sources.SOURCES["eurosat"]
    images = Piece(("2750",), (Address(server.url("/EuroSAT.zip"), len(archive), (digest,)),))
    list_file = Piece(
        ("split_zhou_EuroSAT.json",),
        (Address(server.url("/split"), file="split_zhou_EuroSAT.json", asks=True),),
    )
    small = replace(real, sizes=(4, 2, 2), pieces=(images, list_file), split="")

    class Small(type(small)):  # the split file comes from the server of the test
        all_pieces = property(lambda self: (list_file, *self.pieces[:-1]))

    small = Small(**{**vars(small), "split": "here"})
    monkeypatch.setitem(sources.SOURCES, "eurosat", small)
    return small


@pytest.fixture
def run(capsys, tmp_path):
    """Run the tool on ``tmp_path/data``: ``run("check", "eurosat") -> (code, output, errors)``."""

    def call(*words: str, root=None) -> tuple[int, str, str]:
        try:
            code = run_tool(data.main, [*words, "--root", str(root or tmp_path / "data")])
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return call


def change(source, server, monkeypatch, **address):
    """Give the archive of the small EuroSAT other facts."""
    images = source.pieces[0]
    piece = replace(images, addresses=(replace(images.addresses[0], **address),))
    pieces = (piece, *source.pieces[1:])
    monkeypatch.setitem(
        sources.SOURCES, "eurosat", type(source)(**{**vars(source), "pieces": pieces})
    )


def tree(root) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir()}


WHOLE = {"eurosat/split_zhou_EuroSAT.json", *(f"eurosat/2750/{name}" for name in IMAGES)}


def test_fetch_makes_a_set_complete_and_leaves_nothing_else(world, run, tmp_path, server):
    code, out, err = run("fetch", "eurosat")
    assert code == 0, out + err
    assert tree(tmp_path / "data") == WHOLE
    assert (tmp_path / "data/eurosat/2750" / IMAGES[0]).read_bytes() == PIXELS + IMAGES[0].encode()
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["eurosat"]
    assert "EuroSAT.zip -> " in out and "(checksum verified)" in out
    split = hashlib.sha256(json.dumps(SPLIT).encode()).hexdigest()
    assert f"SHA-256 {split}, none is known" in out
    assert "there, 8 images" in out and "complete: eurosat" in out
    asked = len(server.requests)
    code, out, _ = run("fetch", "eurosat")
    assert code == 0 and len(server.requests) == asked  # already complete
    assert run("check", "eurosat")[0] == 0


def test_a_fetched_set_loads(world, run, tmp_path, monkeypatch):
    from advprompt.datasets.eurosat import EuroSAT

    run("fetch", "eurosat")
    cfg = types.SimpleNamespace(
        DATASET=types.SimpleNamespace(ROOT=str(tmp_path / "data"), NUM_SHOTS=0),
        TEST=types.SimpleNamespace(SUBSET=0),
        OUTPUT_DIR=str(tmp_path),
        SEED=1,
    )
    loaded = EuroSAT(cfg)
    assert (len(loaded.train_x), len(loaded.val), len(loaded.test)) == (4, 2, 2)


def test_check_says_what_is_missing_where(world, run, tmp_path):
    code, out, _ = run("check", "eurosat", "imagenet", "cars")
    assert code == 1
    for path in (
        "eurosat/2750",
        "eurosat/split_zhou_EuroSAT.json",
        "imagenet/images/val",
        "imagenet/classnames.txt",
        "stanford_cars/cars_train",
    ):
        assert str(tmp_path / "data" / path) in out
    assert "ILSVRC2012_img_val.tar" in out and "register at https://image-net.org" in out
    assert "cars_train.tgz: the publisher's address" in out and "no longer serves it" in out
    assert "python -m advprompt data fetch eurosat imagenet stanford_cars" in out
    assert not (tmp_path / "data").exists()  # nothing is written


@pytest.mark.parametrize("lost", [1, 3])
def test_check_counts_images_against_the_split_file(world, run, tmp_path, lost):
    run("fetch", "eurosat")
    for name in sorted(IMAGES)[:lost]:
        (tmp_path / "data/eurosat/2750" / name).unlink()
    code, out, _ = run("check", "eurosat")
    assert code == 1
    assert f"missing {lost} of 8 images, such as Forest/Forest_t" in out
    assert "move it away and fetch again" in out


def test_check_without_the_split_file_counts_all_images(world, run, tmp_path):
    run("fetch", "eurosat")
    (tmp_path / "data/eurosat/split_zhou_EuroSAT.json").unlink()
    code, out, _ = run("check", "eurosat")
    assert code == 1 and "there, 8 images" in out and "can be made from the original" in out


@pytest.mark.parametrize("content", ["{", "[]", '{"train": [["a"]]}'])
def test_a_damaged_split_file_is_told_and_left_alone(world, run, tmp_path, content):
    path = tmp_path / "data/eurosat/split_zhou_EuroSAT.json"
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    assert "damaged" in run("check", "eurosat")[1]
    code, out, _ = run("fetch", "eurosat")
    assert code == 1 and "is left as it is" in out and path.read_text() == content


def test_what_the_user_has_is_never_touched(world, run, tmp_path, server):
    own = tmp_path / "data/eurosat/2750/Forest/mine.jpg"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    code, out, _ = run("fetch", "eurosat")
    assert code == 1 and own.read_bytes() == b"mine"
    assert tree(tmp_path / "data/eurosat/2750") == {"Forest/mine.jpg"}
    assert "/EuroSAT.zip" not in [path for path, _ in server.requests]  # it has nowhere to go
    assert "missing 8 of 8 images" in out and "is left as it is" in out


def test_links_to_other_places_are_followed(world, run, tmp_path):
    run("fetch", "eurosat")
    (tmp_path / "data/eurosat").rename(tmp_path / "elsewhere")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/eurosat").symlink_to(tmp_path / "elsewhere")
    assert run("check", "eurosat", root=tmp_path / "linked")[0] == 0
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling/eurosat").mkdir()
    (tmp_path / "dangling/eurosat/2750").symlink_to(tmp_path / "nowhere")
    code, out, _ = run("fetch", "eurosat", root=tmp_path / "dangling")
    assert code == 1 and (tmp_path / "dangling/eurosat/2750").is_symlink()


def test_dropped_connections_are_told_and_overcome(world, run, server):
    server.files["/EuroSAT.zip"].odd = [{"send": 5000}, {"status": 503}, {"send": 3000}]
    code, out, err = run("fetch", "eurosat")
    assert code == 0 and err.count("trying again") == 3


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({"status": 404}, "the server answers 404"),
        (
            {"page": "<html><title>Moved</title></html>"},
            r"a web page instead of the file \('Moved'\)",
        ),
        ({"send": 5000, "whole": True}, "gave up after 3 attempts"),
        ({"status": 503}, "answers 503.*gave up after 3 attempts"),
    ],
)
def test_a_failure_says_what_to_get_by_hand(world, run, server, tmp_path, odd, why):
    server.files["/EuroSAT.zip"].always = odd
    code, out, _ = run("fetch", "eurosat")
    assert code == 1 and re.search(why, out)
    place = tmp_path / "data/eurosat/2750"
    assert (
        f"by hand from {server.url('/EuroSAT.zip')} and unpack it so that there is '{place}'" in out
    )
    assert not place.exists()
    assert (tmp_path / "data/eurosat/split_zhou_EuroSAT.json").is_file()  # the rest was fetched
    server.files["/EuroSAT.zip"].always = {}
    assert run("fetch", "eurosat")[0] == 0
    assert tree(tmp_path / "data") == WHOLE


def test_google_drives_page_instead_of_the_split_file(world, run, server, tmp_path):
    server.files["/split"].always = {"page": "<html><title>Quota exceeded</title></html>"}
    code, out, _ = run("fetch", "eurosat")
    assert code == 1 and "Quota exceeded" in out
    assert not (tmp_path / "data/eurosat/split_zhou_EuroSAT.json").exists()


@pytest.mark.parametrize("body", [b'{"train": []}', b'{"train": [["a", 0', b"[1, 2]"])
def test_a_split_file_that_is_none_is_refused(world, run, server, tmp_path, body):
    server.files["/split"].body = body
    code, out, _ = run("fetch", "eurosat")
    assert code == 1 and "not the JSON file that was expected" in out
    assert not (tmp_path / "data/eurosat/split_zhou_EuroSAT.json").exists()


def test_a_hostile_archive_is_refused(world, run, server, tmp_path, monkeypatch):
    body = packed_tar(("2750/Forest/1.jpg", b"x"), ("../../escaped.jpg", b"x"))
    server.files["/EuroSAT.zip"] = Served(body)
    server.files["/EuroSAT.tgz"] = Served(body)
    change(world, server, monkeypatch, url=server.url("/EuroSAT.tgz"), digests=())
    code, out, _ = run("fetch", "eurosat")
    assert code == 1 and "the archive was refused: it has the member '../../escaped.jpg'" in out
    assert tree(tmp_path / "data") == {"eurosat/split_zhou_EuroSAT.json"}
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize("body", [packed_zip("other"), packed_zip("2750", [])])
def test_an_archive_with_something_else_is_refused(world, run, server, tmp_path, monkeypatch, body):
    server.files["/EuroSAT.zip"] = Served(body)
    change(world, server, monkeypatch, digests=())
    code, out, _ = run("fetch", "eurosat")
    assert code == 1 and "refused: it has no '2750'" in out
    assert tree(tmp_path / "data") == {"eurosat/split_zhou_EuroSAT.json"}


def test_a_truncated_archive_without_a_checksum_is_refused(
    world, run, server, tmp_path, monkeypatch
):
    server.files["/EuroSAT.zip"].always = {"say": 20_000}  # of more
    change(world, server, monkeypatch, digests=())
    code, out, _ = run("fetch", "eurosat")
    assert (
        code == 1
        and "refused: it is damaged" in out
        and not (tmp_path / "data/eurosat/2750").exists()
    )
    server.files["/EuroSAT.zip"].always = {}
    assert run("fetch", "eurosat")[0] == 0


def test_the_second_address_serves_when_the_first_is_dead(
    world, run, server, tmp_path, monkeypatch
):
    body = packed_zip("EuroSAT_RGB")
    server.files["/later.zip"] = Served(body)
    first = world.pieces[0].addresses[0]
    later = Address(
        server.url("/later.zip"),
        digests=(hashlib.md5(body).hexdigest(),),
        renames=(("EuroSAT_RGB", "2750"),),
    )
    del server.files["/EuroSAT.zip"]
    piece = replace(world.pieces[0], addresses=(first, later))
    pieces = (piece, *world.pieces[1:])
    monkeypatch.setitem(
        sources.SOURCES, "eurosat", type(world)(**{**vars(world), "pieces": pieces})
    )
    assert run("fetch", "eurosat")[0] == 0
    assert tree(tmp_path / "data") == WHOLE


def test_an_archive_inside_an_archive(world, run, server, tmp_path, monkeypatch):
    inner = packed_tar(*((f"2750/{name}", PIXELS) for name in IMAGES))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as outer:
        outer.writestr("eurosat/inner.tar.gz", inner)
        outer.writestr("eurosat/other.tar", b"other")
    server.files["/EuroSAT.zip"] = Served(buffer.getvalue())
    change(world, server, monkeypatch, digests=(), inner="eurosat/inner.tar.gz")
    assert run("fetch", "eurosat")[0] == 0
    assert tree(tmp_path / "data") == WHOLE


def test_a_folder_of_the_archive_is_left_out(world, run, server, tmp_path, monkeypatch):
    server.files["/EuroSAT.zip"] = Served(packed_zip("deep/down/2750"))
    change(world, server, monkeypatch, digests=(), top="deep/down/")
    assert run("fetch", "eurosat")[0] == 0
    assert tree(tmp_path / "data") == WHOLE


def test_leftovers_of_a_killed_process_do_no_harm(world, run, tmp_path):
    """Killed while unpacking, once before and once after the archive was whole."""
    staging = tmp_path / "data/eurosat/.unpacking-EuroSAT.zip"
    (staging / "made/2750/Forest").mkdir(parents=True)
    (staging / "made/2750/Forest/half.jpg").write_bytes(b"half")
    store = tmp_path / "data/.downloads/eurosat"
    store.mkdir(parents=True)
    (store / "EuroSAT.zip").write_bytes(b"PK half")
    (store / "EuroSAT.zip.lock").touch()
    assert run("check", "eurosat")[0] == 1
    assert run("fetch", "eurosat")[0] == 0
    assert tree(tmp_path / "data") == WHOLE


def test_two_fetches_at_once_fetch_once(world, run, server, tmp_path, monkeypatch):
    hold = threading.Event()
    server.files["/EuroSAT.zip"].always = {"wait": hold}
    root, told = tmp_path / "data", []
    job = fetching.Job("eurosat", world.pieces[0], root / "eurosat", root)
    results = []

    def fetch():
        monitor = Monitor(tell=lambda line: (told.append(line), hold.set()))
        results.append(fetching.run(job, monitor, fetching.RULES))

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(server.requests) == 1 and any("waiting for another process" in t for t in told)
    assert sorted("another process" in r for r in results) == [False, True, True]
    assert tree(root) == {name for name in WHOLE if "2750" in name}


def test_a_disk_without_locks_will_do(world, run, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fetching, "fcntl", types.SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4))
    assert run("fetch", "eurosat")[0] == 0


def test_several_files_are_fetched_at_once(world, run, server):
    both = threading.Barrier(2)  # each request waits for the other one
    for file in server.files.values():
        file.always = {"wait": both}
    code, out, err = run("fetch", "eurosat", "--jobs", "2")
    assert code == 0 and not both.broken and "trying again" not in err


def test_a_full_disk_is_refused_before_anything_begins(world, run, server, monkeypatch):
    monkeypatch.setattr(
        fetching.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=9000)
    )
    code, out, err = run("fetch", "eurosat")
    assert code == 2 and "has 0.0 GB free and this needs" in err and not server.requests


def test_a_disk_that_runs_full_ends_the_fetch_and_keeps_what_came(
    world, run, server, tmp_path, monkeypatch
):
    real = fetching.unpack

    def unpack(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching, "unpack", unpack)
    code, out, err = run("fetch", "eurosat")
    assert code == 2 and err.count("error: ") == 1 and "is full" in err
    assert not (tmp_path / "data/eurosat/2750").exists()
    monkeypatch.setattr(fetching, "unpack", real)
    asked = [path for path, _ in server.requests]
    assert run("fetch", "eurosat")[0] == 0
    assert asked.count("/EuroSAT.zip") == 1  # the archive that was whole served
    assert [path for path, _ in server.requests].count("/EuroSAT.zip") == 1


def test_a_read_only_root_is_refused(world, run, server, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o555)
    try:
        code, out, err = run("fetch", "eurosat")
        assert code == 2 and re.search("read-only|cannot write", err) and not server.requests
        assert run("check", "eurosat")[0] == 1  # looking is allowed
    finally:
        (tmp_path / "data").chmod(0o755)


def test_interrupting_stops_all_and_keeps_what_came(world, run, server, tmp_path, monkeypatch):
    server.files["/EuroSAT.zip"].always = {"status": 503, "headers": {"Retry-After": "60"}}
    monkeypatch.setattr(fetching, "RULES", Rules(attempts=9, pause=60))

    def interrupt(futures):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "as_completed", interrupt)
    code, out, err = run("fetch", "eurosat")
    assert code == 130 and "interrupted" in err and not (tmp_path / "data/eurosat/2750").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["check", "pet"], "unknown data set 'pet'. Did you mean.*pets"),
        (["check"], "check what"),
        (["fetch"], "fetch what"),
        (["fetch", "eurosat", "--jobs", "0"], "--jobs is 0"),
        (["fly", "eurosat"], "invalid choice: 'fly'"),
    ],
)
def test_mistakes_end_with_2(run, words, why):
    code, _, err = run(*words)
    assert code == 2 and re.search(why, err)


def test_a_root_that_is_a_file_is_refused(run, tmp_path):
    (tmp_path / "data").write_text("x", encoding="utf-8")
    code, _, err = run("check", "eurosat")
    assert code == 2 and "is no folder" in err


def test_the_default_root(monkeypatch):
    monkeypatch.setenv("DATA", "/somewhere")
    assert data.parser().parse_args(["list"]).root == "/somewhere"
    monkeypatch.delenv("DATA")
    assert data.parser().parse_args(["list"]).root == "data"


def test_built_in_and_own_images(run, tmp_path):
    code, out, _ = run("check", "shapes")
    assert code == 0 and "drawn on first use" in out
    assert run("fetch", "shapes_blur")[0] == 0
    assert run("check", "folder")[0] == 1
    (tmp_path / "data/folder/cats").mkdir(parents=True)
    assert run("check", "folder")[0] == 0


def test_list_names_every_set(run):
    code, out, _ = run("list")
    assert code == 0
    for source in sources.SOURCES.values():
        row = next(line for line in out.splitlines() if line.startswith(f"{source.name} "))
        assert source.data_class.dataset_dir in row and f"{source.classes:,}" in row
        assert " / ".join(f"{size:,}" for size in source.sizes) in row
        assert "never" in row  # no address was tried while this was written
    assert "39.1 GB" in out and "split file only" in out and "class names only" in out
    assert "CC BY-SA 4.0" in out and "registration" in out


def test_all_means_all_15(run):
    code, out, _ = run("check", "all")
    assert code == 1 and len(sources.SOURCES) == 15
    assert all(re.search(rf"^{name} ", out, re.M) for name in sources.SOURCES)


def test_every_config_names_a_set_that_the_tool_knows():
    names = [path.stem for path in (REPO / "configs/datasets").glob("*.yaml")]
    assert len(names) > 16 and data.full_names(names) == names


def test_short_names_are_those_of_the_scripts():
    text = (REPO / "scripts/common.sh").read_text(encoding="utf-8")
    body = text[text.index("full_name()") : text.index("\n}", text.index("full_name()"))]
    pairs = dict(re.findall(r"(\w+)\) echo (\w+) ;;", body))
    assert {s: f for s, f in pairs.items() if s != f} == sources.SHORT_NAMES
    assert set(data.full_names([*pairs, "pets", "oxford_pets"])) == set(pairs.values())


def test_sources_agree_with_the_classes():
    """Folders, split files and names are said once, by the classes; the rest fits them."""
    for name, source in sources.SOURCES.items():
        cls = source.data_class
        assert issubclass(cls, CoOpDataset) and cls.__name__ == source.class_name
        made = [path for piece in source.pieces for path in piece.makes]
        assert len(set(made)) == len(made)
        if cls.image_folder:
            assert any(path.split("/")[0] == cls.image_folder for path in made), name
        assert bool(source.split) == bool(cls.split_file), name
        if source.split:  # the class tells its users the same Google Drive file
            assert source.split in cls.source
            assert source.all_pieces[0].makes == (cls.split_file,)
        if cls.fetch_name:
            assert data.full_names([cls.fetch_name]) == [name]
        for piece in source.all_pieces:
            assert bool(piece.addresses) != bool(piece.by_hand)
            for address in piece.addresses:
                assert re.match(r"https?://", address.url) and address.name
                assert all(re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{32}", d) for d in address.digests)
                assert not address.digests or address.size
                assert address.is_archive or len(piece.makes) == 1


def test_the_page_names_every_address_and_folder():
    page = (REPO / "docs/data.md").read_text(encoding="utf-8")
    for source in sources.SOURCES.values():
        assert f"| `{source.name}` | `{source.data_class.dataset_dir}/` |" in page
        for piece in source.all_pieces:
            for address in piece.addresses:
                assert f"<{address.page or address.url}>" in page
                assert not address.tried  # else the page must not say that none was fetched


def test_class_names_of_imagenet_serve_its_variants(run, tmp_path):
    (tmp_path / "data/imagenet").mkdir(parents=True)
    (tmp_path / "data/imagenet/classnames.txt").write_text("n01440764 tench\n", encoding="utf-8")
    out = run("check", "imagenetv2")[1]
    assert "that of imagenet serves" in out


def test_folders_without_a_split_file_are_counted(run, tmp_path, monkeypatch):
    small = replace(sources.SOURCES["imagenet_a"], sizes=(0, 0, 6), folders=(("imagenet-a", 3, 6),))
    monkeypatch.setitem(sources.SOURCES, "imagenet_a", small)
    folder = tmp_path / "data/imagenet-adversarial"
    for n in range(6):
        path = folder / f"imagenet-a/n{n % 3}/{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (folder / "classnames.txt").write_text("n0 a\n", encoding="utf-8")
    assert run("check", "imagenet_a")[0] == 0
    path.unlink()
    code, out, _ = run("check", "imagenet_a")
    assert code == 1 and "missing 1 of 6 images" in out
    (folder / "imagenet-a/n0/5.jpg").write_bytes(b"x")
    (folder / "imagenet-a/n2/2.jpg").rename(folder / "imagenet-a/n1/2.jpg")
    assert "missing 1 of 3 classes" in run("check", "imagenet_a")[1]


def test_cars_are_looked_for_in_both_folders(run, tmp_path, monkeypatch):
    monkeypatch.setitem(
        sources.SOURCES, "stanford_cars", replace(sources.SOURCES["stanford_cars"], sizes=(1, 1, 1))
    )
    folder = tmp_path / "data/stanford_cars"
    rows = {"train": ["cars_train/1.jpg"], "val": ["cars_train/2.jpg"], "test": ["cars_test/1.jpg"]}
    for path in ("cars_train/1.jpg", "cars_test/1.jpg"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    split = {part: [[path, 0, "a car"] for path in paths] for part, paths in rows.items()}
    (folder / "split_zhou_StanfordCars.json").write_text(json.dumps(split), encoding="utf-8")
    code, out, _ = run("check", "cars")
    assert code == 1 and "missing 1 of 2 images, such as 2.jpg" in out
    assert "there, 1 images" in out and out.count("not needed beside the split file") == 3


def test_real_sets(real_data, run):
    code, out, _ = run("check", "eurosat", "caltech", root=real_data)
    assert code == 1
    assert out.count("there, 27,000 images") == 2
    assert "lists 3,366 images, CoOp's 8,242" in out
    assert "complete: eurosat" in out and "incomplete: caltech101" in out


@pytest.mark.slow
def test_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "advprompt", "data", "check", "pets", "--root", str(tmp_path)],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert "oxford_pets/split_zhou_OxfordPets.json" in done.stdout and not done.stderr
