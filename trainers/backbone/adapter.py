"""One interface for every CLIP: frozen towers, pixels in [0, 1], raw features, exact text."""

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..utils.errors import UserError
from . import agreement, tower, vision

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# what may happen to the tokens between two text blocks: (layer, x, rows, start) -> x
Between = Callable[[int, torch.Tensor, slice, int], torch.Tensor]


class CLIPAdapter(nn.Module):
    """A frozen CLIP of any provider behind one interface.

    It computes in float32, and features are raw (not normalised). The model stays in evaluation
    mode and its parameters never receive gradients; gradients pass through to pixels and prompts.

    Args:
        model: a CLIP of open_clip or of OpenAI's ``clip`` (a fork's copy included).
        tokenizer: see :class:`.tokens.Tokenizer`.
        name: the name under which it was asked for.
        sha256: hex digest of the weights' content.
        mean, std: per-channel statistics of the image preprocessing, in [0,1] units.
        interpolation: how the images it was trained on were resized.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        *,
        name: str,
        sha256: str,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        interpolation: str = "bicubic",
    ):
        super().__init__()
        self.name, self.sha256 = name, sha256
        self.tokenizer, self.interpolation = tokenizer, interpolation
        self.model, self._run_block = model.float().requires_grad_(False).eval(), tower.run_block
        self.training = False
        # open_clip's CustomTextCLIP keeps its text tower in a module of its own
        self._custom_text = hasattr(model, "text")
        asked = inspect.signature(model.encode_image).parameters.get("normalize")
        # CoCa's encoders return unit length by default
        self._raw = {"normalize": False} if asked is not None and asked.default is True else {}
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        visual = model.visual
        size = getattr(visual, "input_resolution", None) or getattr(visual, "image_size", 224)
        self.resolution = int(size[0] if isinstance(size, (tuple, list)) else size)
        self._set_image_face(vision.face_of(visual))
        self._describe_text_tower()
        agreement.verify(self)
        self.logit_scale = float(model.logit_scale.detach().float().exp())

    def _set_image_face(self, face) -> None:
        self.is_vit = face is not None
        self.vision_layers = len(face.block_modules) if face else None
        self.vision_width = face.width if face else None
        # blocks that run here are faster than through the provider's attention module
        self._by_blocks = bool(face) and all(map(tower.is_standard, face.block_modules))

    def _describe_text_tower(self) -> None:
        part = partial(getattr, self._text)
        blocks = getattr(part("transformer", None), "resblocks", None)
        positions = part("positional_embedding", None)
        self.context_length = int(part("context_length", None) or self.tokenizer.context_length)
        self.text_layers = len(blocks) if blocks is not None else None
        self.text_width = int(positions.shape[-1]) if positions is not None else None
        self._pool_type = part("pool_type", part("text_pool_type", "argmax"))
        self._eos_id = part("eos_id", part("text_eos_id", None))
        # Hugging Face towers and CoCa's extra class token go through the provider only
        has_parts = blocks is not None and positions is not None and part("cls_emb", None) is None
        mask = part("attn_mask", None) if has_parts else None  # open_clip; OpenAI's blocks hold it
        if has_parts and mask is None:
            mask = getattr(blocks[0], "attn_mask", None)
        self.takes_prompts = has_parts and (mask is None or tower.is_causal(mask))
        self._causal_mask = mask
        # whether cutting at the end token and sharing the prefix are exact for this tower
        self.causal = (
            self.takes_prompts
            and mask is not None
            and self._pool_type in ("argmax", "eos")
            and all(map(tower.is_standard, blocks))
        )
        projection = part("text_projection", None)
        if isinstance(projection, nn.Linear):
            self.embed_dim = projection.out_features
        elif projection is not None:
            self.embed_dim = int(projection.shape[1])
        else:
            self.embed_dim = int(part("output_dim", None) or self.text_width)

    @property
    def _text(self) -> nn.Module:
        return self.model.text if self._custom_text else self.model

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def train(self, mode: bool = True) -> "CLIPAdapter":
        """Stay in evaluation mode: CLIP is frozen, batch statistics included."""
        return super().train(False)

    def hasten(self, *, compiled: bool = False, last: bool = False) -> None:
        """Have standard blocks ``compiled`` at first use, and channels ``last`` in convolutions."""
        if compiled:
            self._run_block = torch.compile(tower.run_block)
        if last:
            self.model.visual.to(memory_format=torch.channels_last)

    def without_image_tower(self) -> "CLIPAdapter":
        """Free the image tower (prompt tuning on stored embeddings does not need it)."""
        self.model.visual = None
        return self

    def check_input(self, size, interpolation: str) -> None:
        """Refuse another ``INPUT.SIZE`` than the backbone's; warn of another interpolation."""
        if tuple(size) != (self.resolution, self.resolution):
            raise UserError(
                f"INPUT.SIZE is {tuple(size)} but backbone {self.name} takes "
                f"({self.resolution}, {self.resolution}); set INPUT.SIZE to that"
            )
        if interpolation != self.interpolation:
            print(
                f"warning: images are resized by '{interpolation}', but backbone {self.name} was "
                f"trained on images resized by '{self.interpolation}' (INPUT.INTERPOLATION)"
            )

    def _normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        self._present_image_tower()
        size = self.resolution
        if pixels.shape[-2:] != (size, size):
            height, width = pixels.shape[-2:]
            raise UserError(
                f"images of {height}x{width} pixels do not fit {self.name}, which takes "
                f"{size}x{size}; set INPUT.SIZE to ({size}, {size})"
            )
        return ((pixels - self.mean) / self.std).float()

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return raw features (B, D), float32, of pixels (B, 3, ``resolution``, ``resolution``).

        Images are encoded block by block where that is faster than the provider's own way. A wrong
        size is a UserError.
        """
        if not self._by_blocks:
            return self.provider_image(pixels)
        tokens = self.patch_tokens(pixels)  # (B, N, d_v)
        for block in self.pooling_blocks:
            tokens = block(tokens)
        return self.pool_image(tokens)

    def provider_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode images as :meth:`encode_image`, by the provider's own ``encode_image``."""
        return self.model.encode_image(self._normalized(pixels), **self._raw).float()

    def patch_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what enters the first image block, (B, N, d_v): [CLS], if any, and the patches."""
        return self.norm_tokens(self.embed_patches(pixels))

    def embed_patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the native tokens with positions, (B, N, d_v), before the norm."""
        return self._image_face.embed(self._normalized(pixels))

    def norm_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Apply the norm before block 0 (``ln_pre``) to tokens (B, N, d_v) of any number N."""
        return self._image_face.norm(tokens)

    @property
    def image_blocks(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """The image blocks as functions on tokens (B, N, d_v) of any number N."""
        return self._image_face.callables(self._block)

    @property
    def pooling_blocks(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """The image blocks for features alone: the last computes no token that nobody reads.

        Where pooling reads [CLS] only, the last block gives (B, 1, d_v), otherwise all tokens.
        """
        blocks, face = self.image_blocks, self._image_face
        if self._by_blocks and face.pools_first:
            blocks[-1] = self._block(face.block_modules[-1], first=1)
        return blocks

    def pool_image(self, tokens: torch.Tensor) -> torch.Tensor:
        """Turn the tokens (B, N, d_v) after the last block into raw features (B, D), float32."""
        return self._image_face.pool(tokens).float()

    @property
    def patches(self) -> int:
        """Number of patches of an image; UserError for a tower that does not pool [CLS] alone."""
        face = self._image_face
        if not face.pools_first:
            why = "pools more than its class token, so that its patches are not like texts"
            raise UserError(f"the image tower of {self.name} {why}; choose a ViT of OpenAI's kind")
        return len(face.visual.positional_embedding) - 1

    def encode_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return [CLS], as :meth:`encode_image` does, and the patches like it: (B, 1 + P, D)."""
        self.patches  # noqa: B018  refuses other towers
        tokens = self.patch_tokens(pixels)
        for block in self.image_blocks:
            tokens = block(tokens)
        return self._image_face.project(tokens).float()

    @property
    def _image_face(self):
        """The image tower taken apart; made on each call, as the tower may be freed or replaced."""
        if not self.is_vit:
            raise UserError(
                f"backbone {self.name} is not a vision transformer that runs block by block, so "
                "its image tower takes no prompts; choose a ViT backbone or a method with text "
                "prompts only"
            )
        return vision.face_of(self._present_image_tower())

    def _present_image_tower(self) -> nn.Module:
        if self.model.visual is None:
            raise RuntimeError(f"the image tower of {self.name} has been freed")
        return self.model.visual

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        """Tokenize texts to ids (K, context_length); UserError for one beyond the context."""
        return self.tokenizer(texts, self.context_length).to(self.device)

    @property
    def vocabulary(self) -> int:
        """Number of rows of the token embedding."""
        self._need_prompts()
        return self._text.token_embedding.num_embeddings

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look up token embeddings: ids (K, L) -> (K, L, d_t), without positions."""
        self._need_prompts()
        return self._text.token_embedding(tokens.to(self.device))

    def end_of_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the position (K,) of the end token in ids (K, L)."""
        if self._pool_type == "eos":
            return (tokens == self._eos_id).int().argmax(dim=-1)
        return tokens.argmax(dim=-1)  # CLIP's end token has the highest id

    def add_positions(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Add the positional part to embeddings (K, L, d_t): what enters the first text block."""
        self._need_prompts()
        positions = self._text.positional_embedding[: embeddings.shape[1]]  # (L, d_t)
        return embeddings.float() + positions

    @property
    def text_blocks(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """The text blocks as functions on tokens (K, L, d_t); causal where the tower is."""
        self._need_prompts()
        return [self._block(b, self._causal_mask) for b in self._text.transformer.resblocks]

    def pool_text(self, x: torch.Tensor, eot: torch.Tensor) -> torch.Tensor:
        """Turn the tokens (K, L, d_t) after the last block into raw features (K, D), float32.

        ``eot`` (K,) are the positions of the end tokens within L.
        """
        text = self._text
        if self._pool_type in ("argmax", "eos"):
            read = x[torch.arange(len(x), device=x.device), eot.to(x.device)]
        elif self._pool_type in ("first", "last"):
            read = x[:, 0 if self._pool_type == "first" else -1]
        else:
            raise UserError(
                f"backbone {self.name} pools its text by '{self._pool_type}', which learned "
                "prompts do not support; choose another backbone"
            )
        found, projection = text.ln_final(read), text.text_projection  # (K, d_t)
        if isinstance(projection, nn.Linear):
            return projection(found).float()
        return (found if projection is None else found @ projection).float()

    def provider_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode token ids (K, L) by the provider's own ``encode_text``: raw (K, D), float32."""
        return self.model.encode_text(tokens, **self._raw).float()

    def encode_text(self, tokens: torch.Tensor, *, class_chunk: int = 0) -> torch.Tensor:
        """Encode token ids (K, L) to raw features (K, D), float32.

        A causal tower goes through :meth:`encode_prompts` with the longest common prefix of the
        texts, any other through the provider's own ``encode_text``.
        """
        if not self.causal:
            chunks = tokens.to(self.device).split(class_chunk or len(tokens))
            return torch.cat([self.provider_text(part) for part in chunks])
        shared = int((tokens == tokens[:1]).all(dim=0).cumprod(dim=0).sum())
        inputs = self.embed_tokens(tokens), self.end_of_text(tokens)
        return self.encode_prompts(*inputs, shared=shared, class_chunk=class_chunk)

    def encode_prompts(
        self,
        embeddings: torch.Tensor,
        eot: torch.Tensor,
        *,
        shared: int = 0,
        class_chunk: int = 0,
        between: Between | None = None,
    ) -> torch.Tensor:
        """Return raw features (K, D), float32, of prompts; exact, without work that cannot matter.

        A causal tower is cut after the last end token, and the first ``shared`` positions, which
        must be the same for all classes, are computed once from row 0 (their gradient goes there);
        each class then attends to their keys and values. Other towers take the plain path.

        Args:
            embeddings: (K, L, d_t) without the positional part.
            eot: (K,) positions of the end tokens.
            shared: length of the common prefix; 0 computes every row on its own.
            class_chunk: classes per pass; 0 is all at once. While gradients are recorded a pass is
                computed again in the backward pass, so memory is bounded by the chunk.
            between: called as ``between(layer, x, rows, start)`` before every block but the first;
                x (C, N, d_t) holds the positions from ``start`` on of the classes in slice
                ``rows``, and so does what it returns. It may treat positions one by one (replace
                them, map them), and must treat the shared ones alike in all classes.
        """
        self._need_prompts()
        ends, eot = self._there(eot), eot.cpu()  # prompt learners keep it there: nothing waits
        if self.causal:
            x = self.add_positions(embeddings[:, : int(eot.max()) + 1])
            shared = min(shared, int(eot.min()))  # end tokens stay in the suffix
        else:
            x, shared = self.add_positions(embeddings), 0
        past = self._prefix(x[:1, :shared], between) if shared else None
        suffix, ends = x[:, shared:], ends - shared

        def encode(x: torch.Tensor, ends: torch.Tensor, first: int) -> torch.Tensor:
            rows = slice(first, first + len(x))
            for layer, block in enumerate(self._text.transformer.resblocks):
                if between is not None and layer:
                    x = between(layer, x, rows, shared)
                if past is None:
                    x = self._block(block, self._causal_mask)(x)
                elif layer < len(past) - 1:
                    x = tower.run_suffix(block, x, *past[layer])
                else:  # of the last block nothing but the end tokens is read
                    x, ends = tower.run_suffix(block, x, *past[layer], ends), ends * 0
            return self.pool_text(x, ends)

        if not class_chunk or class_chunk >= len(suffix):
            return encode(suffix, ends, 0)
        run = encode
        if torch.is_grad_enabled() and (suffix.requires_grad or between is not None):
            run = partial(checkpoint, encode, use_reentrant=False, preserve_rng_state=False)
        starts = range(0, len(suffix), class_chunk)
        parts = zip(suffix.split(class_chunk), ends.split(class_chunk), starts, strict=True)
        return torch.cat([run(*part) for part in parts])  # (K, D)

    def _prefix(self, x: torch.Tensor, between: Between | None) -> list[tuple]:
        """Keys and values of every block for the shared prefix (1, S, d_t)."""
        past = []
        for layer, block in enumerate(self._text.transformer.resblocks):
            if between is not None and layer:
                x = between(layer, x, slice(0, 1), 0)
            x, *keys_and_values = self._run_block(block, x, causal=True)
            past.append(keys_and_values)
        return past

    def _there(self, eot: torch.Tensor) -> torch.Tensor:
        """Return ``eot`` (K,) on the device, where it is copied once: a graph finds it again."""
        there = getattr(eot, "there", eot)
        if there.device != self.device:
            there = eot.there = eot.to(self.device)
        return there

    def _need_prompts(self) -> None:
        if not self.takes_prompts:
            raise UserError(
                f"the text tower of backbone {self.name} takes no learned prompts; choose a "
                "backbone with CLIP's own text tower"
            )

    def _block(
        self, block: nn.Module, mask: torch.Tensor | None = None, *, first: int | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        standard = tower.is_standard(block)

        def run(x: torch.Tensor, **options) -> torch.Tensor:
            if standard:
                return self._run_block(block, x, causal=mask is not None, first=first)[0]
            if mask is not None:  # open_clip's custom block: batch-first, its own attention
                length = x.shape[1]
                options["attn_mask"] = mask[:length, :length].to(x)
            return block(x, **options)

        return run
