"""Checkpoints of public code, trained here by that code, give its own logits without it.

    ADVPROMPT_HOSTS=$HOSTS ADVPROMPT_HOSTS_TABLE=FILE pytest tests/hosts/test_released.py -rs

In a clean clone each trainer trains two epochs on a small random CLIP, with its own config and its
own Dassl. Our reading of the file is compared with its ``model_inference`` sample by sample, by
--eval-only and by ``advprompt.load``, and in accuracy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import advprompt
from tests.hosts import make_host
from tests.hosts.make_host import BY_NAME, CLASSES, FP32, REPO, Host
from tests.toy import toy_state_dict

pytestmark = pytest.mark.slow
SIZES = {"vision_width": 768, "text_width": 512, "embed_dim": 512, "patch": 32, "image": 224}
DEPTH, LAYERS = 2, 3
ADVPT = Host("Adversarial-Prompt-Tuning", own=(), lacks=("pkg_resources",))
GROUP = Host("Multimodal-Adversarial-Prompt-Tuning", own=(), lacks=("autoattack",))
MAPLE, COOP, APT, FAP = (
    BY_NAME[name] for name in ("multimodal-prompt-learning", "CoOp", "APT", "FAP")
)


@dataclass(frozen=True)
class Case:
    """A run of a public trainer, and how ours is asked to read it."""

    host: Host
    trainer: str
    config: str
    theirs: str = ""  # settings
    ours: str = ""  # our trainer
    settings: str = ""
    arguments: tuple[str, ...] = ()


def group(name: str, config: str, keys: str, settings: str) -> Case:
    words = " ".join(f"TRAINER.{name}.{key} {DEPTH}" for key in keys.split())
    return Case(GROUP, name, config, f"{words} TRAINER.{name}.PREC fp32", name, settings)


COOP_FP32 = " ".join(FP32)
NO_TOWER = COOP_FP32 + " MODEL.BACKBONE.ROBUST False"
CSC = " TRAINER.COOP.CSC True"
ALPHA = ("--prompt-alpha", "0.1")
CASES = {
    "CoOp": Case(COOP, "CoOp", "CoOp/vit_b32.yaml", COOP_FP32, "CoOp"),
    "CoOp middle": Case(
        COOP,
        "CoOp",
        "CoOp/vit_b32.yaml",
        COOP_FP32 + " TRAINER.COOP.CLASS_TOKEN_POSITION middle TRAINER.COOP.N_CTX 4",
        "CoOp",
        "TRAINER.COOP.CLASS_TOKEN_POSITION middle TRAINER.COOP.N_CTX 4",
    ),
    "CoOp csc": Case(COOP, "CoOp", "CoOp/vit_b32.yaml", COOP_FP32 + CSC, "CoOp", CSC),
    "MaPLe": Case(
        MAPLE,
        "MaPLe",
        "MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml",
        f"TRAINER.MAPLE.PROMPT_DEPTH {DEPTH}",
        "MaPLe",
        f"TRAINER.MAPLE.PROMPT_DEPTH {DEPTH}",
    ),
    "IVLP": Case(
        MAPLE,
        "IVLP",
        "IVLP/vit_b16_c2_ep5_batch4_2+2ctx.yaml",
        f"TRAINER.IVLP.PROMPT_DEPTH_VISION {DEPTH} TRAINER.IVLP.PROMPT_DEPTH_TEXT {DEPTH}",
        "AdvIVLP",
        f"TRAINER.ADVIVLP.PROMPT_DEPTH {DEPTH}",
    ),
    "VPT": Case(
        MAPLE,
        "VPT",
        "VPT/vit_b16_c2_ep5_batch4_4.yaml",
        f"TRAINER.VPT.PROMPT_DEPTH_VISION {DEPTH} TRAINER.VPT.N_CTX_VISION 4",
        "AdvVPT",
        f"TRAINER.ADVVPT.PROMPT_DEPTH {DEPTH} TRAINER.ADVVPT.N_CTX 4",
    ),
    "AdvCoOp": Case(
        GROUP,
        "AdvCoOp",
        "AdvCoOp/vit_b32_c2_ep100_batch32.yaml",
        "TRAINER.AdvCoOp.PREC fp32",
        "AdvCoOp",
    ),
    "AdvPT": Case(ADVPT, "AdvPT", "AdvPT/vit_b32.yaml", "TRAINER.ADV.PREC fp32", "AdvPT"),
    "AdvVPT": group(
        "AdvVPT",
        "AdvVPT/vit_b32_c2_ep100_batch32_2ctx_9depth.yaml",
        "PROMPT_DEPTH_VISION",
        f"TRAINER.ADVVPT.PROMPT_DEPTH {DEPTH}",
    ),
    "AdvMaPLe": group(
        "AdvMaPLe",
        "AdvMaPLe/vit_b32_c2_ep100_batch32_2ctx_9depth_cross_datasets.yaml",
        "PROMPT_DEPTH",
        f"TRAINER.ADVMAPLE.PROMPT_DEPTH {DEPTH}",
    ),
    "AdvIVLP": group(
        "AdvIVLP",
        "AdvIVLP/vit_b32_c2_ep100_batch32_2+2ctx_9depth.yaml",
        "PROMPT_DEPTH_VISION PROMPT_DEPTH_TEXT",
        f"TRAINER.ADVIVLP.PROMPT_DEPTH {DEPTH}",
    ),
    "FAP": Case(
        FAP,
        "FAP",
        "FAP/vit_b32_ep5_batch4_2ctx_notransform.yaml",
        f"TRAINER.FAP.PROMPT_DEPTH {DEPTH} ATTACK.PGD.TEST_ITER 1 ATTACK.PGD.ADV_TERM cos",
        "FAP",
        f"TRAINER.FAP.PROMPT_DEPTH {DEPTH}",
    ),
    "APT": Case(APT, "APT", "APT/vit_b32.yaml", NO_TOWER, "APT", "", ALPHA),
    "APT csc": Case(
        APT, "APT", "APT/vit_b32.yaml", NO_TOWER + CSC, "APT", "TRAINER.ADVCOOP.CSC True", ALPHA
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A random CLIP and a data set."""
    folder = tmp_path_factory.mktemp("made")
    torch.save(toy_state_dict(layers=LAYERS, text_layers=LAYERS, **SIZES), folder / "clip.pt")
    return folder / "clip.pt", make_host.make_data(folder / "data")


