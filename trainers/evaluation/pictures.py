"""The picture of an attack: clean | perturbation x10 | adversarial, with both predictions.

A run keeps the pixels and the texts in ``examples.safetensors``, so that the picture can be drawn
again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..records.examples import EXAMPLES, MAGNIFICATION, perturbation
from ..utils.errors import UserError
from ..utils.io import atomic_write, save_tensors

PICTURE = "picture.png"
_RIGHT, _WRONG, _QUIET = "#1a7f37", "#c62828", "#57606a"
_NAME = 26  # characters of a class name that fit under an image
_SMALL = 160  # pixels; below it images are shown with hard edges


class Prediction(NamedTuple):
    """A class name and the probability the model gives it, in [0, 1]."""

    name: str
    probability: float


def save_grid(
    path,
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    *,
    labels: Sequence[str],
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    eps: float | None,
    title: str = "",
) -> Path:
    """Draw one row per image: clean, the perturbation times ten around grey, adversarial.

    Images are (N, 3, H, W) in [0, 1], ``labels`` the N true class names, ``before`` and ``after``
    the predictions on clean and adversarial images, green where right and red where wrong. ``eps``
    is the radius in [0, 1], None without a ball. UserError if there are no images, their shapes
    differ, pixels are outside [0, 1], or the PNG file ``path`` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # slow to import

    clean, adversarial = _pixels(clean, "clean"), _pixels(adversarial, "adversarial")
    count = len(clean)
    lengths = {len(adversarial), len(labels), len(before), len(after)}
    if clean.shape != adversarial.shape or lengths != {count} or not count:
        raise UserError(
            f"a picture needs as many clean images, adversarial images, labels and predictions; "
            f"got clean {tuple(clean.shape)}, adversarial {tuple(adversarial.shape)}, "
            f"{len(labels)} labels, {len(before)} and {len(after)} predictions"
        )
    noise = perturbation(clean, adversarial)
    radius = "" if eps is None else f", eps {eps * 255:g}/255"
    heads = ("clean", f"perturbation x{MAGNIFICATION}{radius}", "adversarial")

    height = 2.67 * count + (0.65 if title else 0.35)  # inches
    figure = Figure(figsize=(7.25, height), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(count, 3, squeeze=False)
    top, bottom = 1 - (0.6 if title else 0.3) / height, 0.5 / height
    figure.subplots_adjust(0.02, bottom, 0.98, top, wspace=0.08, hspace=0.24)
    if title:
        size = min(11, 11 * 75 / len(title))  # 75 characters fit
        figure.suptitle(title, y=1 - 0.2 / height, va="center", fontsize=size, parse_math=False)
    for axes, head in zip(grid[0], heads, strict=True):
        axes.set_title(head, fontsize=9.5, color=_QUIET)
    for i, label in enumerate(labels):
        _show(grid[i][0], clean[i], *_caption(before[i], label))
        _show(grid[i][1], noise[i], f"true class\n{_short(label)}", _QUIET)
        _show(grid[i][2], adversarial[i], *_caption(after[i], label))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    return Path(path)


def _show(axes, image: torch.Tensor, text: str, colour: str) -> None:
    look = "nearest" if max(image.shape[-2:]) < _SMALL else "antialiased"
    axes.imshow(image.permute(1, 2, 0).numpy(), vmin=0, vmax=1, interpolation=look)  # (H, W, 3)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=colour, linewidth=1.6)
    axes.set_xlabel(text, labelpad=3, fontsize=9, color=colour, linespacing=1.15, parse_math=False)


def _pixels(images: torch.Tensor, name: str) -> torch.Tensor:
    """Return ``images`` as float32 (N, 3, H, W) on the CPU, refusing normalised ones."""
    images = torch.as_tensor(images).detach().float().cpu()
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"{name} images have shape {tuple(images.shape)}, expected (N, 3, H, W)")
    if images.numel() and not (images.min() >= -1e-4 and images.max() <= 1 + 1e-4):
        raise UserError(
            f"{name} images lie in [{images.min():.3g}, {images.max():.3g}], expected [0, 1]; "
            "give pixels before normalisation"
        )
    return images.clamp(0, 1)


def _short(name: str) -> str:
    name = name.replace("_", " ")
    return name if len(name) <= _NAME else name[: _NAME - 1].rstrip() + "…"


def _caption(prediction: Prediction, label: str) -> tuple[str, str]:
    """Return the text under an image and its colour."""
    name, probability = prediction
    text = f"predicted\n{_short(name)}, {100 * probability:.0f} %"
    return text, _RIGHT if name == label else _WRONG


def save_examples(
    folder,
    *,
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    classnames: Sequence[str],
    labels: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
    spec,
    title: str = "",
) -> Path:
    """Keep examples of an attack, as ``Evaluation.examples`` makes them, in a folder and draw them.

    ``folder`` gets ``examples.safetensors`` and ``picture.png``, whose path is returned. ``labels``
    (N,) are indices of ``classnames`` (K); ``before`` and ``after`` (N, K) are the class
    probabilities on the clean and the adversarial images. The title names the attack ``spec``, too.
    """
    attack = f"{spec.target.replace('_', '-')} {spec.name.upper()}-{spec.steps}"
    facts = {
        "labels": [classnames[i] for i in labels.tolist()],
        "before": _predictions(before, classnames),
        "after": _predictions(after, classnames),
        "eps": spec.eps,
        "title": f"{title}: {attack}" if title else attack,
    }
    picture = save_grid(Path(folder) / PICTURE, clean, adversarial, **facts)
    save_tensors(Path(folder) / EXAMPLES, {"clean": clean, "adversarial": adversarial}, facts)
    return picture


def _predictions(probabilities: torch.Tensor, classnames: Sequence[str]) -> list[Prediction]:
    best = probabilities.detach().float().cpu().max(dim=1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [Prediction(classnames[i], p) for i, p in pairs]
