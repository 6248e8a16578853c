"""Our PGD next to torchattacks' PGD: the same model, images, eps, alpha and steps.

    OMP_NUM_THREADS=1 python -m benchmarks.pgd --images 400 --steps 40

Strength is the robust accuracy on drawings the built-in CLIP never saw, end to end through its
hand-made prompt, both judged by this project; time is a batch of 50 images, in turns.
"""

import argparse
import statistics
import sys

import torch
from tabulate import tabulate
from tqdm import tqdm

from advprompt import attacks
from advprompt.backbone import load_clip
from advprompt.datasets import drawing
from advprompt.utils.entry import run_tool

from .jobs import classifier, drawn
from .timing import clock_for, paired, ratio

BATCH = 128


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
    logits = classifier(clip, names)
    attack_by = ways(logits, spec)
    right = {name: 0 for name in attack_by}
    clean = 0
    for begin in tqdm(range(0, args.images, BATCH), "strength"):
        pixels, labels = drawn(names, begin, min(begin + BATCH, args.images))
        with torch.no_grad():
            was = logits(pixels).argmax(1) == labels
        clean += int(was.sum())
        for name, attack in attack_by.items():
            images = attack(pixels, labels)
            with torch.no_grad():
                right[name] += int((was & (logits(images).argmax(1) == labels)).sum())
    pixels, labels = drawn(names, 0, 50)
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
