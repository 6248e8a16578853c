"""What is tested: anything that turns pixels in [0, 1] into logits.

Evaluation, self-checks, pictures and transfer know a model through :class:`Victim` alone. Whatever
can be attacked gets an adapter; :class:`TrainerVictim` is the one of our own trainers.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from ..attacks import tower_in
from ..backbone import CLIPAdapter, cosine_logits, text_features
from ..prompting import PromptedCLIP, templates
from ..utils.errors import UserError
from .samples import ImageList

COMPARED = 8  # images on which a model's logits are held against those of shared features
SAME_LOGIT = 0.01  # float32 rounds logits of order 10 by about 1e-4


def answers(logits: Tensor, name: str) -> Tensor:
    """Return the classes (B,) of logits (B, K) of the model ``name``; UserError for NaN."""
    if logits.isnan().any():
        raise UserError(
            f"{name} answers NaN, which is not a prediction; its weights or prompts are not "
            "finite: train again with a lower OPTIM.LR, or in fp32"
        )
    return logits.argmax(1)


@contextlib.contextmanager
def evaluating(modules: Iterable[nn.Module]):
    """Put modules into evaluation mode for a while."""
    training = [part for module in modules for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


class Victim:
    """A model under test. An adapter sets the attributes and defines ``digest``, and ``logits`` or
    ``features`` and ``score``.

    Attacks on the embedding, on the hand-made prompt and on the surrogate ``clip`` need ``clip``.
    With ``frozen_image_tower``, ``features`` is ``clip.encode_image``: features of images are then
    shared by all prompts and read from a bank.
    """

    name = "the model"  # in messages
    classnames: Sequence[str]  # the K classes in the order of the logits
    device: torch.device  # where pixels are expected
    random = False  # whether the same pixels may get other logits in another call
    clip: CLIPAdapter | None = None  # the frozen CLIP inside, if any
    sentences: Sequence[str] = ()  # of every class, for attacks that see no learned prompt
    template = ""  # what they are made of, with {} for the class name
    prompted: PromptedCLIP | None = None  # inside, if any: test-time tuning starts from its vectors
    frozen_image_tower = False

    def prepare(self) -> None:
        """Compute what all calls share, such as text features."""

    def logits(self, pixels: Tensor, prec: str = "fp32") -> Tensor:
        """Return logits (B, K) of pixels (B, 3, H, W) in [0, 1], with gradients, in ``prec``."""
        return self.score(tower_in(prec, self.features)(pixels))

    def digest(self) -> str:
        """Return a hex digest of everything that the logits depend on besides the pixels."""
        raise NotImplementedError

    def features(self, pixels: Tensor) -> Tensor:
        """Return raw image features (B, D), which objective ``embedding_kl`` moves (optional)."""
        raise UserError(
            f"{self.name} offers no image features, which objective 'embedding_kl' needs; use "
            "objective 'ce'"
        )

    @property
    def has_features(self) -> bool:
        return type(self).features is not Victim.features

    def score(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of raw image features (B, D); goes with ``frozen_image_tower``."""
        raise NotImplementedError

    def embedding(self, pixels: Tensor) -> Tensor:
        """Return the frozen image tower's raw features (B, D); UserError without a CLIP inside."""
        if self.clip is None:
            raise UserError(
                f"{self.name} has no CLIP inside, which targets 'embedding' and 'frozen_prompt' "
                "attack; use target 'end_to_end'"
            )
        return self.clip.encode_image(pixels)

    def handmade_logits(self, pixels: Tensor, prec: str = "fp32") -> Tensor:
        """Return frozen CLIP's logits (B, K) with the hand-made prompt."""
        features = tower_in(prec, self.embedding)(pixels)
        return cosine_logits(features, self.handmade_texts, self.clip.logit_scale)

    @cached_property
    def handmade_texts(self) -> Tensor:
        """Unit-length text features (K, D) of the hand-made prompt."""
        with torch.no_grad():
            return text_features(self.clip, list(self.sentences))

    @torch.no_grad()
    def check_tower(self, images: ImageList) -> None:
        """Clear ``frozen_image_tower`` where shared features do not give the model's own logits.

        Both are compared on a few of the images; then nothing of this model comes from a bank.
        """
        few = sorted({i * len(images) // COMPARED for i in range(COMPARED)})
        if not (self.frozen_image_tower and len(images)):
            return
        _, pixels = next(images.batches(few, COMPARED, self.device))
        gap = (self.logits(pixels) - self.score(self.embedding(pixels))).abs().max().item()
        self.frozen_image_tower = not gap > SAME_LOGIT  # nor NaN
        if not self.frozen_image_tower:
            print(
                f"note: {self.name} has image features of its own (a logit differs by {gap:.3g} "
                "from that of the frozen image tower): it is tested on them, and shares no bank"
            )


class TrainerVictim(Victim):
    """One of our trainers with the prompts it has now; its text features are computed once."""

    def __init__(self, trainer):
        self.trainer, self.clip, self.device = trainer, trainer.clip, trainer.clip.device
        self.name, self.classnames = type(trainer).__name__, list(trainer.classnames)
        self.template = trainer.template
        self.sentences = templates.fill(self.template, trainer.classnames)
        self.frozen_image_tower = trainer.frozen_image_tower
        model = getattr(trainer, "model", None)
        self.prompted = model if isinstance(model, PromptedCLIP) else None

    def check_tower(self, images):
        if not self.trainer.tuning:  # which has no image tower, and was asked before
            super().check_tower(images)
            self.trainer.frozen_image_tower = self.frozen_image_tower

    @torch.no_grad()
    def prepare(self):
        self.texts = self.trainer.text_features()  # (K, D), unit length

    def features(self, pixels):
        return self.trainer.image_features(pixels)

    def score(self, features):
        return cosine_logits(features, self.texts, self.clip.logit_scale)

    def digest(self):
        digest = hashlib.sha256(f"{self.clip.sha256} {self.trainer.prompt_digest()}".encode())
        digest.update(self.texts.cpu().numpy().tobytes())
        return digest.hexdigest()
