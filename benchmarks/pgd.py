"""Our PGD next to torchattacks' PGD: the same model, images, eps, alpha and steps.

    OMP_NUM_THREADS=1 python -m benchmarks.pgd --images 400 --steps 40

Strength is the robust accuracy on drawings the built-in CLIP never saw, end to end through its
hand-made prompt, both judged by this project; time is a batch of 50 images, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from advprompt import attacks
from advprompt.backbone import cosine_logits, load_clip, text_features
from advprompt.datasets import drawing
from advprompt.prompting import templates
from advprompt.utils.entry import run_tool

from .timing import clock_for, paired, ratio

BATCH = 128


def drawn(names, count):
    """Yield batches of fresh drawings (B, 3, 64, 64) of the named classes, in turn."""
    for begin in range(0, count, BATCH):
        index = range(begin, min(begin + BATCH, count))
        pixels = np.stack([drawing.sample("check", i, names[i % len(names)])[1] for i in index])
        labels = torch.tensor([i % len(names) for i in index])
        yield torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, labels


def classifier(clip, template, names):
    """Return pixels -> logits (B, K) for the hand-made prompt."""
    with torch.no_grad():
        texts = text_features(clip, templates.fill(template, names))  # (K, D)
    return lambda pixels: cosine_logits(clip.encode_image(pixels), texts, clip.logit_scale)


def ways(logits, spec):
    """Return name -> attack (pixels, labels) -> adversarial images, for the same threat."""
    import torchattacks

    model = torch.nn.Module().eval()
    model.forward = logits

    def theirs(pixels, labels):
        torch.manual_seed(0)
        attack = torchattacks.PGD(model, spec.eps, spec.alpha, spec.steps, random_start=True)
        return attack(pixels, labels)

    def ours(pixels, labels):
        loss = attacks.objective_for(spec, logits, labels=labels)
        attack = attacks.GradientAttack(loss, spec)
        return attack.run(pixels, range(len(pixels)), scored=False).images

    return {"torchattacks": theirs, "ours": ours}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pgd", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--backbone", default="tiny", help="tiny or tiny-robust")
    add("--images", type=int, default=400, help="images for the strength")
    add("--eps", default="5/255")
    add("--steps", type=int, default=20)
    add("--pairs", type=int, default=7, help="rounds for the time")
    args = parser.parse_args(argv)

    eps = attacks.parse_255(args.eps, "--eps")
    spec = attacks.AttackSpec("pgd", eps, eps / 4, args.steps, 1, "uniform", "ce", "end_to_end")
    names = drawing.shape_classes()
    clip = load_clip(args.backbone)
    logits = classifier(clip, templates.template_for("Shapes"), names)
    attack_by = ways(logits, spec)
    right = {name: 0 for name in attack_by}
    clean = 0
    for pixels, labels in tqdm(drawn(names, args.images), "strength", -(-args.images // 128)):
        with torch.no_grad():
            was = logits(pixels).argmax(1) == labels
        clean += int(was.sum())
        for name, attack in attack_by.items():
            images = attack(pixels, labels)
            with torch.no_grad():
                right[name] += int((was & (logits(images).argmax(1) == labels)).sum())
    pixels, labels = next(drawn(names, 50))
    clock, kind = clock_for("cpu")
    runs = {name: lambda a=attack: a(pixels, labels) for name, attack in attack_by.items()}
    taken = paired(runs, pairs=args.pairs, clock=clock)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    rows = [[name, 100 * right[name] / args.images, medians[name]] for name in attack_by]
    print(tabulate(rows, ["PGD of", "robust accuracy", "seconds, 50 images"], floatfmt=".2f"))
    faster = ratio(taken["torchattacks"], taken["ours"])
    print(
        f"clean {100 * clean / args.images:.1f}, {args.images} images, {clip.name}, "
        f"PGD-{args.steps} {args.eps}; {kind}; torchattacks / ours {faster:.3f} "
        f"(median of {args.pairs} pairs)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
