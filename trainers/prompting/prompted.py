"""CLIP with learned prompts and refiners in both towers, between its frozen blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone.adapter import CLIPAdapter
from ..backbone.features import text_features
from ..utils.errors import UserError
from .learner import PromptFrame, context_words, embed_words, prompt_layout
from .prompts import PromptSpec
from .refiner import TokenRefiner


class PromptedCLIP(nn.Module):
    """A frozen CLIP with everything a method learns around it.

    Only what is learned is a parameter; the backbone is kept beside the module, outside
    ``parameters()`` and ``state_dict()``, and may be shared by several.

    Args:
        clip: the frozen backbone.
        classnames: K names; underscores become blanks.
        spec: lengths, depths, coupling and refiners.

    Attributes:
        text_prompts: (layers, M, d_t), with ``csc`` (layers, K, M, d_t); absent if made from the
            visual ones.
        vision_prompts: (layers, M, d_v); absent if made from the text ones.
        projections: one Linear per layer of a coupling.
        text_refiners, vision_refiners: by the number of the block they precede, from "1".

    Raises:
        UserError: the specification does not fit the backbone or the names.
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
        self.text_refiners = self._refiners(spec.refine_text, spec.text_depth, clip.text_width)
        self.vision_refiners = self._refiners(
            spec.refine_vision, spec.vision_depth, clip.vision_width
        )
        self.to(clip.device)

    # -- what is learned --------------------------------------------------------------------------

    def _frame(self, words: list[int]) -> PromptFrame:
        """The class prompts' fixed tokens, with holes for the text vectors."""
        spec, clip = self.spec, self.clip
        if not spec.text:
            context_words(clip, "")  # refuses towers that take no prompts
            ids = clip.tokenize(self._texts()).cpu()
            length = int(clip.end_of_text(ids).max()) + 1 if clip.causal else ids.shape[1]
            return PromptFrame(ids[:, :length], clip)
        if words and len(words) < spec.text:
            raise UserError(
                f"text_init '{spec.text_init}' has {len(words)} tokens but {spec.text} text "
                f"vectors start from them; set their number to {len(words)} or write more words"
            )
        if len(words) > spec.text and spec.position != "end":
            raise UserError(
                f"text_init '{spec.text_init}' has {len(words)} tokens, {len(words) - spec.text} "
                f"more than there are text vectors, which only position 'end' can place; set "
                f"their number to {len(words)}"
            )
        layout = prompt_layout(self.classnames, clip, spec.text, spec.position, words[spec.text :])
        return PromptFrame(layout, clip, csc=spec.csc)

    def _make_prompts(self, words: list[int]) -> None:
        spec, clip = self.spec, self.clip
        source = spec.coupling.partition("_to_")[0]
        if spec.text and source != "vision":
            layers = spec.source_depth if source == "text" else spec.text_depth
            classes = (len(self.classnames),) if spec.csc else ()
            shape = (layers, *classes, spec.text, clip.text_width)
            prompts = torch.empty(shape).normal_(std=spec.init_std)
            if words:
                prompts[0] = embed_words(clip, words).cpu()  # (M, d_t), for all classes
            self.text_prompts = nn.Parameter(prompts)
        if spec.vision and source != "text":
            layers = spec.source_depth if source == "vision" else spec.vision_depth
            shape = (layers, spec.vision, clip.vision_width)
            self.vision_prompts = nn.Parameter(torch.empty(shape).normal_(std=spec.init_std))
        linears = []
        if spec.text and source == "text":
            linears = [(clip.text_width, clip.vision_width)] * spec.vision_depth
        elif spec.vision and source == "vision":
            linears = [(clip.vision_width, clip.text_width)] * spec.text_depth
        self.projections = nn.ModuleList(nn.Linear(*widths) for widths in linears)

    def _refiners(self, wanted: bool, depth: int, width: int) -> nn.ModuleDict:
        spec = self.spec
        return nn.ModuleDict(
            {
                str(layer): TokenRefiner(width, ratio=spec.refiner_ratio, init=spec.refiner_init)
                for layer in range(1, depth if wanted else 1)
            }
        )

    def parameter_count(self) -> dict[str, int]:
        """Number of learned values, split into prompts, projections and refiners."""
        count = {"prompts": 0, "projections": 0, "refiners": 0}
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0].rpartition("_")[2]
            count[part] += parameter.numel()
        return count

    def text_vectors(self) -> list[torch.Tensor]:
        """Text vectors T^0 ... T^{depth-1}, each (M, d_t), with ``csc`` (K, M, d_t)."""
        if not self.spec.text:
            return []
        if self.spec.coupling == "vision_to_text":
            return self._projected(self.vision_prompts)
        return list(self.text_prompts[: self.spec.text_depth].unbind(0))

    def vision_vectors(self) -> list[torch.Tensor]:
        """Visual vectors V^0 ... V^{depth-1}, each (M, d_v)."""
        if not self.spec.vision:
            return []
        if self.spec.coupling == "text_to_vision":
            return self._projected(self.text_prompts)
        return list(self.vision_prompts[: self.spec.vision_depth].unbind(0))

    def _projected(self, source: torch.Tensor) -> list[torch.Tensor]:
        return [linear(x) for linear, x in zip(self.projections, source.unbind(0), strict=False)]

    # -- text -------------------------------------------------------------------------------------

    def _texts(self) -> list[str]:
        names = (name.replace("_", " ") for name in self.classnames)
        return [self.spec.template.replace("{}", name) for name in names]

    def text_features(self, class_chunk: int = 0) -> torch.Tensor:
        """Encode the classes with the current prompts.

        The prefix that all classes share is computed once, deep vectors included, exactly. Where
        nothing acts on the text the features are computed once and kept.

        Args:
            class_chunk: classes per pass, bounds the memory; 0 is all at once.

        Returns:
            (K, D) unit-length features, float32.
        """
        if self.frame is None:
            if self._fixed_text is None:
                with torch.inference_mode(False), torch.no_grad():
                    self._fixed_text = text_features(self.clip, self._texts(), class_chunk)
            return self._fixed_text.to(self.clip.device)
        vectors = self.text_vectors()
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

    # -- images -----------------------------------------------------------------------------------

    def image_features(self, pixels: torch.Tensor, *, blocks: bool = False):
        """Encode images with the current prompts.

        X^0 = ln_pre([H; V^0]); before block l = 1 ... depth-1 the native tokens H ([CLS] and
        patches) are refined and the prompt outputs give way to V^l. Pooling sees native tokens
        only.

        Args:
            pixels: (B, 3, H, W) in [0, 1].
            blocks: also return the native tokens after every block.

        Returns:
            (B, D) raw features, float32; with ``blocks`` also a list of (B, 1 + patches, d_v).

        Raises:
            UserError: wrong size of image, or ``blocks`` of a backbone that has none.
        """
        clip, spec = self.clip, self.spec
        if not (blocks or spec.acts_on_images):
            return clip.encode_image(pixels)
        vectors = self.vision_vectors()
        tokens = clip.embed_patches(pixels)  # (B, N, d_v)
        native = tokens.shape[1]
        tokens = clip.norm_tokens(_append(tokens, vectors[0] if vectors else None))
        outputs = []
        for layer, block in enumerate(clip.image_blocks if blocks else clip.pooling_blocks):
            if 0 < layer < spec.vision_depth:
                tokens = tokens[:, :native]
                if str(layer) in self.vision_refiners:
                    with clip.autocast():
                        tokens = self.vision_refiners[str(layer)](tokens)
                tokens = _append(tokens, vectors[layer] if vectors else None)
            tokens = block(tokens)  # (B, N + M, d_v), at the end (B, 1, d_v) if [CLS] is pooled
            if blocks:
                outputs.append(tokens[:, :native])
        features = clip.pool_image(tokens[:, :native])  # (B, D)
        return (features, outputs) if blocks else features

    # -- both -------------------------------------------------------------------------------------

    def logits(self, pixels: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K): logit scale times cosine of images and text features (K, D)."""
        return self.similarity(self.image_features(pixels), texts)

    def similarity(self, features: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K) of raw image features (B, D) and unit text features (K, D)."""
        return self.clip.logit_scale * F.normalize(features, dim=-1) @ texts.t()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K) of pixels (B, 3, H, W) in [0, 1] with the current prompts."""
        return self.logits(pixels, self.text_features())


def _append(tokens: torch.Tensor, vectors: torch.Tensor | None) -> torch.Tensor:
    """Put vectors (M, d) behind the tokens (B, N, d) of every image: (B, N + M, d)."""
    if vectors is None:
        return tokens
    vectors = vectors.to(tokens.dtype).expand(len(tokens), -1, -1)  # (B, M, d)
    return torch.cat([tokens, vectors], dim=1)
