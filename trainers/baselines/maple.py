"""MaPLe's joint prompts, on clean images and under adversarial training."""

from ..config.keys import Key
from ..engine.trainer import register
from ..prompting.spec import in_both_towers, length
from .supervised import Supervised


@register
class MaPLe(Supervised):
    """Deep text prompts and visual prompts made from them, on clean images (Khattak, CVPR 2023)."""

    paper = "https://arxiv.org/abs/2210.03117"
    node = "MAPLE"
    own_keys = dict(
        N_CTX=length(2, "vectors per layer (paper)"),
        PROMPT_DEPTH=length(9, "layers with prompts (paper)"),
        CTX_INIT=Key("a photo of a", "the vectors start from its first words (authors' code)"),
    )

    @classmethod
    def prompt_spec(cls, keys, clip):
        return in_both_towers(keys, coupling="text_to_vision")


@register
class AdvMaPLe(MaPLe):
    """MaPLe's prompts trained on attacked images, a baseline of FAP and TAPT."""

    paper = "https://arxiv.org/abs/2403.14774"
    node = "ADVMAPLE"
    own_keys = MaPLe.own_keys
    at_loss_default = "adv"
