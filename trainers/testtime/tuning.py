"""Text prompts tuned for one image: what TPT, C-TPT, R-TPT and SS-TPT share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbone.features import cosine_logits
from ..config.keys import Key
from ..prompting import PromptedCLIP, PromptSpec
from ..utils.errors import UserError
from .ensemble import OfViews
from .views import keys_of_views


def keys_of_tuning(views: int, select: float, source: str) -> dict[str, Key]:
    """Return the declarations of a method that tunes text prompts."""
    return keys_of_views(views, source) | {
        "SELECT": Key(select, f"share of the views, the most confident ({source})", least=0.001),
        "LR": Key(5e-3, f"of AdamW ({source})", least=0, most=10),
        "DECAY": Key(0.01, "weight decay of AdamW (torch's default)", least=0, most=10),
        "STEPS": Key(1, f"of AdamW ({source})", least=1, most=100),
        "CTX_INIT": Key("a photo of a", "where the model has no text vectors (R-TPT's code)"),
    }


class Tuned(OfViews):
    """Tunes the text vectors of the first layer to the views of an image, and starts afresh.

    Where the model has learned text vectors they are the start, otherwise the words of
    ``CTX_INIT``. The image tower stays as it is. An attack goes through the features of the views;
    the tuned vectors are computed anew at every step of it and held fixed within, since one step
    of AdamW has the sign of its gradient alone.
    """

    needs = "text"

    def loss(self, logits: Tensor, texts: Tensor) -> Tensor:
        """Return what is minimised for one image: logits (n, K) of chosen views, texts (K, D)."""
        raise NotImplementedError

    @cached_property
    def model(self) -> PromptedCLIP:
        """The prompted model whose text vectors are tuned."""
        victim = self.victim
        own = getattr(victim, "prompted", None)
        if own is None or not own.spec.acts_on_texts:
            words = self.ctx_init
            count = len(victim.clip.tokenizer.encode(words.replace("_", " ")))
            spec = PromptSpec(text=count, text_init=words)
            return PromptedCLIP(victim.clip, list(victim.classnames), spec)
        if not own.spec.text:
            raise UserError(
                f"{victim.name} refines the words of its texts and has no text vectors, which "
                f"'{self.name}' tunes; use ensemble, zero, mta, ttc or et3"
            )
        return own

    @cached_property
    def start(self) -> list[Tensor]:
        """The text vectors of all layers before an image is seen."""
        with torch.inference_mode(False):
            return [vectors.detach().clone() for vectors in self.model.text_vectors()]

    @cached_property
    def first(self) -> tuple[Tensor, Tensor]:
        """The first layer's vectors and the texts (K, D) made of them, with their graph."""
        with torch.enable_grad():
            vectors = self.start[0].requires_grad_()
            return vectors, self.texts(vectors)

    def texts(self, vectors: Tensor) -> Tensor:
        """Return the unit-length texts (K, D) with these vectors in the first layer."""
        return self.model.text_features(vectors=[vectors, *self.start[1:]])

    def score(self, features: Tensor, texts: Tensor) -> Tensor:
        return cosine_logits(features, texts, self.victim.clip.logit_scale)

    @torch.enable_grad()
    def tune(self, features: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the texts (K, D) tuned to one image by its views' features (n, D)."""
        features, (vectors, texts) = features.detach(), self.first
        tuned = vectors.detach().clone()
        optimizer = torch.optim.AdamW([tuned], lr=self.lr, weight_decay=self.decay)
        for step in range(self.steps):
            if step:  # the first has the texts of the start, which all images share
                vectors = tuned.requires_grad_()
                texts = self.texts(vectors)
            leaf = texts.detach().requires_grad_()
            (wanted,) = torch.autograd.grad(loss(self.score(features, leaf), leaf), leaf)
            (tuned.grad,) = torch.autograd.grad(texts, vectors, wanted, retain_graph=not step)
            with torch.no_grad():
                optimizer.step()
            tuned.requires_grad_(False)
        with torch.no_grad():
            return self.texts(tuned)

    def adapted(self, forward, images, seeds, attack):
        raw = self.victim.features(self.views(images, seeds))
        features = self.of_each(F.normalize(raw.float(), dim=-1))  # (B, V, D)
        return torch.stack([self.of_one(rows) for rows in features])

    def of_one(self, features: Tensor) -> Tensor:
        """Return the logits (K,) of one image by its views' features (V, D), the first its own."""
        chosen = self.chosen(features)
        texts = self.tune(features[chosen], self.loss)
        return self.predict(features, texts, chosen)

    def chosen(self, features: Tensor) -> Tensor:
        """Return the indices (n,) of the most confident views at the start."""
        from .views import most_confident

        logits = self.score(features.detach(), self.first[1].detach())
        return most_confident(logits[None], self.select)[0]

    def predict(self, features: Tensor, texts: Tensor, chosen: Tensor) -> Tensor:
        """Return the logits (K,); the default is those of the image itself."""
        return self.score(features[:1], texts)[0]
