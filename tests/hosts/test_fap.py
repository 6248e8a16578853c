"""FAP's loss, its gradients and its attacked images equal those of the authors' unedited code.

Both sides get one CLIP, one batch, the same prompts and the same start of the attack. This file is
also the program that their code runs in: ``python test_fap.py JOB.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

DEPTH, EPS = 3, 1
SIZES = {"image": 224, "patch": 32, "vision_width": 768, "text_width": 512, "embed_dim": 512}


def theirs(names: list[str], batch: dict) -> tuple:
    """Return loss, adversarial images and prompt learner, with its gradients, of their step."""
    from yacs.config import CfgNode

    from trainers import fap

    pgd = {"EPS": EPS, "ALPHA": EPS, "TRAIN_ITER": 2, "ADV_TERM": "cos", "LAMBDA_1": 1.5}
    keys = {"N_CTX": 2, "PROMPT_DEPTH": DEPTH, "PREC": "fp32"}
    cfg = {"TRAINER": {"FAP": keys}, "ATTACK": {"PGD": pgd}, "INPUT": {"SIZE": [224, 224]}}
    cfg |= {"DATASET": {"NAME": "OxfordPets"}, "MODEL": {"BACKBONE": {"NAME": "random"}}}
    trainer = object.__new__(fap.FAP)  # without Dassl's set-up
    trainer.cfg = cfg = CfgNode(cfg)
    trainer.model = model = fap.CustomCLIP(cfg, names, fap.load_clip_to_cpu(cfg).float()).float()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("prompt_learner" in name)
        if "ctx" in name or "compound_prompts_image" in name:  # large enough to matter
            parameter.data += 0.1 * torch.randn_like(parameter)
    trainer.device, trainer.preprocessing, trainer.scaler = "cpu", fap.preprocessing, None
    trainer.optim = torch.optim.SGD(model.prompt_learner.parameters(), lr=0.0)
    trainer.batch_idx, trainer.num_batches = 0, 2
    attack, found = fap.attack_pgd, []

    def kept(*args, **options):
        torch.manual_seed(7)  # its start is U[-eps, eps]
        found.append(attack(*args, **options).detach())
        return found[-1]

    fap.attack_pgd = kept
    loss = trainer.forward_backward(batch)["loss"]
    return loss, batch["img"] + found[0], model.prompt_learner


def by_our_names(learner, get) -> dict[str, torch.Tensor]:
    """Return what ``get`` takes from their parameters."""
    found = {"text_prompts": get(learner.ctx)[None]}
    found["vision_prompts"] = torch.stack([get(x) for x in learner.compound_prompts_image])
    for i, linear in enumerate([learner.proj, *learner.compound_prompt_projections]):
        found |= {f"projections.{i}.{k}": get(v) for k, v in linear.named_parameters()}
    return found


def compare(job: dict) -> dict:
    """Return both losses, and the largest differences between the sides."""
    from advprompt.attacks.gradient import GradientAttack
    from advprompt.cli import train
    from advprompt.config.keys import METHODS
    from advprompt.engine.batch import Batch

    sys.path.insert(0, job["code"])
    trainer = METHODS["FAP"](train.setup_cfg(train.parser().parse_args(job["words"])))
    names = list(trainer.classnames)
    torch.manual_seed(0)
    batch = {"img": torch.rand(4, 3, 224, 224), "label": torch.arange(4) % len(names)}
    loss, images, learner = theirs(names, batch)
    trainer.model.load_state_dict(by_our_names(learner, lambda x: x.data))
    trainer.batch_idx = trainer.epoch = 0
    torch.manual_seed(7)
    noise = torch.zeros(batch["img"].shape).uniform_(-EPS / 255, EPS / 255)
    GradientAttack.start = lambda self, clean, seeds: (clean + noise).clamp(0, 1)
    seen = Batch(trainer, batch)
    pixels = (seen.attack() - images).abs() > 1e-6
    seen.outputs["adv"] = seen.forward(images)
    mine, _ = trainer.loss(seen)
    mine.backward()
    grads = by_our_names(learner, lambda x: x.grad)
    own = {name: value.grad for name, value in trainer.model.named_parameters()}
    apart = [float((own[name] - g).abs().max() / g.abs().max()) for name, g in grads.items()]
    moved = float((images - batch["img"]).abs().max()) * 255
    facts = {"theirs": loss, "ours": mine.item(), "gradients": max(apart), "eps": moved}
    return facts | {"pixels": float(pixels.float().mean())}


def test_one_batch_equals_the_authors(hosts, tmp_path):
    from tests.hosts import make_host
    from tests.toy import toy_state_dict

    file = tmp_path / "clip.pt"
    torch.save(toy_state_dict(layers=DEPTH, text_layers=DEPTH, **SIZES), file)
    env = make_host.environment(
        make_host.BY_NAME["FAP"], hosts, {"random": make_host.Weights(file, 224)}
    )
    configs, data = make_host.REPO / "configs", make_host.make_data(tmp_path / "data")
    words = ["--root", data, "--trainer", "FAP", "--output-dir", tmp_path / "run"]
    words += ["--dataset-config-file", configs / "datasets/oxford_pets.yaml"]
    words += ["--config-file", configs / "trainers/FAP/vit_b32.yaml"]
    words += ["--attack-config-file", configs / "attacks/linf1.yaml"]
    words += ["MODEL.BACKBONE.NAME", f"file:{file}", "TRAINER.FAP.PROMPT_DEPTH", DEPTH]
    words += ["TRAINER.FAP.THEIR_TEXT", True, "DATASET.NUM_SHOTS", 2]
    job = {"code": str(hosts / "FAP"), "words": list(map(str, words)), "out": "facts.json"}
    (tmp_path / "job.json").write_text(json.dumps(job))
    call = [sys.executable, __file__, "job.json"]
    env["HOST_FULL_PRECISION"] = "1"
    done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert abs(facts["ours"] - facts["theirs"]) < 1e-4 * facts["theirs"]
    assert facts["gradients"] < 1e-4  # relative to the largest of each parameter
    assert 0.99 < facts["eps"] < 1.01
    assert facts["pixels"] < 0.01  # where a gradient is about 0, rounding decides its sign


if __name__ == "__main__":
    import advprompt  # noqa: F401  before their imports, as in a fork

    job = json.loads(Path(sys.argv[1]).read_text())
    Path(job["out"]).write_text(json.dumps(compare(job)))
