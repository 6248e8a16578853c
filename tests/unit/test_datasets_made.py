"""CoOp's data sets in the form they are published in: counts, class names, draws, mistakes."""

import hashlib
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import make_datasets as made_up
import pytest
from make_datasets import MAKERS, TEXT, config, images, text, wordnet

import advprompt
from advprompt.datasets import base, files, sampling
from advprompt.datasets.coop import UCF101
from advprompt.datasets.sources import find_source
from advprompt.datasets.splits import read_split
from advprompt.prompting import templates

UserError = advprompt.UserError
REAL_DATA = os.environ.get("ADVPROMPT_REAL_DATA", "")
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="ADVPROMPT_REAL_DATA is not set")
TESTS_ONLY = ("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")
ANNOTATED = [*MAKERS][4:]  # the first four have folders of classes and no other file
MATLAB = {"OxfordFlowers", "StanfordCars"}


def data_set(name, root, shots=-1, **options):
    cls = base.DATASET_REGISTRY.get(name)
    return cls(config(root, shots, output=root / "output", **options))


@pytest.fixture
def make(monkeypatch):
    """Write a data set below a root; test sets of 200 or 1,000 classes have four."""

    def build(name, root):
        if name in MATLAB:
            pytest.importorskip("scipy")
        if name not in TESTS_ONLY:
            return MAKERS[name](root)
        monkeypatch.setattr(base.DATASET_REGISTRY.get(name), "n_classes", 4)
        return MAKERS[name](root, classes=4)

    return build


def folder_of(name, root):
    return root / base.DATASET_REGISTRY.get(name).dataset_dir


def below(data, datums):
    return [(os.path.relpath(d.impath, data.image_dir), d.label, d.classname) for d in datums]


# --- what is there ---------------------------------------------------------------------------


# One shot with seeds 1, 2 and 3; made with Dassl 0.6.3 on the same lists.
FROZEN = {
    "OxfordPets": ("956ca6a4d4f0035a", "da7ffb053d455b74", "a1a35083cd6b7454"),
    "OxfordFlowers": ("b5f676055f36d1ef", "deb81552125bb635", "f8d436b44be55610"),
    "FGVCAircraft": ("04307308befed69f", "f996225517a59836", "715191fe07069f11"),
    "DescribableTextures": ("220f1cba0b9b69b8", "cac7edc92d6f920d", "2a6eb5cb45dc7199"),
    "StanfordCars": ("54c0687e1d566677", "b921cc75bb38de41", "bbaab61284976a35"),
    "Food101": ("6ca89629c3cd467d", "9f6e2b4acbe5dbdb", "1e4a68820fbb49a9"),
    "SUN397": ("abaea3523a36b807", "caf127cdaf25d53b", "9eefb5e6e8658b38"),
    "UCF101": ("aab50ac1db405d14", "91e3a6de271af3a9", "73f1e6ac565ae2ca"),
    "ImageNet": ("c1ab724f5956c029", "70994a5c689846cd", "b93810c750412daf"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_counts_names_and_draws(name, tmp_path, make):
    made = make(name, tmp_path)
    data = data_set(name, tmp_path)
    assert tuple(len(part) for part in (data.train_x, data.val, data.test)) == made.sizes
    assert data.num_classes == made.classes == len(data.classnames)
    assert {label: data.classnames[label] for label in made.names} == made.names
    assert all(Path(d.impath).read_bytes() == made_up.picture() for d in data.test[:3])
    assert "{}" in data.template and (name in templates.TEMPLATES)
    parts = [set(below(data, part)) for part in (data.train_x, data.val, data.test)]
    assert data.test_only or not parts[0] & parts[2] and not parts[1] & (parts[0] | parts[2])
    again = data_set(name, tmp_path, seed=2)
    assert below(again, again.train_x) == below(data, data.train_x)
    for seed, expected in enumerate(FROZEN.get(name, ()), start=1):
        few = data_set(name, tmp_path, 1, seed=seed)
        drawn = "\n".join(path for path, _, _ in below(few, few.train_x + few.val))
        assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == expected


@pytest.mark.parametrize("name", ["OxfordFlowers", "StanfordCars", "SUN397", "UCF101", "Food101"])
def test_the_split_is_kept_in_coops_form_and_wins(name, tmp_path, make):
    made = make(name, tmp_path)
    data = data_set(name, tmp_path)
    path = folder_of(name, tmp_path) / f"split_zhou_{name}.json"
    stored = json.loads(path.read_text())
    assert [tuple(row) for row in stored["test"]] == below(data, data.test)
    for file in made.annotations:
        (folder_of(name, tmp_path) / file).unlink()
    stored["test"] = stored["test"][:2]
    path.write_text(json.dumps(stored))
    assert len(data_set(name, tmp_path).test) == 2


# --- what is not ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_an_absent_folder_says_where_it_belongs(name, tmp_path):
    with pytest.raises(UserError) as error:
        data_set(name, tmp_path)
    sentence = str(error.value)
    assert str(folder_of(name, tmp_path)) in sentence and "http" in sentence
    assert "{" not in sentence
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ANNOTATED)
def test_each_absent_or_broken_annotation_is_named(name, tmp_path, make):
    made = make(name, tmp_path)
    for file in made.annotations:
        path = folder_of(name, tmp_path) / file
        content = path.read_bytes()
        broken = [content + f"{TEXT}\n".encode(), b"\n\n"]
        if file == "variants.txt":  # any line is a name there
            broken = [b"\n\n", b"707-320\n"]
        if file == "classnames.txt":
            broken = [content + b"n99999999\n", b""]
        if path.suffix in (".mat", ".json"):
            broken = [content[: len(content) // 2], b"", b"[1, 2]"]
        for wrong in broken:
            path.write_bytes(wrong)
            with pytest.raises(UserError, match=re.escape(str(folder_of(name, tmp_path)))) as error:
                data_set(name, tmp_path)
            assert wrong == b"707-320\n" or str(path) in str(error.value)
        path.unlink()
        with pytest.raises(UserError, match=re.escape(f"'{file}' is")):
            data_set(name, tmp_path)
        path.write_bytes(content)
    assert not list(tmp_path.rglob("split_zhou_*.json"))
    data_set(name, tmp_path)


@pytest.mark.parametrize("name", sorted(MATLAB))
def test_without_scipy(name, tmp_path, monkeypatch, make):
    make(name, tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=rf"'pip install scipy', or put CoOp's 'split_zhou_{name}"):
        data_set(name, tmp_path)


# --- ImageNet ---------------------------------------------------------------------------------


@pytest.fixture
def net(tmp_path):
    made_up.imagenet(tmp_path)
    return tmp_path


def test_new_images_of_imagenet_are_drawn_from(net):
    first = data_set("ImageNet", net, 2, seed=3)
    assert (net / "imagenet" / "split_fewshot" / "shot_2-seed_3.json").is_file()
    images(net / "imagenet" / "images" / "train" / wordnet(5)[4], ["n_new.JPEG"])
    assert len(data_set("ImageNet", net).train_x) == 31
    second = data_set("ImageNet", net, 2, seed=3)  # the first four classes stay the same
    assert below(second, second.train_x)[:8] == below(first, first.train_x)[:8]
    assert len(second.test) == 10 and second.val == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "val").rename(f / "validation"), "images/val' has 0 class folders, exp"),
        (lambda f: (f / "val" / wordnet(5)[1]).rename(f / "x"), f"'{wordnet(5)[1]}' .and 0 more"),
        (lambda f: (f / "train" / wordnet(5)[1]).rename(f / "x"), "is in only one of train and"),
        (lambda f: [p.unlink() for p in (f / "val" / "n01440764").iterdir()], "has no images"),
        (
            lambda f: made_up.classnames(f.parent, 4),
            f"'{wordnet(5)[4]}' is not in 'classnames",
        ),
    ],
)
def test_broken_imagenet(net, change, words):
    change(net / "imagenet" / "images")
    with pytest.raises(UserError, match=words):
        data_set("ImageNet", net)


