"""Data sets: CoOp's draws and splits, the caches, base and new classes, and broken folders."""

import hashlib
import json
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from make_datasets import MAKERS, config

import advprompt
from advprompt.datasets import base, sampling
from advprompt.datasets.base import read_split
from advprompt.datasets.coop import OxfordPets
from advprompt.datasets.folder import Folder
from advprompt.datasets.sampling import Item, Split, draw_shots, subsample_classes
from advprompt.utils.subset import images_to_test, stratified_subset

UserError = advprompt.UserError
CONFIGS = sorted(Path(__file__).parents[2].joinpath("configs", "datasets").glob("*.yaml"))


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(datums):
    return [Path(d.impath).name for d in datums]


def digest(items):
    return hashlib.sha256("\n".join(item.path for item in items).encode()).hexdigest()[:16]


@pytest.fixture
def pets(tmp_path):
    """A root with oxford_pets as the archives leave it: 3 breeds, 10 + 3 images each."""
    MAKERS["OxfordPets"](tmp_path / "data")
    return tmp_path / "data"


# --- the few-shot draw -----------------------------------------------------------------------

# Made with Dassl 0.6.3 on the lists of `toy_lists`, for seeds 1, 2 and 3: random.seed(seed),
# generate_fewshot_dataset(train, shots), generate_fewshot_dataset(val, min(shots, 4)).
COOP_DRAWS = {
    1: ("0cece015807aebb2", "e8a0b8e91337c317", "720780dfdb5ed17f"),
    4: ("df6a49cea8c42303", "b9dc485c13f27885", "c9f9f521bf2406fe"),
    16: ("1e45e595ea634124", "8d42d0f53ee36ea9", "e8fff3fb3a70f292"),
}


def toy_lists():
    """Five classes in a mixed order, 20 training images each; 3 to 7 for validation."""
    train = [Item(f"c{y}/{n:02d}.jpg", y, f"class {y}") for n in range(20) for y in (2, 0, 1, 4, 3)]
    val = [Item(f"c{y}/v{n:02d}.jpg", y, f"class {y}") for y in range(5) for n in range(3 + y)]
    return train, val


@pytest.mark.parametrize("shots", COOP_DRAWS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_draw_is_coops(shots, seed, tmp_path):
    state = random.getstate()
    train, val = draw_shots(*toy_lists(), shots, seed)
    assert random.getstate() == state
    assert digest(train + val) == COOP_DRAWS[shots][seed - 1]


def test_too_few_images_names_class_count_and_shots():
    train = [item for item in toy_lists()[0] if item.label != 3 or item.path < "c3/05"]
    advice = sampling.shortage(train, 8)
    assert "'class 3' has 5 training images, fewer than the 8 shots" in advice
    assert not sampling.shortage(train, 5)


# --- classes and test subsets ----------------------------------------------------------------


@pytest.mark.parametrize(("which", "kept"), [("base", [0, 1, 2]), ("new", [3, 4])])
def test_half_of_the_classes_is_relabelled(which, kept):
    train, val = toy_lists()
    half = subsample_classes(Split(train, val, val), which)
    for old, new in ((train, half.train), (val, half.val), (val, half.test)):
        wanted = [(i.path, kept.index(i.label), i.classname) for i in old if i.label in kept]
        assert [tuple(item) for item in new] == wanted
    with pytest.raises(UserError, match="is 'novel', expected all, base or new"):
        subsample_classes(Split(train, val, val), "novel")


@pytest.mark.parametrize("n", [1, 3, 5, 12, 24, 25])
def test_subset_is_fixed_balanced_and_in_order(n):
    _, items = toy_lists()  # classes of 3, 4, 5, 6 and 7 images
    subset = stratified_subset(items, n)
    assert subset == stratified_subset(items, n)
    assert len(subset) == n == len(set(subset))
    assert [items.index(item) for item in subset] == sorted(items.index(item) for item in subset)
    counts, sizes = Counter(i.label for i in subset), Counter(i.label for i in items)
    for a in sizes:  # a class has less than another only where it is exhausted, or by one
        for b in sizes:
            assert counts[a] >= counts[b] - 1 or counts[a] == sizes[a]


def test_a_subset_of_the_data_set_of_a_fork_is_the_same_draw(capsys):
    def keys(subset=0, first=0):
        test = SimpleNamespace(SUBSET=subset, FIRST=first)
        return SimpleNamespace(TEST=test, DATASET=SimpleNamespace(NAME="Theirs"))

    _, items = toy_lists()
    drawn = images_to_test(items, keys(subset=6))
    assert drawn == stratified_subset(items, 6)
    assert "TEST.SUBSET takes 6 of the 25 test images" in capsys.readouterr().out
    assert images_to_test(drawn, keys(subset=6)) == drawn  # a second one changes nothing
    assert images_to_test(items, keys(first=25)) == items  # ours has taken them already
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match="TEST.FIRST is 5, which the fork's own data set Theirs"):
        images_to_test(items, keys(first=5))


