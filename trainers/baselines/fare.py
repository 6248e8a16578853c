"""FARE: unsupervised adversarial fine-tuning for Robust CLIP (Schlarmann et al., ICML 2024)."""

from dataclasses import replace

from ..config.keys import Key
from ..engine.trainer import register
from ..losses import embedding_l2
from .tower import FineTuned


@register
class FARE(FineTuned):
    """||phi(x_adv) - phi0(x)||^2 of un-normalised features, which the attack ascends; no labels."""

    paper = "https://arxiv.org/abs/2402.12336"
    node = "FARE"
    own_keys = dict(CLEAN_WEIGHT=Key(0.0, "share of the clean images' distance (paper)", 0, 1))

    @classmethod
    def train_spec(cls, cfg):
        spec = super().train_spec(cfg)
        # the authors' attack starts uniformly, and the distance is flat at the image
        start = "uniform" if spec.start == "zero" else spec.start
        return replace(spec, objective="embedding_l2", start=start)

    def reference(self, batch):
        return batch.frozen

    def loss(self, batch):
        share, adv = self.keys.CLEAN_WEIGHT, batch.forward_attacked().features
        loss = (1 - share) * embedding_l2(batch.frozen, adv)
        if share:
            loss = loss + share * embedding_l2(batch.frozen, batch.forward_clean().features)
        return loss.mean(), {}