def test_first_images_go_by_their_names(net):
    data = data_set("ImageNet", net, test={"FIRST": 7})
    assert [int(d.impath[-13:-5]) for d in data.test] == list(range(1, 8))
    assert [d.label for d in data.test] == [0, 1, 2, 3, 4, 0, 1]
    half = data_set("ImageNet", net, test={"FIRST": 3}, SUBSAMPLE_CLASSES="new")
    assert [d.impath[-7:-5] for d in half.test] == ["04", "05", "09"] and half.num_classes == 2
    assert len(data_set("ImageNet", net, test={"FIRST": 99}).test) == 10


@pytest.mark.parametrize(
    ("name", "test", "words"),
    [
        ("ImageNet", {"FIRST": 5, "SUBSET": 5}, "TEST.SUBSET is 5 and TEST.FIRST is 5"),
        ("OxfordPets", {"FIRST": 5}, "file names of OxfordPets follow its classes"),
    ],
)
def test_first_images_are_refused(name, test, words, tmp_path, make):
    make(name, tmp_path)
    with pytest.raises(UserError, match=words):
        data_set(name, tmp_path, test=test)


# --- the test sets of ImageNet's classes -------------------------------------------------------


@pytest.mark.parametrize("name", TESTS_ONLY)
def test_shots_mean_nothing_to_a_test_set(name, tmp_path, make):
    made = make(name, tmp_path)
    whole, few = (data_set(name, tmp_path, n) for n in (-1, 16))
    assert whole.test_only and few.test_only
    assert below(few, few.test) == below(whole, whole.test)
    assert [d.label for d in few.train_x] == list(range(made.classes)) and few.val == []
    assert not list(tmp_path.rglob("split_*"))
    subset = data_set(name, tmp_path, 16, test={"SUBSET": made.classes})
    assert sorted(d.label for d in subset.test) == list(range(made.classes))


