"""``advprompt test`` on public trainers, in the forks that they were published in.

    ADVPROMPT_HOSTS=$HOSTS ADVPROMPT_HOSTS_TABLE=FILE pytest tests/hosts/test_evaluated.py -rs

In a clean clone each trainer trains an epoch on a small random CLIP with its own train.py. Then one
command attacks it. Compared are its own clean test, sample by sample, and PGD on its own forward,
written out in ``by_hand.py``: the adversarial images, and what they break.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from advprompt.evaluation.saved_images import read_saved
from tests.hosts import make_host
from tests.hosts.make_host import CLASSES, Host, Weights
from tests.toy import toy_state_dict

pytestmark = pytest.mark.slow
CASES = yaml.safe_load(Path(__file__).with_name("evaluated.yaml").read_text())
QUICK = ("CoOp",)
SETTINGS = """
    SEED 1 DATALOADER.NUM_WORKERS 0 DATASET.NUM_SHOTS 2 OPTIM.MAX_EPOCH 1
    DATALOADER.TRAIN_X.BATCH_SIZE 4 TEST.FINAL_MODEL last_step
""".split()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[dict, Path]:
    """Random CLIPs and a data set."""
    folder = tmp_path_factory.mktemp("made")
    weights = make_host.make_weights(folder / "weights")
    large = {"vision_width": 768, "text_width": 768, "embed_dim": 768, "patch": 32, "image": 64}
    torch.save(toy_state_dict(**large), folder / "weights" / "teacher.pt")
    weights["teacher"] = Weights(folder / "weights" / "teacher.pt", 64)
    return weights, make_host.make_data(folder / "data")


def provide(name: str, code: Path, weights: dict) -> None:
    """Write the files that a trainer reads from its own folder."""
    if name == "CoPrompt":
        texts = {c.replace("_", " "): [f"a photo of a {c}.", f"a {c}, a pet."] for c in CLASSES}
        (code / "gpt_file").mkdir(exist_ok=True)
        (code / "gpt_file" / "oxford_pets_prompt.json").write_text(json.dumps(texts))
    if name == "PromptKD":  # an untrained teacher
        for file, which in (("ViT-B-16.pt", "random"), ("ViT-B-32.pt", "teacher")):
            (code / "clip" / file).symlink_to(weights[which].file)
        teacher = code / "teacher_model" / "ImageNet-xd" / "VLPromptLearner_large"
        teacher.mkdir(parents=True)
        state = {"prompt_learner.ctx": torch.randn(4, 768) * 0.02}
        torch.save({"state_dict": state, "epoch": 20}, teacher / "model.pth.tar-20")


@pytest.mark.parametrize("name", CASES)
def test_one_command_attacks_a_public_trainer(name, hosts, made, tmp_path):
    case, (weights, data) = CASES[name], made
    own = {key: case[key] for key in ("code", "dassl") if key in case}
    host = Host(case["host"], own=(), lacks=tuple(case.get("lacks", ())), **own)
    if not (hosts / host.name).is_dir():
        pytest.skip(f"ADVPROMPT_HOSTS has no checkout of {host.name}")
    code = make_host.clone(host, hosts, tmp_path)
    provide(name, code, weights)
    env = make_host.environment(host, hosts, weights) | {"HOST_FULL_PRECISION": "1"}
    clip = "random-224" if name == "FAP" else "random"
    size = weights[clip].size
    run, hand = tmp_path / "run", tmp_path / "hand.pt"
    words = ["--root", data, "--trainer", case["trainer"], *case.get("arguments", "").split()]
    words += ["--dataset-config-file", "configs/datasets/oxford_pets.yaml"]
    words += ["--config-file", f"configs/trainers/{case['config']}"]
    pairs = [*SETTINGS, "MODEL.BACKBONE.NAME", clip, "INPUT.SIZE", f"({size},{size})"]
    pairs += case["words"].split()
    theirs = [*words, "--output-dir", run, *pairs]
    theirs = make_host.train(code, env, theirs, tmp_path, dassl="dassl", by_hand=str(hand))
    hand = torch.load(hand)

    eps, small = hand["eps"], {"EPS": f"{hand['eps']}/255", "TARGET": "end_to_end"}
    by_hand = small | {"STEPS": 10, "ALPHA": f"{eps / 4}/255", "START": "zero", "RESTARTS": 1}
    # what this PGD leaves, AutoAttack attacks: all of it where it is quick
    more = small | {"NAME": "autoattack" if name in QUICK else "apgd-ce"}
    attacks = [by_hand, more, {"NAME": "pgd"}, {"NAME": "autoattack"}]
    call = [sys.executable, "-m", "advprompt", "test", "--threat", "linf4_aa", "--model-dir", run]
    call += ["--load-epoch", 1, "--output-dir", tmp_path / "record", *words, *pairs]
    call += ["ATTACK.TEST.LIST", attacks, "TEST.PROBES", 2, "TEST.SAVE_ADV", True]
    done = subprocess.run(map(str, call), cwd=code, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    count = theirs["n"]
    assert f"predictions equal on {count} of {count} images" in done.stdout
    record = json.loads((tmp_path / "record" / "record.json").read_text())
    assert record["clean"] == {"n": count, "correct": theirs["correct"]}

    found = [attack["correct"] for attack in record["attacks"]]
    assert [a["name"] for a in record["attacks"]] == [a.get("NAME", "pgd") for a in attacks]
    assert theirs["correct"] >= max(found) and found[-1] <= found[-2] and found[0] > 0
    folders = (tmp_path / "record" / "adversarial").glob("*_pgd_*")
    (saved,) = (s for folder in folders for s in read_saved(folder) if s.attack["steps"] == 10)
    assert torch.equal(saved.right, hand["left"])
    apart = (saved.images - hand["images"]).abs() > 1e-6
    if table := os.environ.get("ADVPROMPT_HOSTS_TABLE"):
        row = {"name": name, "commit": make_host.commit(host, hosts), "eps": eps, "found": found}
        row |= {"apart": apart.float().mean().item(), **record["clean"], "host": host.name}
        with open(table, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    assert apart.float().mean() < 0.01
