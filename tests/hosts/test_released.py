"""Checkpoints of public code, trained here by that code, give its own logits without it.

    ADVPROMPT_HOSTS=$HOSTS ADVPROMPT_HOSTS_TABLE=FILE pytest tests/hosts/test_released.py -rs

In a clean clone each trainer trains two epochs on a small random CLIP, with its own config and
Dassl. Our reading of the file is compared with its ``model_inference`` sample by sample, by
--eval-only and by ``advprompt.load``, and in accuracy.
"""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import advprompt
from tests.hosts import make_host
from tests.hosts.make_host import REPO, Host
from tests.toy import toy_state_dict

pytestmark = pytest.mark.slow
SIZES = {"vision_width": 768, "text_width": 512, "embed_dim": 512, "patch": 32, "image": 224}
CASES = yaml.safe_load(Path(__file__).with_name("released.yaml").read_text())
COMMON = """
    SEED 1 DATALOADER.NUM_WORKERS 0 DATASET.NUM_SHOTS 2 OPTIM.MAX_EPOCH 2 OPTIM.LR 0.1
    DATALOADER.TRAIN_X.BATCH_SIZE 4 MODEL.BACKBONE.NAME random
""".split()
OTHERS = {
    "Adversarial-Prompt-Tuning": ("pkg_resources",),
    "Multimodal-Adversarial-Prompt-Tuning": ("autoattack",),
}
HOSTS = make_host.BY_NAME | {n: Host(n, own=(), lacks=lacks) for n, lacks in OTHERS.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A random CLIP and a data set."""
    folder = tmp_path_factory.mktemp("made")
    torch.save(toy_state_dict(layers=3, text_layers=3, **SIZES), folder / "clip.pt")
    return folder / "clip.pt", make_host.make_data(folder / "data")


def trained(case: list, hosts: Path, made, folder: Path) -> dict:
    """Train in a clone; return the logits and counts of the host's last clean test."""
    (name, trainer, config, theirs, *_), (clip, data) = case, made
    code = make_host.clone(HOSTS[name], hosts, folder)
    env = make_host.environment(HOSTS[name], hosts, {"random": make_host.Weights(clip, 224)})
    words = ["--root", data, "--trainer", trainer, "--output-dir", folder / "run"]
    words += ["--dataset-config-file", "configs/datasets/oxford_pets.yaml"]
    words += ["--prompt-alpha", "0.1"] if name == "APT" else []
    words += ["--config-file", f"configs/trainers/{config}", *COMMON, *theirs.split()]
    dassl = "dass" if trainer == "AdvPT" else "dassl"
    return make_host.train(code, env, words, folder, dassl=dassl)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_public_code(name, hosts, made, tmp_path):
    from advprompt.cli import train
    from advprompt.config.keys import METHODS
    from advprompt.engine import run, testing

    host, *_, ours, settings = CASES[name]
    if not (hosts / host).is_dir():
        pytest.skip(f"ADVPROMPT_HOSTS has no checkout of {host}")
    theirs = trained(CASES[name], hosts, made, tmp_path)
    expected = torch.tensor(theirs["logits"])
    (file,) = (tmp_path / "run").glob("*/model.pth.tar-2")
    objects = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    assert any("CosineAnnealingLR" in name for name in objects)  # pickled, as theirs are

    backbone, config = f"file:{made[0]}", {"APT": "AdvCoOp"}.get(ours, ours)
    words = ["--root", made[1], "--trainer", ours, "--config-file", f"{config}/vit_b32"]
    words += ["--eval-only", "--model-dir", tmp_path / "run", "DATALOADER.NUM_WORKERS", 0]
    words += ["MODEL.BACKBONE.NAME", backbone, "TEST.PROBES", 0, "TEST.PICTURE", 0]
    words += ["ATTACK.THREAT", "advpt16" if ours == "AdvPT" else "linf1", *settings.split()]
    words += ["ATTACK.TEST.LIST", "[{'EPS': '4', 'STEPS': 2}]"]
    words[:0] = ["--dataset-config-file", REPO / "configs/datasets/oxford_pets.yaml"]
    cfg = train.build_cfg(list(map(str, words)))
    folder = run.start(cfg, eval_only=True, model_dir=str(tmp_path / "run"))
    record = json.loads((folder / "record.json").read_text())
    assert record["clean"] == {"n": theirs["n"], "correct": theirs["correct"]}
    assert record["shots"] is None and record["train_threat"] is None

    cfg.defrost()
    cfg.OUTPUT_DIR = str(tmp_path / "again")
    trainer = METHODS[config](cfg)
    trainer.load_model(str(tmp_path / "run"))
    trainer.set_model_mode("eval")
    apart = {"eval-only": testing.evaluation_of(trainer, "test").clean().cpu() - expected}
    names = list(trainer.classnames)
    model = advprompt.load(tmp_path / "run", trainer=ours, classnames=names, backbone=backbone)
    if "middle" not in name:  # where the class name stands is not in the file
        images = [Image.open(item.impath) for item in trainer.dm.dataset.test]
        apart["load"] = model.logits(images).detach() - expected
    apart = {how: float(value.abs().max()) for how, value in apart.items()}
    if table := os.environ.get("ADVPROMPT_HOSTS_TABLE"):
        row = {"name": name, "host": host, "commit": make_host.commit(HOSTS[host], hosts)}
        with open(table, "a", encoding="utf-8") as out:
            out.write(json.dumps(row | apart | record["clean"]) + "\n")
    assert max(apart.values()) < 1e-4 and (expected - expected.mean(0)).abs().max() > 0.1