def test_subset_does_not_depend_on_the_seed_or_the_shots(pets):
    first = OxfordPets(config(pets, 2, seed=1, test={"SUBSET": 5}))
    other = OxfordPets(config(pets, 4, seed=3, test={"SUBSET": 5}))
    assert names(first.test) == names(other.test)
    assert len(first.test) == 5
    base_set = OxfordPets(config(pets, 2, test={"SUBSET": 4}, SUBSAMPLE_CLASSES="base"))
    assert len(base_set.test) == 4 and base_set.num_classes == 2  # drawn after the classes


def test_split_rules_are_coops():
    items = [Item(f"{n:02d}.jpg", n % 2, str(n % 2)) for n in range(20)]
    train, val, _ = sampling.split_trainval(items, [])
    order = list(range(0, 20, 2))
    rng = random.Random(1)  # CoOp shuffles the class's indices; the first fifth is validation
    rng.shuffle(order)
    assert [i.path for i in val[:2]] == [f"{n:02d}.jpg" for n in order[:2]]
    assert [i.path for i in train[:8]] == [f"{n:02d}.jpg" for n in order[2:]]
    parts = sampling.split_all(items)
    assert [len(part) for part in parts] == [10, 4, 6]
    assert [i.path for i in parts.train[:5]] == [f"{n:02d}.jpg" for n in order[:5]]
    with pytest.raises(UserError, match="'0' has 3 images, too few"):
        sampling.split_all(items[:6])


# --- caches ----------------------------------------------------------------------------------


def test_few_shots_are_kept_as_json_and_read_again(pets, monkeypatch):
    first = OxfordPets(config(pets, 2, seed=3))
    path = pets / "oxford_pets" / "split_fewshot" / "shot_2-seed_3.json"
    assert [row[0] for row in json.loads(path.read_text())["train"]] == names(first.train_x)
    monkeypatch.setattr(base, "draw_shots", None)  # a second draw would fail
    second = OxfordPets(config(pets, 2, seed=3))
    assert names(second.train_x) == names(first.train_x)
    assert names(second.val) == names(first.val)
    assert len(second.val) == 2 * 3
    assert len(OxfordPets(config(pets, 0)).train_x) == 24  # below 1: all images


def test_stale_cache_is_replaced(pets):
    OxfordPets(config(pets, 2))
    path = pets / "oxford_pets" / "split_zhou_OxfordPets.json"
    stored = json.loads(path.read_text())
    stored["train"] = stored["train"][::-1]
    path.write_text(json.dumps(stored))
    expected, _ = draw_shots(*read_split(path)[:2], 2, 1)
    assert names(OxfordPets(config(pets, 2)).train_x) == [item.path for item in expected]


@pytest.mark.parametrize("content", ["{", '{"shots": 2}', "foreign"])
def test_damaged_cache_is_replaced(pets, content):
    first = OxfordPets(config(pets, 2))
    path = pets / "oxford_pets" / "split_fewshot" / "shot_2-seed_1.json"
    if content == "foreign":  # the right key, but images of another set
        content = json.dumps(json.loads(path.read_text()) | {"train": [["x.jpg", 0, "x"]]})
    path.write_text(content)
    assert names(OxfordPets(config(pets, 2)).train_x) == names(first.train_x)
    assert json.loads(path.read_text())["shots"] == 2


