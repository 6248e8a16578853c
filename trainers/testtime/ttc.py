"""TTC: test-time counterattacks (Xing et al., CVPR 2025)."""

import torch

from ..config.keys import Key
from ..utils.seeds import generators
from .base import TestTime, moved, register


def ball(delta, images, eps: float):
    """Return perturbations within eps and [0, 1]."""
    return (images + delta.clamp(-eps, eps)).clamp(0, 1) - images


@register
class TTC(TestTime):
    """Moves an image away from its own features, unless random noise already moves it far.

    Every image gets noise or a counterattack, clean ones too. An attack goes through by BPDA: the
    move is computed again at every step, and its gradient taken for the identity's.
    """

    name = "ttc"
    needs = "features"
    keys = {
        "EPS": Key(4.0, "radius of the counterattack in 1/255 (paper)", least=0, most=255),
        "ALPHA": Key(1.0, "step in 1/255 (authors' code)", least=0, most=255),
        "STEPS": Key(2, "of the counterattack (paper)", least=1, most=1000),
        "TAU": Key(0.2, "relative change by noise from which none is made (paper)", least=0),
        "BETA": Key(2.0, "growth of the steps' weights (paper)", least=0, most=100),
    }

    def adapted(self, forward, attack, images, seeds):
        return forward(moved(images, self.counterattacked(images.detach(), seeds)))

    @torch.enable_grad()
    def counterattacked(self, images, seeds):
        """Return the moved images (B, 3, H, W)."""
        eps, alpha = self.eps / 255, self.alpha / 255
        draws = [torch.rand(x.shape, generator=g) for x, g in zip(images, generators(seeds))]  # noqa: B905
        delta = ball(eps * (2 * torch.stack(draws).to(images) - 1), images, eps)
        with torch.no_grad():
            own = self.features(images)  # (B, D)
        path, still = [delta], None
        for _ in range(self.steps):
            probe = path[-1].clone().requires_grad_()
            apart = self.features(images + probe) - own  # (B, D)
            (gradient,) = torch.autograd.grad(apart.square().sum(), probe)
            self.passes["image backwards"] += len(images)
            if still is None:  # the first is the noise's
                still = apart.detach().norm(dim=1) / own.norm(dim=1) < self.tau  # (B,)
            path.append(ball(path[-1] + alpha * gradient.sign(), images, eps))
        weights = torch.arange(self.steps + 1, device=images.device).mul(self.beta).softmax(0)
        counter = (weights.view(-1, 1, 1, 1, 1) * torch.stack(path)).sum(0)
        return images + torch.where(still.view(-1, 1, 1, 1), counter, delta)
