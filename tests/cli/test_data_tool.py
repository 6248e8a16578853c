"""``advprompt data``: what is there, what is missing, and where to get it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest

from advprompt.cli import data
from advprompt.datasets import COOP, sources
from advprompt.datasets.coop import EuroSAT
from advprompt.datasets.sources import Address, Piece
from advprompt.utils.entry import run_tool
from tests.conftest import REPO

SPLIT = {"train": [], "val": [], "test": []}
for part in ("train", "train", "val", "test"):
    for y, name in enumerate(("Forest", "River")):
        SPLIT[part].append([f"{name}/{part}_{len(SPLIT[part])}.jpg", y, name])
IMAGES = [row[0] for rows in SPLIT.values() for row in rows]


@pytest.fixture
def known(monkeypatch):
    """Change what is known of a data set: ``known("imagenet_a", sizes=(0, 0, 6))``."""

    def change(name: str, **facts):
        every = sources.read_sources()
        changed = {COOP[name].__name__: replace(every[COOP[name].__name__], **facts)}
        monkeypatch.setattr(sources, "read_sources", lambda: every | changed)

    return change


@pytest.fixture
def world(known, tmp_path):
    """A small EuroSAT in ``tmp_path/data``, complete."""
    address = Address("https://example.org/EuroSAT.zip", 100, "0" * 64)
    split = Address(drive="abc")
    pieces = (Piece((EuroSAT.split_file,), (split,)), Piece(("2750",), (address,)))
    known("eurosat", sizes=(4, 2, 2), pieces=pieces)
    folder = tmp_path / "data/eurosat"
    for name in IMAGES:
        (folder / "2750" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "2750" / name).write_bytes(b"x")
    (folder / EuroSAT.split_file).write_text(json.dumps(SPLIT), encoding="utf-8")
    return folder


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


def test_check_says_what_is_missing_where(run, tmp_path):
    code, out, _ = run("check", "eurosat", "imagenet", "cars")
    assert code == 1
    for path in ("eurosat/2750", "imagenet/images/val", "imagenet/classnames.txt"):
        assert str(tmp_path / "data" / path) in out
    assert "ILSVRC2012_img_val.tar" in out and "register at https://image-net.org" in out
    assert "cars_train.tgz, which its publisher no longer serves" in out
    assert "get http://madm.dfki.de/files/sentinel/EuroSAT.zip" in out
    assert not (tmp_path / "data").exists()  # nothing is written
    (tmp_path / "data/imagenet").mkdir(parents=True)
    (tmp_path / "data/imagenet/classnames.txt").write_text("n01440764 tench\n", encoding="utf-8")
    assert "that of imagenet is used" in run("check", "imagenetv2")[1]


def test_check_counts_images_with_and_without_the_split_file(world, run, tmp_path):
    code, out, _ = run("check", "eurosat")
    assert code == 0 and "there, 8 images" in out and "complete: eurosat" in out
    (world / "2750" / IMAGES[0]).rename(tmp_path / "aside")
    code, out, _ = run("check", "eurosat")
    assert code == 1 and f"missing 1 of 8 images, such as {IMAGES[0]}" in out
    (tmp_path / "aside").rename(world / "2750" / IMAGES[0])
    (world / EuroSAT.split_file).unlink()
    code, out, _ = run("check", "eurosat")
    assert code == 1 and "there, 8 images" in out and "can be made from the original" in out
    assert f"'{world / EuroSAT.split_file}': get https://drive.google.com/file/d/abc" in out
    (world / EuroSAT.split_file).write_text("{", encoding="utf-8")
    assert "damaged: not a split file" in run("check", "eurosat")[1]


def test_what_is_missing_comes_with_its_address_and_checksum(world, run):
    shutil.rmtree(world / "2750")
    code, out, _ = run("check", "eurosat")
    where = f"'{world / '2750'}': get https://example.org/EuroSAT.zip (100B, SHA-256 {'0' * 64})"
    assert code == 1 and where in out and "terms of use of eurosat: " in out


def test_links_to_other_places_are_followed(world, run, tmp_path):
    world.rename(tmp_path / "elsewhere")
    world.symlink_to(tmp_path / "elsewhere")
    assert run("check", "eurosat")[0] == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["check", "pet"], "unknown data set 'pet'. Did you mean.*pets"),
        (["check"], "check what"),
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
    assert run("check", "folder")[0] == 1
    (tmp_path / "data/folder/cats").mkdir(parents=True)
    assert run("check", "folder")[0] == 0


def test_sources_fit_the_classes_and_the_page():
    page = (REPO / "docs/data.md").read_text(encoding="utf-8")
    assert len(data.full_names(["all"])) == 15
    for name, cls in COOP.items():
        source = sources.find_source(cls)
        assert f"| `{name}` | `{cls.dataset_dir}/` |" in page
        assert source.terms
        made = [path for piece in source.pieces for path in piece.makes]
        assert len(set(made)) == len(made)
        assert {name.partition("/")[0] for name in made} >= {cls.image_folder} - {""}
        assert not cls.split_file or source.pieces[0].makes == (cls.split_file,)
        for piece in source.pieces:
            assert bool(piece.addresses) != bool(piece.by_hand)
            assert piece.classes in (0, cls.n_classes)
            for address in piece.addresses:
                assert re.match(r"https?://", address.page)
                assert re.fullmatch(r"|[0-9a-f]{64}|md5:[0-9a-f]{32}", address.checksum)
                assert not address.checksum or address.size
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
