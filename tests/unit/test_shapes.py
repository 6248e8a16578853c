"""The built-in data sets: drawn once, completely, and the same everywhere."""

import hashlib
from collections import Counter
from unittest.mock import Mock

import numpy as np
import pytest
from make_datasets import config
from PIL import Image

import advprompt
from advprompt.datasets import DRAWN, base, drawing, shapes, shifts
from advprompt.datasets.shapes import Shapes
from advprompt.utils import io

UserError = advprompt.UserError
CLASSES = ("red circle", "blue star", "pink heart", "green crescent", "yellow arrow", "red cross")
DIGESTS = {  # of one image of each of the classes
    "pretrain": "5a898296248e9415",
    "train": "1318e63381176309",
    "val": "5f64e0762d12ed60",
    "test": "b8c561b849a47f59",
    "check": "dedbdfc2774659fe",
}
SHIFT_DIGESTS = {
    "shapes_sketch": "11de9dfcb72d59d8",
    "shapes_noise": "c7311e83c15e808a",
    "shapes_blur": "e1646342b8e25220",
    "shapes_background": "b4833b28d820fcad",
    "shapes_novel": "d365ea06a54a2ea7",
    "shapes_patterns": "fccda73ade5a3137",
}


@pytest.fixture
def few(monkeypatch):
    """Two images a class and three classes, so that drawing takes no time."""
    monkeypatch.setattr(shapes, "IMAGES_PER_CLASS", {"train": 2, "val": 1, "test": 2})
    classes = drawing.shape_classes()[:3]
    monkeypatch.setattr(drawing, "shape_classes", lambda: classes)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_whole_data_set(tmp_path):
    data = Shapes(config(tmp_path, 16))
    assert data.classnames == drawing.shape_classes() and data.num_classes == 32
    assert Counter(Counter(d.label for d in data.test).values()) == {40: 32}
    assert len(data.train_x) == 16 * 32
    assert data.template == "a drawing of a {}."
    with Image.open(data.test[2 * 40 + 1].impath) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (64, 64), "RGB")
        drawn = drawing.sample("test", 2 * 40 + 1, data.classnames[2])
        assert np.array_equal(np.asarray(image), drawn)
    pixels = [np.asarray(Image.open(d.impath)).tobytes() for d in data.test + data.train_x]
    assert len(set(pixels)) == len(pixels)  # no image twice, none in both parts


@pytest.mark.parametrize(("stream", "digest"), DIGESTS.items())
def test_the_drawings_are_those_of_their_version(stream, digest):
    """Where this fails on purpose, change `Shapes.version` and `DrawnTest.version` too."""
    pixels = [drawing.sample(stream, 7 * n, name) for n, name in enumerate(CLASSES)]
    assert hashlib.sha256(np.stack(pixels)).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", SHIFT_DIGESTS)
def test_the_shifts_are_those_of_their_version(name):
    cls, pixels = DRAWN[name], []
    for n, classname in enumerate(cls.class_names()[:4]):
        image = cls.picture(40 * n, classname, np.random.default_rng([shifts.SALT, n]))
        pixels.append(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8))
    assert hashlib.sha256(np.stack(pixels)).hexdigest()[:16] == SHIFT_DIGESTS[name]


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt, KeyboardInterrupt), (FULL, UserError)]
)
def test_an_interrupted_run_leaves_nothing_and_is_repeated(
    tmp_path, few, monkeypatch, error, raised
):
    folder = tmp_path / "shapes" / Shapes.version
    with monkeypatch.context() as patch, pytest.raises(raised, match="No space left|"):
        patch.setattr(Image.Image, "save", Mock(side_effect=[None] * 5 + [error]))
        Shapes(config(tmp_path))
    assert not any(folder.parent.iterdir())
    (folder / "train" / "red_circle").mkdir(parents=True)  # of an older version of this code
    Shapes(config(tmp_path))
    Shapes.draw_into(tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")


def test_another_run_was_faster(tmp_path, few, monkeypatch):
    draw, folder = Shapes.draw.__func__, tmp_path / "shapes"

    def slow(cls, unfinished):
        monkeypatch.setattr(Shapes, "draw", classmethod(draw))
        Shapes.draw_into(folder)  # meanwhile
        return draw(cls, unfinished)

    monkeypatch.setattr(Shapes, "draw", classmethod(slow))
    Shapes.draw_into(folder)
    assert (folder / "manifest.json").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["shapes"]


def test_what_a_killed_run_has_half_drawn_goes_though_another_one_drew_all(tmp_path, few):
    Shapes(config(tmp_path, 1))
    shots = next((tmp_path / "shapes").glob("**/shot_*.json"))
    folder = tmp_path / "shapes" / Shapes.version
    for path in (shots, folder):
        left = path.with_name(f".{path.name}.{'9' * 9}@{io.HERE}.00.tmp")
        left.mkdir()
    Shapes(config(tmp_path, 1))
    assert not list(tmp_path.glob("**/.*.tmp"))


def test_root_that_has_them_is_used_though_read_only(tmp_path, few, monkeypatch):
    first = Shapes(config(tmp_path / "data"))
    monkeypatch.setattr(base, "writable", lambda folder: False)
    monkeypatch.setattr(drawing, "sample", None)  # drawing again would fail
    second = Shapes(config(tmp_path / "data", 1, output=tmp_path / "out"))
    assert {d.impath for d in second.train_x} <= {d.impath for d in first.train_x}
    assert (tmp_path / "out" / "cache" / "shapes" / "split_fewshot").is_dir()


def test_lost_images_are_named(tmp_path, few):
    data = Shapes(config(tmp_path))
    (tmp_path / data.test[0].impath).unlink()
    with pytest.raises(UserError, match=r"1 of 15 images are missing .*delete '.*' to have"):
        Shapes(config(tmp_path))
