"""Zero-shot CLIP with the hand-made prompt: the undefended model."""

from ..engine.trainer import RobustTrainer, register


@register
class ZeroshotCLIP(RobustTrainer):
    """CLIP as it comes (Radford et al., 2021). End-to-end PGD must drive it to about 0."""

    paper = "https://arxiv.org/abs/2103.00020"
    trainable = False

    def build_model(self):
        self.clip = self.load_clip()

    def text_features(self):
        return self.handmade_features()
