"""``advprompt data``: what is there, what is missing, and fetching it from a local server."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import random
import re
import sys
import threading
import time
import types
from dataclasses import replace
from unittest.mock import Mock

import pytest
from make_datasets import config

from advprompt.cli import data
from advprompt.data import download, fetching
from advprompt.datasets import COOP, sources
from advprompt.datasets.coop import EuroSAT
from advprompt.datasets.sources import Address, Piece
from advprompt.utils.entry import run_tool
from tests.conftest import REPO
from tests.file_server import FileServer, Served, tarred, zipped

SPLIT = {"train": [], "val": [], "test": []}
for part in ("train", "train", "val", "test"):
    for y, name in enumerate(("Forest", "River")):
        SPLIT[part].append([f"{name}/{part}_{len(SPLIT[part])}.jpg", y, name])
IMAGES = [row[0] for rows in SPLIT.values() for row in rows]
PIXELS = random.Random(0).randbytes(5000)


def packed(folder: str, images=IMAGES) -> bytes:
    whole = [(f"{folder}/{name}", PIXELS + name.encode()) for name in images]
    return zipped(("__MACOSX/junk", b"junk"), *whole)


ARCHIVE, SPLIT_FILE = packed("2750"), EuroSAT.split_file


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 3)
    monkeypatch.setattr(download, "PAUSE", 0.001)
    running = FileServer()
    yield running
    running.close()


@pytest.fixture
def known(monkeypatch):
    """Change what is known of a data set: ``known("imagenet_a", sizes=(0, 0, 6))``."""

    def change(name: str, **facts):
        every = sources.read_sources()
        changed = {COOP[name].__name__: replace(every[COOP[name].__name__], **facts)}
        monkeypatch.setattr(sources, "read_sources", lambda: every | changed)

    return change


@pytest.fixture
def serve(server, known):
    """Serve a small EuroSAT; keywords change what is known of the archive's address."""

    def call(body=ARCHIVE, more=(), **facts):
        server.files["/EuroSAT.zip"] = Served(body)
        server.files["/split"] = Served(json.dumps(SPLIT).encode(), kind="application/json")
        address = Address(server.url("/EuroSAT.zip"), len(body), **facts)
        split = Address(server.url("/split"), file=EuroSAT.split_file)
        pieces = (Piece((EuroSAT.split_file,), (split,)), Piece(("2750",), (address, *more)))
        known("eurosat", sizes=(4, 2, 2), pieces=pieces)

    return call


@pytest.fixture
def world(serve, server):
    """A small EuroSAT on the server: an archive with a known checksum and the split file."""
    serve(checksum=hashlib.sha256(ARCHIVE).hexdigest())
    return server.files


@pytest.fixture
def run(capsys, tmp_path):
    """Run the tool on ``tmp_path/data``: ``run("check", "eurosat") -> (code, output, errors)``."""

    def call(*words: str) -> tuple[int, str, str]:
        code = run_tool(data.main, [*words, "--root", str(tmp_path / "data")])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return call


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
    assert run("check", "eurosat")[0] == run("fetch", "eurosat")[0] == 0
    assert len(server.requests) == 2  # it was complete already
    loaded = EuroSAT(config(tmp_path / "data"))
    assert (len(loaded.train_x), len(loaded.val), len(loaded.test)) == (4, 2, 2)


def test_check_says_what_is_missing_where(run, tmp_path):
    code, out, _ = run("check", "eurosat", "imagenet", "cars")
    assert code == 1
    for path in ("eurosat/2750", "imagenet/images/val", "imagenet/classnames.txt"):
        assert str(tmp_path / "data" / path) in out
    assert "ILSVRC2012_img_val.tar" in out and "register at https://image-net.org" in out
    assert "cars_train.tgz, which its publisher no longer serves" in out
    assert "python -m advprompt data fetch eurosat imagenet stanford_cars" in out
    assert not (tmp_path / "data").exists()  # nothing is written
    (tmp_path / "data/imagenet").mkdir(parents=True)
    (tmp_path / "data/imagenet/classnames.txt").write_text("n01440764 tench\n", encoding="utf-8")
    assert "that of imagenet serves" in run("check", "imagenetv2")[1]


