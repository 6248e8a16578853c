"""Learned context vectors around the class names (CoOp, Zhou et al. 2022, section 3.2)."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import UserError, nearest
from .adapter import CLIPAdapter
from .features import Prompts

POSITIONS = ("end", "middle", "front")
INIT_STD = 0.02


class PromptLearner(nn.Module):
    """Prompts ``[SOS] v1 ... vM name . [EOS]`` with trainable vectors v.

    Args:
        classnames: K names; underscores become blanks.
        clip: the frozen backbone.
        n_ctx: number of context vectors; with ``ctx_init`` the number of its tokens.
        ctx_init: words to start from, e.g. ``a photo of a``; else N(0, 0.02^2).
        csc: class-specific contexts, one set of vectors per class.
        position: where the name stands: ``end`` (after the context), ``middle`` (between its
            halves) or ``front``.

    Attributes:
        ctx: the parameter, (M, d_t), with ``csc`` (K, M, d_t).
        shared: positions before the first one that differs between classes.

    Raises:
        UserError: unknown position, too few vectors, or a name that does not fit the context.
    """

    def __init__(
        self,
        classnames: list[str],
        clip: CLIPAdapter,
        *,
        n_ctx: int,
        ctx_init: str = "",
        csc: bool = False,
        position: str = "end",
    ):
        super().__init__()
        if position not in POSITIONS:
            raise UserError(
                f"CLASS_TOKEN_POSITION '{position}' is unknown.{nearest(position, POSITIONS)}"
            )
        encode = clip.tokenizer.encode
        if encode is None or not clip.takes_prompts:
            raise UserError(
                f"the text tower of backbone {clip.name} takes no learned prompts; choose a "
                "backbone with CLIP's own text tower"
            )
        words = encode(ctx_init.replace("_", " ")) if ctx_init else []
        n_ctx = len(words) or n_ctx
        if n_ctx < 1:
            raise UserError(f"N_CTX is {n_ctx} but at least one context vector is needed")
        self.classnames, self.n_ctx, self.position = list(classnames), n_ctx, position

        layout = _layout(self.classnames, clip, n_ctx, position)  # (K, L), context as -1 ... -M
        place = torch.stack([row.lt(0).nonzero().flatten() for row in layout])  # (K, M)
        tokens = layout.clamp(min=0)
        self.eot = clip.end_of_text(tokens)  # on the CPU: the text tower cuts by it
        self.shared = _common_prefix(layout, csc)
        with torch.no_grad():
            fixed = clip.embed_tokens(tokens).float()  # (K, L, d_t)
            width = fixed.shape[-1]
            if words:
                ctx = clip.embed_tokens(torch.tensor([words]))[0].float()  # (M, d_t)
                ctx = ctx.expand(len(layout), -1, -1) if csc else ctx
            else:
                shape = (len(layout), n_ctx, width) if csc else (n_ctx, width)
                ctx = torch.empty(shape).normal_(std=INIT_STD).to(fixed)
        self.ctx = nn.Parameter(ctx.clone())
        self.register_buffer("fixed", fixed, persistent=False)
        self.register_buffer("place", place.to(fixed.device), persistent=False)

    def forward(self) -> Prompts:
        """Return the current prompts: embeddings (K, L, d_t), end positions, shared prefix."""
        n_class, _, width = self.fixed.shape
        ctx = self.ctx.expand(n_class, -1, -1)  # (K, M, d_t)
        place = self.place[..., None].expand(-1, -1, width)  # (K, M, d_t)
        return Prompts(self.fixed.scatter(1, place, ctx), self.eot, self.shared)


def _layout(names: list[str], clip: CLIPAdapter, n_ctx: int, position: str) -> torch.Tensor:
    """Token ids of every prompt (K, L); context vector j is written as -1 - j."""
    encode, sot, eot = clip.tokenizer.encode, clip.tokenizer.sot, clip.tokenizer.eot
    context = [-1 - j for j in range(n_ctx)]
    rows = []
    for name in names:
        spoken = name.replace("_", " ")
        ids = encode(spoken + ".")
        before, after = {
            "end": (context, []),
            "middle": (context[: n_ctx // 2], context[n_ctx // 2 :]),
            "front": ([], context),
        }[position]
        # the full stop stands last in every position, as in CoOp
        split = len(encode(spoken)) if after else len(ids)
        row = [sot, *before, *ids[:split], *after, *ids[split:], eot]
        if len(row) > clip.context_length:
            raise UserError(
                f"class '{name}' with {n_ctx} context vectors takes {len(row)} tokens but the text "
                f"tower reads {clip.context_length}; lower N_CTX or shorten the name"
            )
        rows.append(row)
    # a causal tower never looks past the end tokens; others see the padding too
    length = max(map(len, rows)) if clip.causal else clip.context_length
    out = torch.zeros(len(rows), length, dtype=torch.long)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = torch.tensor(row)
    return out


def _common_prefix(layout: torch.Tensor, csc: bool) -> int:
    """Number of leading positions that hold the same in every class."""
    same = (layout == layout[:1]).all(dim=0)  # (L,)
    if csc and len(layout) > 1:
        same &= (layout >= 0).all(dim=0)  # class-specific vectors differ
    return int(same.cumprod(dim=0).sum())
