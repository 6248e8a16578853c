"""A random CLIP of toy size in OpenAI's layout: builds in milliseconds, any provider loads it."""

from __future__ import annotations

import torch

VOCABULARY = 49408


def _blocks(state, prefix, layers, width, normal):
    for i in range(layers):
        at = f"{prefix}transformer.resblocks.{i}."
        state[at + "attn.in_proj_weight"] = normal(3 * width, width, std=width**-0.5)
        state[at + "attn.in_proj_bias"] = normal(3 * width, std=0.02)
        state[at + "attn.out_proj.weight"] = normal(width, width, std=width**-0.5)
        state[at + "attn.out_proj.bias"] = normal(width, std=0.02)
        for name in ("ln_1", "ln_2"):
            state[at + name + ".weight"] = 1 + normal(width, std=0.02)
            state[at + name + ".bias"] = normal(width, std=0.02)
        state[at + "mlp.c_fc.weight"] = normal(4 * width, width, std=width**-0.5)
        state[at + "mlp.c_fc.bias"] = normal(4 * width, std=0.02)
        state[at + "mlp.c_proj.weight"] = normal(width, 4 * width, std=0.5 * width**-0.5)
        state[at + "mlp.c_proj.bias"] = normal(width, std=0.02)


def toy_state_dict(
    *,
    vision_width: int = 64,
    layers: int = 2,
    patch: int = 8,
    image: int = 32,
    text_width: int = 64,
    text_layers: int = 2,
    embed_dim: int = 32,
    context: int = 77,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Random ViT CLIP weights; widths are multiples of 64 (the width of a head)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, std):
        return torch.randn(*shape, generator=generator) * std

    state = {
        "logit_scale": torch.tensor(100.0).log(),
        "text_projection": normal(text_width, embed_dim, std=text_width**-0.5),
        "positional_embedding": normal(context, text_width, std=0.05),
        "token_embedding.weight": normal(VOCABULARY, text_width, std=0.05),
        "ln_final.weight": 1 + normal(text_width, std=0.02),
        "ln_final.bias": normal(text_width, std=0.02),
        "visual.class_embedding": normal(vision_width, std=vision_width**-0.5),
        "visual.positional_embedding": normal(
            (image // patch) ** 2 + 1, vision_width, std=vision_width**-0.5
        ),
        "visual.proj": normal(vision_width, embed_dim, std=vision_width**-0.5),
        "visual.conv1.weight": normal(vision_width, 3, patch, patch, std=0.1),
    }
    for name in ("ln_pre", "ln_post"):
        state[f"visual.{name}.weight"] = 1 + normal(vision_width, std=0.02)
        state[f"visual.{name}.bias"] = normal(vision_width, std=0.02)
    _blocks(state, "visual.", layers, vision_width, normal)
    _blocks(state, "", text_layers, text_width, normal)
    return state


def toy_clip(*, provider: str = "open_clip", **sizes):
    """An adapter around :func:`toy_state_dict` (32x32 images, 32 features)."""
    from advprompt.backbone import make_adapter

    return make_adapter(toy_state_dict(**sizes), name="toy", provider=provider)