def test_check_counts_images_with_and_without_the_split_file(world, run, tmp_path):
    run("fetch", "eurosat")
    folder = tmp_path / "data/eurosat"
    (folder / "2750" / IMAGES[0]).rename(tmp_path / "aside")
    code, out, _ = run("check", "eurosat")
    assert code == 1 and f"missing 1 of 8 images, such as {IMAGES[0]}" in out
    assert "move it away and fetch again" in out
    (tmp_path / "aside").rename(folder / "2750" / IMAGES[0])
    (folder / "split_zhou_EuroSAT.json").unlink()
    code, out, _ = run("check", "eurosat")
    assert code == 1 and "there, 8 images" in out and "can be made from the original" in out


@pytest.mark.parametrize(
    ("place", "state"),
    [
        ("split_zhou_EuroSAT.json", "damaged: not a split file"),
        ("2750/Forest/mine.jpg", "missing 7 of 8 images"),
    ],
)
def test_what_the_user_has_is_never_touched(world, run, tmp_path, server, place, state):
    own = tmp_path / "data/eurosat" / place
    own.parent.mkdir(parents=True)
    own.write_bytes(b"{")
    assert state in run("check", "eurosat")[1]
    code, out, _ = run("fetch", "eurosat")
    assert code == 1 and "is left as it is" in out and own.read_bytes() == b"{"
    assert len(server.requests) == 1  # what is there is not fetched


def test_links_to_other_places_are_followed(world, run, tmp_path):
    run("fetch", "eurosat")
    folder = tmp_path / "data/eurosat"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert run("check", "eurosat")[0] == 0
    folder.unlink()
    folder.mkdir()
    (folder / "2750").symlink_to(tmp_path / "nowhere")
    assert run("fetch", "eurosat")[0] == 1 and (folder / "2750").is_symlink()


def test_a_failure_says_what_to_get_by_hand(world, run, server, tmp_path):
    world["/EuroSAT.zip"].always = {"page": "<html><title>Moved</title></html>"}
    code, out, _ = run("fetch", "eurosat")
    assert code == 1 and "a web page instead of the file ('Moved')" in out
    place = tmp_path / "data/eurosat/2750"
    by_hand = f"by hand from {server.url('/EuroSAT.zip')} and unpack it so that there is '{place}'"
    assert by_hand in out and not place.exists()
    assert (tmp_path / "data/eurosat/split_zhou_EuroSAT.json").is_file()  # the rest was fetched
    world["/EuroSAT.zip"].always = {}
    assert run("fetch", "eurosat")[0] == 0
    assert tree(tmp_path / "data") == WHOLE


@pytest.mark.parametrize("body", [b'{"train": []}', b'{"train": [["a", 0'])
def test_what_is_not_a_split_file_is_refused(world, run, tmp_path, body):
    world["/split"].body = body
    code, out, _ = run("fetch", "eurosat")
    assert code == 1 and re.search("not a split file|not valid JSON", out)
    assert not (tmp_path / "data/eurosat/split_zhou_EuroSAT.json").exists()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (tarred(("../2750/Forest/1.jpg", b"x")), "has no '2750'"),
        (packed("2750", []), "has no '2750'"),
        (packed("2750")[:20_000], "is damaged"),
    ],
    ids=["hostile", "empty", "cut short"],
)
def test_a_bad_archive_without_a_checksum_is_refused(serve, run, tmp_path, body, why):
    serve(body)
    code, out, _ = run("fetch", "eurosat")
    assert code == 1 and why in out
    assert tree(tmp_path / "data") == {"eurosat/split_zhou_EuroSAT.json"}
    serve()
    assert run("fetch", "eurosat")[0] == 0


