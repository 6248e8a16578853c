"""AdvVPT: visual prompts (VPT, Jia et al., ECCV 2022) under adversarial training."""

from ..engine.trainer import register
from ..prompting import PromptSpec
from ..prompting.spec import length
from .supervised import Supervised


@register
class AdvVPT(Supervised):
    """Deep visual prompts against the hand-made text prompt, trained on attacked images."""

    paper = "https://arxiv.org/abs/2411.13136"
    node = "ADVVPT"
    at_loss_default = "adv"
    own_keys = dict(
        N_CTX=length(2, "visual tokens per layer (ours, as for AdvIVLP)"),
        PROMPT_DEPTH=length(9, "layers with tokens of their own (ours, as for AdvIVLP)"),
    )

    @classmethod
    def prompt_spec(cls, keys, clip):
        return PromptSpec(vision=keys.N_CTX, vision_depth=keys.PROMPT_DEPTH)
