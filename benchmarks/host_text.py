"""Attacking a fork's model with its text path memoised, against its forward as it is.

    python -m benchmarks.host_text          # 100 classes; about 2 minutes on one CPU core

Both towers have ViT-B/32's widths and 2 of its 12 layers, so that their ratio is that of the whole
model. One measurement is a PGD step (forward and gradient in the pixels); the two take turns.
"""

import statistics
import time

import torch
from torch import Tensor, nn

from advprompt.evaluation.memo import Memo

CLASSES, TOKENS, LAYERS, PAIRS = 100, 77, 2, 4
BATCHES = (4, 16)


def blocks(width: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


class Prompts(nn.Module):
    """CoOp's context; with ``deep`` also the image prompts that MaPLe projects from it."""

    def __init__(self, deep: bool):
        super().__init__()
        self.ctx, self.proj = nn.Parameter(torch.randn(4, 512) * 0.02), nn.Linear(512, 768)
        self.register_buffer("names", torch.randn(CLASSES, TOKENS - 4, 512) * 0.02)
        self.deep = deep

    def forward(self):
        text = torch.cat([self.ctx.expand(CLASSES, -1, -1), self.names], 1)  # (K, 77, 512)
        return text, self.proj(self.ctx) if self.deep else None


class Host(nn.Module):
    def __init__(self, deep: bool):
        super().__init__()
        self.prompt_learner, self.text_encoder = Prompts(deep), blocks(512)
        self.patches, self.vision = nn.Conv2d(3, 768, 32, 32), blocks(768)
        self.head = nn.Linear(768, 512, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        prompts, visual = self.prompt_learner()
        text = self.text_encoder(prompts)[:, -1]  # (K, 512)
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)  # (B, 49, 768)
        if visual is not None:
            tokens = torch.cat([tokens, visual.expand(len(pixels), -1, -1)], 1)
        image = self.head(self.vision(tokens).mean(1))
        image, text = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
        return 100 * image @ text.t()


def step(host: Host, pixels: Tensor) -> tuple[float, Tensor, Tensor]:
    pixels = pixels.clone().requires_grad_()
    clock = time.perf_counter()
    logits = host(pixels)
    gradient = torch.autograd.grad(logits.logsumexp(1).sum(), pixels)[0]
    return time.perf_counter() - clock, logits.detach(), gradient


def main() -> None:
    torch.manual_seed(0)
    for kind in ("text-only", "MaPLe-like"):
        host = Host(kind != "text-only").eval().requires_grad_(False)
        memo = Memo(nn.ModuleList([host]))
        for batch in BATCHES:
            pixels, ratios, equal = torch.rand(batch, 3, 224, 224), [], True
            for _ in range(PAIRS):
                plain = step(host, pixels)
                memo.start(host, pixels)
                quick = step(host, pixels)
                memo.stop()
                equal &= all(map(torch.equal, plain[1:], quick[1:]))
                ratios.append(plain[0] / quick[0])
            low, high = min(ratios), max(ratios)
            print(
                f"{kind}, {CLASSES} classes, {batch} images: {statistics.median(ratios):.1f}x "
                f"({low:.1f} to {high:.1f}), logits and gradients bitwise equal: {equal}"
            )


if __name__ == "__main__":
    main()
