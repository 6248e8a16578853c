"""Prompts trained on the cross-entropy of attacked images, clean images, or both."""

from __future__ import annotations

import torch

from ..config.keys import one_of
from ..engine.adversarial import AdversarialTrainer, accuracy
from ..losses import mean_ce

AT_LOSSES = ("adv", "half", "clean")


class Supervised(AdversarialTrainer):
    """Minimises CE; the key ``AT_LOSS`` says of which images, a node without it means clean ones.

    ``adv``: CE(x_adv). ``half``: the first half of each batch stays clean, the second is attacked
    (the order is random). ``clean``: CE(x).
    """

    passes = 1.0

    @classmethod
    def at_loss(cls, cfg) -> str:
        """Return adv, half or clean."""
        return cfg.TRAINER[cls.node].get("AT_LOSS", "clean")

    @classmethod
    def is_adversarial(cls, cfg):
        return cls.at_loss(cfg) != "clean"

    @classmethod
    def check_keys(cls, cfg):
        one_of(f"TRAINER.{cls.node}.AT_LOSS", cls.at_loss(cfg), AT_LOSSES)
        super().check_keys(cfg)

    def loss(self, batch):
        kind, labels = self.at_loss(self.cfg), batch.labels
        if kind == "half":
            middle = batch.middle
            images = torch.cat([batch.pixels[:middle], batch.attack(slice(middle, None))])
            logits = batch.output(images).logits  # (B, K)
            terms, middle = {}, batch.size // 2
            shown, known = batch.whole(logits), batch.whole(labels)
            for name, part in (("clean", slice(middle)), ("adv", slice(middle, None))):
                if len(known[part]):
                    terms[f"loss_{name}"] = mean_ce(shown[part], known[part])
                    terms[f"acc_{name}"] = accuracy(shown[part], known[part])
            return mean_ce(logits, labels), terms
        output = batch.adv if kind == "adv" else batch.clean
        return mean_ce(output.logits, labels), {}
