"""Run a fork's own train.py on the stand-in or on Dassl itself and record what it computes.

As a module: helpers for the tests of this folder. As a program, it is the interpreter in which
a fork runs: ``python dassl_runs.py JOB.json`` writes every loss and every score to JOB's ``out``.
Nothing in the fork or in Dassl is edited. While it runs, ``clip._download`` gives the path of a toy
CLIP, and Dassl's ``build_trainer`` and ``Classification.process`` also take notes.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPTIMIZERS = ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw")
TRANSFORMS = ("random_translation", "random_resized_crop", "random_flip", "normalize")

# Runs of ours that must be the same everywhere: 9 steps on 4 shots of 3 breeds
COMMON = """
    DATASET.NAME OxfordPets DATASET.NUM_SHOTS 4 INPUT.SIZE (32,32) INPUT.INTERPOLATION bicubic
    INPUT.TRANSFORMS ('random_resized_crop','random_flip') DATALOADER.NUM_WORKERS 0
    DATALOADER.TRAIN_X.BATCH_SIZE 4 USE_CUDA False OPTIM.NAME sgd OPTIM.LR 0.01 OPTIM.MAX_EPOCH 3
    OPTIM.LR_SCHEDULER cosine OPTIM.WARMUP_EPOCH 1 OPTIM.WARMUP_TYPE constant ATTACK.TRAIN.STEPS 2
    ATTACK.TEST.LIST [{'EPS':'2','STEPS':2}] TEST.PICTURE 0 TEST.PROBES 0
""".split()
OURS = {
    "AdvPT": "TRAINER.ADVPT.N_CTX 4 ATTACK.TRAIN.EPS 8 ATTACK.TRAIN.ALPHA 2".split(),
    "CAPT": (
        "TRAINER.CAPT.PROMPT_DEPTH 2 ATTACK.TRAIN.EPS 1 ATTACK.TRAIN.ALPHA 0.5 "
        "ATTACK.TRAIN.OBJECTIVE ce ATTACK.TRAIN.TARGET end_to_end"
    ).split(),
}
TOLERANCE = 1e-5
LOSSES = {  # of those runs on Dassl 0.6.3 (commit c61a1b5) with PyTorch 2.13, one thread
    name: [float(value) for value in text.split()]
    for name, text in {
        "AdvPT": "1.0432653 0.8268375 1.0677266 0.9540468 0.7833261 0.5990899 0.7780424 0.5724142 "
        "0.3694046",
        "CAPT": "1.3881557 1.4875135 0.8005226 1.2806644 1.2330620 0.8589225 1.0030456 0.9036286 "
        "0.8134652",
    }.items()
}


def checkout(name: str) -> Path:
    """Return the checkout ``name`` below ADVPROMPT_HOSTS, or skip the test."""
    import pytest

    folder = Path(os.environ.get("ADVPROMPT_HOSTS", "")) / name
    if "ADVPROMPT_HOSTS" not in os.environ or not folder.is_dir():
        pytest.skip(f"ADVPROMPT_HOSTS names no folder with {name}")
    return folder.resolve()


def real_dassl() -> Path:
    """Return the checkout of Dassl itself, or skip the test."""
    import pytest

    folder = checkout("Dassl.pytorch")
    pytest.importorskip("sklearn", reason="Dassl itself needs scikit-learn")
    return folder


def pets_of_noise(root: Path) -> Path:
    """Make oxford_pets below ``root``, each class in a colour of its own, without JPEG's losses."""
    import numpy as np
    from PIL import Image

    from tests.make_datasets import oxford_pets

    oxford_pets(root)
    draw = np.random.RandomState(0)
    for number, path in enumerate(sorted((root / "oxford_pets" / "images").iterdir())):
        colour = 60 + 45 * np.eye(3)["aAG".index(path.name[0])]
        pixels = colour + draw.randint(0, 90, (40, 36 + number % 5, 3))
        with path.open("wb") as file:  # Pillow goes by the content, not by the name
            Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return root


def toy_weights(path: Path) -> Path:
    """Write a toy CLIP with a logit scale of 10.

    CLIP's own 100 would make of rounding, which depends on processor and threads, some 1e-5.
    """
    import torch

    from tests.toy import toy_state_dict

    torch.save(toy_state_dict() | {"logit_scale": torch.tensor(10.0).log()}, path)
    return path


def ours(trainer: str, root: Path, weights: Path, out: Path) -> list[str]:
    """Return the arguments of our train.py, or of a fork's with our trainers."""
    words = ["--root", root, "--seed", 1, "--trainer", trainer, "--output-dir", out]
    words += ["MODEL.BACKBONE.NAME", f"file:{weights}", *COMMON, *OURS[trainer]]
    return [str(word) for word in words]


