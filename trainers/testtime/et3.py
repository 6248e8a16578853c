"""ET3: energy-guided test-time transformation."""

from __future__ import annotations

import torch

from ..config.keys import Key
from .base import TestTime, moved, register
from .ttc import ball


@register
class ET3(TestTime):
    """Moves an image to where the classes' logits are larger together: lower energy.

    E = -logsumexp(logits). Steps have a length in L2 of pixels in [0, 1]. An attack goes through by
    BPDA: the move is computed anew at every step, and its gradient taken for the identity's.
    """

    name = "et3"
    random = False
    keys = {
        "STEP": Key(2.5, "length of a step in L2 (authors' code)", least=0, most=1000),
        "STEPS": Key(2, "steps (authors' code)", least=1, most=1000),
        "EPS": Key(5.0, "radius in 1/255 (authors' code)", least=0, most=255),
    }

    def adapted(self, forward, images, seeds, attack):
        return forward(moved(images, self.lowered(forward, images.detach())))

    @torch.enable_grad()
    def lowered(self, forward, images):
        """Return the moved images (B, 3, H, W)."""
        delta = torch.zeros_like(images)
        for _ in range(self.steps):
            probe = delta.clone().requires_grad_()
            energy = -forward(images + probe).logsumexp(1).sum()
            (gradient,) = torch.autograd.grad(energy, probe)
            length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            delta = ball(delta - self.step * gradient / length, images, self.eps / 255)
        return images + delta
