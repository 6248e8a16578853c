"""AdvCoOp: CoOp's prompts under adversarial training, as in APT (Li et al., CVPR 2024)."""

from __future__ import annotations

from ..config.keys import add_defaults
from ..engine.trainer import register
from .coop import CoOp


@register
class AdvCoOp(CoOp):
    """Text prompts, one for all classes or class-specific, trained on attacked images."""

    paper = "https://arxiv.org/abs/2403.01849"
    node = "ADVCOOP"

    @classmethod
    def extend_cfg(cls, cfg):
        super().extend_cfg(cfg)
        add_defaults(cfg, "TRAINER.ADVCOOP", AT_LOSS="adv")  # adv, half or clean
