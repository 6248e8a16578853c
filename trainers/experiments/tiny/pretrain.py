"""Pre-train the built-in small CLIP and its robust sibling.

    python -m advprompt.experiments.tiny.pretrain --data $DATA --output output/tiny

Stage 1, ``tiny``: contrastive learning of captions; several captions may fit an image.
Stage 2, ``tiny-robust``: the image tower alone, adversarially fine-tuned against the frozen
text tower (TeCoA, Mao et al. 2023: cross-entropy on PGD images over the class prompts).
Half an hour on 2 CPU cores, minutes on a GPU. Every batch depends only on the seed and the step.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from ...utils import io
from ...utils.entry import run_tool
from ...utils.errors import UserError
from .corpus import REAL, CaptionedImages, load_real, pair_labels

WIDTH = 128  # of both towers and of their joint space; a multiple of 64 in OpenAI CLIP's layout
SIDE, PATCH = 64, 8  # pixels
VISION = dict(image_size=SIDE, patch_size=PATCH, width=WIDTH, layers=6, head_width=64)
TEXT = dict(context_length=77, width=WIDTH, heads=2, layers=3)
COUNTS = {"shapes": 120, "eurosat": 24, "caltech": 16}  # images of a batch
SIZES = {"eurosat": 64, "caltech": 80}  # pixels to which photos are decoded
PEAK, ROBUST_PEAK = 1.2e-3, 5e-4  # learning rates
LATER = 10_000_000  # first step of drawings that stage 1 never saw


def build_model(vocabulary: int):
    """Return a freshly initialised open_clip model with ``vocabulary`` token rows."""
    from open_clip.model import CLIP

    model = CLIP(WIDTH, VISION, TEXT | {"vocab_size": vocabulary}, quick_gelu=True)
    # CLIP's start for positions is too faint here: shapes were learned several times slower
    with torch.no_grad():
        model.visual.positional_embedding.copy_(sine_positions(WIDTH, SIDE // PATCH))
    return model


def sine_positions(width: int, side: int) -> torch.Tensor:
    """Return (1 + side * side, width): zeros for [CLS], sines and cosines of x and y."""
    waves = math.pi / 2 / side ** (torch.arange(width // 4) / (width / 4))  # (width / 4,)
    y, x = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    angles = [axis.flatten()[:, None] * waves for axis in (x, y)]  # 2 x (side * side, width / 4)
    rows = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width), rows])


class Vocabulary:
    """The token ids that occur, in rising order, so that the end token stays the largest."""

    def __init__(self, texts: list[str]):
        from open_clip.tokenizer import tokenize

        self._tokenize = tokenize
        self.rows = torch.unique(tokenize(texts))  # (V,)

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Tokenize into (K, L) indices of :attr:`rows`, cut after the last end token."""
        tokens = self._tokenize(texts)
        tokens = tokens[:, : int(tokens.argmax(1).max()) + 1]
        return torch.searchsorted(self.rows, tokens.contiguous())