def trained(case: Case, hosts: Path, made, folder: Path) -> dict:
    """Train in a clone; return the logits and counts of the host's last clean test."""
    clip, data = made
    code = make_host.clone(case.host, hosts, folder)
    env = make_host.environment(case.host, hosts, {"random": make_host.Weights(clip, 224)})
    env["HOST_FULL_PRECISION"] = "1"
    words = ["--root", data, "--trainer", case.trainer, "--output-dir", folder / "run"]
    words += ["--dataset-config-file", "configs/datasets/oxford_pets.yaml", *case.arguments]
    words += ["--config-file", f"configs/trainers/{case.config}"]
    words += "SEED 1 DATALOADER.NUM_WORKERS 0 DATASET.NUM_SHOTS 2 OPTIM.MAX_EPOCH 2".split()
    words += "DATALOADER.TRAIN_X.BATCH_SIZE 4 OPTIM.LR 0.1 MODEL.BACKBONE.NAME random".split()
    words += case.theirs.split()
    dassl = "dass" if case.host is ADVPT else "dassl"
    out = folder / "theirs.json"
    job = {"words": list(map(str, words)), "dassl": dassl, "out": str(out)}
    (folder / "job.json").write_text(json.dumps(job))
    call = [sys.executable, str(Path(__file__).with_name("released_run.py")), folder / "job.json"]
    done = subprocess.run(call, cwd=code, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_public_code(name, hosts, made, tmp_path):
    from advprompt.cli import train
    from advprompt.config.keys import ALSO_CALLED, METHODS
    from advprompt.engine import run, testing

    case, (clip, data) = CASES[name], made
    if not (hosts / case.host.name).is_dir():
        pytest.skip(f"ADVPROMPT_HOSTS has no checkout of {case.host.name}")
    theirs = trained(case, hosts, made, tmp_path)
    configs = REPO / "configs"
    method = METHODS[ALSO_CALLED.get(case.ours, case.ours)]
    words = ["--root", data, "--trainer", case.ours, "--eval-only", "--model-dir", tmp_path / "run"]
    words += ["--dataset-config-file", configs / "datasets/oxford_pets.yaml", "--config-file"]
    words += [configs / f"trainers/{method.__name__}/vit_b32.yaml", "DATALOADER.NUM_WORKERS", 0]
    words += ["MODEL.BACKBONE.NAME", f"file:{clip}", "TEST.PROBES", 0, "TEST.PICTURE", 0]
    threat = "advpt16" if case.ours == "AdvPT" else "linf1"
    words += [
        "ATTACK.THREAT",
        threat,
        "ATTACK.TEST.LIST",
        "[{'EPS': '4', 'STEPS': 2}]",
        *case.settings.split(),
    ]
    cfg = train.build_cfg(list(map(str, words)))
    folder = run.start(cfg, eval_only=True, model_dir=str(tmp_path / "run"))
    record = json.loads((folder / "record.json").read_text())
    assert record["clean"] == {"n": theirs["n"], "correct": theirs["correct"]}
    (file,) = (tmp_path / "run").glob("*/model.pth.tar-2")
    objects = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    assert any("CosineAnnealingLR" in name for name in objects)  # pickled, as theirs are

    expected = torch.tensor(theirs["logits"])
    cfg.defrost()
    cfg.OUTPUT_DIR = str(tmp_path / "again")
    trainer = method(cfg)
    trainer.load_model(str(tmp_path / "run"))
    trainer.set_model_mode("eval")
    mine = testing.evaluation_of(trainer, "test").clean()
    apart = {"eval-only": (mine.cpu() - expected).abs().max().item()}

    backbone, names = f"file:{clip}", list(trainer.classnames)
    model = advprompt.load(tmp_path / "run", trainer=case.ours, classnames=names, backbone=backbone)
    if "middle" not in name:  # where the class name stands is not in the file
        images = [_image(item.impath) for item in trainer.dm.dataset.test]
        with torch.no_grad():
            apart["load"] = (model.logits(images) - expected).abs().max().item()
    spread = (expected - expected.mean(0)).abs().max().item()
    if table := os.environ.get("ADVPROMPT_HOSTS_TABLE"):
        row = {"name": name, "host": case.host.name, "commit": make_host.commit(case.host, hosts)}
        with open(table, "a", encoding="utf-8") as file:
            file.write(json.dumps(row | apart | record["clean"] | {"spread": spread}) + "\n")
    assert max(apart.values()) < 1e-4 and spread > 0.1
    assert len(CLASSES) == expected.shape[1]
    assert record["train_threat"] is None and record["shots"] is None and record["epochs"] is None


def _image(path):
    from PIL import Image

    return Image.open(path)
