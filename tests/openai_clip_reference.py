"""OpenAI's CLIP written again from the paper and its state-dict layout: an independent oracle.

Sequence-first blocks with their own attention mask and half-precision rounding in ``build_model``,
as users of a ``clip`` package have them. Only the layout (names, shapes, arithmetic) is shared with
the original; nothing here comes from open_clip or from this project's adapter.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * (1.702 * x).sigmoid()


class Block(nn.Module):
    def __init__(self, width, mask=None):
        super().__init__()
        self.ln_1, self.ln_2 = LayerNorm(width), LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // 64)
        wide, narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(c_fc=wide, gelu=QuickGELU(), c_proj=narrow))
        self.attn_mask = mask

    def forward(self, x):  # (L, N, d)
        y = self.ln_1(x)
        mask = None if self.attn_mask is None else self.attn_mask.to(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, layers, mask=None):
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, mask) for _ in range(layers)))

    def forward(self, x):
        return self.resblocks(x.transpose(0, 1)).transpose(0, 1)  # (N, L, d)


class VisionTransformer(nn.Module):
    def __init__(self, width, layers, patch, grid, out):
        super().__init__()
        self.input_resolution = patch * grid
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(grid * grid + 1, width))
        self.ln_pre, self.ln_post = LayerNorm(width), LayerNorm(width)
        self.transformer = Transformer(width, layers)
        self.proj = nn.Parameter(torch.zeros(width, out))

    def forward(self, x):
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([cls, patches], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Bottleneck(nn.Module):
    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.stride, self.downsample = stride, None
        if stride > 1 or inside != 4 * width:
            conv, norm = nn.Conv2d(inside, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
            parts = {"-1": nn.AvgPool2d(stride), "0": conv, "1": norm}
            self.downsample = nn.Sequential(OrderedDict(parts))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = F.avg_pool2d(self.bn2(self.conv2(y)).relu(), self.stride)
        y = self.bn3(self.conv3(y))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class AttentionPool(nn.Module):
    def __init__(self, grid, width, heads, out):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(grid * grid + 1, width))
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.c_proj = nn.Linear(width, width), nn.Linear(width, out)
        self.heads = heads

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)  # (N, HW, d)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        q, k, v = (
            p(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for p, t in ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x))
        )
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.c_proj((weights @ v).transpose(1, 2).flatten(1))


class ModifiedResNet(nn.Module):
    def __init__(self, counts, width, grid, out):
        super().__init__()
        self.input_resolution = 32 * grid
        half = width // 2
        for i, (a, b, stride) in enumerate(((3, half, 2), (half, half, 1), (half, width, 1)), 1):
            self.add_module(f"conv{i}", nn.Conv2d(a, b, 3, stride, padding=1, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        inside = width
        for stage, count in enumerate(counts):
            stage_width, layer = width * 2**stage, nn.Sequential()
            for i in range(count):
                layer.append(Bottleneck(inside, stage_width, 2 if stage and not i else 1))
                inside = 4 * stage_width
            self.add_module(f"layer{stage + 1}", layer)
        self.attnpool = AttentionPool(grid, inside, width // 2, out)

    def forward(self, x):
        for i in (1, 2, 3):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)).relu()
        x = F.avg_pool2d(x, 2)
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
        return self.attnpool(x)


class CLIP(nn.Module):
    def __init__(self, state):
        super().__init__()
        out = state["text_projection"].shape[1]
        width = state["ln_final.weight"].shape[0]
        length = state["positional_embedding"].shape[0]

        def blocks(prefix):
            return len({k[len(prefix) :].split(".")[0] for k in state if k.startswith(prefix)})

        if "visual.proj" in state:
            conv = state["visual.conv1.weight"]
            grid = math.isqrt(len(state["visual.positional_embedding"]))
            self.visual = VisionTransformer(
                conv.shape[0], blocks("visual.transformer.resblocks."), conv.shape[-1], grid, out
            )
        else:
            self.visual = ModifiedResNet(
                [blocks(f"visual.layer{i}.") for i in (1, 2, 3, 4)],
                state["visual.layer1.0.conv1.weight"].shape[0],
                math.isqrt(len(state["visual.attnpool.positional_embedding"])),
                out,
            )
        mask = torch.full((length, length), float("-inf")).triu(1)
        self.transformer = Transformer(width, blocks("transformer.resblocks."), mask)
        self.context_length = length
        self.token_embedding = nn.Embedding(len(state["token_embedding.weight"]), width)
        self.positional_embedding = nn.Parameter(torch.zeros(length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, out))
        self.logit_scale = nn.Parameter(torch.zeros([]))

    def encode_image(self, image):
        return self.visual(image.to(self.visual.conv1.weight.dtype))

    def encode_text(self, text):
        x = self.token_embedding(text) + self.positional_embedding
        x = self.ln_final(self.transformer(x.to(self.text_projection.dtype)))
        return x[torch.arange(len(x)), text.argmax(-1)] @ self.text_projection


def build_model(state_dict):
    model = CLIP(state_dict)
    for key in ("input_resolution", "context_length", "vocab_size"):
        state_dict.pop(key, None)
    for module in model.modules():  # OpenAI keeps matrices in half precision
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
            module.half()
    model.load_state_dict(state_dict)
    return model.eval()
