"""View averaging and ZERO, which need nothing but logits."""

from __future__ import annotations

import torch

from ..config.keys import Key
from .base import TestTime, register
from .views import keys_of_views, log_mean, most_confident, picked, views_of


class OfViews(TestTime):
    """A method that answers from the views of an image."""

    def views(self, images, seeds):
        """Return the views (B * V, 3, H, W)."""
        how = self.values["views"], self.scale, self.augmix
        return views_of(images, seeds, *how).flatten(0, 1)

    def of_each(self, values):
        """Return what was computed for all views (B * V, ...) by image (B, V, ...)."""
        return values.unflatten(0, (-1, self.copies))

    def averaged(self, forward, images, seeds):
        """Return the logarithm of the views' mean probability (B, K), the plain alternative."""
        return log_mean(self.of_each(forward(self.views(images, seeds))))


@register
class Ensemble(OfViews):
    """The mean of the views' probabilities: what every method of views has to exceed."""

    name = "ensemble"
    keys = keys_of_views(64, "as R-TPT")

    def adapted(self, forward, images, seeds, attack):
        return self.averaged(forward, images, seeds)


@register
class Zero(OfViews):
    """The vote of the most confident views (Farina et al., 2024, ZERO).

    An attack sees the mean of their probabilities: a vote has no gradient.
    """

    name = "zero"
    keys = keys_of_views(64, "paper") | {
        "SELECT": Key(0.3, "share of the views, the most confident (paper)", least=0.001, most=1)
    }

    def adapted(self, forward, images, seeds, attack):
        logits = self.of_each(forward(self.views(images, seeds)))  # (B, V, K)
        if attack:
            return log_mean(picked(logits, most_confident(logits, self.select)))
        votes = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1])  # (B, V, K)
        order = most_confident(logits, 1)  # all, the most confident first
        count = max(1, int(self.select * self.copies))
        votes = picked(votes, order)
        total = votes[:, :count].sum(1).float()  # (B, K)
        tied = total == total.amax(1, keepdim=True)
        later = torch.cat([votes[:, count:] * tied[:, None], tied[:, None] * 0], 1)  # (B, n, K)
        first = later.sum(-1).argmax(1, keepdim=True)  # the next view for a tied class decides
        return total + picked(later, first)[:, 0] / 2
