"""DEFEAT: Discrete LatEnt FeaturE based Adversarial Training (Chen et al., ICLR 2026).

A codebook rebuilds the patches, and their logits are fused with the image's own. Training attacks
straight through the nearest code, as the authors do; docs/attacks.md has other ways for the test.
"""

from ..config.keys import Key
from ..engine.adversarial import AdversarialTrainer
from ..engine.trainer import register
from ..engine.tuning import inner
from ..losses import defeat, mean_ce
from ..prompting import PromptSpec
from ..prompting.spec import length


@register
class DEFEAT(AdversarialTrainer):
    """CE + w1 L1(z, u) + w2 L1(t, t_hand) + VQ-VAE, all on x_adv, through fused logits."""

    paper = "https://openreview.net/forum?id=lZgORA63ew"
    node = "DEFEAT"
    block_outputs = True
    own_keys = dict(  # the authors' code, all of them
        N_CTX=length(16, "number of context vectors"),
        CODES=Key(512, "size of the codebook", least=2, most=10**6),
        CODE_WIDTH=Key(256, "width of a code, and of the layers", least=1, most=10**5),
        SHARE=Key(0.5, "of the image's own logits, the rest is the patches'", least=0, most=1),
        IMAGE_WEIGHT=Key(10.0, "of L1(z, u)", least=0, most=1000),
        TEXT_WEIGHT=Key(20.0, "of L1(t, t_hand)", least=0, most=1000),
        REBUILD_WEIGHT=Key(0.5, "of the reconstruction", least=0, most=1000),
        CODE_WEIGHT=Key(0.1, "of the codebook; of the commitment a quarter", least=0, most=1000),
        INNER=inner(),
    )

    @classmethod
    def prompt_spec(cls, keys, clip):
        book = {"codes": keys.CODES, "code_width": keys.CODE_WIDTH, "share": keys.SHARE}
        return PromptSpec(text=keys.N_CTX, **book)

    def loss(self, batch):
        output, texts = batch.forward_attacked(), batch.texts[:, :-1]  # (K, D)
        names, ce = ("IMAGE", "TEXT", "REBUILD", "CODE"), mean_ce(output.logits, batch.labels)
        weights = [self.keys[f"{name}_WEIGHT"] for name in names]
        return defeat(ce, output.blocks, texts, self.handmade, weights=weights), {}
