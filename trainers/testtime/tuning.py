"""Text prompts tuned for one image: what TPT, C-TPT, R-TPT and SS-TPT share."""

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..backbone.features import cosine_logits, text_features
from ..config.keys import Key, check_template
from ..prompting import templates
from ..prompting.frame import PromptFrame, context_words
from ..utils.errors import UserError
from .ensemble import OfViews
from .views import most_confident, picked

TEXTS = 4096  # of all images, that are tuned in one pass


def keys_of_tuning(select: float, source: str) -> dict[str, Key]:
    """Return the declarations of a method that tunes text prompts."""
    return {
        "SELECT": Key(select, f"share of the views, the most confident ({source})", 0.001, 1),
        "LR": Key(5e-3, f"of AdamW ({source})", least=0, most=10),
        "DECAY": Key(0.01, "weight decay of AdamW (torch's default)", least=0, most=10),
        "STEPS": Key(1, f"of AdamW ({source})", least=1, most=100),
        "TEMPLATE": Key(
            "",
            "its words are tuned where the model has no vectors; empty: the model's own (ours; the "
            "authors' code has 'a photo of a {}.')",
            check=check_template,
        ),
    }


class Tuned(OfViews):
    """Tunes the text vectors of the first layer to the views of an image, and starts afresh.

    Where the model has learned text vectors they are the start, otherwise the words before the
    class name in its template. The image tower stays as it is, also where text vectors drive
    visual ones. An attack goes through the features of the views; the tuned vectors are computed
    again at every step of it and held fixed within, since one step of AdamW has the sign of its
    gradient alone.
    """

    needs = "text"

    @property
    def most(self):
        return TEXTS // len(self.victim.classnames)

    def loss(self, logits: Tensor, texts: Tensor) -> Tensor:
        """Return what images minimise (B,): logits (B, n, K) of chosen views, texts (B, K, D)."""
        raise NotImplementedError

    @cached_property
    def prompts(self) -> tuple[list[Tensor], Callable[[list[Tensor]], Tensor]]:
        """The text vectors of all layers at the start, and what makes texts (K, D) of such."""
        victim, clip, own = self.victim, self.victim.clip, self.victim.prompted
        with torch.inference_mode(False):
            if own is not None and own.spec.text:
                start = [vectors.detach().clone() for vectors in own.text_vectors()]
                return start, lambda vectors: own.text_features(vectors=vectors)
            if own is not None and own.spec.acts_on_texts:
                raise UserError(
                    f"{victim.name} refines the words of its texts and has no text vectors, which "
                    f"'{self.name}' tunes; use ensemble, zero, mta, ttc or et3"
                )
            template = self.template or victim.template
            words = context_words(clip, template.partition("{}")[0].strip())
            if not words:
                raise UserError(
                    f"the prompt '{template}' has no words before the class name, which "
                    f"'{self.name}' tunes; set TESTTIME.{self.name.upper()}.TEMPLATE to "
                    "'a photo of a {}.'"
                )
            ids = clip.tokenize(templates.fill(template, victim.classnames)).cpu()
            length = int(clip.end_of_text(ids).max()) + 1 if clip.causal else ids.shape[1]
            holes = slice(1, 1 + len(words))  # after the start token
            start = [clip.embed_tokens(ids[:1, holes]).detach()[0].float()]
            ids[:, holes] = -1 - torch.arange(len(words))
            frame = PromptFrame(ids[:, :length], clip).to(clip.device)
        return start, lambda vectors: text_features(clip, frame.fill(vectors[0]))

    @cached_property
    def first(self) -> tuple[Tensor, Tensor]:
        """The first layer's vectors and the texts (K, D) made of them, with their graph."""
        with torch.enable_grad():
            vectors = self.prompts[0][0].requires_grad_()
            self.passes["text forwards"] += 1
            return vectors, self.texts(vectors)

    def texts(self, vectors: Tensor) -> Tensor:
        """Return the unit-length texts (K, D) with these vectors in the first layer."""
        start, texts = self.prompts
        return texts([vectors, *start[1:]])

    def texts_of_each(self, vectors: Tensor) -> Tensor:
        """Return the texts (B, K, D) of B images with vectors of their own, in one pass."""
        self.passes["text forwards"] += len(vectors)
        if len(vectors) == 1:  # a batch of one costs more
            return self.texts(vectors[0])[None]
        with sdpa_kernel(SDPBackend.MATH):  # the fused ones take no batch of batches
            return torch.vmap(self.texts)(vectors)

    def score(self, features: Tensor, texts: Tensor) -> Tensor:
        return cosine_logits(features, texts, self.victim.clip.logit_scale)

    @torch.enable_grad()
    def tune(self, features: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the texts (B, K, D) tuned to each image by its views' features (B, n, D)."""
        features, (vectors, texts), images = features.detach(), self.first, len(features)
        tuned = vectors.detach().repeat(images, *[1] * vectors.dim())
        optimizer = torch.optim.AdamW([tuned], lr=self.lr, weight_decay=self.decay)
        for step in range(self.steps):
            if step:  # the first has the texts of the start, which all images share
                vectors = tuned.requires_grad_()
                texts = self.texts_of_each(vectors)
            leaf = texts.detach().expand(images, -1, -1).clone().requires_grad_()
            (wanted,) = torch.autograd.grad(loss(self.score(features, leaf), leaf).sum(), leaf)
            how = {"retain_graph": not step, "is_grads_batched": not step}
            (tuned.grad,) = torch.autograd.grad(texts, vectors, wanted, **how)
            self.passes["text backwards"] += images
            with torch.no_grad():
                optimizer.step()
            tuned.requires_grad_(False)
        with torch.no_grad():
            return self.texts_of_each(tuned)

    def adapted(self, forward, attack, images, seeds):
        raw = self.features(self.views(images, seeds))
        features = self.of_each(F.normalize(raw, dim=-1))  # (B, V, D)
        texts = self.tune(picked(features, self.chosen(features)), self.loss)
        return self.predict(features, texts)

    def chosen(self, features: Tensor) -> Tensor:
        """Return the indices (B, n) of the most confident views (B, V, D) at the start."""
        return most_confident(self.score(features, self.first[1].detach()), self.select)

    def predict(self, features: Tensor, texts: Tensor) -> Tensor:
        """Return logits (B, K) from views (B, V, D), of which the first is the image itself."""
        return self.score(features[:, :1], texts)[:, 0]
