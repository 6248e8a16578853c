"""Attacking a fork's model with its text path memoised, against its forward as it is.

    python -m benchmarks.host_text          # about 5 minutes on one CPU core

The models are made as CoOp's, MaPLe's and PromptSRC's code makes them: prompts before the class
names; deep prompts of the text that are projected to the image's; deep prompts of both, each their
own. The towers are of ViT-B/32's size. One measurement is a PGD step of 4 images (forward and
gradient in the pixels) in processor time; as it is, the prompts are trainable, as in the fork. The
two take turns.
"""

import copy
import statistics
import time

import torch
from torch import Tensor, nn

from advprompt.evaluation.memo import Memo

KINDS = ("CoOp-like", "MaPLe-like", "PromptSRC-like")
CLASSES, BATCH = (37, 100), 4
TOKENS, LAYERS, COUNT, PAIRS = 77, range(12), 4, 2


class Tower(nn.Module):
    """Transformer blocks; deep prompts replace the first tokens in front of the later blocks."""

    def __init__(self, width: int):
        from open_clip.transformer import QuickGELU, ResidualAttentionBlock

        super().__init__()
        blocks = (ResidualAttentionBlock(width, width // 64, act_layer=QuickGELU) for _ in LAYERS)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor, deeper=(), mask: Tensor | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):  # of tokens (B, N, D)
            if 0 < i <= len(deeper):
                own = deeper[i - 1].expand(len(tokens), -1, -1)
                tokens = torch.cat([own, tokens[:, COUNT:]], 1)
            tokens = block(tokens, attn_mask=mask)
        return tokens


class Prompts(nn.Module):
    """Returns the text's tokens, the image's first prompts, and deep prompts of both."""

    def __init__(self, kind: str, classes: int):
        super().__init__()
        self.kind = kind
        self.ctx = nn.Parameter(torch.randn(COUNT, 512) * 0.02)
        self.deep = nn.Parameter(torch.randn(len(LAYERS) - 1, COUNT, 512) * 0.02)
        self.own = nn.Parameter(torch.randn(len(LAYERS), COUNT, 768) * 0.02)  # of the image
        self.proj = nn.ModuleList(nn.Linear(512, 768) for _ in LAYERS)
        self.register_buffer("names", torch.randn(classes, TOKENS - COUNT, 512) * 0.02)

    def forward(self):
        text = torch.cat([self.ctx.expand(len(self.names), -1, -1), self.names], 1)  # (K, 77, 512)
        if self.kind == "CoOp-like":
            return text, None, [], []
        if self.kind == "PromptSRC-like":
            return text, self.own[0], [*self.deep], [*self.own[1:]]
        visual = [layer(x) for layer, x in zip(self.proj, [self.ctx, *self.deep], strict=True)]
        return text, visual[0], [*self.deep], visual[1:]


class Host(nn.Module):
    def __init__(self, kind: str, classes: int):
        super().__init__()
        self.prompt_learner, self.text_encoder = Prompts(kind, classes), Tower(512)
        self.patches, self.vision = nn.Conv2d(3, 768, 32, 32), Tower(768)
        self.head = nn.Linear(768, 512, bias=False)
        self.register_buffer("mask", torch.full((TOKENS, TOKENS), -torch.inf).triu(1))

    def forward(self, pixels: Tensor) -> Tensor:
        prompts, first, deep_text, deep_image = self.prompt_learner()
        text = self.text_encoder(prompts, deep_text, self.mask)[:, -1]  # (K, 512)
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)  # (B, 49, 768)
        if first is not None:
            tokens = torch.cat([first.expand(len(pixels), -1, -1), tokens], 1)
        image = self.head(self.vision(tokens, deep_image)[:, -1])
        image, text = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
        return 100 * image @ text.t()


def step(host: Host, pixels: Tensor) -> tuple[float, Tensor, Tensor]:
    pixels = pixels.clone().requires_grad_()
    clock = time.process_time()
    logits = host(pixels)
    gradient = torch.autograd.grad(logits.logsumexp(1).sum(), pixels)[0]
    return time.process_time() - clock, logits.detach(), gradient


def main() -> None:
    torch.manual_seed(0)
    print("| prompts | classes | times faster (range) | bitwise equal |\n" + "|---" * 4 + "|")
    for kind, classes in ((k, c) for k in KINDS for c in CLASSES):
        host = Host(kind, classes).eval().requires_grad_(False)
        quick = copy.deepcopy(host)
        host.prompt_learner.requires_grad_(True)
        pixels, ratios, equal = torch.rand(BATCH, 3, 224, 224), [], True
        Memo(nn.ModuleList([quick])).start(quick, pixels)
        for _ in range(PAIRS):
            seconds, *plain = step(host, pixels)
            faster, *same = step(quick, pixels)
            equal &= all(map(torch.equal, plain, same))
            ratios.append(seconds / faster)
        figures = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"| {kind} | {classes} | {figures} | {'yes' if equal else 'no'} |")


if __name__ == "__main__":
    main()
