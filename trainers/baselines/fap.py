"""FAP: Few-shot Adversarial Prompt learning on vision-language models (Zhou et al., 2024).

As the authors' scripts run it (lionel-w2/FAP at 761a895): the inner attack ascends the KL from the
clean answer, the first layer's text vectors make its visual ones, in the other layers the visual
vectors make the text ones.
"""

from dataclasses import replace
from typing import ClassVar

from ..config.keys import Key
from ..engine.adversarial import AdversarialTrainer
from ..engine.trainer import register
from ..engine.tuning import inner
from ..losses import fap_consistency, mean_ce
from ..prompting.spec import CHOICES, in_both_towers, length

COUPLINGS = CHOICES["first_coupling"]
FIRST = "TRAINER.FAP.FIRST_COUPLING"


@register
class FAP(AdversarialTrainer):
    """CE(x) + lambda mean(KL(x || x_adv) (cos(z, z_adv) + 1)), prompts coupled both ways."""

    paper = "https://arxiv.org/abs/2403.14774"
    node = "FAP"
    alarm_key = "TRAINER.FAP.LAMBDA"
    formerly: ClassVar[dict] = {FIRST: "same", "TRAINER.FAP.INNER": ""}
    own_keys = dict(
        N_CTX=length(2, "vectors per layer (paper)"),
        PROMPT_DEPTH=length(9, "layers with prompts (paper)"),
        CTX_INIT=Key("a photo of a", "the text starts from its first words (authors' configs)"),
        LAMBDA=Key(1.5, "weight of the consistency (paper)", least=0, most=1000),
        INNER=inner("kl", "authors' scripts"),
        # of the first layer (authors' code); same: vision to text, as in the others
        FIRST_COUPLING=Key("text_to_vision", "or as the other layers", choices=COUPLINGS),
        THEIR_TEXT=Key(False, 'the authors\' text, braces left in: "V V of a {}, a ... NAME."'),
    )

    @classmethod
    def check_keys(cls, cfg):
        super().check_keys(cfg)
        keys = cfg.TRAINER.FAP
        if keys.THEIR_TEXT:  # "same" has no text vectors to follow the words
            Key("", choices=COUPLINGS[1:]).read(FIRST, keys.FIRST_COUPLING)

    @classmethod
    def train_spec(cls, cfg):
        if cfg.TRAINER.FAP.INNER == "kl" and cfg.ATTACK.TRAIN.START == "zero":
            cfg = cfg.clone()  # the authors' attack starts uniformly, and KL is flat at the image
            cfg.defrost()
            cfg.ATTACK.TRAIN.START = "uniform"
        return super().train_spec(cfg)

    @classmethod
    def prompt_spec(cls, keys, clip):
        first = keys.FIRST_COUPLING
        return in_both_towers(keys, coupling="vision_to_text", first_coupling=first)

    @classmethod
    def served_spec(cls, cfg, clip, template):
        """Return the prompts; the authors put the template, not its first words, before names."""
        spec = super().served_spec(cfg, clip, template)
        return replace(spec, text_init=template) if cfg.TRAINER.FAP.THEIR_TEXT else spec

    @classmethod
    def prompt_facts(cls, spec):
        """Return the facts; the authors' text is of the data set that is tested."""
        theirs = {"text_init": "{}"} if "{}" in spec.text_init else {}
        return super().prompt_facts(spec) | theirs

    def before_loading(self, facts):
        """Serve a checkpoint with its own coupling, which those of older versions do not state."""
        prompts = facts.get("prompts", {})
        trained = prompts.get("first_coupling", "same")
        if trained == self.spec.first_coupling:
            return
        known = {FIRST: trained} | ({} if "first_coupling" in prompts else self.formerly)
        print(f"note: the checkpoint was trained with {known}, and is tested with it")
        self._serve_with(known)

    def use_public_text(self, theirs):
        text = theirs.text <= 4  # more vectors do not start from words there
        if self.keys.THEIR_TEXT != text:
            print(f"note: as in the authors' code, THEIR_TEXT is {text}")
            self._serve_with({"TRAINER.FAP.THEIR_TEXT": text})

    def _serve_with(self, settings: dict) -> None:
        self.cfg.defrost()
        self.cfg.merge_from_list([word for pair in settings.items() for word in pair])
        self.cfg.freeze()
        self.model = self.trained = self._models["prompt_learner"] = self.build_trained()

    def loss(self, batch):
        clean, adv = batch.forward_clean(), batch.forward_attacked()
        consistency = fap_consistency(clean.logits, adv.logits, clean.features, adv.features).mean()
        loss = mean_ce(clean.logits, batch.labels) + self.keys.LAMBDA * consistency
        return loss, {"loss_cons": consistency}
