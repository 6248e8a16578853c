"""MTA: the mode of the views' features (Zanella and Ben Ayed, CVPR 2024)."""

import torch
import torch.nn.functional as F

from ..config.keys import Key
from .base import moved, register
from .ensemble import OfViews


@register
class MTA(OfViews):
    """Mean shift with inlierness scores.

    An attack gets the mode with the gradient of the views' mean: the mode's own, unrolled, follows
    which views are near one another, and leaves more images right than an attack without it.
    """

    name = "mta"
    needs = "features"
    keys = {
        "NEAREST": Key(0.3, "share of the views in the bandwidth (authors' code)", most=1, least=0),
        "AFFINITY": Key(4.0, "weight of agreement (authors' code)", least=0, most=1000),
        "TEMPERATURE": Key(0.2, "of the scores (authors' code)", least=1e-3, most=1000),
        "ROUNDS": Key(5, "of scores and mode, and within each (authors' code)", least=1, most=100),
    }

    def adapted(self, forward, attack, images, seeds):
        victim = self.victim
        raw = self.features(self.views(images, seeds))
        features = self.of_each(F.normalize(raw, dim=-1))  # (B, V, D)
        with torch.no_grad():
            mode = self.mode(features, self.of_each(victim.score(raw)).softmax(-1))  # (B, D)
        return victim.score(moved(F.normalize(features.mean(1), dim=-1), mode))

    def mode(self, features, answers):
        """Return the mode (B, D) of features (B, V, D) with probabilities (B, V, K)."""
        count = features.shape[1]
        squared = (2 - 2 * features @ features.mT).clamp(min=0)  # (B, V, V)
        near = squared.sort(-1).values[..., 1 : max(1, int(self.nearest * (count - 1))) + 1]
        width = (near.mean(-1) / 2).clamp(min=1e-12)  # (B, V), squared bandwidths
        affinity = answers @ answers.mT  # (B, V, V)
        scores = torch.full_like(width, 1 / count)  # (B, V)
        mode = features[:, 0]  # (B, D)

        def kernel(mode):
            far = (2 - 2 * (features @ mode[..., None])[..., 0]).clamp(min=0)  # (B, V)
            return (-far / (2 * width)).exp()

        for _ in range(self.rounds):
            density = kernel(mode)
            for _ in range(self.rounds):
                agreed = (affinity @ scores[..., None])[..., 0]
                scores = ((density + self.affinity * agreed) / self.temperature).softmax(-1)
            for _ in range(self.rounds):
                weight = kernel(mode) * scores
                mode = F.normalize((weight[..., None] * features).sum(1), dim=-1)
        return mode
