"""Measure the built-in small CLIP and its robust sibling, and write their model card.

    python -m advprompt.experiments.tiny.figures --data $DATA

Zero-shot accuracy on drawings that pre-training never saw (stream ``check``), on colour-shape
combinations it was never shown, on the test images of EuroSAT and Caltech101, and under
end-to-end PGD-20. Writes ``figures.json`` and ``MODEL_CARD.md`` beside the weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from dassl.config import get_cfg_default
from tabulate import tabulate
from tqdm import tqdm

from ... import attacks, records
from ... import backbone as prompting
from ...datasets import drawing
from ...prompting import templates
from ...utils import images, io
from ...utils.entry import run_tool
from .corpus import TEMPLATES

BATCH = 128
LEVELS = (1, 2, 4, 8)  # eps in 1/255
FOLDERS = {
    "eurosat": ("EuroSAT", "eurosat", "2750"),
    "caltech": ("Caltech101", "caltech-101", "101_ObjectCategories"),
}


def drawn(names: list[str], count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of fresh drawings (B, 3, 64, 64) of the named classes, in turn."""
    for begin in range(0, count, BATCH):
        index = range(begin, min(begin + BATCH, count))
        pixels = np.stack([drawing.sample("check", i, names[i % len(names)])[1] for i in index])
        labels = torch.tensor([i % len(names) for i in index])
        yield torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, labels


def photos(root: Path, kind: str) -> tuple[list[str], list, list[int]]:
    """Return class names, paths and labels of a real test set, or empty lists."""
    _, folder, inner = FOLDERS[kind]
    files = list((root / folder).glob("split_zhou_*.json"))
    if not files:
        return [], [], []
    rows = io.read_json(files[0])["test"]
    names = {label: name for _, label, name in rows}
    paths = [str(root / folder / inner / path) for path, _, _ in rows]
    return [names[k] for k in sorted(names)], paths, [label for _, label, _ in rows]


def classifier(clip, template: str, names: list[str]):
    """Return pixels -> logits (B, K) for the hand-made prompt."""
    with torch.no_grad():
        texts = prompting.text_features(clip, templates.fill(template, names))  # (K, D)

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        features = torch.nn.functional.normalize(clip.encode_image(pixels), dim=-1)
        return clip.logit_scale * features @ texts.t()

    return logits


@torch.no_grad()
def clean_accuracy(logits, batches, title: str) -> dict:
    right = [
        (logits(pixels).argmax(1) == labels).float() for pixels, labels in tqdm(batches, title)
    ]
    right = torch.cat(right)
    return {"accuracy": round(100 * float(right.mean()), 1), "n": len(right)}


def robust_accuracy(logits, batches, level: float, title: str) -> dict:
    """Right clean and right after end-to-end PGD-20, step eps/4, random start."""
    spec = attacks.AttackSpec(
        "pgd", level / 255, level / 4 / 255, 20, 1, "uniform", "ce", "end_to_end"
    )
    right, checks = [], attacks.AttackChecks()
    for pixels, labels in tqdm(batches, title):
        with torch.no_grad():
            clean = logits(pixels).argmax(1) == labels
        attack = attacks.GradientAttack(attacks.objective_for(spec, logits, labels=labels), spec)
        seeds = range(len(right) * BATCH, len(right) * BATCH + len(pixels))
        result = attack.run(pixels, seeds)
        checks.add(result)
        with torch.no_grad():
            right.append((clean & (logits(result.images).argmax(1) == labels)).float())
    share = float(torch.cat(right).mean())
    warnings = attacks.verify(spec, checks.summary(), robust_acc=share)
    return {
        "accuracy": round(100 * share, 1),
        "n": len(torch.cat(right)),
        "checks": checks.summary(),
        "warnings": warnings,
    }