@pytest.mark.parametrize("chosen", ["", "cache"])
def test_read_only_root_falls_back_to_the_cache_or_the_output(pets, tmp_path, monkeypatch, chosen):
    monkeypatch.setattr(base, "writable", lambda folder: False)  # bits would not stop root
    before = sorted(pets.rglob("*"))
    where = {"output": tmp_path / "out", "CACHE_DIR": chosen and str(tmp_path / chosen)}
    data = OxfordPets(config(pets, 2, **where))
    assert sorted(pets.rglob("*")) == before
    made = tmp_path / (chosen or "out/cache") / "oxford_pets"
    assert (made / "split_fewshot" / "shot_2-seed_1.json").is_file()
    assert (made / "split_zhou_OxfordPets.json").is_file()
    assert names(OxfordPets(config(pets, 2, **where)).test) == names(data.test)


def test_writable_respects_permission_bits(tmp_path):
    assert base.writable(tmp_path / "not" / "there" / "yet")
    (tmp_path / "closed").mkdir(mode=0o555)
    assert not base.writable(tmp_path / "closed" / "inner")
    touch(tmp_path / "file")
    assert not base.writable(tmp_path / "file" / "inner")


# --- what is missing or broken ---------------------------------------------------------------


def test_missing_images_are_counted_and_named(pets):
    for n in range(100, 103):
        (pets / "oxford_pets" / "images" / f"Great_Pyrenees_{n}.jpg").unlink()
    missing = "3 of 15 images are missing .*'Great_Pyrenees_100.jpg'.*images.tar.gz"
    with pytest.raises(UserError, match=missing):
        OxfordPets(config(pets, 1))
    # images that are not used may be absent
    assert len(OxfordPets(config(pets, 1, SUBSAMPLE_CLASSES="base")).test) == 6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "split_zhou_OxfordPets.json' is not valid JSON"),
        ({"train": [[1]], "val": 0}, "split_zhou_OxfordPets.json' is not a split file"),
        ({"train": [["a", 0, "x"], ["b", 2, "y"]], "test": [["c", 0, "x"]]}, r"labels \[0, 2\]"),
        ({"train": [["a", 0, "x"]], "test": [["c", 0, "z"]]}, "class 'z'"),
        ({"train": [["a", 0, "x"]], "test": [["c", 1, "y"]]}, "label 1"),
        ({"train": [["a", 0, "x"]], "test": []}, "no test images"),
    ],
)
def test_broken_and_inconsistent_splits_are_refused(pets, content, words):
    path = pets / "oxford_pets" / "split_zhou_OxfordPets.json"
    text = content if content == "{" else json.dumps({"val": []} | content)
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        OxfordPets(config(pets))
    assert path.read_text() == text


# --- the user's own folder -------------------------------------------------------------------


def images(folder, count, suffix="jpg"):
    touch(*(folder / f"{n}.{suffix}" for n in range(count)))


def test_folder_of_train_and_test(tmp_path):
    for name in ("cat", "dog_house"):
        images(tmp_path / "mine" / "Train" / name, 6, "PNG")  # in any case
        images(tmp_path / "mine" / "TEST" / name / "deeper", 3)
    touch(tmp_path / "mine" / "Train" / "cat" / "notes.txt")
    data = Folder(config(tmp_path, 4, FOLDER_NAME="mine", TEMPLATE="a sketch of {}."))
    assert data.classnames == ["cat", "dog_house"]
    assert [len(part) for part in (data.train_x, data.val, data.test)] == [8, 0, 6]
    assert data.template == "a sketch of {}."
    images(tmp_path / "mine" / "val" / "dog_house", 2)
    data = Folder(config(tmp_path, 4, FOLDER_NAME="mine"))
    assert [d.label for d in data.val] == [1, 1]
    assert data.template == "a photo of a {}."


def test_a_data_set_is_known_by_its_lists_whatever_a_run_takes(tmp_path):
    def digest(shots, test=None, **keys):
        return Folder(config(tmp_path, shots, test=test, **keys)).set_sha256

    for name in ("cat", "dog", "owl"):
        images(tmp_path / "folder" / "train" / name, 6)
        images(tmp_path / "folder" / "test" / name, 3)
    whole = digest(0)
    parts = [digest(2), digest(4), digest(2, SUBSAMPLE_CLASSES="new"), digest(2, {"SUBSET": 4})]
    assert set(parts) == {whole} and len(whole) == 64
    images(tmp_path / "folder" / "train" / "cat", 7)
    assert digest(2) != whole