@pytest.mark.parametrize("name", TESTS_ONLY)
def test_class_names_of_imagenet_serve_its_test_sets(name, tmp_path, make):
    made = make(name, tmp_path)
    folder = folder_of(name, tmp_path)
    (tmp_path / "imagenet").mkdir()
    (folder / "classnames.txt").rename(tmp_path / "imagenet" / "classnames.txt")
    assert data_set(name, tmp_path).classnames[0] == made.names[0]


@pytest.mark.parametrize("name", TESTS_ONLY)
def test_an_incomplete_test_set(name, tmp_path, make):
    make(name, tmp_path)
    folder = folder_of(name, tmp_path) / base.DATASET_REGISTRY.get(name).image_folder
    one = next(f for f in sorted(folder.iterdir()) if f.is_dir())
    one.rename(folder / "n99999999")
    with pytest.raises(UserError, match="n99999999|'0' is in one of them only"):
        data_set(name, tmp_path)
    (folder / "n99999999").rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"has 3 class folders, expected 4"):
        data_set(name, tmp_path)
    one.mkdir()
    with pytest.raises(UserError, match=f"{one.name}' has no images"):
        data_set(name, tmp_path)


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [1, 100])
def test_missing_files(tmp_path, many):
    text(tmp_path / "a" / "here.jpg", [])
    (tmp_path / "a" / "folder.jpg").mkdir()
    (tmp_path / "a" / "dead.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "link.jpg").symlink_to(tmp_path / "a" / "here.jpg")
    text(tmp_path / "top.jpg", [])
    paths = ["a/here.jpg", "a/folder.jpg", "a/dead.jpg", "a/link.jpg", "b/x.jpg", "top.jpg", "no"]
    missing = files.missing_files(str(tmp_path), paths, many)
    assert sorted(missing) == ["a/dead.jpg", "a/folder.jpg", "b/x.jpg", "no"]


def test_datums_are_dassls(tmp_path, make):
    make("OxfordPets", tmp_path)
    datum = data_set("OxfordPets", tmp_path).test[4]
    plain = base.Datum(impath=datum.impath, label=datum.label, classname=datum.classname)
    assert isinstance(datum, base.Datum) and vars(datum) == vars(plain)


# --- CoOp's own split files --------------------------------------------------------------------


# The few-shot draws of CoOp with seeds 1, 2 and 3: all of 16, 1, 2, 4 and 8 shots.
COOP_DRAWS = {
    "OxfordPets": ("e3334646346a5922", "e7faaa50f20fddbb", "b765922f8e998edc"),
    "Caltech101": ("9841013183910a79", "ac502c348be33bcd", "a4090da8fdf24dc3"),
    "EuroSAT": ("bed787b89f6cc12d", "a8737c65bc1b4d09", "04788bc801503292"),
    "OxfordFlowers": ("d9a9288b2fc8fc79", "913d59ed3048e0d3", "6a75af4cd89a7937"),
    "StanfordCars": ("59114e33cd27b672", "0f8ce7c7732ea486", "2c44a33acab25d20"),
    "DescribableTextures": ("355c91c73ff44c03", "548195ae143c9d1f", "f01862e0d405873d"),
    "UCF101": ("f852f4c0565c6012", "73c9f4a9fa0f795a", "221ff8c015113c06"),
}


def real_split(name):
    folder = Path(REAL_DATA) / ("eurosat" if name == "EuroSAT" else "splits")
    return read_split(folder / f"split_zhou_{name}.json")


@needs_real_data
@pytest.mark.parametrize("name", COOP_DRAWS)
def test_split_files_are_as_published(name):
    cls, split = base.DATASET_REGISTRY.get(name), real_split(name)
    base.check_labels(split, name)
    classes = {item.label for item in split.train}
    assert len(classes) == cls.n_classes and (*map(len, split),) == find_source(cls).sizes
    assert min(Counter(item.label for item in split.train).values()) >= 16
    for seed, expected in enumerate(COOP_DRAWS[name], start=1):
        drawn = [sampling.draw_shots(*split[:2], shots, seed) for shots in (16, 1, 2, 4, 8)]
        paths = "\n".join(item.path for parts in drawn for part in parts for item in part)
        assert hashlib.sha256(paths.encode()).hexdigest()[:16] == expected


@needs_real_data
def test_class_names_of_the_split_files_follow_the_rules():
    for item in sum(real_split("UCF101"), []):
        action = item.path.split("/")[1].split("_")[1].replace("HandStand", "Handstand")
        assert item.classname == UCF101.class_name(action) == item.path.split("/")[0]
    for item in sum(real_split("DescribableTextures"), []):
        assert item.classname == item.path.split("/")[0]
    assert all(item.classname[:4].isdigit() for item in real_split("StanfordCars").test)
    folders = {item.path.split("/")[0] for part in real_split("StanfordCars") for item in part}
    assert folders == {"cars_train", "cars_test"}