def encode_text(model, tokens: torch.Tensor) -> torch.Tensor:
    """Return normalised text features (K, D) for cut tokens (K, L)."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)]  # (K, d)
    return F.normalize((x @ model.text_projection).float(), dim=-1)


def contrastive_loss(logits: torch.Tensor, fits: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy of logits (B, U); the target is uniform over all that fit (B, U)."""
    target = fits.float()
    images = -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    texts = -(target / target.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (images + texts) / 2


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then cosine to 1 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def encode_images(model, pixels: torch.Tensor, args) -> torch.Tensor:
    """Return normalised features (B, D) of pixels (B, 3, H, W) in [0, 1]."""
    from open_clip.constants import OPENAI_DATASET_MEAN as MEAN
    from open_clip.constants import OPENAI_DATASET_STD as STD

    mean, std = (torch.tensor(v, device=args.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
        features = model.encode_image((pixels - mean) / std)
    return F.normalize(features.float(), dim=-1)


def train(name: str, parameters: list, step_fn, steps: int, peak: float, warmup: int) -> None:
    """Minimise ``step_fn(step)`` over all steps."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.05)
    for step in (bar := tqdm(range(steps), name, mininterval=10)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, warmup)
        loss = step_fn(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 10 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)


def train_contrastive(model, data, vocabulary, args) -> None:
    """Stage 1."""

    def step_fn(step):
        images, captions, fits = data.batch(step)
        tokens, fits = vocabulary(captions).to(args.device), fits.to(args.device)
        features = encode_images(model, images.to(args.device), args)
        scale = model.logit_scale.exp().clamp(max=100)
        logits = scale * features @ encode_text(model, tokens).t()  # (B, U)
        return contrastive_loss(logits, fits)

    warmup = min(100, args.steps // 5)
    train("tiny", list(model.parameters()), step_fn, args.steps, PEAK, warmup)
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(100))


def train_robust(model, data, vocabulary, args) -> None:
    """Stage 2."""
    model.requires_grad_(False)
    model.visual.requires_grad_(True)
    steps = args.robust_steps
    with torch.no_grad():
        texts = {
            kind: encode_text(model, vocabulary(prompts).to(args.device))
            for kind, prompts in data.classes().items()
        }
        scale = model.logit_scale.exp()

    def loss_of(pixels, groups):
        features = encode_images(model, pixels, args).split([len(labels) for _, labels in groups])
        losses = [
            F.cross_entropy(scale * part @ texts[kind].t(), labels, reduction="sum")
            for part, (kind, labels) in zip(features, groups, strict=True)
        ]
        return torch.stack(losses).sum() / len(pixels)

    def step_fn(step):
        drawings, attributes = data.shapes(LATER + step)
        pixels, groups = [drawings], [("shapes", pair_labels(attributes).to(args.device))]
        for photos in data.real:
            images, labels = data.photos(photos, LATER + step)
            pixels.append(images)
            groups.append((photos.kind, torch.from_numpy(labels).to(args.device)))
        pixels = torch.cat(pixels).to(args.device)
        eps = args.robust_eps / 255 * min(1.0, (step + 1) / (0.3 * steps))
        noise = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        delta = (torch.rand(pixels.shape, generator=noise) * 2 - 1).to(args.device) * eps
        for _ in range(3):  # PGD-3, step 2/3 eps
            delta.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss_of(pixels + delta, groups), delta)
            delta = (delta.detach() + 2 / 3 * eps * gradient.sign()).clamp(-eps, eps)
            delta = (pixels + delta).clamp(0, 1) - pixels
        return loss_of(pixels + delta, groups)

    warmup = min(50, steps // 5)
    train("tiny-robust", list(model.visual.parameters()), step_fn, steps, ROBUST_PEAK, warmup)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, help="CoOp data root (EuroSAT, Caltech101); optional")
    add("--output", type=Path, required=True, help="folder of the weights")
    add("--steps", type=int, default=1500)
    add("--robust-steps", type=int, default=500)
    add("--robust-eps", type=float, default=4.0, help="in 1/255")
    add("--seed", type=int, default=1)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--bf16", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args(argv)
    io.writable_dir(args.output)
    root = args.data
    real = [s for kind in REAL if root and (s := load_real(root, kind, SIZES[kind]))]
    if root and not real:
        raise UserError(
            f"no eurosat/ or caltech-101/ with CoOp's split file in '{root}'; "
            "give CoOp's data root or leave --data out"
        )
    torch.manual_seed(args.seed)
    data = CaptionedImages(real, COUNTS, args.seed, args.steps // 2)
    vocabulary = Vocabulary(data.words())
    model = build_model(len(vocabulary.rows)).to(args.device)
    train_contrastive(model, data, vocabulary, args)
    half = {k: v.half() for k, v in model.state_dict().items() if k != "attn_mask"}
    half["token_rows"] = vocabulary.rows
    io.save_tensors(args.output / "tiny.safetensors", half, {"model": "tiny"})
    halves = CaptionedImages(real, {k: v // 2 for k, v in COUNTS.items()}, args.seed)
    train_robust(model, halves, vocabulary, args)
    half = {k: v.half() for k, v in model.state_dict().items() if k.startswith("visual.")}
    io.save_tensors(args.output / "tiny-robust.safetensors", half, {"model": "tiny-robust"})
    print(f"wrote tiny.safetensors and tiny-robust.safetensors to {args.output}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
