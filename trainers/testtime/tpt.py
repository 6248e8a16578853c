"""TPT (Shu et al., NeurIPS 2022) and C-TPT (Yoon et al., ICLR 2024)."""

from ..config.keys import Key
from .base import register
from .tuning import Tuned, keys_of_tuning
from .views import entropy, log_mean


@register
class TPT(Tuned):
    """Minimises the entropy of the chosen views' mean probability."""

    name = "tpt"
    keys = keys_of_tuning(0.1, "paper")

    def loss(self, logits, texts):
        return entropy(log_mean(logits))


@register
class CTPT(TPT):
    """TPT that also spreads the texts around their mean, for calibration."""

    name = "ctpt"
    keys = keys_of_tuning(0.1, "paper") | {
        "LAMBDA": Key(50.0, "weight of the spread (paper; 20 on ImageNet's family)", least=0)
    }

    def loss(self, logits, texts):
        spread = (texts - texts.mean(1, keepdim=True)).norm(dim=-1).mean(1)
        return super().loss(logits, texts) - self.values["lambda"] * spread
