"""What a GPU must do as the CPU does: answers, gradients, attacks and trainings.

Each check yields rows: what was compared, the figure, and whether it is within the stated bound.
``pytest -m gpu`` and ``bash benchmarks/gpu.sh`` run them.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from advprompt.attacks import AttackSpec, gradient_attack, objective_for
from advprompt.backbone import load_clip
from advprompt.cli.main import dispatch
from advprompt.datasets import drawing
from advprompt.engine.checkpoints import LEARNER, load_checkpoint
from advprompt.evaluation.evaluator import Evaluation
from advprompt.evaluation.models import ModelVictim
from advprompt.evaluation.samples import PixelList
from advprompt.prompting import PromptedCLIP
from benchmarks import jobs

METHODS = ("AdvPT", "NAPTuning", "CAPT", "APD", "CoOp", "MaPLe")
SAME = 1e-4  # of float32 results, relative to the largest value
TRAINED = 0.02  # of trained values, relative: rounding grows over steps, signs of gradients flip
COARSE = 0.3  # the same in bfloat16 and float16; 0.11 on a CPU
EQUAL = 0.995  # of samples
BANK = "rows of the bank"  # after 10 steps of signs


def line(what: str, figure: float, bound: float | None = None, *, least: bool = False) -> dict:
    """Return a row; without a bound the figure is for information."""
    good = bound is None or (figure >= bound if least else figure <= bound)
    return {"what": what, "figure": figure, "bound": bound, "holds": bool(good)}


def _model(name: str, device: str) -> PromptedCLIP:
    clip = jobs.backbone(name, device)
    torch.manual_seed(0)
    return jobs.deep(clip, 37, 3).to(device)


def forward(device: str, quick: bool) -> Iterator[dict]:
    """Logits, loss, gradients in prompts and pixels, and rows of a bank, in float32."""
    for name in ("tiny",) if quick else ("tiny", "ViT-B/16"):
        found = []
        for where in ("cpu", device):
            model = _model(name, where)
            pixels = jobs.images_for(model.clip, 4).requires_grad_()
            logits = model(pixels)
            loss = F.cross_entropy(logits, torch.arange(4, device=where))
            wanted = [pixels, *model.parameters()]
            gradients = torch.autograd.grad(loss, wanted)
            attacked = jobs.bank(model.clip, 4).ours()
            rows = model.clip.encode_image(attacked)
            found.append([t.detach().cpu() for t in (logits, loss, rows, *gradients)])
        names = ["logits", "loss", BANK, "gradient of pixels"]
        names += [k for k, _ in model.named_parameters()]
        for what, a, b in zip(names, *found, strict=True):
            yield line(f"{name}: {what}", jobs.apart(a, b), TRAINED if what == BANK else SAME)


def tf32(device: str, quick: bool) -> Iterator[dict]:
    """Products inside an attack are true float32, although TF32 is on around it."""
    errors = []
    torch.set_float32_matmul_precision("high")

    def logits(pixels):
        a = torch.rand(512, 512, generator=torch.Generator().manual_seed(0)).to(device)
        exact = a.double() @ a.double()
        errors.append(float(((a @ a).double() - exact).abs().max() / exact.abs().max()))
        image = F.conv2d(pixels, torch.ones(2, 3, 3, 3, device=device))
        return image.mean((2, 3))

    pixels, labels = torch.rand(2, 3, 8, 8, device=device), torch.zeros(2, device=device).long()
    spec = jobs.threat(2)
    gradient_attack(objective_for(spec, logits, labels=labels), spec).run(pixels, [0, 1])
    yield line("largest error of a float32 product in an attack", max(errors), 1e-5)


def attacks(device: str, quick: bool) -> Iterator[dict]:
    """Who is left by PGD-40 and by AutoAttack, of drawings and the built-in CLIP."""
    names, count = drawing.shape_classes(), 24 if quick else 200
    images, labels = jobs.drawn(names, 0, count)
    strong, left = "apgd" if quick else "autoattack", []
    own = 4 / 255, None, 20, 1, None, None, "end_to_end"
    specs = [jobs.threat(40), AttackSpec(strong, *own)]
    for where in ("cpu", device):
        model = jobs.classifier(load_clip("tiny", device=where), names)
        victim = ModelVictim(model, names, device=where, name="tiny")
        with tempfile.TemporaryDirectory() as folder:
            found = PixelList(TensorDataset(images, labels))
            own = {"folder": Path(folder) / "unfinished", "cache": folder, "batch_size": 100}
            evaluation = Evaluation(victim, found, **own)
            evaluation.clean()
            for spec in specs:
                evaluation.attack(spec)
            left.append([evaluation.clean_right, *(right for *_, right in evaluation.outcomes)])
    for what, a, b in zip(("clean", *(spec.name for spec in specs)), *left, strict=True):
        same = float((a.cpu() == b.cpu()).float().mean())
        yield line(f"{what}: samples with the same outcome", same, EQUAL, least=True)


def _train(method: str, device: str, folder: Path, *words: str) -> list[dict]:
    """Train two epochs on drawings and return the values after each, on the CPU."""
    common = ["train", "--trainer", method, "--config-file", f"{method}/tiny", "--seed", "1"]
    common += ["--dataset-config-file", "shapes", "--root", str(folder.parent / "data")]
    common += ["--output-dir", str(folder), "DATASET.NUM_SHOTS", "2", "TEST.SUBSET", "32"]
    common += ["OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "-1", "USE_CUDA", str(device != "cpu")]
    common += ["ATTACK.TEST.STEPS", "2", "ATTACK.TEST.LIST", "[]", "TEST.PROBES", "0", *words]
    common += [] if method == "AdvPT" else ["ATTACK.THREAT", "linf1"]
    dispatch([*common, "TRAIN.CHECKPOINT_FREQ", "1", "DATALOADER.NUM_WORKERS", "0"])
    files = [folder / LEARNER / f"model.pth.tar-{epoch}" for epoch in (1, 2)]
    states = [load_checkpoint(file)["state_dict"] for file in files]
    return [{name: value.cpu().float() for name, value in state.items()} for state in states]


def _resumed(first: str, second: str, folder: Path) -> list[dict]:
    """Return CAPT's values after an epoch on each of two devices."""
    _train("CAPT", first, folder)
    (folder / "record.json").unlink()
    (folder / LEARNER / "model.pth.tar-2").unlink()
    (folder / LEARNER / "checkpoint").write_text("model.pth.tar-1\n", encoding="utf-8")
    return _train("CAPT", second, folder)


