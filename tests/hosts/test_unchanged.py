"""CoOp's and MaPLe's own trainers and data sets, unedited, on the stand-in and on Dassl itself.

Needs ADVPROMPT_HOSTS, a folder with checkouts of CoOp, multimodal-prompt-learning and
Dassl.pytorch; skipped without. A checkout runs by its own train.py with its own configs. Losses
and scores must be equal to the last bit, because both sides do the same arithmetic.
"""

from __future__ import annotations

import ast
import importlib
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.hosts.dassl_runs import (
    OPTIMIZERS,
    TRANSFORMS,
    checkout,
    pets_of_noise,
    real_dassl,
    run_child,
)
from tests.make_datasets import MAKERS
from tests.toy import toy_state_dict

pytestmark = pytest.mark.slow


class Fork(NamedTuple):
    """What to run of a checkout, and the CLIP it needs."""

    trainers: dict[str, tuple]  # name -> config file, overrides
    sizes: dict  # of the toy CLIP
    epochs: int  # of 6 steps: 12 images in batches of 2
    zero_shot: tuple[str, ...] = ()  # trainers that are only tested


FORKS = {
    "CoOp": Fork(
        {
            "CoOp": ("CoOp/vit_b16.yaml", "TRAINER.COOP.PREC", "fp32"),
            "CoCoOp": ("CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml", "TRAINER.COCOOP.PREC", "fp32"),
        },
        {},
        2,  # the first at the rate of the warm-up
        ("ZeroshotCLIP", "ZeroshotCLIP2"),
    ),
    # Its MaPLe writes CLIP's widths as numbers and runs in half precision only, which is slow here.
    "multimodal-prompt-learning": Fork(
        {"MaPLe": ("MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml", "OPTIM.WARMUP_EPOCH", "-1")},
        {"vision_width": 768, "text_width": 512, "image": 16},
        1,
    ),
}