INNER = tarred(*((f"2750/{name}", PIXELS) for name in IMAGES))


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        (packed("EuroSAT_RGB"), {"inside": "EuroSAT_RGB"}),
        (packed("deep/down/2750"), {"inside": "deep/down/"}),
        (tarred(("deep/inner.tar.gz", INNER)), {"inner": "deep/inner.tar.gz"}),
    ],
)
def test_where_the_images_lie_in_the_archive(serve, run, tmp_path, body, facts):
    serve(body, file="EuroSAT.zip", **facts)
    assert run("fetch", "eurosat")[0] == 0
    assert tree(tmp_path / "data") == WHOLE


def test_the_second_address_serves_when_the_first_is_dead(serve, run, server, tmp_path):
    checksum = f"md5:{hashlib.md5(ARCHIVE).hexdigest()}"
    server.files["/later.zip"] = Served(ARCHIVE)
    serve(more=[Address(server.url("/later.zip"), len(ARCHIVE), checksum)])
    del server.files["/EuroSAT.zip"]
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


def test_leftovers_of_a_complete_set_are_swept(world, run, tmp_path, server):
    """Killed after the last file was in its place."""
    assert run("fetch", "eurosat")[0] == 0
    staging, store = tmp_path / "data/eurosat/.unpacking-EuroSAT.zip", tmp_path / "data/.downloads"
    (staging / "made").mkdir(parents=True)
    (store / "eurosat").mkdir(parents=True)
    for name in ("EuroSAT.zip", "EuroSAT.zip.lock", "EuroSAT.zip.0.part", f"{SPLIT_FILE}.lock"):
        (store / "eurosat" / name).write_bytes(b"PK")
    asked = len(server.requests)
    assert run("check", "eurosat")[0] == 0 and staging.is_dir()
    assert run("fetch", "eurosat")[0] == 0 and len(server.requests) == asked
    assert tree(tmp_path / "data") == WHOLE and not store.exists() and not staging.exists()


def test_two_processes_fetch_once(world, server, tmp_path):
    """The second one waits for the first, finds the set complete and leaves nothing."""
    hold, root = threading.Event(), tmp_path / "data"
    for file in world.values():
        file.always = {"wait": hold}
    logs = [tmp_path / "log0", tmp_path / "log1"]

    def fetch(path):
        with open(path, "w", buffering=1) as log:
            sys.stdout = sys.stderr = log
            os._exit(run_tool(data.main, ["fetch", "eurosat", "--root", str(root)]))

    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=fetch, args=(path,)) for path in logs]
    for child in children:
        child.start()
    deadline = time.monotonic() + 20
    while sum(p.read_text().count("waiting for another") for p in logs if p.exists()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    hold.set()
    for child in children:
        child.join(20)
    assert [child.exitcode for child in children] == [0, 0]
    assert len(server.requests) == 2 and tree(root) == WHOLE
    assert "".join(p.read_text() for p in logs).count("was fetched by another process") == 2
    assert [p.name for p in root.iterdir()] == ["eurosat"]


def test_several_files_are_fetched_at_once(world, run, server):
    both = threading.Barrier(2)  # each request waits for the other one
    for file in server.files.values():
        file.always = {"wait": both}
    code, out, err = run("fetch", "eurosat", "--jobs", "2")
    assert code == 0 and not both.broken and "trying again" not in err


def test_a_full_disk_is_refused_and_one_that_runs_full_keeps_what_came(
    world, run, server, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(fetching.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=9000))
        code, _, err = run("fetch", "eurosat")
    assert code == 2 and "has 9.00kB free and this needs" in err and not server.requests
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with monkeypatch.context() as patch:
        patch.setattr(fetching, "unpack", full)
        code, _, err = run("fetch", "eurosat")
    assert code == 2 and err.count("error: ") == 1 and "No space left on device; " in err
    assert not (tmp_path / "data/eurosat/2750").exists()
    assert run("fetch", "eurosat")[0] == 0  # the archive that was complete serves
    assert [path for path, _ in server.requests].count("/EuroSAT.zip") == 1


def test_interrupting_stops_all(world, run, monkeypatch):
    world["/EuroSAT.zip"].always = {"status": 503}
    monkeypatch.setattr(download, "PAUSE", 60)

    monkeypatch.setattr(fetching, "as_completed", Mock(side_effect=KeyboardInterrupt))
    code, _, err = run("fetch", "eurosat")
    assert code == 130 and "interrupted" in err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["check", "pet"], "unknown data set 'pet'. Did you mean.*pets"),
        (["check"], "check what"),
        (["fetch"], "fetch what"),
        (["fetch", "eurosat", "--jobs", "0"], "--jobs is 0"),
        (["check", "eurosat"], "data' is not a folder"),
    ],
)
def test_mistakes_end_with_2(run, tmp_path, words, why):
    (tmp_path / "data").write_text("x", encoding="utf-8")
    code, _, err = run(*words)
    assert code == 2 and re.search(why, err)


