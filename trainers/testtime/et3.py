"""ET3: energy-guided test-time transformation."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..config.keys import Key
from .base import TestTime, register
from .ttc import ball


@register
class ET3(TestTime):
    """Moves an image to where the classes' logits are larger together: lower energy.

    E = -logsumexp(logits). Steps have a length in L2 of pixels in [0, 1]. An attack differentiates
    through all of them, second derivatives included: with BPDA it is weaker than with none.
    """

    name = "et3"
    random = False
    keys = {
        "STEP": Key(2.5, "length of a step in L2 (authors' code)", least=0, most=1000),
        "STEPS": Key(2, "steps (authors' code)", least=1, most=1000),
        "EPS": Key(5.0, "radius in 1/255 (authors' code)", least=0, most=255),
    }

    def adapted(self, forward, attack, images, seeds):
        if not attack:
            return forward(self.lowered(forward, images, attack))
        with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no second derivative
            return forward(self.lowered(forward, images, attack))

    @torch.enable_grad()
    def lowered(self, forward, images, attack: bool):
        """Return the moved images (B, 3, H, W), with the graph of the move for an ``attack``."""
        delta = torch.zeros_like(images)
        for _ in range(self.steps):
            probe = delta if delta.requires_grad else delta.clone().requires_grad_()
            energy = -forward(images + probe).logsumexp(1).sum()
            (gradient,) = torch.autograd.grad(energy, probe, create_graph=attack)
            self.passes["image backwards"] += len(images)
            length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            delta = ball(delta - self.step * gradient / length, images, self.eps / 255)
        return images + delta
