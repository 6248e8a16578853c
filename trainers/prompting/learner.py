"""Learned context vectors around the class names (CoOp, Zhou et al. 2022, section 3.2)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import nn

from ..backbone.adapter import CLIPAdapter
from ..backbone.features import Prompts
from ..utils.errors import UserError, nearest

POSITIONS = ("end", "middle", "front")
INIT_STD = 0.02


class PromptFrame(nn.Module):
    """The fixed part of the classes' prompts, with holes for M vectors.

    Args:
        layout: token ids (K, L) on the CPU; the hole for vector j is written as -1 - j.
        clip: the frozen backbone.
        csc: the vectors differ between classes.

    Attributes:
        fixed: (K, L, d_t) embeddings of the fixed tokens.
        place: (K, M) positions of the vectors, ascending.
        eot: (K,) positions of the end tokens, on the CPU.
        shared: positions before the first one that differs between classes.
    """

    def __init__(self, layout: torch.Tensor, clip: CLIPAdapter, *, csc: bool = False):
        super().__init__()
        place = torch.stack([row.lt(0).nonzero().flatten() for row in layout])  # (K, M)
        tokens = layout.clamp(min=0)
        self.eot = clip.end_of_text(tokens)  # on the CPU: the text tower cuts by it
        self.shared = _common_prefix(layout, csc)
        with torch.no_grad():
            fixed = clip.embed_tokens(tokens).float()  # (K, L, d_t)
        self.register_buffer("fixed", fixed, persistent=False)
        self.register_buffer("place", place.to(fixed.device), persistent=False)
        self._columns = place[0].tolist()  # counts holes before a position, without a device

    def fill(self, ctx: torch.Tensor | None = None) -> Prompts:
        """Put vectors (M, d_t) or (K, M, d_t) into the holes; None where there are no holes.

        Returns:
            embeddings (K, L, d_t), end positions and length of the shared prefix.
        """
        if ctx is None:
            return Prompts(self.fixed, self.eot, self.shared)
        n_class, _, width = self.fixed.shape
        ctx = ctx.expand(n_class, -1, -1)  # (K, M, d_t)
        place = self.place[..., None].expand(-1, -1, width)  # (K, M, d_t)
        return Prompts(self.fixed.scatter(1, place, ctx), self.eot, self.shared)

    def replace(self, x: torch.Tensor, ctx: torch.Tensor, rows: slice, start: int) -> torch.Tensor:
        """Put vectors (M, d_t) or (K, M, d_t) in place of the outputs at their positions.

        Args:
            x: (C, N, d_t), the positions from ``start`` on of the classes in ``rows``; ``start``
                and the end of x each have the same number of holes before them in every class.
        """
        low = bisect_left(self._columns, start)
        high = bisect_left(self._columns, start + x.shape[1])
        if low == high:
            return x
        place = self.place[rows, low:high, None] - start  # (C, m, 1)
        ctx = (ctx[rows] if ctx.dim() == 3 else ctx)[..., low:high, :]  # ([C,] m, d_t)
        ctx = ctx.to(x.dtype).expand(len(x), -1, -1)  # (C, m, d_t)
        return x.scatter(1, place.expand_as(ctx), ctx)


class PromptLearner(PromptFrame):
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
        words = context_words(clip, ctx_init)
        n_ctx = len(words) or n_ctx
        if n_ctx < 1:
            raise UserError(f"N_CTX is {n_ctx} but at least one context vector is needed")
        super().__init__(prompt_layout(classnames, clip, n_ctx, position), clip, csc=csc)
        self.classnames, self.n_ctx, self.position = list(classnames), n_ctx, position
        n_class, _, width = self.fixed.shape
        if words:
            ctx = embed_words(clip, words)  # (M, d_t)
            ctx = ctx.expand(n_class, -1, -1) if csc else ctx
        else:
            shape = (n_class, n_ctx, width) if csc else (n_ctx, width)
            ctx = torch.empty(shape).normal_(std=INIT_STD).to(self.fixed)
        self.ctx = nn.Parameter(ctx.clone())

    def forward(self) -> Prompts:
        """Return the current prompts: embeddings (K, L, d_t), end positions, shared prefix."""
        return self.fill(self.ctx)


def context_words(clip: CLIPAdapter, text: str) -> list[int]:
    """Token ids of the words a context starts from; none for an empty text.

    Raises:
        UserError: the backbone's text tower takes no learned prompts.
    """
    if clip.tokenizer.encode is None or not clip.takes_prompts:
        raise UserError(
            f"the text tower of backbone {clip.name} takes no learned prompts; choose a "
            "backbone with CLIP's own text tower"
        )
    return list(clip.tokenizer.encode(text.replace("_", " "))) if text else []


@torch.no_grad()
def embed_words(clip: CLIPAdapter, words: list[int]) -> torch.Tensor:
    """Embeddings (M, d_t), float32, of token ids."""
    return clip.embed_tokens(torch.tensor([words]))[0].float()


def prompt_layout(
    names: list[str],
    clip: CLIPAdapter,
    n_ctx: int,
    position: str,
    words: Sequence[int] = (),
) -> torch.Tensor:
    """Token ids of every prompt (K, L); context vector j is written as -1 - j.

    ``words`` are ids of fixed words between the context and the name (position ``end``).
    """
    if position not in POSITIONS:
        raise UserError(
            f"CLASS_TOKEN_POSITION '{position}' is unknown.{nearest(position, POSITIONS)}"
        )
    tokenizer, encode = clip.tokenizer, clip.tokenizer.encode
    context = [-1 - j for j in range(n_ctx)]
    rows = []
    for name in names:
        spoken = name.replace("_", " ")
        ids = encode(spoken + ".")
        before, after = {
            "end": ([*context, *words], []),
            "middle": (context[: n_ctx // 2], context[n_ctx // 2 :]),
            "front": ([], context),
        }[position]
        # the full stop stands last in every position, as in CoOp
        split = len(encode(spoken)) if after else len(ids)
        row = [*tokenizer.start, *before, *ids[:split], *after, *ids[split:], *tokenizer.end]
        if len(row) > clip.context_length:
            raise UserError(
                f"class '{name}' with {n_ctx} context vectors takes {len(row)} tokens but the text "
                f"tower reads {clip.context_length}; lower N_CTX or shorten the name"
            )
        rows.append(row)
    # a causal tower never looks past the end tokens; others see the padding too
    length = max(map(len, rows)) if clip.causal else clip.context_length
    return tokenizer.rows(rows, length)


def _common_prefix(layout: torch.Tensor, csc: bool) -> int:
    """Number of leading positions that hold the same in every class."""
    same = (layout == layout[:1]).all(dim=0)  # (L,)
    if csc and len(layout) > 1:
        same &= (layout >= 0).all(dim=0)  # class-specific vectors differ
    return int(same.cumprod(dim=0).sum())
