"""Training images kept decoded on the device give what a loader gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data.data_manager import DatasetWrapper, build_data_loader
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from PIL import Image

from advprompt import extend_cfg
from advprompt.engine import device_loader as ondevice
from advprompt.engine.draws import OwnDraws, own_draws
from advprompt.utils.errors import UserError
from tests.conftest import ok, weights

CPU = torch.device("cpu")


@pytest.fixture
def cfg():
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.INPUT.SIZE = (24, 24)
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = []
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


@pytest.fixture
def items(tmp_path):
    rng, made = np.random.default_rng(0), []
    for i in range(7):
        path = tmp_path / f"{i}.png"
        size = (30 + 5 * i, 41 + i, 3)
        smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        smooth.resize(size[1::-1], Image.Resampling.BICUBIC).save(path)
        made.append(Datum(impath=str(path), label=i % 3, domain=0, classname=str(i % 3)))
    return made


def loaders(cfg, items):
    made = build_data_loader(
        cfg,
        "RandomSampler",
        items,
        3,
        tfm=build_transform(cfg, is_train=True),
        is_train=True,
        dataset_wrapper=DatasetWrapper,
    )
    made = own_draws(made, 0)
    return made, ondevice.DeviceLoader(made, cfg, CPU)


def epoch(loader, seed=0):
    torch.manual_seed(seed)
    return list(loader)


def test_without_augmentation_batches_are_the_loaders(cfg, items):
    usual, ours = map(epoch, loaders(cfg, items))
    assert len(usual) == len(ours) == 2  # the incomplete third is dropped
    for a, b in zip(usual, ours, strict=True):
        assert a.keys() == b.keys() and a["impath"] == b["impath"]
        for key in ("label", "index", "domain"):
            assert torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype
        assert a["img"].shape == b["img"].shape and b["img"].dtype == torch.float32
        # PIL rounds to bytes after each of its two passes
        assert (a["img"] - b["img"]).abs().max() < 3 / 255
        assert (a["img"] - b["img"]).abs().mean() < 0.5 / 255


def test_crops_and_flips_are_those_of_torchvision(cfg, items):
    cfg.INPUT.TRANSFORMS = ["random_resized_crop", "random_flip"]
    cfg.INPUT.RRCROP_SCALE = (0.3, 1.0)
    usual, ours = loaders(cfg, items)
    flipped = 0
    for seed in range(12):
        torch.manual_seed(seed)
        expected = usual.dataset.dataset.transform(Image.open(items[4].impath).convert("RGB"))
        torch.manual_seed(seed)
        found = ours.augment(ours.images[4])
        assert (expected - found).abs().max() < 4 / 255
        torch.manual_seed(seed)
        ours.flips = False
        flipped += not torch.equal(found, ours.augment(ours.images[4]))
        ours.flips = True
    assert 0 < flipped < 12


def test_every_epoch_has_another_order_and_the_seed_decides(cfg, items):
    cfg.INPUT.TRANSFORMS = ["random_resized_crop", "random_flip"]
    _, ours = loaders(cfg, items)
    first, again, other = epoch(ours, 1), epoch(ours, 1), epoch(ours, 2)
    assert all(torch.equal(a["img"], b["img"]) for a, b in zip(first, again, strict=True))
    assert any(a["impath"] != b["impath"] for a, b in zip(first, other, strict=True))
    assert all(0 <= x["img"].min() and x["img"].max() <= 1 for x in first)


def test_files_are_decoded_once(cfg, items):
    _, ours = loaders(cfg, items)
    first = epoch(ours)
    for item in items:
        open(item.impath, "wb").close()
    assert all(torch.equal(a["img"], b["img"]) for a, b in zip(first, epoch(ours), strict=True))


def test_a_damaged_image_is_named(cfg, items):
    with open(items[2].impath, "wb") as file:
        file.write(b"no image")
    _, ours = loaders(cfg, items)
    with pytest.raises(UserError, match=r"2\.png' is corrupt or no image"):
        epoch(ours)


def test_auto_is_for_gpus_that_hold_the_set(cfg, items, monkeypatch):
    gpu = torch.device("cuda")
    assert not ondevice.wanted(cfg, items, CPU)
    assert ondevice.wanted(cfg, items, gpu)
    assert ondevice.decoded_bytes(items, 10**9) == sum(
        3 * (30 + 5 * i) * (41 + i) for i in range(7)
    )
    monkeypatch.setattr(ondevice, "LIMIT", 20_000)
    assert not ondevice.wanted(cfg, items, gpu)
    cfg.DATALOADER.TRAIN_X.IN_MEMORY = "yes"
    assert ondevice.wanted(cfg, items, CPU)
    cfg.INPUT.TRANSFORMS = ["colorjitter"]
    with pytest.raises(UserError, match="colorjitter is not made on the device"):
        ondevice.wanted(cfg, items, CPU)
    cfg.DATALOADER.TRAIN_X.IN_MEMORY = "auto"
    assert not ondevice.wanted(cfg, items, gpu)


@pytest.mark.parametrize("trainer", ["CAPT", "CoOp"])
def test_a_run_trains_on_them(run, white_box, trainer, tmp_path):
    words = white_box(trainer, DATALOADER__TRAIN_X__IN_MEMORY="yes")
    assert "training images are kept decoded on the device" in ok(run(words))


# --- one seed per sample -------------------------------------------------------------------------

RANDOM = {"INPUT__TRANSFORMS": "('random_resized_crop', 'random_flip')", "OPTIM__MAX_EPOCH": 2}


def test_the_number_of_workers_changes_no_weight(run, white_box, tmp_path):
    states = []
    for name, workers in (("none", 0), ("two", 2)):
        argv = white_box("AdvCoOp", out=name, DATALOADER__NUM_WORKERS=workers, **RANDOM)
        assert run(argv)[0] == 0
        states.append(weights(tmp_path / name, 2)["state_dict"])
    first, second = states
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_sample_draws_from_seed_epoch_and_index_alone(cfg, items):
    cfg.INPUT.TRANSFORMS = ["random_resized_crop", "random_flip"]
    usual, ours = loaders(cfg, items)
    other = OwnDraws(usual.dataset.dataset, 1)
    before = torch.random.get_rng_state()
    alone = usual.dataset[5]["img"]
    assert torch.equal(before, torch.random.get_rng_state())  # nothing else is disturbed
    found = {int(i): x for b in epoch(usual, 1) for i, x in zip(b["index"], b["img"], strict=True)}
    assert torch.equal(found[5], alone)
    assert (ours.made(5) - alone).abs().max() < 4 / 255  # on the device the same crop
    usual.dataset.epoch = 1
    assert not torch.equal(usual.dataset[5]["img"], alone)
    assert not torch.equal(other[5]["img"], alone)
