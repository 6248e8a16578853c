"""APD: Adversarial Prompt Distillation for Vision-Language Models (arXiv 2411.15244).

A student with prompts in both towers is tuned on attacked images and distilled from a teacher that
only ever sees clean ones. Both share one frozen CLIP; the student alone is attacked, tested and
deployed. Choices that the abstract does not specify are config keys, marked `ours`.
"""

from torch import nn

from .config.keys import Key
from .engine.adversarial import AdversarialTrainer
from .engine.teacher import tune_on_clean
from .engine.trainer import register
from .engine.tuning import inner
from .losses import apd_student, apd_teacher, mean_ce
from .prompting import PromptedCLIP
from .prompting.spec import in_both_towers, length


@register
class APD(AdversarialTrainer):
    """L_S = (1 - b) CE(S(x_adv)) + b KL(T(x) || S(x_adv)); L_T = CE(T(x)) + g KL(S || T)."""

    paper = "https://arxiv.org/abs/2411.15244"
    node = "APD"
    own_keys = dict(  # all ours, but for prompts in both towers and the clean teacher
        N_CTX=length(2, "vectors per layer and tower (the group's public code)"),
        PROMPT_DEPTH=length(9, "layers with prompts (the group's public code)"),
        CTX_INIT=Key("a photo of a", "the vectors start from its first words (MaPLe)"),
        # learns with the student, before it, or is CLIP
        TEACHER=Key("online", "when it learns", choices=("online", "offline", "zero_shot")),
        TEACHER_EPOCHS=Key(0, "of the offline one; 0: the student's", least=0, most=10**6),
        BETA=Key(0.5, "weight of the distillation", least=0, most=1),
        TEMPERATURE=Key(1.0, "of the distillation", least=1e-3, most=1000),
        FEEDBACK=Key(1.0, "what the online teacher takes from the student", least=0, most=1000),
        INNER=inner(),
    )

    @classmethod
    def prompt_spec(cls, keys, clip):
        return in_both_towers(keys)

    def build_trained(self):
        student = super().build_trained()
        if self.keys.TEACHER != "zero_shot":
            self.teacher = PromptedCLIP(self.clip, self.classnames, self.spec)
        return student

    def add_optimizer(self, module):
        # one module, so that a checkpoint never pairs a student with another epoch's teacher
        both = nn.ModuleDict({"student": module})
        if self.keys.TEACHER == "online":
            both["teacher"] = self.teacher
        super().add_optimizer(both)

    @classmethod
    def deployed(cls, weights):
        """Return the student's part of a checkpoint's weights."""
        head = "student."
        return {k.removeprefix(head): v for k, v in weights.items() if k.startswith(head)}

    def prompt_parameters(self):
        """Return the student's number of values: the teacher is not deployed."""
        return sum(p.numel() for p in self.model.parameters())

    def loss(self, batch):
        keys, labels = self.keys, batch.labels
        adv = batch.forward_attacked().logits  # (B, K): S(x_adv)
        taught = self.teach(batch.images)  # (B, K): T(x)
        loss = apd_student(adv, taught, labels, beta=keys.BETA, temperature=keys.TEMPERATURE).mean()
        terms = {"loss_teacher": mean_ce(taught, labels)}
        if keys.TEACHER == "online":  # disjoint parameters, so one sum serves both
            loss = loss + apd_teacher(taught, adv, labels, feedback=keys.FEEDBACK).mean()
        return loss, terms

    def teach(self, pixels):
        """Return the teacher's logits (B, K) on clean images, with gradients while it learns."""
        if self.keys.TEACHER == "zero_shot":
            return self.frozen_logits(pixels)
        texts = self.encode_texts(self.teacher)
        return self.output(pixels, texts, model=self.teacher).logits

    def before_train(self):
        if self.keys.TEACHER == "offline":
            epochs = self.keys.TEACHER_EPOCHS or self.cfg.OPTIM.MAX_EPOCH
            tune_on_clean(self, self.teacher, epochs)
        super().before_train()
