"""The image towers that visual prompts can enter: ViTs of CLIP's, open_clip's and timm's kind.

A *face* splits such a tower into embedding, blocks and pooling. It only calls the tower's
sub-modules; the tower is never changed. Towers that cannot be split (ResNets, ConvNeXt, FastViT,
Swin) have no face: they encode images, and take text prompts only.
"""

from collections.abc import Callable

import torch
from torch import nn


class _ViT:
    home: tuple[nn.Module, str]  # the module that holds the blocks, and their name in it
    pools_first = False  # whether pooling reads the first token, [CLS], and no other

    @property
    def block_modules(self) -> list[nn.Module]:
        return list(getattr(*self.home))

    def callables(self, run: Callable[[nn.Module], Callable]) -> list[Callable]:
        """The blocks as functions of tokens; ``run`` makes a function of one block."""
        return [run(block) for block in self.block_modules]


class ClipViT(_ViT):
    """A ViT of OpenAI's ``clip`` or of open_clip: [CLS] first, then the patches."""

    def __init__(self, visual: nn.Module):
        self.visual, self.home = visual, (visual.transformer, "resblocks")
        self.width = int(visual.class_embedding.shape[-1])
        whole = getattr(visual, "attn_pool", None) is not None
        self.pools_first = not whole and getattr(visual, "pool_type", "tok") == "tok"

    @staticmethod
    def fits(visual: nn.Module) -> bool:
        """Return True if ``visual`` has the parts of this kind of tower."""
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
        return blocks is not None and hasattr(visual, "class_embedding")

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised images (B, 3, H, W) -> tokens with positions (B, N, d_v), before the norm."""
        x = self.visual.conv1(x).flatten(2).transpose(1, 2)  # (B, patches, d_v)
        cls = self.visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)  # (B, 1, d_v)
        return torch.cat([cls, x], dim=1) + self.visual.positional_embedding.to(x.dtype)

    def norm(self, tokens: torch.Tensor) -> torch.Tensor:
        """The norm (B, N, d_v) -> (B, N, d_v) in front of block 0."""
        return self.visual.ln_pre(tokens)

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Native tokens (B, N, d_v) after the last block -> raw features (B, D)."""
        visual = self.visual
        # open_clip: class token, average or attention pooling
        own = hasattr(visual, "_pool")
        pooled = visual._pool(tokens)[0] if own else visual.ln_post(tokens[:, 0])
        return pooled if visual.proj is None else pooled @ visual.proj

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, d_v) after the last block -> (B, N, D), each as ``pool`` treats [CLS]."""
        tokens = self.visual.ln_post(tokens)
        return tokens if self.visual.proj is None else tokens @ self.visual.proj


class TimmViT(_ViT):
    """A ViT of timm inside open_clip (SigLIP, EVA, MobileCLIP-B, PE, ViTamin).

    Its native tokens are the class and register tokens, as far as it has any, and the patches.
    Where positions enter the attention by rotation (EVA, PE), tokens after the patches are not
    rotated, like the class token.
    """

    PARTS = ("blocks", "patch_embed", "_pos_embed", "norm_pre", "norm", "forward_head", "embed_dim")

    def __init__(self, visual: nn.Module):
        self.visual, self.trunk, self.home = visual, visual.trunk, (visual.trunk, "blocks")
        self.width = int(visual.trunk.embed_dim)

    @classmethod
    def fits(cls, visual: nn.Module) -> bool:
        trunk = getattr(visual, "trunk", None)
        return trunk is not None and all(hasattr(trunk, part) for part in cls.PARTS)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.trunk._pos_embed(self.trunk.patch_embed(x))
        return tokens[0] if isinstance(tokens, tuple) else tokens  # EVA adds its rotations

    def norm(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.trunk.norm_pre(tokens)

    def callables(self, run: Callable[[nn.Module], Callable]) -> list[Callable]:
        """The blocks as functions of tokens, where the tower has them with its rotations."""
        rope = getattr(self.trunk, "rope", None)
        if rope is None:
            return super().callables(run)
        shape = {} if hasattr(rope, "feat_shape") else {"shape": self.trunk.patch_embed.grid_size}
        rotations = rope.get_embed(**shape)  # (patches, 2 d/H): sines, then cosines
        by_layer = bool(getattr(self.trunk, "rope_mixed", False))  # (layers, heads, patches, 2 d)

        def rotated(block: Callable, rope: torch.Tensor) -> Callable:
            def call(tokens: torch.Tensor) -> torch.Tensor:
                known = self.trunk.num_prefix_tokens + rope.shape[-2]
                return block(tokens, rope=unrotated_after(rope, tokens.shape[1] - known))

            return call

        return [
            rotated(run(block), rotations[layer] if by_layer else rotations)
            for layer, block in enumerate(self.block_modules)
        ]

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.visual.head(self.trunk.forward_head(self.trunk.norm(tokens)))


def unrotated_after(rope: torch.Tensor, count: int) -> torch.Tensor:
    """Put ``count`` rotations by nothing (sine 0, cosine 1) after ``rope`` (..., N, 2 d)."""
    if count <= 0:
        return rope
    sine, cosine = rope[..., :1, :].chunk(2, dim=-1)  # (..., 1, d)
    still = torch.cat([torch.zeros_like(sine), torch.ones_like(cosine)], dim=-1)
    return torch.cat([rope, still.expand(*rope.shape[:-2], count, -1)], dim=-2)


def face_of(visual: nn.Module) -> ClipViT | TimmViT | None:
    """Return the face of an image tower, None where it cannot be taken apart."""
    return next((face(visual) for face in (ClipViT, TimmViT) if face.fits(visual)), None)
