"""SS-TPT: views weighted by suitability and stability."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.keys import Key
from .base import moved, register
from .tuning import Tuned, keys_of_tuning
from .views import entropy, picked, weighted

SCORES = (0.4, 0.6)  # the authors' weights: whether a view suits, and whether it is stable


@register
class SSTPT(Tuned):
    """Minimises the views' entropy and their distance from what the other views answer.

    A view suits if its features are like the others', and is stable if it answers alike after a
    weak augmentation, one draw for all views of an image.
    """

    name = "sstpt"
    count = 16
    keys = keys_of_tuning(3 / 16, "authors' code") | {
        "SHARPNESS": Key(0.25, "temperature of the weights (authors' code)", least=1e-6, most=100),
        "WEIGHT": Key(1.0, "of the distance to the others (authors' code)", least=0, most=1000),
    }

    def adapted(self, forward, attack, images, seeds):
        views = self.views(images, seeds)  # (B * V, 3, H, W)
        weak = [weakly(x, s) for x, s in zip(self.of_each(views), seeds, strict=True)]
        both = self.features(torch.cat([views, torch.cat(weak)]))
        features, others = map(self.of_each, F.normalize(both, dim=-1).chunk(2))  # (B, V, D)
        texts, chosen = self.first[1].detach(), self.chosen(features)
        start = self.score(features, texts)  # (B, V, K)
        known = self.known(features, start, self.score(others, texts))  # (B, V, 2)
        own = self.weights(picked(known.detach(), chosen))  # among the chosen alone, (B, n)
        answers = own[..., None] * picked(start.detach().softmax(-1), chosen)  # (B, n, K)
        left = (own.sum(1, keepdim=True) - own).clamp(min=1e-12)
        rest = (answers.sum(1, keepdim=True) - answers) / left[..., None]

        def loss(logits, texts):
            logs = logits.log_softmax(-1)
            apart = (rest * (rest.clamp(min=1e-12).log() - logs)).sum(-1).mean(1)
            return entropy(logits).mean(1) + self.weight * apart

        texts = self.tune(picked(features, chosen), loss)
        return weighted(self.weights(known), self.score(features, texts))

    def known(self, features: Tensor, logits: Tensor, weak: Tensor) -> Tensor:
        """Return how well views suit and how stable they are (B, V, 2).

        Their ``features`` (B, V, D) have unit length; ``logits`` and ``weak`` (B, V, K) are those
        before and after the weak augmentation.
        """
        far = (2 - 2 * features @ features.mT).sum(-1) / (self.copies - 1)
        middle = torch.stack([logits, weak]).log_softmax(-1).logsumexp(0) - np.log(2)
        apart = sum(
            (x.softmax(-1) * (x.log_softmax(-1) - middle)).sum(-1) / 2 for x in (logits, weak)
        )
        return 1 / (torch.stack([far, apart], -1).clamp(min=0) + 1e-8)

    def weights(self, known: Tensor) -> Tensor:
        """Return the weights (B, n) of views by what is known of them (B, n, 2)."""
        low, high = known.amin(1, keepdim=True), known.amax(1, keepdim=True)
        score = (known - low) / (high - low).clamp(min=1e-8) @ known.new_tensor(SCORES)
        return (score / self.sharpness).softmax(1)


def weakly(views: Tensor, seed: int) -> Tensor:
    """Return views (V, 3, H, W) after one draw of the authors' weak augmentation."""
    from torchvision.transforms.v2 import functional as op  # slow to import

    rng = np.random.default_rng([seed, 1])
    size = views.shape[-1]
    views = op.affine(
        views,
        angle=rng.uniform(-5, 5),
        translate=[round(v) for v in rng.uniform(-0.04 * size, 0.04 * size, 2)],
        scale=rng.uniform(0.92, 1.08),
        shear=[0.0, 0.0],
        interpolation=op.InterpolationMode.BILINEAR,
    )
    if rng.random() < 0.5:
        for change in (op.adjust_brightness, op.adjust_contrast, op.adjust_saturation):
            views = change(views, rng.uniform(0.92, 1.08))
        hue = op.adjust_hue(views.detach(), rng.uniform(-0.02, 0.02))
        views = moved(views, hue)  # torchvision's writes in place, which gradients refuse
    if rng.random() < 0.5:
        views = op.gaussian_blur(views, [5, 5], [rng.uniform(0.5, 1.2)] * 2)
    if rng.random() < 0.5:
        noise = rng.standard_normal(views.shape) * rng.uniform(0, 0.02)
        views = views + torch.from_numpy(noise).to(views)
    return views.clamp(0, 1)
