"""A small world for end-to-end tests: a toy CLIP, drawn images, train.py's arguments."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

REPO = Path(__file__).resolve().parent.parent
NAMES = ("red_circle", "green_square", "blue_arrow")
PER_CLASS = {"train": 6, "val": 2, "test": 4}


class Payload:
    """A value whose unpickling makes a folder."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def make_toy(path: Path) -> Path:
    """Write a toy CLIP (32x32 images) as a plain state dict."""
    from tests.toy import toy_state_dict

    torch.save(toy_state_dict(), path)
    return path


def make_pets(root: Path) -> Path:
    """Write oxford_pets in CoOp's layout: 3 classes of drawn 40x40 images."""
    from PIL import Image

    from advprompt.datasets import drawing

    images = root / "oxford_pets" / "images"
    images.mkdir(parents=True)
    split, index = {part: [] for part in PER_CLASS}, 0
    for part, count in PER_CLASS.items():
        for label, name in enumerate(NAMES):
            for _ in range(count):
                pixels = drawing.sample("check", index, name.replace("_", " "))
                file = f"{name}_{index}.png"
                Image.fromarray(pixels).resize((40, 40)).save(images / file)
                split[part].append([file, label, name])
                index += 1
    text = json.dumps(split)
    (root / "oxford_pets" / "split_zhou_OxfordPets.json").write_text(text, encoding="utf-8")
    return root


def arguments(
    trainer: str, toy: Path, root: Path, folder: Path, *extra: str, out="run", seed=1, **keys
) -> list[str]:
    """Return train.py's arguments for a short run of ``trainer`` in ``folder``."""
    options = {
        "MODEL.BACKBONE.NAME": f"file:{toy}",
        "INPUT.SIZE": "(32,32)",
        "DATASET.NUM_SHOTS": 4,
        "DATASET.CACHE_DIR": str(folder / "cache"),
        "DATASET.FEATURE_DIR": str(folder / "banks"),
        "TRAINER.ADVPT.N_CTX": 4,
        "OPTIM.MAX_EPOCH": 4,
        "TRAIN.CHECKPOINT_FREQ": 2,
        "DATALOADER.NUM_WORKERS": 0,
        "ATTACK.TRAIN.STEPS": 2,
        "ATTACK.TEST.LIST": "[{'EPS': '16', 'STEPS': 2, 'OBJECTIVE': 'embedding_kl',"
        " 'TARGET': 'embedding'}, {'EPS': '4', 'STEPS': 2}]",
        "TEST.PICTURE": 0,
    } | {key.replace("__", "."): value for key, value in keys.items()}
    words = [str(word) for pair in options.items() for word in pair]
    return [
        "--root",
        str(root),
        "--seed",
        str(seed),
        "--trainer",
        trainer,
        "--dataset-config-file",
        str(REPO / "configs/datasets/oxford_pets.yaml"),
        "--config-file",
        str(REPO / f"configs/trainers/{trainer}/vit_b32.yaml"),
        "--output-dir",
        str(folder / out),
        *extra,
        *words,
    ]