def test_folder_of_classes_is_split(tmp_path):
    for name in ("cat", "train"):  # a class may be called so
        images(tmp_path / "folder" / name, 10)
    first = Folder(config(tmp_path, 2))
    assert [len(part) for part in (first.train_x, first.val, first.test)] == [4, 4, 6]
    second = Folder(config(tmp_path, 2, seed=2))  # and split_fewshot is not a class
    assert second.classnames == ["cat", "train"]
    assert names(second.test) == names(first.test)
    images(tmp_path / "folder" / "owl", 10)
    assert Folder(config(tmp_path, 2)).classnames == ["cat", "owl", "train"]


def test_links_to_a_parent_and_files_that_are_no_images_do_not_count(tmp_path, capsys):
    images(tmp_path / "folder" / "cat", 10)
    images(tmp_path / "folder" / "owl", 10)
    images(tmp_path / "folder" / "cat", 3, "gif")
    touch(tmp_path / "folder" / "cat" / "1.jfif")
    (tmp_path / "folder" / "cat" / "more").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "owl" / "same").symlink_to(tmp_path / "folder" / "owl")
    data = Folder(config(tmp_path, 2))
    assert len(names(data.test)) == 6 and data.classnames == ["cat", "owl"]
    assert re.search(r"note: 4 files in .*left out \(.gif: 3, .jfif: 1\)", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({}, "does not exist"),
        ({"": 0}, "0 class folders"),
        ({"notes": 0}, "has no images"),
        ({"train/cat": 4}, "has train only"),
        ({"Validation/cat": 4}, "has Validation only"),
        ({"train/cat": 4, "test/cat": 4, "valid/cat": 2}, "train and valid, expected train and"),
        ({"train/cat": 4, "Train/cat": 4, "test/cat": 2}, "Train and test and train, expected"),
        ({"train/cat": 4, "test/owl": 4}, "class 'owl', which is not in"),
        ({"train/cat": 4, "train/owl": 0, "test/cat": 2}, "owl' has no images"),
        ({"cat": 3}, "'cat' has 3 images, too few"),
    ],
)
def test_broken_folders(tmp_path, layout, words):
    for name, count in layout.items():
        (tmp_path / "folder" / name).mkdir(parents=True, exist_ok=True)
        images(tmp_path / "folder" / name, count)
    with pytest.raises(UserError, match=words):
        Folder(config(tmp_path))


def test_template_without_a_place_for_the_class(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="'a photo', expected a text such as"):
        Folder(config(tmp_path, TEMPLATE="a photo"))


# --- the registry ----------------------------------------------------------------------------


def test_a_taken_name_is_left_as_it_is():
    own = type("OxfordPets", (base.CoOpDataset,), {})
    assert base.register(own) is own
    assert base.DATASET_REGISTRY.get("OxfordPets") is OxfordPets


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_name_registered_data_sets(path):
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    advprompt.extend_cfg(cfg)
    cfg.merge_from_file(str(path))
    assert cfg.DATASET.NAME in base.DATASET_REGISTRY.registered_names()
    assert path.read_text().startswith("# ")


def test_the_own_data_set_of_the_docs_loads(tmp_path, monkeypatch):
    page = Path(__file__).parents[2].joinpath("docs", "data.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.S)[1]
    monkeypatch.setattr(base.DATASET_REGISTRY, "_obj_map", dict(base.DATASET_REGISTRY._obj_map))
    exec(code, {"__name__": "advprompt.custom.leaves", "__package__": "advprompt.custom"})
    leaves = base.DATASET_REGISTRY.get("Leaves")
    with pytest.raises(UserError, match="https://example.org/leaves"):
        leaves(config(tmp_path, 4))
    images(tmp_path / "leaves" / "images" / "oak", 30)
    data = leaves(config(tmp_path, 4))
    assert [len(part) for part in (data.train_x, data.val, data.test)] == [4, 4, 6]
    assert (tmp_path / "leaves" / "split_leaves.json").is_file()
