"""FAP: Few-shot Adversarial Prompt learning on vision-language models (Zhou et al., 2024)."""

from __future__ import annotations

from ..config.keys import add_defaults, at_least
from ..engine.adversarial import AdversarialTrainer
from ..engine.trainer import register
from ..losses import fap_consistency, mean_ce
from ..prompting.spec import in_both_towers


@register
class FAP(AdversarialTrainer):
    """CE(x) + lambda mean(KL(x || x_adv) (cos(z, z_adv) + 1)), text prompts made from visual."""

    paper = "https://arxiv.org/abs/2403.14774"
    node = "FAP"
    alarm_key = "TRAINER.FAP.LAMBDA"

    @classmethod
    def extend_cfg(cls, cfg):
        super().extend_cfg(cfg)
        add_defaults(
            cfg,
            "TRAINER.FAP",
            N_CTX=2,  # vectors per layer (paper)
            PROMPT_DEPTH=9,  # layers with prompts (paper)
            LAMBDA=1.5,  # weight of the consistency (paper)
        )

    @classmethod
    def check_keys(cls, cfg):
        super().check_keys(cfg)
        at_least("TRAINER.FAP.LAMBDA", cfg.TRAINER.FAP.LAMBDA, 0)

    @classmethod
    def prompt_spec(cls, keys, clip):
        return in_both_towers(keys, coupling="vision_to_text")

    def loss(self, batch):
        clean, adv = batch.forward_clean(), batch.forward_attacked()
        consistency = fap_consistency(clean.logits, adv.logits, clean.features, adv.features).mean()
        loss = mean_ce(clean.logits, batch.labels) + self.keys.LAMBDA * consistency
        return loss, {"loss_cons": consistency}
