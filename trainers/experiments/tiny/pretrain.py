"""Pre-train the built-in small CLIP and its robust sibling.

    python -m advprompt.experiments.tiny.pretrain --data $DATA --output output/tiny

Stage 1, ``tiny``: contrastive learning of captions; several captions may fit an image.
Stage 2, ``tiny-robust``: the image tower alone, adversarially fine-tuned against the frozen
text tower (TeCoA, Mao et al. 2023: cross-entropy on PGD images over the class prompts).
About 90 minutes on 2 CPU cores, minutes on a GPU; interrupted runs resume from the last
checkpoint. Every batch depends only on the seed and the step.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from ... import records
from ...utils import io
from ...utils.entry import run_tool
from ...utils.errors import UserError
from .corpus import REAL, CaptionedImages, drawing, load_real, pair_labels

WIDTH = 128  # of both towers and of their joint space; a multiple of 64 in OpenAI CLIP's layout
SIDE, PATCH = 64, 8  # pixels
VISION = dict(image_size=SIDE, patch_size=PATCH, width=WIDTH, layers=6, head_width=64)
TEXT = dict(context_length=77, width=WIDTH, heads=2, layers=3)
COUNTS = {"shapes": 120, "eurosat": 24, "caltech": 16}  # images of a batch
SIZES = {"eurosat": 64, "caltech": 80}  # pixels to which photos are decoded
PEAK, ROBUST_PEAK = 1.2e-3, 5e-4  # learning rates
SAVE_EVERY = 100
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


def train(name: str, model, parameters, step_fn, output: Path, steps, peak, warmup) -> float:
    """Minimise ``step_fn(step)`` from the last checkpoint on; return the seconds of all runs."""
    path, start, seconds = output / f"{name}.ckpt", 0, 0.0
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.05)
    if path.is_file():
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["steps"] != steps:
            raise UserError(
                f"'{path}' belongs to a run of {state['steps']} steps, not {steps}; "
                "give the same number or another --output"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, seconds = state["step"], state.get("seconds", 0.0)
    bar = tqdm(range(start, steps), name, initial=start, total=steps, mininterval=10)
    clock = time.perf_counter() - seconds
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, warmup)
        loss = step_fn(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)
        optimizer.step()
        if step % 10 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
        seconds = time.perf_counter() - clock
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"step": step + 1, "steps": steps, "seconds": seconds}
            with io.atomic_write(path) as temporary:
                torch.save(state, temporary)
    return seconds


def train_contrastive(model, data, vocabulary, args) -> float:
    """Stage 1; return the seconds it took."""

    def step_fn(step):
        images, captions, fits = data.batch(step)
        tokens, fits = vocabulary(captions).to(args.device), fits.to(args.device)
        features = encode_images(model, images.to(args.device), args)
        scale = model.logit_scale.exp().clamp(max=100)
        logits = scale * features @ encode_text(model, tokens).t()  # (B, U)
        return contrastive_loss(logits, fits)

    parameters, warmup = list(model.parameters()), min(100, args.steps // 5)
    seconds = train("tiny", model, parameters, step_fn, args.output, args.steps, PEAK, warmup)
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(100))
    return seconds


def train_robust(model, data, vocabulary, args) -> float:
    """Stage 2; return the seconds it took."""
    model.requires_grad_(False)
    model.visual.requires_grad_(True)
    steps = args.robust_steps
    with torch.no_grad():
        prompts = {
            kind: vocabulary(texts).to(args.device) for kind, texts in data.classes().items()
        }
        texts = {kind: encode_text(model, tokens) for kind, tokens in prompts.items()}
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

    parameters, warmup = list(model.visual.parameters()), min(50, steps // 5)
    return train("tiny-robust", model, parameters, step_fn, args.output, steps, ROBUST_PEAK, warmup)


def recipe(args, data: CaptionedImages, seconds: tuple[float, float]) -> dict[str, str]:
    """Return what the weights are made of, for the model card."""
    device = records.environment(args.device)["device"]
    return {
        "towers": f"image {VISION}, text {TEXT}, joint width {WIDTH}",
        "batches": ", ".join(f"{COUNTS[kind]} {kind}" for kind in ("shapes", *data.offsets)),
        "time": f"{seconds[0] / 60:.0f} and {seconds[1] / 60:.0f} minutes on {device}",
        "real training images": ", ".join(f"{len(d.images)} of {d.kind}" for d in data.real),
        "left out of all captions": ", ".join(f"{c} {s}" for c, s in sorted(drawing.HELD_OUT)),
        "command": " ".join(["python -m advprompt.experiments.tiny.pretrain", *sys.argv[1:]]),
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="CoOp data root (EuroSAT, Caltech101); optional")
    parser.add_argument("--output", type=Path, required=True, help="checkpoints and weights")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--robust-steps", type=int, default=500)
    parser.add_argument("--robust-eps", type=float, default=4.0, help="in 1/255")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
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
    first = train_contrastive(model, data, vocabulary, args)
    half = {k: v.half() for k, v in model.state_dict().items() if k != "attn_mask"}
    half["token_rows"] = vocabulary.rows
    io.save_tensors(args.output / "tiny.safetensors", half, {"model": "tiny"})
    halves = CaptionedImages(real, {k: v // 2 for k, v in COUNTS.items()}, args.seed)
    second = train_robust(model, halves, vocabulary, args)
    half = {k: v.half() for k, v in model.state_dict().items() if k.startswith("visual.")}
    io.save_tensors(args.output / "tiny-robust.safetensors", half, {"model": "tiny-robust"})
    io.write_json(args.output / "recipe.json", recipe(args, data, (first, second)))
    print(f"wrote tiny.safetensors, tiny-robust.safetensors and recipe.json to {args.output}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
