"""The stand-in for Dassl against facts taken from Dassl 0.6.3 (frozen here), and its files."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data import DataManager, DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.evaluation import build_evaluator
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    Registry,
    listdir_nohidden,
    load_checkpoint,
    load_pretrained_weights,
    read_json,
    resume_from_checkpoint,
    save_checkpoint,
    set_random_seed,
    setup_logger,
    write_json,
)
from PIL import Image

from tests.world import Payload

DEFAULTS = Path(__file__).parents[1] / "hosts" / "dassl_fork" / "defaults_0_6_3.json"


# without a file
ITEMS = [types.SimpleNamespace(label=(i * 7) % 5, domain=i % 3, classname="") for i in range(60)]


def flatten(node, prefix=""):
    for key, value in node.items():
        if hasattr(value, "items"):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, repr(value)


def test_config_has_exactly_the_keys_and_defaults_of_dassl():
    assert dict(flatten(get_cfg_default())) == json.loads(DEFAULTS.read_text())


LAYER = torch.nn.Linear(2, 2)
BUILD = {
    "data set": build_dataset,
    "trainer": build_trainer,
    "optimizer": lambda cfg: build_optimizer(LAYER, cfg.OPTIM),
    "schedule": lambda cfg: build_lr_scheduler(torch.optim.SGD(LAYER.parameters()), cfg.OPTIM),
    "transform": build_transform,
    "loader": lambda cfg: build_data_loader(cfg, cfg.DATALOADER.TEST.SAMPLER, ITEMS),
    "wrapper": lambda cfg: DatasetWrapper(cfg, ITEMS),
}


@pytest.mark.parametrize(
    "part, key, value, message",
    [
        ("data set", "DATASET.NAME", "NoSuchThing", "'NoSuchThing' is not available"),
        ("trainer", "TRAINER.NAME", "NoSuchThing", "'NoSuchThing' is not available"),
        ("optimizer", "OPTIM.STAGED_LR", True, "STAGED_LR needs Dassl itself"),
        ("optimizer", "OPTIM.NAME", "adma", "'adma' is not available .* Did you mean adam"),
        ("schedule", "OPTIM.LR_SCHEDULER", "cosin", "'cosin' is not .* Did you mean cosine"),
        ("schedule", "OPTIM.WARMUP_TYPE", "exp", "warm-up 'exp' is not available"),
        ("schedule", "OPTIM.STEPSIZE", ("a",), "STEPSIZE is .'a',., expected whole epochs"),
        ("transform", "INPUT.TRANSFORMS", ("gaussian_blur",), "without Dassl itself"),
        ("transform", "INPUT.TRANSFORMS", ("random_filp",), "Did you mean random_flip"),
        ("loader", "DATALOADER.TEST.SAMPLER", "RandomClassSampler", "Dassl itself.* RandomSamp"),
        ("wrapper", "DATALOADER.K_TRANSFORMS", 3, "K_TRANSFORMS and RETURN_IMG0 need Dassl itself"),
    ],
)
def test_what_is_unknown_or_in_dassl_alone_is_refused(part, key, value, message):
    cfg = get_cfg_default()
    cfg.merge_from_list(["OPTIM.WARMUP_EPOCH", 1, key, value])
    with pytest.raises((ValueError, TypeError), match=message):
        BUILD[part](cfg)


def test_registry_refuses_a_taken_name_and_offers_near_ones():
    registry = Registry("TRAINER")

    @registry.register()
    class MaPLe:
        pass

    assert registry.register(MaPLe, force=True) is MaPLe
    assert registry.get("MaPLe") is MaPLe and registry.registered_names() == ["MaPLe"]
    with pytest.raises(KeyError, match="'MaPLe' is already in the TRAINER registry"):
        registry.register(MaPLe)
    with pytest.raises(KeyError, match="'maple' is not in the TRAINER .* Did you mean MaPLe"):
        registry.get("maple")


# --- optimizers and schedules ---------------------------------------------------------------

LR = 0.002
SCHEDULES = [  # name, warm-up type, warm-up epochs, recount, rates of 8 epochs as Dassl gives them
    ("cosine", "constant", 1, True, "10 2000 1923.88 1707.11 1382.68 1000 617.317 292.893"),
    ("cosine", "constant", 1, False, "10 2000 1774.65 1437.39 1039.57 641.741 304.482 79.1323"),
    ("cosine", "linear", 3, True, "10 666.667 1333.33 2000 1923.88 1707.11 1382.68 1000"),
    ("cosine", "linear", -1, True, "2000 1923.88 1707.11 1382.68 1000 617.317 292.893 76.1205"),
    ("single_step", "constant", 1, True, "10 2000 2000 2000 200 200 200 20"),
    ("single_step", "constant", 1, False, "10 2000 2000 200 200 200 20 20"),
    ("single_step", "linear", -1, True, "2000 2000 2000 200 200 200 20 20"),
    ("multi_step", "linear", 3, True, "10 666.667 1333.33 2000 2000 2000 200 200"),
    ("multi_step", "constant", 1, False, "10 2000 2000 200 200 200 20 20"),
]


def optim_cfg(**keys):
    node = get_cfg_default().OPTIM
    node.merge_from_list([x for pair in keys.items() for x in pair])
    return node


def schedule(name="cosine", warmup="constant", epochs=1, recount=True):
    cfg = optim_cfg(NAME="sgd", LR=LR, MAX_EPOCH=8, LR_SCHEDULER=name, WARMUP_TYPE=warmup)
    cfg.WARMUP_EPOCH, cfg.WARMUP_RECOUNT = epochs, recount
    if name != "cosine":
        cfg.STEPSIZE = (3, 6) if name == "multi_step" else (3,)
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(2))], cfg)
    return optimizer, build_lr_scheduler(optimizer, cfg)


def rates(optimizer, scheduler, epochs):
    out = []
    for _ in range(epochs):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


@pytest.mark.parametrize("name, warmup, epochs, recount, expected", SCHEDULES)
def test_learning_rates_are_those_of_dassl_also_resumed(name, warmup, epochs, recount, expected):
    whole = rates(*schedule(name, warmup, epochs, recount), 8)
    assert whole == pytest.approx([float(x) * 1e-6 for x in expected.split()], rel=1e-5)
    for done in (1, 5):
        optimizer, scheduler = schedule(name, warmup, epochs, recount)
        rates(optimizer, scheduler, done)
        fresh, restored = schedule(name, warmup, epochs, recount)
        fresh.load_state_dict(optimizer.state_dict())
        restored.load_state_dict(scheduler.state_dict())
        assert rates(fresh, restored, 8 - done) == whole[done:]


@pytest.mark.parametrize(
    "name, kind, expected",
    [
        ("adam", torch.optim.Adam, {"amsgrad": False, "betas": (0.9, 0.999)}),
        ("amsgrad", torch.optim.Adam, {"amsgrad": True}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": False, "dampening": 0}),
        ("rmsprop", torch.optim.RMSprop, {"alpha": 0.99, "momentum": 0.9}),
        ("radam", torch.optim.RAdam, {"decoupled_weight_decay": True}),
        ("adamw", torch.optim.AdamW, {"weight_decay": 5e-4}),
    ],
)
def test_optimizers_take_their_options_from_the_config(name, kind, expected):
    optimizer = build_optimizer(torch.nn.Linear(2, 2), optim_cfg(NAME=name))
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.0003
    assert {key: group[key] for key in expected} == expected


# --- data -----------------------------------------------------------------------------------

FEW_SHOT = {  # 4 shots of ITEMS after random.seed(key), drawn by Dassl
    1: [35, 55, 50, 30, 16, 6, 36, 1, 32, 57, 47, 2, 58, 38, 23, 18, 49, 9, 29, 4],
    2: [55, 50, 20, 45, 46, 16, 56, 1, 47, 52, 12, 32, 53, 33, 43, 28, 44, 39, 59, 24],
    3: [45, 35, 55, 5, 46, 1, 36, 21, 42, 17, 52, 37, 43, 58, 38, 33, 54, 14, 19, 59],
}
ONE_SHOT_BEFORE = {1: [10, 46, 7, 23, 9], 2: [0, 6, 7, 28, 14], 3: [15, 46, 42, 13, 29]}
# Dassl's draw of 13 from 12 images per class with replacement, first class, after the above
REPEATED = {
    1: [0, 35, 0, 50, 40, 55, 40, 30, 45, 55, 30, 20, 40],
    2: [50, 50, 20, 55, 50, 25, 50, 5, 10, 10, 10, 10, 30],
    3: [50, 30, 40, 40, 0, 45, 35, 15, 0, 50, 25, 40, 50],
}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_few_shot_draws_are_those_of_dassl(seed):
    dataset = DatasetBase(train_x=ITEMS)
    position = {id(x): i for i, x in enumerate(ITEMS)}

    def draw(shots, **kwargs):
        drawn = dataset.generate_fewshot_dataset(ITEMS, num_shots=shots, **kwargs)
        return [position[id(x)] for x in drawn]

    random.seed(seed)
    assert draw(1) == ONE_SHOT_BEFORE[seed]
    assert draw(4) == FEW_SHOT[seed]
    assert sorted(draw(13)) == list(range(60))  # all there are, and no random number used
    assert draw(13, repeat=True)[:13] == REPEATED[seed]
    assert draw(-1) == list(range(60))


def test_samplers_visit_in_the_order_of_dassl(image_root, tmp_path):
    cfg = toy_cfg(image_root, tmp_path)
    first = {"RandomSampler": [37, 24, 43, 46, 48, 13], "SequentialSampler": [*range(6)]}
    for name, order in first.items():
        set_random_seed(5)
        loader = build_data_loader(cfg, name, data_source=ITEMS)
        assert [*loader.sampler][:6] == order and len(loader.sampler) == 60


def test_transforms_are_applied_in_order_and_announced(capsys):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (24, 24)
    train = build_transform(cfg, choices=["random_flip", "random_resized_crop", "normalize"])
    test = build_transform(cfg, is_train=False, choices=["random_flip", "random_resized_crop"])
    assert capsys.readouterr().out.splitlines() == [
        "Building transform_train",
        "+ random resized crop (size=(24, 24), scale=(0.08, 1.0))",
        "+ random flip",
        "+ to torch tensor of range [0, 1]",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
        "Building transform_test",
        "+ resize the smaller edge to 24",
        "+ 24x24 center crop",
        "+ to torch tensor of range [0, 1]",
    ]
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 52, 3), np.uint8))
    assert train(image).min() < 0 <= test(image).min() and test(image).shape == (3, 24, 24)
    moved = build_transform(cfg, choices=["random_translation"])
    set_random_seed(3)  # of which the first is moved, and the second is not
    first, second = moved(image), moved(image)
    resized = build_transform(cfg, choices=[])(image)
    assert first.shape == (3, 24, 24)
    assert not torch.equal(first, resized) and torch.equal(second, resized)
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_pixels_and_draws_are_those_of_torchvision(interpolation):
    import torchvision.transforms as T

    mode, cfg = T.InterpolationMode(interpolation), get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (24, 30), interpolation
    theirs = {
        (True, ("random_resized_crop", "random_flip")): [
            T.RandomResizedCrop((24, 30), scale=(0.08, 1.0), interpolation=mode),
            T.RandomHorizontalFlip(),
        ],
        (True, ("normalize",)): [T.Resize((24, 30), mode)],
        (False, ()): [T.Resize(30, mode), T.CenterCrop((24, 30))],
    }
    for (is_train, choices), steps in theirs.items():
        norm = [T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)] * ("normalize" in choices)
        expected = T.Compose([*steps, T.ToTensor(), *norm])
        ours = build_transform(cfg, is_train=is_train, choices=list(choices))
        for seed, shape in enumerate([(40, 52), (53, 40), (30, 30), (31, 47), (20, 21), (9, 200)]):
            pixels = np.random.RandomState(seed).randint(0, 256, (*shape, 3), np.uint8)
            image = Image.fromarray(pixels)
            set_random_seed(seed)
            found, after = ours(image), torch.rand(1)
            set_random_seed(seed)
            assert torch.equal(found, expected(image)) and after == torch.rand(1)


@pytest.fixture
def image_root(tmp_path):
    """12 images of 2 classes whose red and blue tell them apart."""
    root = tmp_path / "images"
    for i in range(12):
        colour = (250, 10 * i, 5) if i % 2 else (5, 10 * i, 250)
        path = root / ("red" if i % 2 else "blue") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), colour).save(path)
    return root


def read_images(root):
    return [
        Datum(str(path), label=label, domain=0, classname=name)
        for label, name in enumerate(["blue", "red"])
        for path in sorted((root / name).iterdir())
    ]


@DATASET_REGISTRY.register()
class TwoColours(DatasetBase):
    def __init__(self, cfg):
        items = read_images(Path(cfg.DATASET.ROOT))
        super().__init__(train_x=items, val=items[::3], test=items)


KEYS = """
    DATASET.NAME TwoColours INPUT.SIZE (8,8) INPUT.TRANSFORMS ('random_flip','random_resized_crop')
    DATALOADER.NUM_WORKERS 0 DATALOADER.TRAIN_X.BATCH_SIZE 5 USE_CUDA False TRAINER.NAME ToyTrainer
    OPTIM.NAME sgd OPTIM.LR 0.5 OPTIM.MAX_EPOCH 4 OPTIM.LR_SCHEDULER cosine OPTIM.WARMUP_EPOCH 1
    OPTIM.WARMUP_TYPE constant