def _apart(a: list[dict], b: list[dict]) -> float:
    """Return how far two trainings end apart, relative to what the second epoch has moved."""
    ways = ((a[1][k] - b[1][k], a[1][k] - a[0][k]) for k in a[0])
    return max(float(apart.abs().max() / moved.abs().max()) for apart, moved in ways)


def training(device: str, quick: bool) -> Iterator[dict]:
    """Two epochs of each method; reduced precision; resuming, there and on the other device."""
    with tempfile.TemporaryDirectory() as place:
        root, found = Path(place), {}
        for method in METHODS[1:3] if quick else METHODS:
            cpu = _train(method, "cpu", root / f"{method}0")
            found[method] = _train(method, device, root / f"{method}1")
            yield line(f"{method}: learned", _apart(cpu, found[method]), TRAINED)
        log = (root / "CAPT1/log.txt").read_text(encoding="utf-8")
        spent = re.findall(r" time \S+ \((\S+)\) data \S+ \((\S+)\)", log)[-1]
        yield line("CAPT: share of a step that waits for images", float(spent[1]) / float(spent[0]))
        for prec in ("bf16",) if device == "cpu" else ("bf16", "amp"):
            coarse = _train("CAPT", device, root / prec, "TRAINER.ADVERSARIAL.PREC", prec)
            finite = all(value.isfinite().all() for value in coarse[1].values())
            yield line(f"CAPT in {prec}: values are finite", float(finite), 1, least=True)
            bound = COARSE if prec == "bf16" else None  # amp's scaler may skip its first steps
            yield line(f"CAPT in {prec}: learned", _apart(found["CAPT"], coarse), bound)
        for way in {(device, device), ("cpu", device), (device, "cpu")}:
            figure = _apart(found["CAPT"], _resumed(*way, root / "-".join(way)))
            bound = 0 if way == (device, device) else TRAINED
            yield line(f"CAPT resumed, from {way[0]} on {way[1]}", figure, bound)


def waits(device: str, quick: bool) -> Iterator[dict]:
    """Kernels per step; an attack loop waits for the GPU at its ends alone."""
    if device == "cpu":
        return
    clip, counts = jobs.backbone("tiny" if quick else "ViT-B/16", device), []
    for steps in (4, 4, 24):
        attack = jobs.evaluation(clip, 37, 32, steps)
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            attack.ours()
        torch.cuda.set_sync_debug_mode("default")
        counts.append(len(seen))
    yield line("waits for the device per attack step", (counts[2] - counts[1]) / 20, 0)
    for job in (attack, jobs.tuning(clip, 37), jobs.training(clip, 37, 32, 0)):
        job.ours()
        with torch.profiler.profile() as profile:
            job.ours()
        count = sum(e.count for e in profile.key_averages() if "LaunchKernel" in e.key)
        yield line(f"kernels: {job.name}", count)


CHECKS = (forward, tf32, attacks, training, waits)
