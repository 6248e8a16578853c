"""View averaging and ZERO, which need nothing but logits."""

import torch

from ..config.keys import Key
from .base import TestTime, register
from .views import log_mean, most_confident, picked, views_of


class OfViews(TestTime):
    """A method that answers from the views of an image, ``count`` where ``TESTTIME.VIEWS`` is 0."""

    count = 64

    def views(self, images, seeds):
        """Return the views (B * V, 3, H, W)."""
        return views_of(images, seeds, self.copies, self.scale, self.augmix).flatten(0, 1)

    def of_each(self, values):
        """Return what was computed for all views (B * V, ...) by image (B, V, ...)."""
        return values.unflatten(0, (-1, self.copies))

    def mean(self, forward, images, seeds):
        """Return the logarithm of the views' mean probability (B, K)."""
        return log_mean(self.of_each(forward(self.views(images, seeds))))

    def averaged(self, forward, images, seeds):
        return self.in_parts(lambda x, own: self.mean(forward, x, own), images, seeds)


@register
class Ensemble(OfViews):
    """The mean of the views' probabilities: what every method of views has to exceed."""

    name = "ensemble"
    averaged = TestTime.averaged  # it is nothing else

    def adapted(self, forward, attack, images, seeds):
        return self.mean(forward, images, seeds)


@register
class Zero(OfViews):
    """The vote of the most confident views (Farina et al., 2024, ZERO).

    An attack sees the mean of their probabilities: a vote has no gradient.
    """

    name = "zero"
    keys = {"SELECT": Key(0.3, "share of the views, the most confident (paper)", 0.001, 1)}

    def adapted(self, forward, attack, images, seeds):
        logits = self.of_each(forward(self.views(images, seeds)))  # (B, V, K)
        if attack:
            return log_mean(picked(logits, most_confident(logits, self.select)))
        votes = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1])  # (B, V, K)
        votes = picked(votes, most_confident(logits, 1))  # the most confident first
        count = max(1, int(self.select * self.copies))
        total = votes[:, :count].sum(1).float()  # (B, K)
        tied = total == total.amax(1, keepdim=True)
        later = torch.cat([votes[:, count:] * tied[:, None], tied[:, None] * 0], 1)  # (B, n, K)
        first = later.sum(-1).argmax(1, keepdim=True)  # the next view for a tied class decides
        return total + picked(later, first)[:, 0] / 2