"""


def toy_cfg(image_root, output, **keys):
    cfg = get_cfg_default()
    own = {"DATASET.ROOT": str(image_root), "OUTPUT_DIR": str(output), **keys}
    cfg.merge_from_list([*KEYS.split(), *(x for pair in own.items() for x in pair)])
    return cfg


def test_data_manager_yields_batches_and_prints_a_summary(image_root, tmp_path, capsys):
    dm = DataManager(toy_cfg(image_root, tmp_path))
    batches = list(dm.train_loader_x)
    assert [len(b["label"]) for b in batches] == [5, 5]  # the incomplete batch is dropped
    assert set(batches[0]) == {"img", "label", "domain", "impath", "index"}
    assert batches[0]["img"].shape == (5, 3, 8, 8)
    assert sum(len(b["label"]) for b in dm.test_loader) == 12
    assert dm.train_loader_u is None and len(dm.val_loader.dataset) == 4
    assert (dm.num_classes, dm.lab2cname) == (2, {0: "blue", 1: "red"})
    assert dm.dataset.classnames == ["blue", "red"]
    out = capsys.readouterr().out
    assert "Loading dataset: TwoColours" in out
    counts = [line.split()[1:] for line in out.splitlines() if line.startswith("#")]
    assert counts == [["classes", "2"], ["train_x", "12"], ["val", "4"], ["test", "12"]]


def test_wrapper_applies_transforms_and_names_bad_images(image_root, tmp_path):
    cfg = toy_cfg(image_root, tmp_path)
    transform, items = build_transform(cfg), read_images(image_root)
    sample = DatasetWrapper(cfg, items, [transform, transform], is_train=True)[1]
    assert sample["img"].shape == sample["img2"].shape == (3, 8, 8) and sample["index"] == 1
    assert DatasetWrapper(cfg, items)[0]["img"].size == (20, 20)
    with pytest.raises(FileNotFoundError, match="no image at '.*nowhere.png'"):
        Datum(str(tmp_path / "nowhere.png"))
    path = Path(items[0].impath)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(OSError, match=f"image '.*{path.name}' (cannot be read|is corrupt)"):
        DatasetWrapper(cfg, items, transform)[0]


def test_datum_pickles_under_the_names_of_dassl(image_root):
    datum = read_images(image_root)[0]
    assert set(vars(datum)) == {"_impath", "_label", "_domain", "_classname"}
    assert type(datum).__module__.endswith("dassl.data.datasets.base_dataset")
    assert pickle.loads(pickle.dumps(datum)).impath == datum.impath


# --- evaluation and metrics -----------------------------------------------------------------


def test_classification_prints_and_returns_the_figures_of_dassl(capsys):
    cfg = get_cfg_default()
    cfg.TEST.PER_CLASS_RESULT = True
    evaluator = build_evaluator(cfg, lab2cname={0: "cat", 1: "dog", 2: "owl"})
    labels, predictions = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 2, 0, 1])
    evaluator.process(torch.eye(3)[predictions[:2]], labels[:2])
    evaluator.process(torch.eye(3)[predictions[2:]], labels[2:])
    results = evaluator.evaluate()
    # F1 by hand: class 0 has 2 hits, 3 true, 3 predicted; class 1 has 1, 2, 1
    assert list(results) == ["accuracy", "error_rate", "macro_f1", "perclass_accuracy"]
    expected = [60.0, 40.0, 100 * (2 / 3 + 2 / 3) / 2, (200 / 3 + 50) / 2]
    assert list(results.values()) == pytest.approx(expected)
    assert capsys.readouterr().out.splitlines() == [
        "Loading evaluator: Classification",
        "=> result",
        "* total: 5",
        "* correct: 3",
        "* accuracy: 60.0%",
        "* error: 40.0%",
        "* macro_f1: 66.7%",
        "=> per-class result",
        "* class: 0 (cat)\ttotal: 3\tcorrect: 2\tacc: 66.7%",
        "* class: 1 (dog)\ttotal: 2\tcorrect: 1\tacc: 50.0%",
        "* average: 58.3%",
    ]
    evaluator.reset()
    with pytest.raises(ValueError, match="no image"):
        evaluator.evaluate()


def test_accuracy_within_the_first_k():
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.4, 0.1], [0.2, 0.3, 0.5]])
    target = torch.tensor([1, 1, 0])
    top1, top2, top3 = compute_accuracy((scores, None), target, topk=(1, 2, 3))
    assert top1.shape == (1,)
    assert [round(x.item(), 2) for x in (top1, top2, top3)] == [33.33, 66.67, 100.0]


# --- checkpoints ----------------------------------------------------------------------------


def checkpoint_of(model, epoch=1, **extra):
    return {"state_dict": model.state_dict(), "epoch": epoch, **extra}


def test_checkpoints_hold_plain_values_and_say_where_they_went(tmp_path, capsys):
    model = torch.nn.Linear(2, 2)
    wrapped = torch.nn.DataParallel(model)
    state = checkpoint_of(wrapped, 3, val_result=np.float64(12.5), optimizer=None)
    save_checkpoint(state, str(tmp_path / "m"), is_best=True)
    folder = tmp_path / "m"
    assert (folder / "checkpoint").read_text() == "model.pth.tar-3\n"
    assert sorted(os.listdir(folder)) == ["checkpoint", "model-best.pth.tar", "model.pth.tar-3"]
    assert f"Checkpoint saved to {folder}/model.pth.tar-3" in capsys.readouterr().out
    loaded = torch.load(folder / "model.pth.tar-3", weights_only=True)
    assert list(loaded["state_dict"]) == ["weight", "bias"]
    assert loaded["val_result"] == 12.5 and type(loaded["val_result"]) is float
    other = torch.nn.Linear(2, 2)
    assert resume_from_checkpoint(str(folder), other) == 3
    assert torch.equal(other.weight, model.weight)


def test_objects_are_not_saved_and_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    save_checkpoint(checkpoint_of(model), str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TypeError, match=r"checkpoint.scheduler\[1\] is a Linear"):
        save_checkpoint(checkpoint_of(model, scheduler=[1, model]), str(tmp_path))

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(checkpoint_of(torch.nn.Linear(2, 2)), str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_a_payload_is_refused_and_does_not_run(tmp_path, legacy, protocol):
    marker, path = tmp_path / "ran", tmp_path / "model.pth.tar-1"
    state = {"state_dict": {}, "epoch": 1, "val_result": Payload(marker)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=rf"checkpoint '{path}' ") as error:
        load_checkpoint(str(path))
    if protocol == 2:
        assert "was refused: loading it would run" in str(error.value)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the payload is live: without the guard it runs
    assert marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_files_are_named(tmp_path, share):
    save_checkpoint(checkpoint_of(torch.nn.Linear(40, 40)), str(tmp_path))
    path = tmp_path / "model.pth.tar-1"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="model.pth.tar-1' is truncated, damaged or no checkpoint"):
        load_checkpoint(str(path))


@pytest.mark.skipif(torch.__version__ < (2, 6), reason="such files are refused before 2.6")
@pytest.mark.parametrize("number", [np.float64(81.5), np.int64(81)])
def test_files_of_dassl_with_objects_are_read_as_plain_values(tmp_path, number):
    """Dassl pickles the main schedule, optimizer included, inside the warm-up's state."""
    optimizer, scheduler = schedule("cosine", "constant", 1)
    rates(optimizer, scheduler, 4)
    state = {k: v for k, v in vars(scheduler).items() if k != "optimizer"}
    assert state["successor"].optimizer is optimizer  # an object, as Dassl writes it
    path = tmp_path / "model.pth.tar-4"
    torch.save({"epoch": 4, "scheduler": state, "val_result": number}, path)
    loaded = load_checkpoint(str(path))
    assert loaded["val_result"] == number.item()
    assert not isinstance(loaded["val_result"], np.generic)
    assert type(loaded["scheduler"]["successor"]) is dict
    assert "optimizer" not in loaded["scheduler"]["successor"]
    fresh, restored = schedule("cosine", "constant", 1)
    fresh.load_state_dict(optimizer.state_dict())
    restored.load_state_dict(loaded["scheduler"])
    assert rates(fresh, restored, 4) == rates(optimizer, scheduler, 4)


