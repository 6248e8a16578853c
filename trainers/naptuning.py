"""NAP-Tuning: Neural Augmented Prompt Tuning (arXiv 2506.12706; TPAMI 2026).

Deep prompts in both towers, coupled text to vision, and token refiners that learn to undo in the
features what an attack does to them. The paper's body was not available to this project: choices
that the abstract does not specify follow the authors' development code or are marked `ours`.
"""

from .config.keys import Key, add_defaults
from .engine.adversarial import AdversarialTrainer
from .engine.trainer import register
from .losses import block_consistency, mean_ce, nap
from .prompting.spec import CHOICES, in_both_towers, length
from .utils.errors import UserError


@register
class NAPTuning(AdversarialTrainer):
    """(1 - lambda) CE(x) + lambda CE(x_adv) + lambda w sum_l (1 - cos(F_l(x), F_l(x_adv))).

    F_l: [CLS] and patches after image block l; outputs of prompts do not count (ours).
    """

    paper = "https://arxiv.org/abs/2506.12706"
    node = "NAPTUNING"
    own_keys = dict(
        N_CTX=length(16, "vectors per layer (authors' code); 0: refiners alone", least=0),
        PROMPT_DEPTH=length(12, "layers with prompts and refiners (authors' code)"),
        CONSISTENCY=Key(True, "the third term (a switch of ours)"),
        CONSISTENCY_WEIGHT=Key(1.0, "its w (authors' code)", least=0, most=1000),
        # lambda = epoch / max_epoch (authors' code), or constant (ours)
        SCHEDULE=Key("linear", "of lambda over the epochs", choices=("linear", "constant")),
        LAMBDA=Key(0.5, "lambda of the constant schedule (ours)", least=0, most=1),
    )

    @property
    def block_outputs(self):
        return self.keys.CONSISTENCY

    @classmethod
    def extend_cfg(cls, cfg):
        super().extend_cfg(cfg)
        add_defaults(
            cfg,
            "TRAINER.NAPTUNING.REFINER",
            VISION=Key(True, "refine the image tower's native tokens (authors' code)"),
            TEXT=Key(True, "refine the text tower's (ours: the abstract says modality-specific)"),
            RATIO=Key(2, "width of a refiner over the tower's (authors' code)", least=1, most=100),
            # zero: the identity at the start (ours); default: PyTorch's (authors' code)
            INIT=Key("zero", "of a refiner; zero: the identity", choices=CHOICES["refiner_init"]),
        )

    @classmethod
    def check_keys(cls, cfg):
        super().check_keys(cfg)
        keys = cfg.TRAINER.NAPTUNING
        refined = (keys.REFINER.VISION or keys.REFINER.TEXT) and keys.PROMPT_DEPTH > 1
        if not (keys.N_CTX or refined):
            raise UserError(
                "TRAINER.NAPTUNING.N_CTX is 0 and no refiner is trained; set it to 1 or more, or "
                "PROMPT_DEPTH to 2 or more with REFINER.VISION or REFINER.TEXT"
            )

    @classmethod
    def prompt_spec(cls, keys, clip):
        return in_both_towers(
            keys,
            coupling="text_to_vision" if keys.N_CTX else "none",
            refine_vision=keys.REFINER.VISION,
            refine_text=keys.REFINER.TEXT,
            refiner_ratio=keys.REFINER.RATIO,
            refiner_init=keys.REFINER.INIT,
        )

    def loss(self, batch):
        keys, clean, adv = self.keys, batch.forward_clean(), batch.forward_attacked()
        ce = mean_ce(clean.logits, batch.labels), mean_ce(adv.logits, batch.labels)
        gap = block_consistency(clean.blocks, adv.blocks).mean() if keys.CONSISTENCY else 0.0
        lam = self.epoch / self.max_epoch if keys.SCHEDULE == "linear" else keys.LAMBDA
        return nap(*ce, gap, lam, keys.CONSISTENCY_WEIGHT), {"loss_cons": gap, "lambda": lam}
