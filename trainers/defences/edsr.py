"""EDSR (Lim et al., 2017, arXiv 1707.02921) from a file of tensors, for super-resolution.

The layout is that of the authors' published weights; width, depth and factor follow from the
shapes (F feature channels, R residual blocks)::

    head.0.{weight,bias}            3 -> F
    body.{i}.body.{0,2}.*           F -> F, for i < R;  x + c * conv(relu(conv(x)))
    body.{R}.*                      F -> F
    tail.0.{0,2,..}.*               F -> 4 F each doubles the size, one F -> 9 F triples it
    tail.1.*                        F -> 3
    {sub,add}_mean.*                optional: the mean colour of DIV2K, a constant here

All kernels are 3x3 with a bias. c is 0.1 for F = 256 and 1 for smaller networks, as in the paper.
Weights without ``sub_mean`` are taken for pixels from 0 to 255, as the authors' are.
"""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backbone.weights_files import read_state
from ..utils.errors import UserError

MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, in [0, 1]
LAYOUT = "a state dict of EDSR: head.0, body.0 .. body.R, tail.0, tail.1, 3x3 kernels and biases"


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width))
        self.strength = 0.1 if width >= 256 else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.strength * self.body(x)


class EDSR(nn.Module):
    """Enlarge images (B, 3, H, W) in [0, 1] to (B, 3, s H, s W), about in [0, 1].

    Args:
        width: feature channels F.
        blocks: residual blocks R.
        steps: factors of the upsampling steps, such as (2, 2) for s = 4.
        peak: the pixel value of white that the weights were trained with, 255 or 1.
    """

    def __init__(self, width: int, blocks: int, steps: tuple[int, ...], peak: float):
        super().__init__()
        self.head = nn.Sequential(_conv(3, width))
        self.body = nn.Sequential(*(_Block(width) for _ in range(blocks)), _conv(width, width))
        enlarge = [m for s in steps for m in (_conv(width, s * s * width), nn.PixelShuffle(s))]
        self.tail = nn.Sequential(nn.Sequential(*enlarge), _conv(width, 3))
        self.peak, self.factor = peak, torch.Size(steps).numel()

    def forward(self, images: Tensor) -> Tensor:
        mean = images.new_tensor(MEAN).view(1, 3, 1, 1)
        x = self.head(self.peak * (images - mean))  # (B, F, H, W)
        return self.tail(x + self.body(x)) / self.peak + mean  # (B, 3, s H, s W)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def load_edsr(path) -> EDSR:
    """Read EDSR's weights; UserError if missing, damaged, another network's, or with code."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(
            f"DEFENCE.MODEL is '{path}', which is not a file; give {LAYOUT}, or leave it empty for "
            "bicubic interpolation"
        )
    state = read_state(path, "DEFENCE.MODEL")
    mean = state.get("sub_mean.bias")
    peak = 1.0 if mean is not None and mean.abs().max() <= 1 else 255.0
    state = {
        name: value.float()
        for name, value in state.items()
        if name.partition(".")[0] not in ("sub_mean", "add_mean")
    }
    try:
        with torch.device("meta"):  # no memory for sizes that a wrong file may ask for
            model = EDSR(*_sizes(state), peak)
        model.load_state_dict(state, assign=True)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"DEFENCE.MODEL '{path}' is not {LAYOUT} ({reason})") from error
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise UserError(f"DEFENCE.MODEL '{path}' holds NaN or infinite weights; fetch it again")
    return model.requires_grad_(False).eval()


def _sizes(state: dict[str, Tensor]) -> tuple[int, int, tuple[int, ...]]:
    """Return width, number of blocks and upsampling steps."""
    width = max(state["head.0.weight"].shape[0], 1)
    blocks = sum(re.fullmatch(r"body\.\d+\.body\.0\.weight", name) is not None for name in state)
    steps = []
    while (kernel := state.get(f"tail.0.{2 * len(steps)}.weight")) is not None:
        steps.append({4 * width: 2, 9 * width: 3}.get(kernel.shape[0], 0))
    if not steps or not all(steps):
        raise ValueError("no upsampling by 2 or 3 in tail.0")
    return width, blocks, tuple(steps)
