"""Prompts trained on the cross-entropy of attacked images, clean images, or both."""

import torch

from ..config.keys import Key, add_defaults
from ..engine.adversarial import AdversarialTrainer
from ..engine.batch import accuracy
from ..losses import mean_ce

AT_LOSSES = ("adv", "half", "clean")


class Supervised(AdversarialTrainer):
    """Minimises CE of the images that the key ``AT_LOSS`` names.

    ``adv``: CE(x_adv). ``half``: the first half of each batch stays clean, the second is attacked
    (the order is random). ``clean``: CE(x).
    """

    at_loss_default = ""  # of the key; "" for methods without it, which train on clean images

    @classmethod
    def extend_cfg(cls, cfg):
        if cls.at_loss_default:
            loss = Key(cls.at_loss_default, "images that the loss sees", choices=AT_LOSSES)
            add_defaults(cfg, f"TRAINER.{cls.node}", AT_LOSS=loss)
        super().extend_cfg(cfg)

    @classmethod
    def at_loss(cls, cfg) -> str:
        """Return adv, half or clean."""
        return cfg.TRAINER[cls.node].get("AT_LOSS", "clean")

    @classmethod
    def is_adversarial(cls, cfg):
        return cls.at_loss(cfg) != "clean"

    def loss(self, batch):
        kind, labels = self.at_loss(self.cfg), batch.labels
        if kind == "half":
            middle = len(labels) // 2
            images = torch.cat([batch.images[:middle], batch.attack(slice(middle, None))])
            logits = batch.forward(images).logits  # (B, K)
            terms, shown = {}, logits.detach()
            for name, part in (("clean", slice(middle)), ("adv", slice(middle, None))):
                if len(labels[part]):
                    terms[f"loss_{name}"] = mean_ce(shown[part], labels[part])
                    terms[f"acc_{name}"] = accuracy(shown[part], labels[part])
            return mean_ce(logits, labels), terms
        output = batch.forward_attacked() if kind == "adv" else batch.forward_clean()
        return mean_ce(output.logits, labels), {}
