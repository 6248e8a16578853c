"""The fixed tokens around learned text vectors, placed as in CoOp (Zhou et al. 2022)."""

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import nn

from ..backbone.adapter import CLIPAdapter
from ..backbone.features import Prompts
from ..utils.errors import UserError


class PromptFrame(nn.Module):
    """The fixed part of the classes' prompts, with holes for M vectors.

    Args:
        layout: token ids (K, L) on the CPU; the hole for vector j is written as -1 - j.
        clip: the frozen backbone.
        csc: the vectors differ between classes.
    """

    def __init__(self, layout: torch.Tensor, clip: CLIPAdapter, *, csc: bool = False):
        super().__init__()
        place = torch.stack([row.lt(0).nonzero().flatten() for row in layout])  # (K, M), ascending
        tokens = layout.clamp(min=0)
        self.eot = clip.end_of_text(tokens)  # (K,) positions of the end tokens, on the CPU
        same = (layout == layout[:1]).all(dim=0)  # (L,)
        if csc and len(layout) > 1:
            same &= (layout >= 0).all(dim=0)  # class-specific vectors differ
        self.shared = int(same.cumprod(dim=0).sum())  # leading positions alike in every class
        with torch.no_grad():
            fixed = clip.embed_tokens(tokens).float()  # (K, L, d_t)
        self.register_buffer("fixed", fixed, persistent=False)
        self.register_buffer("place", place.to(fixed.device), persistent=False)
        self._columns = place[0].tolist()  # counts holes before a position, without a device

    def fill(self, vectors: torch.Tensor | None = None) -> Prompts:
        """Put vectors (M, d_t) or (K, M, d_t) into the holes; None where there are no holes."""
        if vectors is None:
            return Prompts(self.fixed, self.eot, self.shared)
        classes, _, width = self.fixed.shape
        vectors = vectors.expand(classes, -1, -1)  # (K, M, d_t)
        place = self.place[..., None].expand(-1, -1, width)  # (K, M, d_t)
        return Prompts(self.fixed.scatter(1, place, vectors), self.eot, self.shared)

    def replace(
        self, x: torch.Tensor, vectors: torch.Tensor, rows: slice, start: int
    ) -> torch.Tensor:
        """Put vectors (M, d_t) or (K, M, d_t) in place of the outputs at their positions.

        ``x`` (C, N, d_t) are the positions from ``start`` on of the classes in ``rows``; ``start``
        and the end of x each have the same number of holes before them in every class.
        """
        low = bisect_left(self._columns, start)
        high = bisect_left(self._columns, start + x.shape[1])
        if low == high:
            return x
        place = self.place[rows, low:high, None] - start  # (C, m, 1)
        vectors = (vectors[rows] if vectors.dim() == 3 else vectors)[..., low:high, :]
        vectors = vectors.to(x.dtype).expand(len(x), -1, -1)  # (C, m, d_t)
        return x.scatter(1, place.expand_as(vectors), vectors)


def context_words(clip: CLIPAdapter, text: str) -> list[int]:
    """Return the token ids of words; UserError for a text tower that takes no learned prompts."""
    if clip.tokenizer.encode is None or not clip.takes_prompts:
        raise UserError(
            f"the text tower of backbone {clip.name} takes no learned prompts; choose a "
            "backbone with CLIP's own text tower"
        )
    return list(clip.tokenizer.encode(text.replace("_", " "))) if text else []


def prompt_layout(
    names: list[str], clip: CLIPAdapter, count: int, position: str, words: Sequence[int] = ()
) -> torch.Tensor:
    """Return the token ids of every prompt (K, L); vector j of ``count`` is written as -1 - j.

    Underscores in the K ``names`` become blanks. A name stands at the ``end`` (after the vectors
    and the ids ``words`` of fixed words), in the ``middle`` or in ``front``.
    """
    tokenizer, encode = clip.tokenizer, clip.tokenizer.encode
    holes = [-1 - j for j in range(count)]
    before, after = {
        "end": ([*holes, *words], []),
        "middle": (holes[: count // 2], holes[count // 2 :]),
        "front": ([], holes),
    }[position]
    rows = []
    for name in names:
        spoken = name.replace("_", " ")
        ids = encode(spoken + ".")
        # the full stop stands last in every position, as in CoOp
        split = len(encode(spoken)) if after else len(ids)
        row = [*tokenizer.start, *before, *ids[:split], *after, *ids[split:], *tokenizer.end]
        if len(row) > clip.context_length:
            raise UserError(
                f"class '{name}' with {count} context vectors takes {len(row)} tokens but the text "
                f"tower reads {clip.context_length}; lower N_CTX or shorten the name"
            )
        rows.append(row)
    # a causal tower never looks past the end tokens; others see the padding too
    return tokenizer.rows(rows, max(map(len, rows)) if clip.causal else clip.context_length)
