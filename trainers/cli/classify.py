"""Print the likeliest classes of images by a trained model.

    advprompt classify output/RUN photo.jpg folder/ --top 3

The model is a run folder, a checkpoint in one, or an export. A folder means all its images.
"""

import argparse
from pathlib import Path

import torch

from ..engine.zoo import load
from ..utils.errors import UserError

BATCH = 32


def images_of(paths: list[str]) -> list[Path]:
    """Return the image files; those in folders are sorted."""
    from ..datasets.files import list_images

    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"image '{path}' does not exist")
        inside = [path / name for name in list_images(path)] if path.is_dir() else [path]
        if not inside:
            raise UserError(f"folder '{path}' has no images")
        found += inside
    return found


@torch.no_grad()
def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("advprompt classify", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("model", help="a run folder, a checkpoint in one, or an export")
    add("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    add("--top", type=int, default=5, metavar="N", help="classes to print (default: 5)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help=f"default: {device}")
    args = parser.parse_args(argv)
    if args.top < 1:
        raise UserError(f"--top is {args.top}, expected at least 1")
    paths, model = images_of(args.images), load(args.model, device=args.device)
    top = min(args.top, len(model.classnames))
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        best = model.logits(batch).softmax(1).topk(top)
        for path, shares, labels in zip(batch, *map(torch.Tensor.tolist, best), strict=True):
            pairs = zip(labels, shares, strict=True)
            words = (f"{model.classnames[i]} {100 * share:.1f} %" for i, share in pairs)
            print(f"{path}: {', '.join(words)}")
