"""CoOp: Learning to Prompt for Vision-Language Models (Zhou et al., IJCV 2022)."""

from __future__ import annotations

from ..config.keys import POSITIONS, add_defaults, one_of
from ..engine.trainer import register
from ..prompting.prompts import context_spec
from .supervised import Supervised


@register
class CoOp(Supervised):
    """Context vectors in the text input, trained on clean images (section 3.2)."""

    paper = "https://arxiv.org/abs/2109.01134"
    node = "COOP"
    frozen_image_tower = True

    @classmethod
    def extend_cfg(cls, cfg):
        super().extend_cfg(cfg)
        add_defaults(
            cfg,
            f"TRAINER.{cls.node}",
            N_CTX=16,  # number of context vectors (paper)
            CTX_INIT="",  # words to start from, which then set their number
            CSC=False,  # class-specific contexts
            CLASS_TOKEN_POSITION="end",  # end, middle or front
        )

    @classmethod
    def check_keys(cls, cfg):
        super().check_keys(cfg)
        key = f"TRAINER.{cls.node}.CLASS_TOKEN_POSITION"
        one_of(key, cfg.TRAINER[cls.node].CLASS_TOKEN_POSITION, POSITIONS)

    @classmethod
    def prompt_spec(cls, keys, clip):
        return context_spec(keys, clip)