def without_derived(root: Path) -> None:
    """Remove what data sets have put beside their images: splits, few-shot draws, lists."""
    for path in [*root.rglob("split_*"), *root.rglob("*.pkl")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


class Commands:
    """The arguments for a checkout's train.py: 4 shots of 3 breeds, a CLIP of toy size."""

    def __init__(self, name: str, folder: Path):
        self.fork, self.host, self.folder = FORKS[name], checkout(name), folder
        self.root = pets_of_noise(folder / "data")
        self.weights = folder / "clip.pt"
        state = toy_state_dict(**self.fork.sizes)
        torch.save({name: value.half() for name, value in state.items()}, self.weights)

    def run(self, trainer: str, out: str, *more) -> list[str]:
        first = next(iter(self.fork.trainers.values()))
        config, *overrides = self.fork.trainers.get(trainer, first)
        side, configs = self.fork.sizes.get("image", 32), self.host / "configs"
        words = ["--root", self.root, "--seed", 1, "--trainer", trainer]
        words += ["--dataset-config-file", configs / "datasets/oxford_pets.yaml"]
        words += ["--config-file", configs / "trainers" / config]
        words += ["--output-dir", self.folder / out, *more, *overrides]
        words += ["OPTIM.MAX_EPOCH", self.fork.epochs, "INPUT.SIZE", f"({side}, {side})"]
        words += "DATASET.NUM_SHOTS 4 USE_CUDA False DATALOADER.NUM_WORKERS 0".split()
        words += "DATALOADER.TRAIN_X.BATCH_SIZE 2 TRAIN.CHECKPOINT_FREQ 1".split()
        return [str(word) for word in words]

    def all(self, out: str) -> dict[str, list[str]]:
        """Return every trainer's training and test by name."""
        runs = {}
        for trainer in self.fork.trainers:
            trained = self.folder / out / trainer
            test = ("--eval-only", "--model-dir", trained, "--load-epoch", self.fork.epochs)
            runs[trainer] = self.run(trainer, trained)
            runs[f"{trainer} tested"] = self.run(trainer, trained, *test)
        for trainer in self.fork.zero_shot:
            runs[trainer] = self.run(trainer, f"{out}/{trainer}", "--eval-only")
        return runs

    def do(self, name: str, runs: dict, dassl: Path | None) -> dict:
        """Run on Dassl itself or, with None, on the stand-in; ``runs`` becomes results by name."""
        done = run_child(
            self.folder / f"{name}.json",
            host=self.host,
            runs=list(runs.values()),
            dassl=dassl,
            weights=str(self.weights),
        )
        return done | {"runs": dict(zip(runs, done["runs"], strict=True))}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Run a checkout's trainers on Dassl itself and on the stand-in: (commands, real, stand-in)."""
    done = {}

    def run(name):
        if name not in done:
            dassl = real_dassl()
            commands = Commands(name, tmp_path_factory.mktemp("fork"))
            real = commands.do("real", commands.all("real"), dassl)
            without_derived(commands.root)
            done[name] = commands, real, commands.do("standin", commands.all("standin"), None)
        return done[name]

    return run


@pytest.mark.parametrize("name", FORKS)
def test_losses_and_scores_are_those_of_dassl(name, both):
    commands, real, standin = both(name)
    assert standin["repaired"] == []
    for name, run in real["runs"].items():
        own, trained = standin["runs"][name], name in commands.fork.trainers
        assert len(run["losses"]) == (6 * commands.fork.epochs if trained else 0)
        assert own["losses"] == run["losses"], name
        assert len(run["scores"]) == 9 and own["scores"] == run["scores"], name
        assert len({tuple(row) for row in run["scores"]}) > 1  # the images make a difference
        if trained:
            assert len(set(run["losses"])) > 5  # and so do the steps
            assert real["runs"][f"{name} tested"]["scores"] == run["scores"]  # as saved, so loaded


def test_each_resumes_from_checkpoints_of_the_other(both):
    commands, real, _ = both("CoOp")
    results = []
    for folder in ("real", "standin"):
        for pointer in (commands.folder / folder / "CoOp").glob("*/checkpoint"):
            pointer.write_text("model.pth.tar-1\n")
    for name, dassl in (("on real", real_dassl()), ("on standin", None)):
        runs = {}
        for folder in ("real", "standin"):
            trained, out = commands.folder / folder / "CoOp", f"{name}/{folder}"
            test = ("--eval-only", "--model-dir", trained, "--load-epoch", 2)
            runs[f"tested {folder}"] = commands.run("CoOp", f"{out} tested", *test)
            runs[f"resumed {folder}"] = commands.run("CoOp", out, "--resume", trained)
        results.append(commands.do(name, runs, dassl)["runs"])
    on_real, on_standin = results
    assert on_real == on_standin
    assert on_real["tested real"] == on_real["tested standin"] == real["runs"]["CoOp tested"]
    assert on_real["resumed real"] == on_real["resumed standin"]
    assert len(on_real["resumed real"]["losses"]) == 6


def test_optimizers_and_transforms_are_those_of_dassl(tmp_path):
    host, dassl = checkout("CoOp"), real_dassl()
    real, standin = (
        run_child(tmp_path / f"{name}.json", host=host, dassl=path, parts=True)["parts"]
        for name, path in (("real", dassl), ("standin", None))
    )
    assert real.keys() == standin.keys() and len(real) == len(OPTIMIZERS) + 2 * len(TRANSFORMS)
    for name, values in real.items():
        assert standin[name] == pytest.approx(values, abs=1e-6, rel=1e-6), name
        assert len(set(values)) > 5


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("name", ["CoOp", "multimodal-prompt-learning", "PromptSRC", "FAP", "APT"])
def test_the_stand_in_has_every_name_that_a_fork_imports(name):
    """Trainers and data sets that no test runs would stop at their imports at least."""
    if not hasattr(importlib.import_module("dassl"), "STAND_IN"):
        pytest.skip("Dassl itself is installed")
    imported = set()
    for path in checkout(name).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dassl":
                imported |= {(node.module, alias.name) for alias in node.names}
    lacking = [pair for pair in imported if not hasattr(importlib.import_module(pair[0]), pair[1])]
    assert len(imported) > 8 and not lacking


# --- data sets ------------------------------------------------------------------------------


def ucf101(root: Path) -> None:
    """UCF101 without the blank line at the end of a list, over which CoOp's reader stumbles."""
    MAKERS["UCF101"](root)
    path = root / "ucf101" / "ucfTrainTestlist" / "testlist01.txt"
    path.write_bytes(path.read_bytes().rstrip())


FOLDERS = MAKERS | {"UCF101": ucf101}
OPTIONS = [  # overrides with which each data set is built, in this order
    ["SEED", 1, "DATASET.NUM_SHOTS", -1],
    ["SEED", 1, "DATASET.NUM_SHOTS", 2],
    ["SEED", 2, "DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base"],
    ["SEED", 2, "DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "new"],  # from the file
]


def test_all_data_sets_are_read_and_drawn_as_by_dassl(tmp_path):
    pytest.importorskip("scipy")
    host, dassl, root = checkout("CoOp"), real_dassl(), tmp_path / "data"
    for make in FOLDERS.values():
        make(root)
    wanted = {"names": list(FOLDERS), "root": str(root), "options": OPTIONS}
    listed = []
    for step, path in enumerate((dassl, None, None, dassl)):
        if step % 2 == 0:  # each reads the files of the other in the next step
            without_derived(root)  # and in the same folder: some list it in the disk's order
        done = run_child(tmp_path / f"{step}.json", host=host, dassl=path, datasets=wanted)
        listed.append(done["datasets"])
    assert listed[0] == listed[1] == listed[2] == listed[3]
    assert len(FOLDERS) == 15 and len(listed[0]) == 15 * len(OPTIONS)
    for name, rows in listed[0].items():
        assert rows["train_x"] and rows["test"], name
