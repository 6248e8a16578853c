"""Random views of an image: crops, flips and AugMix, differentiable in the pixels.

View 0 is the image itself. Unlike in public code, views are taken from the pixels that the model
is tested on, so that clean and attacked images are treated alike.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .base import moved

RATIO = (3 / 4, 4 / 3)  # of width to height, torchvision's default
CHAINS, LONGEST = 3, 3  # of AugMix (Hendrycks et al., 2020), as R-TPT's code has it


def views_of(images: Tensor, seeds: Sequence[int], count: int, scale: float, augmix: bool):
    """Return views (B, V, 3, H, W) of images (B, 3, H, W); view 0 is the image itself."""
    rows = []
    for image, seed in zip(images, seeds, strict=True):
        rng = np.random.default_rng(seed)
        theta = torch.from_numpy(np.stack([_crop(rng, scale) for _ in range(count - 1)]))
        grid = F.affine_grid(theta.to(image), [count - 1, *image.shape], align_corners=False)
        source = image.expand(count - 1, *image.shape)
        crops = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
        if augmix:
            crops = torch.stack([_mixed(crop, rng) for crop in crops])
        rows.append(torch.cat([image[None], crops]))  # (V, 3, H, W)
    return torch.stack(rows).clamp(0, 1)


def _crop(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Draw a crop as torchvision's RandomResizedCrop does, flipped half of the time: (2, 3)."""
    width = height = 1.0
    for _ in range(10):
        area = rng.uniform(scale, 1)
        ratio = math.exp(rng.uniform(*map(math.log, RATIO)))
        if area * ratio <= 1 and area / ratio <= 1:
            width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
            break
    x, y = rng.uniform(width - 1, 1 - width), rng.uniform(height - 1, 1 - height)
    flip = -1 if rng.random() < 0.5 else 1
    return np.array([[flip * width, 0, x], [0, height, y]])


def _mixed(image: Tensor, rng: np.random.Generator) -> Tensor:
    """AugMix: the image and three chains of operations, blended."""
    from torchvision.transforms.v2 import functional as op  # slow to import

    weights, share = rng.dirichlet([1.0] * CHAINS), rng.beta(1.0, 1.0)
    chains = []
    for weight in weights:
        changed = image
        for _ in range(rng.integers(1, LONGEST + 1)):
            changed = OPERATIONS[rng.integers(len(OPERATIONS))](op, changed, rng)
        chains.append(weight * changed)
    return share * image + (1 - share) * torch.stack(chains).sum(0)


def _level(rng: np.random.Generator) -> float:
    return rng.uniform(0.1, 1)  # severity 1


def _signed(rng: np.random.Generator, value: float) -> float:
    return -value if rng.random() < 0.5 else value


def _affine(op, image: Tensor, angle=0.0, move=(0, 0), shear=(0.0, 0.0)) -> Tensor:
    how = {"scale": 1.0, "interpolation": op.InterpolationMode.BILINEAR}
    return op.affine(image, angle=angle, translate=list(move), shear=list(shear), **how)


def _shear(op, image: Tensor, rng, axis: int) -> Tensor:
    angle = math.degrees(math.atan(_signed(rng, 0.3 * _level(rng) / 10)))
    return _affine(op, image, shear=(angle, 0.0) if axis == 0 else (0.0, angle))


def _translate(op, image: Tensor, rng, axis: int) -> Tensor:
    step = _signed(rng, int(image.shape[-1] / 3 * _level(rng) / 10))
    return _affine(op, image, move=(step, 0) if axis == 0 else (0, step))


def _autocontrast(op, image: Tensor, rng) -> Tensor:
    """Spread every channel over [0, 1]; torchvision's writes in place, which gradients refuse."""
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    return torch.where(high > low, (image - low) / (high - low).clamp(min=1e-6), image)


OPERATIONS = (  # (torchvision's functions, image, generator) -> image
    _autocontrast,
    lambda op, x, rng: moved(x, op.equalize(x.detach())),
    lambda op, x, rng: moved(x, op.posterize(x.detach(), 4)),
    lambda op, x, rng: _affine(op, x, angle=_signed(rng, int(30 * _level(rng) / 10))),
    lambda op, x, rng: op.solarize(x, (256 - int(256 * _level(rng) / 10)) / 256),
    partial(_shear, axis=0),
    partial(_shear, axis=1),
    partial(_translate, axis=0),
    partial(_translate, axis=1),
)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits), in nats, over the last dimension."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def most_confident(logits: Tensor, share: float) -> Tensor:
    """Return which (B, n) of the views (B, V, K) have the lowest entropy; n is a share of V."""
    count = max(1, int(share * logits.shape[1]))
    return entropy(logits.detach()).topk(count, largest=False).indices


def picked(values: Tensor, which: Tensor) -> Tensor:
    """Return the rows (B, n, ...) of values (B, V, ...) that ``which`` (B, n) names."""
    index = which.view(*which.shape, *(1,) * (values.dim() - 2))
    return values.gather(1, index.expand(*which.shape, *values.shape[2:]))


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """Return the sum (B, ...) of values (B, V, ...) with weights (B, V)."""
    return torch.einsum("bv,bv...->b...", weights, values)


def log_mean(logits: Tensor) -> Tensor:
    """Return the logarithm of the mean probability (B, K) over views (B, V, K)."""
    return logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])
