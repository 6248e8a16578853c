"""AdvMaPLe: MaPLe's prompts under adversarial training, a baseline of FAP and TAPT."""

from __future__ import annotations

from ..config.keys import add_defaults
from ..engine.trainer import register
from .maple import MaPLe


@register
class AdvMaPLe(MaPLe):
    """Joint prompts, text to vision, trained on attacked images."""

    paper = "https://arxiv.org/abs/2403.14774"
    node = "ADVMAPLE"

    @classmethod
    def extend_cfg(cls, cfg):
        super().extend_cfg(cfg)
        add_defaults(cfg, "TRAINER.ADVMAPLE", AT_LOSS="adv")  # adv, half or clean
