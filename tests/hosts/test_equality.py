"""Our trainers give the same losses here and in a fork, on the stand-in and on Dassl itself.

Needs ADVPROMPT_HOSTS with checkouts of Dassl.pytorch and CoOp; skipped without. The figures that
Dassl itself gives are also in tests/test_compat_equality.py, which needs no checkout.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.hosts.dassl_runs import ROOT, checkout, pets_of_noise, real_dassl, run_child
from tests.toy import toy_state_dict

pytestmark = pytest.mark.slow

CONTENT = shutil.ignore_patterns("__pycache__", ".*", "output")
COMMON = {
    "DATASET.NAME": "OxfordPets", "DATASET.NUM_SHOTS": 4, "INPUT.SIZE": "(32,32)",
    "INPUT.INTERPOLATION": "bicubic", "INPUT.TRANSFORMS": "('random_resized_crop','random_flip')",
    "DATALOADER.NUM_WORKERS": 0, "DATALOADER.TRAIN_X.BATCH_SIZE": 4, "USE_CUDA": False,
    "OPTIM.NAME": "sgd", "OPTIM.LR": 0.002, "OPTIM.LR_SCHEDULER": "cosine", "OPTIM.MAX_EPOCH": 3,
    "OPTIM.WARMUP_EPOCH": 1, "OPTIM.WARMUP_TYPE": "constant", "ATTACK.TRAIN.STEPS": 2,
    "ATTACK.TEST.LIST": "[{'EPS': '2', 'STEPS': 2}]", "TEST.PICTURE": 0, "TEST.PROBES": 0,
}  # fmt: skip
OWN = {
    "AdvPT": {"TRAINER.ADVPT.N_CTX": 4, "ATTACK.TRAIN.EPS": "8", "ATTACK.TRAIN.ALPHA": "2"},
    "CAPT": {
        "TRAINER.CAPT.PROMPT_DEPTH": 2, "ATTACK.TRAIN.EPS": "1", "ATTACK.TRAIN.ALPHA": "0.5",
        "ATTACK.TRAIN.OBJECTIVE": "ce", "ATTACK.TRAIN.TARGET": "end_to_end",
    },
}  # fmt: skip
TOLERANCE = 1e-5


def as_package(site: Path) -> Path:
    """Lay this repository's folders out below ``site`` as pip installs them."""
    for folder in ("trainers", "datasets", "tools", "compat", "configs"):
        inside = "advprompt" if folder == "trainers" else f"advprompt/{folder}"
        shutil.copytree(ROOT / folder, site / inside, ignore=CONTENT, dirs_exist_ok=True)
    return site


def fork_of_coop(folder: Path) -> Path:
    """Copy CoOp's checkout and add the two lines that make our trainers its own."""
    shutil.copytree(checkout("CoOp"), folder, ignore=CONTENT)
    path = folder / "train.py"
    source = path.read_text(encoding="utf-8")
    line = "    cfg = get_cfg_default()\n    extend_cfg(cfg)\n"
    assert line in source
    source = source.replace(line, f"{line}    advprompt.extend_cfg(cfg)\n")
    path.write_text(f"import advprompt\n{source}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Run AdvPT and CAPT in every place: place -> trainer -> losses and test counts."""
    dassl = real_dassl()
    folder = tmp_path_factory.mktemp("equality")
    weights = folder / "toy.pt"
    torch.save(toy_state_dict(), weights)
    root = pets_of_noise(folder / "data")
    fork = fork_of_coop(folder / "CoOp")
    pip = {"host": fork, "first": "advprompt", "paths": [as_package(folder / "site")]}
    found = {}
    for place, job in {
        "here, stand-in": {"host": ROOT},
        "here, Dassl": {"host": ROOT, "dassl": dassl},
        "fork, open_clip": {**pip, "dassl": dassl},
        "fork, its clip": {**pip, "dassl": dassl, "env": {"ADVPROMPT_CLIP_PROVIDER": "clip"}},
    }.items():
        out = folder / place.replace(", ", "-")
        runs = []
        for trainer, own in OWN.items():
            keys = {"MODEL.BACKBONE.NAME": f"file:{weights}"} | COMMON | own
            runs.append([
                "--root", root, "--seed", "1", "--trainer", trainer, "--output-dir",
                out / trainer, *[word for pair in keys.items() for word in pair],
            ])  # fmt: skip
        done = run_child(out.with_suffix(".json"), runs=runs, **job)
        found[place] = {}
        for trainer, run in zip(OWN, done["runs"], strict=True):
            record = json.loads((out / trainer / "record.json").read_text())
            attacks = [(a["n"], a["correct"]) for a in record["attacks"]]
            counts = [(record["clean"]["n"], record["clean"]["correct"]), *attacks]
            found[place][trainer] = run["losses"], counts
            assert ("clip.model" in run["code"]) == place.endswith("its clip")
    return found


@pytest.mark.parametrize("trainer", OWN)
@pytest.mark.parametrize("place", ["here, stand-in", "fork, open_clip", "fork, its clip"])
def test_losses_are_those_on_dassl(place, trainer, places):
    expected, counts = places["here, Dassl"][trainer]
    losses, own_counts = places[place][trainer]
    assert len(expected) == 9 and len({round(loss, 3) for loss in expected}) > 5
    assert losses == pytest.approx(expected, abs=TOLERANCE, rel=0)
    assert own_counts == counts and counts[0][0] == 9
