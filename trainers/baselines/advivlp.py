"""AdvIVLP: independent prompts in both towers under adversarial training (AdvVLP in FAP)."""

from ..config.keys import Key
from ..engine.trainer import register
from ..prompting.spec import in_both_towers, length
from .supervised import Supervised


@register
class AdvIVLP(Supervised):
    """Deep text prompts and deep visual prompts, uncoupled, trained on attacked images."""

    paper = "https://arxiv.org/abs/2411.13136"
    node = "ADVIVLP"
    at_loss_default = "adv"
    own_keys = dict(
        N_CTX=length(2, "vectors per layer and tower (APD's group)"),
        PROMPT_DEPTH=length(9, "layers with prompts (APD's group)"),
        CTX_INIT=Key("a photo of a", "the vectors start from its first words (IVLP's code)"),
    )

    @classmethod
    def prompt_spec(cls, keys, clip):
        return in_both_towers(keys)
