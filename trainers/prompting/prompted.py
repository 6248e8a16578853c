"""CLIP with learned prompts and refiners in both towers, between its frozen blocks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone.adapter import CLIPAdapter
from ..backbone.features import cosine_logits, text_features
from ..utils.errors import UserError
from . import templates
from .frame import PromptFrame, context_words, prompt_layout
from .quantiser import QuantisedHead
from .refiner import TokenRefiner
from .spec import PromptSpec


class PromptedCLIP(nn.Module):
    """A frozen CLIP with everything a method learns around it.

    Only what is learned is a parameter; the backbone is not part of ``parameters()`` and
    ``state_dict()``, and several models may share it. UserError if ``spec`` does not fit it.
    Underscores in the K ``classnames`` become blanks.

    Attributes:
        text_prompts: (layers, M, d_t), with ``csc`` (layers, K, M, d_t); of the layers that are
            not made from the visual ones, absent if all are.
        vision_prompts: (layers, M, d_v); of the layers that are not made from the text ones.
        projections: one Linear per layer of a coupling.
        text_refiners, vision_refiners: by the number of the block they precede, from "1".
        head: the codebook's, see :mod:`.quantiser`, or None.
    """

    def __init__(self, clip: CLIPAdapter, classnames: list[str], spec: PromptSpec):
        super().__init__()
        spec.check_backbone(clip)
        object.__setattr__(self, "clip", clip)  # not a sub-module
        self.classnames, self.spec = list(classnames), spec
        self._fixed_text: torch.Tensor | None = None
        words = context_words(clip, spec.text_init) if spec.text else []
        self.frame = self._frame(words) if spec.acts_on_texts else None
        self._make_prompts(words[: spec.text])
        refined = spec.text_depth if spec.refine_text else 0
        self.text_refiners = self._refiners(refined, clip.text_width)
        refined = spec.vision_depth if spec.refine_vision else 0
        self.vision_refiners = self._refiners(refined, clip.vision_width)
        book = {"codes": spec.codes, "inner": spec.code_width, "share": spec.share}
        self.head = QuantisedHead(clip.embed_dim, clip.patches, **book) if spec.codes else None
        self.to(clip.device)

    # -- what is learned --------------------------------------------------------------------------

    def _frame(self, words: list[int]) -> PromptFrame:
        """Return the class prompts' fixed tokens, with holes for the text vectors."""
        spec, clip, count = self.spec, self.clip, self.spec.text
        if not count:
            context_words(clip, "")  # refuses towers that take no prompts
            ids = clip.tokenize(templates.fill(spec.template, self.classnames)).cpu()
            length = int(clip.end_of_text(ids).max()) + 1 if clip.causal else ids.shape[1]
            return PromptFrame(ids[:, :length], clip)
        if words and (len(words) < count or (len(words) > count and spec.position != "end")):
            raise UserError(
                f"text_init '{spec.text_init}' has {len(words)} tokens but {count} text vectors "
                f"start from them; set their number to {len(words)} (spare words are possible at "
                "position 'end' alone)"
            )
        layout = prompt_layout(self.classnames, clip, count, spec.position, words[count:])
        return PromptFrame(layout, clip, csc=spec.csc)

    def _make_prompts(self, words: list[int]) -> None:
        spec, clip = self.spec, self.clip
        longest, first = max(spec.text_depth, spec.vision_depth), spec.first_coupling != "same"
        layers = {  # of vectors that are learned, and not made from the other tower's
            "none": (spec.text_depth, spec.vision_depth),
            "text_to_vision": (longest, 0),
            "vision_to_text": (int(first), longest - first),
        }[spec.coupling]

        def drawn(*shape: int) -> torch.Tensor:
            return torch.empty(shape).normal_(std=spec.init_std)

        if spec.text and layers[0]:
            classes = (len(self.classnames),) if spec.csc else ()
            prompts = drawn(layers[0], *classes, spec.text, clip.text_width)
            if words:  # (M, d_t), for all classes
                prompts[0] = clip.embed_tokens(torch.tensor([words]))[0].float().cpu()
            self.text_prompts = nn.Parameter(prompts)
        if spec.vision and layers[1]:
            self.vision_prompts = nn.Parameter(drawn(layers[1], spec.vision, clip.vision_width))
        to_vision = (clip.text_width, clip.vision_width)
        to_text = to_vision[::-1]
        widths = {
            "none": [],
            "text_to_vision": [to_vision] * spec.vision_depth,
            "vision_to_text": [to_vision] * first + [to_text] * (spec.text_depth - first),
        }[spec.coupling]
        self.projections = nn.ModuleList(nn.Linear(*pair) for pair in widths if spec.text)

    def _refiners(self, depth: int, width: int) -> nn.ModuleDict:
        """Return a refiner before each of the blocks 1 to depth-1."""
        ratio, init = self.spec.refiner_ratio, self.spec.refiner_init
        made = {str(i): TokenRefiner(width, ratio=ratio, init=init) for i in range(1, depth)}
        return nn.ModuleDict(made)

    def text_vectors(self) -> list[torch.Tensor]:
        """Text vectors T^0 ... T^{depth-1}, each (M, d_t), with ``csc`` (K, M, d_t)."""
        return self._vectors("text", self.spec.text, self.spec.text_depth)

    def vision_vectors(self) -> list[torch.Tensor]:
        """Visual vectors V^0 ... V^{depth-1}, each (M, d_v)."""
        return self._vectors("vision", self.spec.vision, self.spec.vision_depth)

    def _vectors(self, tower: str, count: int, depth: int) -> list[torch.Tensor]:
        if not count:
            return []
        source, _, target = self.spec.coupling.partition("_to_")
        if self.spec.first_coupling != "same":
            first, deep = self.text_prompts[0], list(getattr(self, "vision_prompts", ()))
            if tower == "vision":
                return [self.projections[0](first), *deep][:depth]
            made = zip(self.projections[1:], deep, strict=False)
            return [first, *(linear(x) for linear, x in made)]
        if tower != target:
            return list(getattr(self, f"{tower}_prompts")[:depth].unbind(0))
        layers = getattr(self, f"{source}_prompts").unbind(0)
        return [linear(x) for linear, x in zip(self.projections, layers, strict=False)]

    # -- features ---------------------------------------------------------------------------------

    def text_features(
        self, class_chunk: int = 0, *, vectors: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return unit-length features (K, D), float32, of the classes with the current prompts.

        The prefix that all classes share is computed once, deep vectors included, exactly. Where
        nothing acts on the text the features are computed once and kept. ``class_chunk`` classes
        per pass bound the memory; 0 is all at once. ``vectors``, of all layers, replace the
        model's own :meth:`text_vectors`. With a codebook D has one more coordinate, which is 0.
        """
        texts = self._text_features(class_chunk, vectors)
        return F.pad(texts, (0, 1)) if self.head else texts

    def _text_features(self, class_chunk: int, vectors: list[torch.Tensor] | None) -> torch.Tensor:
        if self.frame is None:
            if self._fixed_text is None:
                texts = templates.fill(self.spec.template, self.classnames)
                with torch.inference_mode(False), torch.no_grad():
                    self._fixed_text = text_features(self.clip, texts, class_chunk)
            return self._fixed_text.to(self.clip.device)
        vectors = self.text_vectors() if vectors is None else vectors
        prompts = self.frame.fill(vectors[0] if vectors else None)

        def between(layer: int, x: torch.Tensor, rows: slice, start: int) -> torch.Tensor:
            if layer >= self.spec.text_depth:
                return x
            if str(layer) in self.text_refiners:
                x = self.text_refiners[str(layer)](x)
            if vectors:  # at their positions the refined outputs are dropped
                x = self.frame.replace(x, vectors[layer], rows, start)
            return x

        deep = self.spec.text_depth > 1
        return text_features(self.clip, prompts, class_chunk, between=between if deep else None)

    def graphed_texts(self, class_chunk: int = 0) -> Callable[[], torch.Tensor]:
        """Return :meth:`text_features` as CUDA graphs, of its backward pass as well.

        That pass must come before the next call, which writes to the same tensors.
        """
        values = tuple(self.parameters())
        graphed = torch.cuda.make_graphed_callables(
            lambda *_: self.text_features(class_chunk), values, allow_unused_input=True
        )
        return lambda: graphed(*values)

    def image_features(self, pixels: torch.Tensor, *, blocks: bool = False):
        """Encode images with the current prompts.

        X^0 = ln_pre([H; V^0]); before block l = 1 ... depth-1 the native tokens H ([CLS] and
        patches) are refined and the prompt outputs are replaced by V^l. Pooling sees native
        tokens only. Of pixels (B, 3, H, W) in [0, 1], returns raw features (B, D), float32; with
        ``blocks`` also the native tokens after every block, a list of (B, 1 + patches, d_v).
        UserError for a wrong size of image, or ``blocks`` of a backbone that has none. With a
        codebook, see :class:`.quantiser.QuantisedHead`; its parts are the ``blocks`` then.
        """
        clip, spec = self.clip, self.spec
        if self.head:
            parts = self.head.parts(clip.encode_tokens(pixels))
            return (self.head.fused(parts), parts) if blocks else self.head.fused(parts)
        if not (blocks or spec.acts_on_images):
            return clip.encode_image(pixels)
        vectors = self.vision_vectors()
        tokens = clip.embed_patches(pixels)  # (B, N, d_v)
        native = tokens.shape[1]
        tokens = clip.norm_tokens(_append(tokens, vectors[:1]))
        outputs = []
        for layer, block in enumerate(clip.image_blocks if blocks else clip.pooling_blocks):
            if 0 < layer < spec.vision_depth:
                tokens = tokens[:, :native]
                if str(layer) in self.vision_refiners:
                    tokens = self.vision_refiners[str(layer)](tokens)
                tokens = _append(tokens, vectors[layer : layer + 1])
            tokens = block(tokens)  # (B, N + M, d_v), at the end (B, 1, d_v) if [CLS] is pooled
            if blocks:
                outputs.append(tokens[:, :native])
        features = clip.pool_image(tokens[:, :native])  # (B, D)
        return (features, outputs) if blocks else features

    def logits(self, pixels: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K) of pixels (B, 3, H, W) and unit-length text features (K, D)."""
        return cosine_logits(self.image_features(pixels), texts, self.clip.logit_scale)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K) of pixels (B, 3, H, W) in [0, 1] with the current prompts."""
        return self.logits(pixels, self.text_features())


def _append(tokens: torch.Tensor, vectors: list[torch.Tensor]) -> torch.Tensor:
    """Put the vectors (M, d), if there are any, after the tokens (B, N, d) of every image."""
    added = [v.to(tokens.dtype).expand(len(tokens), -1, -1) for v in vectors]
    return torch.cat([tokens, *added], dim=1) if added else tokens  # (B, N + M, d)
