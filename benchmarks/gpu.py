"""A GPU against the CPU: the same answers, gradients, attacks and trainings.

    bash benchmarks/gpu.sh                         # all parts, each with a time limit
    python -m benchmarks.gpu forward --device cuda

Every part prints one line per comparison, a JSON object with what was compared, the figure, and
whether it is within the stated bound. ``--device cpu`` compares the CPU with itself: it shows that
the script runs, and the figures are 0.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate
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
from advprompt.utils import io, machine
from advprompt.utils.entry import run_tool
from advprompt.utils.errors import UserError

from . import jobs

METHODS = ("AdvPT", "NAPTuning", "CAPT", "APD", "CoOp", "MaPLe")
SAME = 1e-4  # of float32 results, relative to the largest value
TRAINED = 0.02  # of trained values, relative: rounding grows over steps, signs of gradients flip
EQUAL = 0.995  # of samples


def line(what: str, figure: float, bound: float, *, least: bool = False) -> dict:
    good = figure >= bound if least else figure <= bound
    return {"what": what, "figure": figure, "bound": bound, "holds": bool(good)}


def _model(name: str, device: str) -> PromptedCLIP:
    clip = jobs.backbone(name, device)
    torch.manual_seed(0)
    return jobs.deep(clip, 37, 3).to(device)


def forward(device: str, quick: bool) -> Iterator[dict]:
    """Logits, and gradients in prompts and pixels, in float32."""
    for name in ("tiny",) if quick else ("tiny", "ViT-B/16"):
        found = []
        for where in ("cpu", device):
            model = _model(name, where)
            pixels = jobs.images_for(model.clip, 4).requires_grad_()
            logits = model(pixels)
            loss = F.cross_entropy(logits, torch.arange(4, device=where))
            wanted = [pixels, *model.parameters()]
            gradients = torch.autograd.grad(loss, wanted)
            found.append([t.detach().cpu() for t in (logits, *gradients)])
        names = ["logits", "gradient of pixels", *(k for k, _ in model.named_parameters())]
        for what, a, b in zip(names, *found, strict=True):
            yield line(f"{name}: {what}", jobs.apart(a, b), SAME)


def tf32(device: str, quick: bool) -> Iterator[dict]:
    """Products inside an attack are true float32: TF32 has errors of about 1e-3."""
    errors = []

    def logits(pixels):
        a = torch.rand(512, 512, generator=torch.Generator().manual_seed(0)).to(device)
        exact = a.double() @ a.double()
        errors.append(float(((a @ a).double() - exact).abs().max() / exact.abs().max()))
        image = F.conv2d(pixels, torch.ones(2, 3, 3, 3, device=device))
        return image.mean((2, 3))

    pixels, labels = torch.rand(2, 3, 8, 8, device=device), torch.zeros(2, device=device).long()
    spec = AttackSpec("pgd", 4 / 255, 1 / 255, 2, 1, "uniform", "ce", "end_to_end")
    gradient_attack(objective_for(spec, logits, labels=labels), spec).run(pixels, [0, 1])
    yield line("largest error of a float32 product in an attack", max(errors), 1e-5)


def attacks(device: str, quick: bool) -> Iterator[dict]:
    """Who is left by PGD-40 and by AutoAttack, of drawings and the built-in CLIP."""
    names, count = drawing.shape_classes(), 24 if quick else 200
    images, labels = jobs.drawn(names, 0, count)
    pgd = AttackSpec("pgd", 4 / 255, 1 / 255, 40, 1, "uniform", "ce", "end_to_end")
    strong = "apgd" if quick else "autoattack"
    specs = [pgd, AttackSpec(strong, 4 / 255, None, 20, 1, None, None, "end_to_end")]
    left = []
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


def _train(method: str, device: str, folder: Path, *words: str, epochs: int = 1) -> dict:
    """Train on drawings and return the trained values on the CPU."""
    common = ["train", "--trainer", method, "--config-file", f"{method}/tiny", "--seed", "1"]
    common += ["--dataset-config-file", "shapes", "--root", str(folder.parent / "data")]
    common += ["--output-dir", str(folder), "DATASET.NUM_SHOTS", "2", "TEST.SUBSET", "32"]
    common += ["OPTIM.MAX_EPOCH", str(epochs), "USE_CUDA", str(device != "cpu")]
    common += ["ATTACK.TEST.STEPS", "2", "ATTACK.TEST.LIST", "[]", "TEST.PROBES", "0", *words]
    common += [] if method == "AdvPT" else ["ATTACK.THREAT", "linf1"]
    dispatch([*common, "TRAIN.CHECKPOINT_FREQ", "1", "DATALOADER.NUM_WORKERS", "0"])
    state = load_checkpoint(folder / LEARNER / f"model.pth.tar-{epochs}")["state_dict"]
    return {name: value.cpu().float() for name, value in state.items()}


def _apart(a: dict, b: dict) -> float:
    return max(jobs.apart(a[name], b[name]) for name in a)


def training(device: str, quick: bool) -> Iterator[dict]:
    """One epoch of each method; bf16; resuming; a checkpoint of the CPU tested on the device."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for method in METHODS[1:3] if quick else METHODS:
            cpu, there = (
                _train(method, where, root / f"{method}{i}")
                for i, where in enumerate(("cpu", device))
            )
            yield line(f"{method}: trained values", _apart(cpu, there), TRAINED)
        bf16 = _train("CAPT", device, root / "bf16", "TRAINER.ADVERSARIAL.PREC", "bf16")
        finite = all(value.isfinite().all() for value in bf16.values())
        yield line("CAPT in bf16: values are finite", float(finite), 1, least=True)
        whole = _train("CAPT", device, root / "whole", epochs=2)
        _train("CAPT", device, root / "cut", epochs=2)
        (root / "cut" / "record.json").unlink()
        (root / "cut" / LEARNER / "model.pth.tar-2").unlink()
        (root / "cut" / LEARNER / "checkpoint").write_text("model.pth.tar-1\n", encoding="utf-8")
        again = _train("CAPT", device, root / "cut", epochs=2)
        yield line("CAPT resumed after its first epoch", _apart(whole, again), 0)