def run_child(
    out: Path,
    *,
    host: Path,
    runs: list[list] = (),
    dassl: Path | None = None,
    paths=(ROOT, ROOT / "trainers"),
    env=None,
    **job,
) -> dict:
    """Run the job in an interpreter of its own; return what it recorded.

    Args:
        host: folder whose ``train.py``, ``trainers``, ``datasets`` and ``clip`` are used.
        runs: one list of arguments to ``train.py`` per run.
        dassl: checkout of Dassl itself; None for the stand-in.
        paths: further folders to import from, where ``job["first"]`` is found.
        job: ``first`` (what to import before all else, default ``compat``), ``weights`` (file that
            every backbone name stands for), ``datasets`` and ``parts`` (see the two lists below).
    """
    job |= {"host": str(host), "runs": [list(map(str, run)) for run in runs], "out": str(out)}
    file = out.with_suffix(".job")
    file.write_text(json.dumps(job), encoding="utf-8")
    extra = [str(path) for path in (dassl, *paths, ROOT / "trainers") if path]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*extra, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **(env or {}),
    }
    command = [sys.executable, __file__, str(file)]
    done = subprocess.run(command, env=environment, cwd=out.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    result = json.loads(out.read_text(encoding="utf-8"))
    expected = (dassl or ROOT / "trainers/compat") / "dassl"
    assert Path(result["dassl"]) == expected, "another Dassl is installed"
    return result | {"log": done.stdout, "errors": done.stderr}


def keep_losses(trainer, losses: list):
    """Let every training step append its loss to ``losses``; return the trainer."""
    step = trainer.forward_backward

    def forward_backward(batch):
        summary = step(batch)
        losses.append(summary["loss"])
        return summary

    trainer.forward_backward = forward_backward
    return trainer


def record(results: dict) -> None:
    """Let every training step and every tested batch append to ``results``.

    Must be called before train.py is imported.
    """
    from dassl import engine
    from dassl.evaluation.evaluator import Classification

    build, test = engine.build_trainer, Classification.process

    def build_trainer(cfg):
        trainer = build(cfg)
        if hasattr(trainer, "clip"):  # ours: whose code the towers are
            results["code"] = sorted({type(part).__module__ for part in trainer.clip.modules()})
        return keep_losses(trainer, results["losses"])

    def process(self, mo, gt):
        results["scores"] += mo.float().tolist()
        test(self, mo, gt)

    engine.build_trainer, Classification.process = build_trainer, process


def give_weights(path: str) -> None:
    """Let CoOp's ``load_clip_to_cpu`` find the toy CLIP whatever backbone it asks for."""
    from clip import clip

    clip._download = lambda url, *args: path


def list_datasets(names: list[str], root: str, options: list) -> dict:
    """Build data sets of the fork and return their splits as lists of plain values.

    Args:
        options: lists of overrides of the fork's configuration; the data sets are built for each.
    """
    from dassl.config import get_cfg_default
    from dassl.data.datasets import build_dataset
    from dassl.utils import set_random_seed

    listed = {}
    for name in names:
        for overrides in options:
            cfg = get_cfg_default()
            cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # as the fork's extend_cfg does
            cfg.merge_from_list(["DATASET.NAME", name, "DATASET.ROOT", root, *overrides])
            set_random_seed(cfg.SEED)
            data = build_dataset(cfg)
            rows = {"classnames": data.classnames, "num_classes": data.num_classes}
            for part in ("train_x", "val", "test"):
                rows[part] = [
                    (os.path.relpath(d.impath, root), d.label, d.domain, d.classname)
                    for d in getattr(data, part) or ()
                ]
            listed[" ".join(map(str, [name, *overrides]))] = rows
    return listed


def list_parts() -> dict:
    """Return what each optimizer and each transform that both have makes of fixed input."""
    import numpy as np
    import torch
    from dassl.config import get_cfg_default
    from dassl.data.transforms import build_transform
    from dassl.optim import build_lr_scheduler, build_optimizer
    from dassl.utils import set_random_seed
    from PIL import Image

    found = {}
    for name in OPTIMIZERS:
        cfg = get_cfg_default().OPTIM
        cfg.NAME, cfg.LR = name, 0.1
        set_random_seed(1)
        model = torch.nn.Linear(3, 2)
        optimizer = build_optimizer(model, cfg)
        schedule = build_lr_scheduler(optimizer, cfg)
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().sum().backward()
            optimizer.step()
            schedule.step()
        found[name] = model.weight.flatten().tolist()
    pixels = np.random.RandomState(0).randint(0, 256, (40, 52, 3), np.uint8)
    for name in TRANSFORMS:
        for train in (True, False):
            cfg = get_cfg_default()
            cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (24, 24), "bicubic"
            transform = build_transform(cfg, is_train=train, choices=[name])
            set_random_seed(3)
            drawn = torch.stack([transform(Image.fromarray(pixels)) for _ in range(8)])
            found[f"{name} {train}"] = drawn[:, :, ::5, ::5].flatten().tolist()
    return found


def main(file: str) -> None:
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    sys.path[0] = job["host"]  # as if its train.py had been started
    first = importlib.import_module(job.get("first", "compat"))
    results = {"repaired": [], "runs": []}
    if first.__name__ == "compat":
        first.guard_torchvision()
        first.ensure_dassl()
        results["repaired"] = first.modernize_dassl()
    results["dassl"] = str(Path(importlib.import_module("dassl").__file__).parent)
    now: dict = {}
    record(now)
    if job.get("weights"):
        give_weights(job["weights"])
    runpy.run_path(str(Path(job["host"]) / "train.py"))  # its imports: trainers and data sets
    for run in job["runs"]:
        now.update(losses=[], scores=[])
        sys.argv = ["train.py", *run]
        try:
            runpy.run_path(str(Path(job["host"]) / "train.py"), run_name="__main__")
        except SystemExit as end:  # ours always ends so
            if end.code:
                raise
        results["runs"].append(dict(now))
    if job.get("datasets"):
        results["datasets"] = list_datasets(**job["datasets"])
    if job.get("parts"):
        results["parts"] = list_parts()
    Path(job["out"]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