def measure(name: str, data: Path | None, attacked: int) -> dict:
    """Return all figures of one backbone."""
    clip = prompting.load_clip(name)
    names, template = drawing.shape_classes(), templates.template_for("Shapes")
    pairs = [f"{c} {s}" for c in drawing.COLOURS for s in drawing.SHAPES]
    unseen = [f"{c} {s}" for c, s in sorted(drawing.HELD_OUT)]
    shapes, every = classifier(clip, template, names), classifier(clip, template, pairs)
    title = f"{name}: "
    figures = {
        "weights_sha256": clip.sha256,
        "logit_scale": round(clip.logit_scale, 1),
        "shapes, 32 classes": clean_accuracy(shapes, drawn(names, 1024), title + "shapes"),
        "all 64 combinations": clean_accuracy(every, drawn(pairs, 1024), title + "combinations"),
        "never captioned, among 64": clean_accuracy(
            lambda x: shift(every(x), pairs, unseen), drawn(unseen, 512), title + "unseen"
        ),
    }
    for kind in FOLDERS if data else ():
        classes, paths, labels = photos(data, kind)
        if not classes:
            continue
        cfg = get_cfg_default()
        cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (clip.resolution,) * 2, "bicubic"
        pixels = images.batches(paths, images.Preprocess(cfg), BATCH)
        labels = torch.tensor(labels).split(BATCH)
        logits = classifier(clip, TEMPLATES[kind][0], classes)
        label = f"{FOLDERS[kind][0]} test, {len(classes)} classes"
        figures[label] = clean_accuracy(logits, zip(pixels, labels, strict=True), title + kind)
    for level in LEVELS:
        label = f"shapes, PGD-20 eps {level}/255"
        figures[label] = robust_accuracy(shapes, drawn(names, attacked), level, title + label)
    return figures


def shift(logits: torch.Tensor, pairs: list[str], unseen: list[str]) -> torch.Tensor:
    """Reorder columns so that the classes of ``unseen`` come first, in their order."""
    first = [pairs.index(name) for name in unseen]
    return logits[:, first + [i for i in range(len(pairs)) if i not in first]]


def card(figures: dict[str, dict], recipe: dict, device: str) -> str:
    """Return the model card as markdown."""
    rows = [key for key in figures["tiny"] if isinstance(figures["tiny"][key], dict)]
    table = [
        [key, *(f"{f[key]['accuracy']:.1f} (n {f[key]['n']})" for f in figures.values())]
        for key in rows
    ]
    words = "\n".join(f"- {key}: {value}" for key, value in recipe.items())
    return (
        "# The built-in small CLIP: `tiny` and `tiny-robust`\n\n"
        "Two small contrastive models in OpenAI CLIP's layout, for trying things out and for "
        "tests on a CPU. They know drawn shapes and, where the recipe below says so, the classes "
        "of EuroSAT and Caltech101; they are no substitute for CLIP.\n\n"
        "## Figures\n\nTop-1 accuracy in percent, zero-shot with the hand-made prompt; under PGD a "
        "sample counts if it is right before and after. Drawings are fresh (no overlap with "
        "pre-training); *never captioned* are the 8 colour-shape combinations left out of "
        f"pre-training. Measured by `python -m advprompt.experiments.tiny.figures` on {device}.\n\n"
        + tabulate(table, ["", *figures], tablefmt="github")
        + f"\n\n## Recipe\n\n{words}\n\n"
        "## Data and licences\n\nDrawings are made by `datasets/drawing.py`. Images of EuroSAT "
        "(MIT) and Caltech101 (CC BY 4.0; a part: up to 20 training images for each of 100 "
        "classes) come from CoOp's training splits; no test image was used. Few-shot training "
        "images of these two sets are therefore among the pre-training images. The weights are "
        "under this project's licence (MIT).\n\n"
        "## Limits\n\nWords outside the captions have untrained embeddings. `tiny-robust` was "
        "trained and measured against L_inf perturbations of 4/255 and claims nothing beyond.\n"
    )


def main(argv: list[str]) -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(prog="tiny_figures", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="CoOp data root (EuroSAT, Caltech101); optional")
    parser.add_argument("--attacked", type=int, default=512, help="drawings under attack")
    parser.add_argument("--recipe", type=Path, help="recipe.json of tools.pretrain_tiny")
    parser.add_argument("--output", type=Path, default=prompting.tiny.ASSETS)
    args = parser.parse_args(argv)
    figures = {name: measure(name, args.data, args.attacked) for name in prompting.tiny.NAMES}
    old = args.output / "figures.json"
    recipe = io.read_json(args.recipe) if args.recipe else io.read_json(old)["recipe"]
    environment = records.environment()
    io.write_json(old, {"figures": figures, "recipe": recipe, **environment})
    text = card(figures, recipe, environment["device"])
    with io.atomic_write(args.output / "MODEL_CARD.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(run_tool(main))