def launches(device: str, quick: bool) -> Iterator[dict]:
    """Kernels per attack step; an attack loop waits for the GPU at its ends alone."""
    if device == "cpu":
        return
    model = _model("tiny", device)
    texts, pixels = model.text_features().detach(), jobs.images_for(model.clip, 64)
    labels = torch.arange(64, device=device) % 37

    def attack(steps: int) -> None:
        spec = AttackSpec("pgd", 4 / 255, 1 / 255, steps, 1, "uniform", "ce", "end_to_end")
        loss = objective_for(spec, lambda x: model.logits(x, texts), labels=labels)
        gradient_attack(loss, spec).run(pixels, range(64))

    counts, waits = [], []
    for steps in (4, 4, 24):
        torch.cuda.synchronize()
        with torch.profiler.profile() as seen:
            attack(steps)
        events = seen.key_averages()
        counts.append(sum(e.count for e in events if e.key == "cudaLaunchKernel"))
        waits.append(sum(e.count for e in events if "Synchronize" in e.key))
    yield line("kernels per attack step", (counts[2] - counts[1]) / 20, 10_000)
    yield line("waits for the device per attack step", (waits[2] - waits[1]) / 20, 0)


PARTS = {f.__name__: f for f in (forward, tf32, attacks, training, launches)}
SECONDS = {"forward": 60, "tf32": 20, "attacks": 90, "training": 120, "launches": 30, "run": 150}


def everything(device: str, quick: bool, out: Path) -> Iterator[dict]:
    """Run every part in a process of its own; one that takes too long does not hide the others."""
    flags = ["--device", device, *(["--quick"] if quick else [])]
    backbone = "tiny" if quick else "ViT-B/16"
    for part, limit in SECONDS.items():
        words = ["benchmarks.gpu", part, *flags]
        if part == "run":  # the ratios, and on a GPU the budget table
            words = ["benchmarks.run", *flags[:2], "--quick", "--no-memory"]
            words += ["--backbone", backbone, "--json", str(out / "ratios.json")]
        print(f"== {part}", flush=True)
        with (out / f"{part}.log").open("w") as log:
            command = [sys.executable, "-m", *words]
            try:
                code = subprocess.run(command, stdout=log, stderr=log, timeout=limit).returncode
                why = f"ended with {code}, see {part}.log" if code else ""
            except subprocess.TimeoutExpired:
                why = f"was stopped after {limit} s"
        text = (out / f"{part}.log").read_text()
        yield from (json.loads(row) for row in text.splitlines() if row.startswith('{"part"'))
        if part == "run":
            print(text)
        if why:
            yield {"part": part} | line(f"it {why}", 1, 0)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="of all parts")
    args = parser.parse_args(argv)
    if args.device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {args.device} needs a GPU that torch sees; use cpu")
    if args.part != "all":
        holds = True
        for row in PARTS[args.part](args.device, args.quick):
            print(json.dumps({"part": args.part} | row), flush=True)
            holds &= row["holds"]
        return int(not holds)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = list(everything(args.device, args.quick, args.out))
    io.write_json(args.out / "gpu.json", machine.environment(args.device) | {"rows": rows})
    table = [
        [r["part"], r["what"], f"{r['figure']:.3g}", f"{r['bound']:g}", r["holds"]] for r in rows
    ]
    print(tabulate(table, ["part", "what", "figure", "bound", "holds"], disable_numparse=True))
    print(f"{machine.device_name(args.device)}, torch {torch.__version__}; {args.out}/gpu.json")
    return int(not all(row["holds"] for row in rows))


if __name__ == "__main__":
    sys.exit(run_tool(main))
