"""One transformer block run with its own weights: cut, shared-prefix and plain attention.

CLIP's text tower is causal, so the positions before the class name do not see it: they are
computed once, and every class continues from their keys and values. The functions below only read
a block's parameters and call its sub-modules; the block is never changed. They serve blocks of
open_clip (batch-first, optional LayerScale) and of OpenAI's ``clip`` (sequence-first) alike.
"""

import torch
import torch.nn.functional as F
from torch import nn

QUICK = 1.702  # the constant of OpenAI's approximation of GELU


def is_standard(block: nn.Module) -> bool:
    """Return True if ``block`` is CLIP's pre-norm block around ``nn.MultiheadAttention``."""
    attn = getattr(block, "attn", None)
    return (
        isinstance(attn, nn.MultiheadAttention)
        and attn.in_proj_weight is not None
        and attn.bias_k is None
        and not attn.add_zero_attn
        and all(hasattr(block, name) for name in ("ln_1", "ln_2"))
        and isinstance(getattr(block, "mlp", None), nn.Sequential)
        and not hasattr(block, "ln_1_kv")
    )


class _QuickGELU(torch.autograd.Function):
    """x * sigmoid(1.702 x), written as silu(1.702 x) / 1.702, whose derivative is silu'(1.702 x).

    As plain operations it costs eight passes over the widest activations, backward included, and
    keeps three copies of them; this way five passes and one copy.
    """

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return F.silu(x * QUICK).mul_(1 / QUICK)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)  # and not a multiple, which has no second derivative

    @staticmethod
    def vmap(info, in_dims, x: torch.Tensor):
        return _QuickGELU.apply(x), in_dims[0]

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        scaled = ctx.saved_tensors[0] * QUICK
        if not torch.is_grad_enabled():
            return torch.ops.aten.silu_backward(grad, scaled)
        share = scaled.sigmoid()  # the same, and differentiable again
        return grad * share * (1 + scaled * (1 - share))


def _mlp(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    for module in block.mlp:
        quick = type(module).__name__ == "QuickGELU"  # of open_clip and of every copy of OpenAI's
        x = _QuickGELU.apply(x) if quick else module(x)
    return x


def is_causal(mask: torch.Tensor | None) -> bool:
    """Return True if an additive attention mask (L, L) hides exactly the later positions."""
    if mask is None or mask.dim() != 2:
        return False
    hidden = torch.isneginf(mask)
    return bool((hidden == torch.ones_like(hidden).triu(1)).all())


def _heads(
    block: nn.Module, x: torch.Tensor, asked: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values (H, B, N, d/H) of the normalised tokens (B, N, d).

    With ``asked`` (B, A, d), some of the tokens, there are queries (H, B, A, d/H) of those only.
    """
    attn, x = block.attn, block.ln_1(x)
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    if asked is None:
        qkv = F.linear(x, weight, bias)  # (B, N, 3d)
        qkv = qkv.unflatten(-1, (3, attn.num_heads, -1))  # (B, N, 3, H, d/H)
        return qkv.permute(2, 3, 0, 1, 4).unbind(0)  # 3 x (H, B, N, d/H)
    width = x.shape[-1]
    q_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
    q = F.linear(block.ln_1(asked), weight[:width], q_bias)  # (B, A, d)
    kv = F.linear(x, weight[width:], kv_bias)  # (B, N, 2d)
    q = q.unflatten(-1, (attn.num_heads, -1)).permute(2, 0, 1, 3)  # (H, B, A, d/H)
    kv = kv.unflatten(-1, (2, attn.num_heads, -1))  # (B, N, 2, H, d/H)
    return q, *kv.permute(2, 3, 0, 1, 4).unbind(0)  # and 2 x (H, B, N, d/H)


def _finish(block: nn.Module, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """Output projection, residuals and MLP; ``mixed`` is (H, B, N, d/H)."""
    attn = block.attn
    mixed = mixed.permute(1, 2, 0, 3).flatten(2)  # (B, N, d)
    out = F.linear(mixed, attn.out_proj.weight, attn.out_proj.bias)
    x = x + (block.ls_1(out) if hasattr(block, "ls_1") else out)
    out = _mlp(block, block.ln_2(x))
    return x + (block.ls_2(out) if hasattr(block, "ls_2") else out)


def run_block(
    block: nn.Module, x: torch.Tensor, *, causal: bool, first: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a standard block on tokens (B, N, d) of any number.

    Returns the new tokens, (B, N, d) or the ``first`` ones alone, and the keys and values
    (H, B, N, d/H) of the attention.
    """
    asked = None if first is None else x[:, :first]  # (B, first, d)
    q, k, v = _heads(block, x, asked)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # (H, B, N or first, d/H)
    return _finish(block, x if asked is None else asked, mixed), k, v


def run_suffix(
    block: nn.Module,
    x: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    at: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run a causal standard block on suffixes (C, M, d) that follow one shared prefix.

    ``keys`` and ``values`` (H, 1, S, d/H) of the prefix are used in place by all C classes: the
    scores against them are one matrix product per head, so nothing is copied per class. Returns the
    new tokens (C, M, d), or (C, 1, d) those at the positions ``at`` (C,) alone.
    """
    places = torch.arange(x.shape[1], device=x.device)  # (M,)
    asked, asking = None, places[:, None]
    if at is not None:
        at = at.to(x.device)
        asked = x[torch.arange(len(x), device=x.device), at].unsqueeze(1)  # (C, 1, d)
        asking = at[:, None, None]  # (C, 1, 1)
    q, k, v = _heads(block, x, asked)  # q (H, C, A, d/H), k and v (H, C, M, d/H)
    n_heads, n_class, length, width = q.shape
    shared = keys.shape[2]
    q = q * width**-0.5
    flat = q.reshape(n_heads, n_class * length, width)  # (H, C*A, d/H)
    past = flat @ keys[:, 0].transpose(1, 2)  # (H, C*A, S)
    own = q @ k.transpose(2, 3)  # (H, C, A, M)
    own = own.masked_fill(places > asking, float("-inf"))  # what comes later is hidden
    scores = torch.cat([past.view(n_heads, n_class, length, shared), own], dim=-1)
    weights = scores.softmax(dim=-1).to(v.dtype)  # (H, C, A, S + M)
    past = weights[..., :shared].reshape(n_heads, n_class * length, shared)
    mixed = (past @ values[:, 0]).view(n_heads, n_class, length, width)
    return _finish(block, x if asked is None else asked, mixed + weights[..., shared:] @ v)