def test_built_in_and_own_images(run, tmp_path):
    code, out, _ = run("check", "shapes")
    assert code == 0 and "drawn on first use" in out
    assert run("fetch", "shapes_blur")[0] == 0
    assert run("check", "folder")[0] == 1
    (tmp_path / "data/folder/cats").mkdir(parents=True)
    assert run("check", "folder")[0] == 0


def test_list_names_every_set(run):
    code, out, _ = run("list")
    assert code == 0 and len(COOP) == len(data.full_names(["all"])) == 15
    for name, cls in COOP.items():
        row = next(line for line in out.splitlines() if line.startswith(f"{name} "))
        assert cls.dataset_dir in row and f"{cls.n_classes:,}" in row
    assert "39.1GB" in out and "split file only" in out and "class names only" in out
    assert "2,944 / 736 / 3,669" in out and "CC BY-SA 4.0" in out and "registration" in out


def test_sources_fit_the_classes_and_the_page():
    page = (REPO / "docs/data.md").read_text(encoding="utf-8")
    for name, cls in COOP.items():
        source = sources.find_source(cls)
        assert f"| `{name}` | `{cls.dataset_dir}/` |" in page
        made = [path for piece in source.pieces for path in piece.makes]
        assert len(set(made)) == len(made)
        assert {name.partition("/")[0] for name in made} >= {cls.image_folder} - {""}
        assert not cls.split_file or source.pieces[0].makes == (cls.split_file,)
        for piece in source.pieces:
            assert bool(piece.addresses) != bool(piece.by_hand)
            assert piece.classes in (0, cls.n_classes)
            for address in piece.addresses:
                assert re.match(r"https?://", address.url) and address.name
                assert re.fullmatch(r"|[0-9a-f]{64}|md5:[0-9a-f]{32}", address.checksum)
                assert not address.checksum or address.size
                assert address.is_archive or len(piece.makes) == 1
                assert f"<{address.page}>" in page


def test_folders_without_a_split_file_are_counted(run, tmp_path, known):
    images, names = sources.find_source(COOP["imagenet_a"]).pieces
    known("imagenet_a", sizes=(0, 0, 6), pieces=(replace(images, classes=3), names))
    folder = tmp_path / "data/imagenet-adversarial"
    for path in [folder / f"imagenet-a/n{n % 3}/{n}.jpg" for n in range(6)]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (folder / "classnames.txt").write_text("n0 a\n", encoding="utf-8")
    assert run("check", "imagenet_a")[0] == 0
    path.rename(tmp_path / "aside")
    code, out, _ = run("check", "imagenet_a")
    assert code == 1 and "missing 1 of 6 images" in out
    (tmp_path / "aside").rename(folder / "imagenet-a/n0/5.jpg")
    (folder / "imagenet-a/n2/2.jpg").rename(folder / "imagenet-a/n1/2.jpg")
    assert "missing 1 of 3 classes" in run("check", "imagenet_a")[1]
