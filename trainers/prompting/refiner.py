"""Residual maps on single tokens between frozen blocks (the Neural Augmentor of NAP-Tuning)."""

import torch
import torch.nn.functional as F
from torch import nn


class TokenRefiner(nn.Module):
    """h + R(h) with R(h) = W2 relu(W1 h + b1) + b2, token by token, for tokens of ``width`` d.

    The hidden layer is ``ratio`` times d wide. ``init`` is ``default`` (PyTorch's, which changes
    the frozen features from the first step on) or ``zero`` (W2 = b2 = 0: the identity at first).
    """

    def __init__(self, width: int, *, ratio: int = 2, init: str = "default"):
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)
        if init == "zero":
            nn.init.zeros_(self.fc2.weight)
            nn.init.zeros_(self.fc2.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Refine tokens (..., d) of any floating type, which is kept."""
        hidden = F.relu(_linear(self.fc1, tokens))  # (..., r d)
        return tokens + _linear(self.fc2, hidden).to(tokens.dtype)


def _linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Apply float32 weights in the type of ``x``, the type of the frozen tower around it."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
