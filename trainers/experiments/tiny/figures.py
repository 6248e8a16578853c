"""Measure the built-in small CLIP and its robust sibling, and write their model card.

    python -m advprompt.experiments.tiny.figures --data $DATA

Zero-shot accuracy on drawings that pre-training never saw (stream ``check``), on colour-shape
combinations it was never shown, on the test images of EuroSAT and Caltech101, and under
end-to-end PGD-20. Writes ``figures.json`` next to the weights and the figures in their
``MODEL_CARD.md``.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from dassl.config import get_cfg_default
from tabulate import tabulate
from tqdm import tqdm

from ... import attacks, backbone, records
from ...datasets import COOP, drawing
from ...prompting import templates
from ...utils import images, io
from ...utils.entry import run_tool
from .corpus import REAL, TEMPLATES, real_split

BATCH = 128
LEVELS = (1, 2, 4, 8)  # eps in 1/255


def drawn(names: list[str], count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of fresh drawings (B, 3, 64, 64) of the named classes, in turn."""
    for begin in range(0, count, BATCH):
        index = range(begin, min(begin + BATCH, count))
        pixels = np.stack([drawing.sample("check", i, names[i % len(names)])[1] for i in index])
        labels = torch.tensor([i % len(names) for i in index])
        yield torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, labels


def classifier(clip, template: str, names: list[str]):
    """Return pixels -> logits (B, K) for the hand-made prompt."""
    with torch.no_grad():
        texts = backbone.text_features(clip, templates.fill(template, names))  # (K, D)

    return lambda pixels: backbone.cosine_logits(clip.encode_image(pixels), texts, clip.logit_scale)


@torch.no_grad()
def clean_accuracy(logits, batches, title: str) -> dict:
    found = [logits(pixels).argmax(1) == labels for pixels, labels in tqdm(batches, title)]
    right = torch.cat(found).float()
    return {"accuracy": round(100 * float(right.mean()), 1), "n": len(right)}


def robust_accuracy(logits, batches, level: float, title: str) -> dict:
    """Right clean and right after end-to-end PGD-20, step eps/4, random start."""
    eps = level / 255
    spec = attacks.AttackSpec("pgd", eps, eps / 4, 20, 1, "uniform", "ce", "end_to_end")
    right, checks = [], attacks.AttackChecks()
    for pixels, labels in tqdm(batches, title):
        with torch.no_grad():
            clean = logits(pixels).argmax(1) == labels
        attack = attacks.GradientAttack(attacks.objective_for(spec, logits, labels=labels), spec)
        result = attack.run(pixels, range(len(right) * BATCH, len(right) * BATCH + len(pixels)))
        checks.add(result)
        with torch.no_grad():
            right.append((clean & (logits(result.images).argmax(1) == labels)).float())
    right, found = torch.cat(right), checks.summary()
    warnings = attacks.verify(spec, found, robust_acc=float(right.mean()))
    accuracy = round(100 * float(right.mean()), 1)
    return {"accuracy": accuracy, "n": len(right), "checks": found, "warnings": warnings}


def measure(name: str, data: Path | None, attacked: int) -> dict:
    clip = backbone.load_clip(name)
    names, template = drawing.shape_classes(), templates.template_for("Shapes")
    unseen = [f"{c} {s}" for c, s in sorted(drawing.HELD_OUT)]
    every = [f"{c} {s}" for c in drawing.COLOURS for s in drawing.SHAPES]
    unseen_first = unseen + [pair for pair in every if pair not in unseen]
    shapes = classifier(clip, template, names)
    figures = {"weights_sha256": clip.sha256, "logit_scale": round(clip.logit_scale, 1)}

    def clean(label: str, logits, batches) -> None:
        figures[label] = clean_accuracy(logits, batches, f"{name}: {label}")

    clean("shapes, 32 classes", shapes, drawn(names, 1024))
    clean("all 64 combinations", classifier(clip, template, every), drawn(every, 1024))
    unseen_among = classifier(clip, template, unseen_first)
    clean("never captioned, among 64", unseen_among, drawn(unseen, 512))
    for kind in REAL if data else ():
        if (found := real_split(data, kind)) is None:
            continue
        folder, items = found[0], found[1].test
        classes = dict(sorted((item.label, item.classname) for item in items))
        cfg = get_cfg_default()
        cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (clip.resolution,) * 2, "bicubic"
        paths = [str(folder / item.path) for item in items]
        pixels = images.batches(paths, images.Preprocess(cfg), BATCH)
        labels = torch.tensor([item.label for item in items]).split(BATCH)
        logits = classifier(clip, TEMPLATES[kind][0], list(classes.values()))
        label = f"{COOP[REAL[kind]].__name__} test, {len(classes)} classes"
        clean(label, logits, zip(pixels, labels, strict=True))
    for level in LEVELS:
        label = f"shapes, PGD-20 eps {level}/255"
        title = f"{name}: {label}"
        figures[label] = robust_accuracy(shapes, drawn(names, attacked), level, title)
    return figures


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="tiny_figures", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="CoOp data root (EuroSAT, Caltech101); optional")
    parser.add_argument("--attacked", type=int, default=512, help="drawings under attack")
    parser.add_argument("--recipe", type=Path, help="recipe.json of the pre-training")
    parser.add_argument("--output", type=Path, default=backbone.tiny.ASSETS)
    args = parser.parse_args(argv)
    old, environment = args.output / "figures.json", records.environment()
    figures = {name: measure(name, args.data, args.attacked) for name in backbone.tiny.NAMES}
    recipe = io.read_json(args.recipe) if args.recipe else io.read_json(old)["recipe"]
    io.write_json(old, {"figures": figures, "recipe": recipe, **environment})
    rows = [
        [key, *(f"{f[key]['accuracy']:.1f} (n {f[key]['n']})" for f in figures.values())]
        for key, figure in figures["tiny"].items()
        if isinstance(figure, dict)
    ]
    lines = [f"- {key}: {value}" for key, value in recipe.items()]
    text = (backbone.tiny.ASSETS / "MODEL_CARD.md").read_text(encoding="utf-8")
    for pattern, new in (
        (r"(?m)(^\|.*\n)+", tabulate(rows, ["", *figures], tablefmt="github") + "\n"),
        (r"(?<=## Recipe\n\n)(- .*\n)+", "\n".join(lines) + "\n"),
        (r"(?<=figures` on ).*(?=\.\n)", environment["device"]),
    ):
        text = re.sub(pattern, lambda _, new=new: new, text)
    with io.atomic_write(args.output / "MODEL_CARD.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(run_tool(main))
