"""MaPLe: Multi-modal Prompt Learning (Khattak et al., CVPR 2023)."""

from __future__ import annotations

from ..config.keys import add_defaults
from ..engine.adversarial import in_both_towers
from ..engine.trainer import register
from .supervised import Supervised


@register
class MaPLe(Supervised):
    """Deep text prompts and visual prompts made from them, trained on clean images."""

    paper = "https://arxiv.org/abs/2210.03117"
    node = "MAPLE"

    @classmethod
    def extend_cfg(cls, cfg):
        super().extend_cfg(cfg)
        add_defaults(
            cfg,
            f"TRAINER.{cls.node}",
            N_CTX=2,  # vectors per layer (paper)
            PROMPT_DEPTH=9,  # layers with prompts (paper)
            CTX_INIT="a photo of a",  # the vectors start from its first words (authors' code)
        )

    @classmethod
    def prompt_spec(cls, keys, clip):
        return in_both_towers(keys, coupling="text_to_vision")