def test_pretrained_weights_load_where_they_fit(tmp_path, capsys):
    source = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 5))
    target = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
    save_checkpoint(checkpoint_of(source), str(tmp_path))
    load_pretrained_weights(target, str(tmp_path / "model.pth.tar-1"))
    assert torch.equal(target[0].weight, source[0].weight)
    assert "unmatched keys or size: ['1.weight', '1.bias']" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="no weight has a name and shape of this model"):
        load_pretrained_weights(torch.nn.LayerNorm(7), str(tmp_path / "model.pth.tar-1"))


# --- files and log --------------------------------------------------------------------------


def test_small_file_tools(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json({"x": [1]}, str(path))
    assert path.read_text() == '{\n    "x": [\n        1\n    ]\n}'
    assert read_json(str(path)) == {"x": [1]}
    (tmp_path / ".hidden").touch()
    assert listdir_nohidden(tmp_path, sort=True) == ["a"]


def test_log_copies_the_console_and_keeps_old_logs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    setup_logger(str(tmp_path))
    print("first run")
    assert sys.stdout.isatty() is False
    setup_logger(str(tmp_path))
    print("second run")
    sys.stdout.flush()
    old, new = sorted(tmp_path.iterdir())
    assert (old.name, old.read_text()) == ("log.txt", "first run\n")
    assert new.name.startswith("log.txt-") and new.read_text() == "second run\n"
    assert capsys.readouterr().out == "first run\nsecond run\n"
    sys.stdout.close()
    print("still open")


# --- trainers -------------------------------------------------------------------------------


@TRAINER_REGISTRY.register()
class ToyTrainer(TrainerX):
    stop_after = None

    def build_model(self):
        self.model = torch.nn.Linear(3, self.num_classes, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", self.model, self.optim, self.sched)

    def before_epoch(self):
        set_random_seed(self.epoch)

    def after_epoch(self):
        super().after_epoch()
        if self.epoch + 1 == self.stop_after:
            raise KeyboardInterrupt

    def model_inference(self, image):
        return self.model(image.mean(dim=(2, 3)))

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        loss = torch.nn.functional.cross_entropy(self.model_inference(image), label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


def test_trainer_prints_saves_and_learns(image_root, tmp_path, capsys):
    trainer = build_trainer(toy_cfg(image_root, tmp_path / "run", **{"TRAIN.PRINT_FREQ": 2}))
    assert trainer.test() == 50.0  # untrained: everything is class 0
    trainer.train()
    out = capsys.readouterr().out
    line = next(x for x in out.splitlines() if x.startswith("epoch [1/4] batch [2/2] time "))
    assert " data " in line and " loss 0.69" in line and " lr 5.0000e-01 eta 0:00:0" in line
    lines = "Loading trainer: ToyTrainer|No checkpoint found, train from scratch|Finish training"
    lines += "|Deploy the last-epoch model|Evaluate on the *test* set|* accuracy: 100.0%|Elapsed: 0"
    assert all(line in out for line in lines.split("|"))
    folder = tmp_path / "run" / "prompt_learner"
    assert sorted(os.listdir(folder)) == ["checkpoint", "model.pth.tar-4"]
    saved = load_checkpoint(str(folder / "model.pth.tar-4"))
    assert set(saved) == {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}

    weight = trainer.model.weight.clone()
    torch.nn.init.zeros_(trainer.model.weight)
    trainer.load_model(str(tmp_path / "run"), epoch=4)
    assert torch.equal(trainer.model.weight, weight)
    assert "(epoch=4, val_result=none)" in capsys.readouterr().out
    trainer.load_model("")
    assert "load_model() is skipped" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="model-best.pth.tar"):
        trainer.load_model(str(tmp_path / "run"))


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(image_root, tmp_path, monkeypatch, stop_after):
    every = {"TRAIN.CHECKPOINT_FREQ": 1}
    whole = build_trainer(toy_cfg(image_root, tmp_path / "whole", **every))
    whole.train()
    cfg = toy_cfg(image_root, tmp_path / "parts", **every)
    killed = build_trainer(cfg)
    monkeypatch.setattr(killed, "stop_after", stop_after)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = build_trainer(cfg)
    resumed.train()
    assert resumed.start_epoch == stop_after
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert resumed.get_current_lr() == whole.get_current_lr()
    torch.testing.assert_close(
        resumed.optim.state_dict()["state"], whole.optim.state_dict()["state"], rtol=0, atol=0
    )


def test_best_model_on_validation_is_kept_and_deployed(image_root, tmp_path, capsys):
    cfg = toy_cfg(image_root, tmp_path, **{"TEST.FINAL_MODEL": "best_val"})
    build_trainer(cfg).train()
    out = capsys.readouterr().out
    assert out.count("Evaluate on the *val* set") == 4
    assert "Deploy the model with the best val performance" in out
    assert "val_result=100.0" in out
    assert (tmp_path / "prompt_learner" / "model-best.pth.tar").exists()


def test_trainer_refuses_wrong_use(image_root, tmp_path):
    trainer = build_trainer(toy_cfg(image_root, tmp_path))
    with pytest.raises(AssertionError, match="already registered"):
        trainer.register_model("prompt_learner", trainer.model)
    with pytest.raises(AssertionError, match="no model 'clip'"):
        trainer.model_update("clip")
    with pytest.raises(KeyError, match="mode 'fast'"):
        trainer.set_model_mode("fast")
    with pytest.raises(FloatingPointError, match="infinite or NaN"):
        trainer.model_backward(torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(AssertionError, match="before register_model"):
        object.__new__(TrainerX).register_model("m")


def test_models_of_different_epochs_do_not_resume(image_root, tmp_path):
    trainer = build_trainer(toy_cfg(image_root, tmp_path))
    trainer.register_model("second", torch.nn.Linear(1, 1))
    trainer.save_model(0, str(tmp_path))
    assert trainer.resume_model_if_exist(str(tmp_path)) == 1
    save_checkpoint(checkpoint_of(trainer._models["second"], 2), str(tmp_path / "second"))
    with pytest.raises(ValueError, match="of different epochs"):
        trainer.resume_model_if_exist(str(tmp_path))


def test_importing_advprompt_leaves_heavy_packages_alone():
    heavy = {"torchvision", "open_clip", "matplotlib", "pandas", "scipy", "torch._dynamo"}
    code = f"import sys, advprompt; print({heavy} & set(sys.modules))"
    words, here = [sys.executable, "-c", code], Path(__file__).parents[2]
    done = subprocess.run(words, cwd=here, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"  # it takes seconds, and --help needs none of it
