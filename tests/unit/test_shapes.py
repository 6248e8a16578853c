"""The built-in data set: drawn once, whole, the same everywhere, and resumed after a cut."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image
from yacs.config import CfgNode

import advprompt
from advprompt.datasets import base, drawing, shapes
from advprompt.datasets.shapes import IMAGES_PER_CLASS, Shapes, draw_all, draw_class, recipe_digest

UserError = advprompt.UserError


def config(root, shots=-1, *, output="output", **dataset):
    return CfgNode(
        {
            "DATASET": {"ROOT": str(root), "NUM_SHOTS": shots, **dataset},
            "TEST": {"SUBSET": 0},
            "SEED": 1,
            "OUTPUT_DIR": str(output),
        }
    )


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
    assert data.num_classes >= 24
    assert data.classnames == drawing.shape_classes()
    assert Counter(Counter(d.label for d in data.test).values()) == {40: data.num_classes}
    assert len(data.train_x) == 16 * data.num_classes
    assert data.template == "a drawing of a {}."
    assert IMAGES_PER_CLASS == {"train": 32, "val": 8, "test": 40}
    with Image.open(data.train_x[0].impath) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (64, 64), "RGB")
    pixels = [np.asarray(Image.open(d.impath)).tobytes() for d in data.test + data.train_x]
    assert len(set(pixels)) == len(pixels)  # no image twice, none in both parts


def test_files_hold_what_the_drawing_gives(tmp_path, few):
    data = Shapes(config(tmp_path))
    _, pixels = drawing.sample("test", 2 * 2 + 1, data.classnames[2])
    last = [d for d in data.test if d.label == 2][1]
    assert np.array_equal(np.asarray(Image.open(last.impath)), pixels)


def test_drawn_twice_is_the_same(tmp_path, few):
    draw_all(tmp_path / "a")
    draw_all(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_drawn_once(tmp_path, few, monkeypatch):
    first = Shapes(config(tmp_path))
    monkeypatch.setattr(drawing, "sample", None)  # drawing again would fail
    second = Shapes(config(tmp_path))
    assert [d.impath for d in second.train_x] == [d.impath for d in first.train_x]


def test_a_cut_run_goes_on(tmp_path, few, monkeypatch):
    whole = tmp_path / "whole"
    draw_all(whole)
    sample, drawn = drawing.sample, []

    def cut(stream, index, classname):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append((stream, index))
        return sample(stream, index, classname)

    monkeypatch.setattr(drawing, "sample", cut)
    with pytest.raises(KeyboardInterrupt):
        Shapes(config(tmp_path))
    folder = tmp_path / "shapes" / recipe_digest()
    assert not (folder / "manifest.json").exists()
    kept = {p.name for p in (folder / "train").iterdir()}
    assert len(kept) == 2  # two whole classes and no half one

    monkeypatch.setattr(drawing, "sample", sample)
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    Shapes(config(tmp_path))
    assert contents(folder) == contents(whole)
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())


def test_another_run_was_faster(tmp_path, few):
    folder = tmp_path / "train" / "red_circle"
    draw_class(folder, "train", 0, "red circle")
    before = contents(tmp_path)
    draw_class(folder, "train", 0, "red circle")
    assert contents(tmp_path) == before
    assert [p.name for p in (tmp_path / "train").iterdir()] == ["red_circle"]


def test_read_only_root_uses_the_output(tmp_path, few, monkeypatch):
    monkeypatch.setattr(base, "writable", lambda folder: False)
    data = Shapes(config(tmp_path / "data", output=tmp_path / "out"))
    assert not (tmp_path / "data").exists()
    assert data.train_x[0].impath.startswith(str(tmp_path / "out" / "cache" / "shapes"))


def test_root_that_has_them_is_used_though_read_only(tmp_path, few, monkeypatch):
    first = Shapes(config(tmp_path / "data"))
    monkeypatch.setattr(base, "writable", lambda folder: False)
    second = Shapes(config(tmp_path / "data", 1, output=tmp_path / "out"))
    assert {d.impath for d in second.train_x} <= {d.impath for d in first.train_x}
    assert (tmp_path / "out" / "cache" / "shapes" / "split_fewshot").is_dir()


def test_lost_images_are_named(tmp_path, few):
    data = Shapes(config(tmp_path))
    (tmp_path / data.test[0].impath).unlink()
    with pytest.raises(UserError, match=r"1 of 15 images are missing .*delete '.*' to have"):
        Shapes(config(tmp_path))


def test_full_disk_leaves_no_half_folder(tmp_path, few, monkeypatch):
    def full(self, path, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        Shapes(config(tmp_path))
    assert not [p for p in tmp_path.rglob("*") if p.is_file() or p.name.startswith(".")]


def test_another_recipe_gets_its_own_folder(monkeypatch):
    before = recipe_digest()
    monkeypatch.setattr(shapes, "IMAGES_PER_CLASS", {"train": 1, "val": 1, "test": 1})
    assert recipe_digest() != before
