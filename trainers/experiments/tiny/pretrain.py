"""Pre-train the built-in small CLIP and its robust sibling.

    python -m advprompt.experiments.tiny.pretrain --data $DATA --output output/tiny

Stage 1, ``tiny``: contrastive learning of captions, several captions may fit an image.
Stage 2, ``tiny-robust``: the image tower alone, adversarially fine-tuned against the frozen
text tower (TeCoA, Mao et al. 2023: cross-entropy on PGD images over the class prompts).
About 90 minutes on 2 CPU cores, minutes on a GPU; stopped runs resume from the last
checkpoint. Every batch depends only on the seed and the step.
"""

from __future__ import annotations

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
from .corpus import CaptionedImages, drawing, load_real, pair_labels

ARCHITECTURE = {  # OpenAI CLIP's layout needs widths that are multiples of 64
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 64,
        "patch_size": 8,
        "width": 128,
        "layers": 6,
        "head_width": 64,
    },
    "text_cfg": {"context_length": 77, "width": 128, "heads": 2, "layers": 3},
}
COUNTS = {"shapes": 120, "eurosat": 24, "caltech": 16}  # images of a batch
PEAK, ROBUST_PEAK = 1.2e-3, 5e-4  # learning rates
SAVE_EVERY = 100


def build_model(vocabulary: int):
    """Return a freshly initialised open_clip model with ``vocabulary`` token rows."""
    from open_clip.model import CLIP

    text, vision = dict(ARCHITECTURE["text_cfg"], vocab_size=vocabulary), ARCHITECTURE["vision_cfg"]
    model = CLIP(ARCHITECTURE["embed_dim"], vision, text, quick_gelu=True)
    # CLIP's start for positions is too faint here: shapes were learned several times slower
    with torch.no_grad():
        side = vision["image_size"] // vision["patch_size"]
        model.visual.positional_embedding.copy_(sine_positions(vision["width"], side))
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
    """Symmetric cross-entropy; the target is uniform over all that fit.

    Args:
        logits: (B, U) scaled similarities; fits: (B, U) bool.
    """
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


class Stage:
    """One training loop: optimizer, schedule, checkpoints, progress."""

    def __init__(self, name, model, parameters, args, *, steps, peak, warmup):
        self.name, self.model, self.steps = name, model, steps
        self.peak, self.warmup = peak, warmup
        self.path = Path(args.output) / f"{name}.ckpt"
        decay = [p for p in parameters if p.ndim >= 2]
        rest = [p for p in parameters if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay}, {"params": rest, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            weight_decay=0.05,
        )
        self.start, self.seconds = 0, 0.0
        if self.path.is_file():
            state = torch.load(self.path, weights_only=True, map_location="cpu")
            if state["steps"] != steps:
                raise UserError(
                    f"'{self.path}' belongs to a run of {state['steps']} steps, not {steps}; "
                    "give the same number or another --output"
                )
            model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.start, self.seconds = state["step"], state.get("seconds", 0.0)

    def save(self, step: int) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": step,
            "steps": self.steps,
            "seconds": self.seconds,
        }
        with io.atomic_write(self.path) as temporary:
            torch.save(state, temporary)

    def run(self, step_fn) -> None:
        """Call ``step_fn(step) -> (loss, extra words)`` for every remaining step."""
        bar = tqdm(
            range(self.start, self.steps),
            initial=self.start,
            total=self.steps,
            desc=self.name,
            mininterval=10,
        )
        clock = time.perf_counter() - self.seconds
        for step in bar:
            rate = learning_rate(step, self.steps, self.peak, self.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss, words = step_fn(step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(
                [p for g in self.optimizer.param_groups for p in g["params"]], 1.0
            )
            self.optimizer.step()
            if step % 10 == 0:
                bar.set_postfix_str(f"loss {loss.item():.3f} {words}", refresh=False)
            self.seconds = time.perf_counter() - clock
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == self.steps:
                self.save(step + 1)


def train_contrastive(model, data, vocabulary, args) -> float:
    """Stage 1; return the seconds it took."""
    steps, parameters = args.steps, list(model.parameters())
    warmup = min(100, steps // 5)
    stage = Stage("tiny", model, parameters, args, steps=steps, peak=PEAK, warmup=warmup)
    normalise = pixel_normaliser(args.device)

    def step_fn(step):
        images, captions, fits = data.batch(step)
        tokens, fits = vocabulary(captions).to(args.device), fits.to(args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            features = model.encode_image(normalise(images.to(args.device)))
        features = F.normalize(features.float(), dim=-1)
        scale = model.logit_scale.exp().clamp(max=100)
        logits = scale * features @ encode_text(model, tokens).t()  # (B, U)
        with torch.no_grad():
            hit = fits.gather(1, logits.argmax(1, keepdim=True)).float().mean()
        return contrastive_loss(logits, fits), f"fit {hit:.2f} scale {scale:.0f}"

    stage.run(step_fn)
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(100))
    return stage.seconds


def pixel_normaliser(device):
    """Return CLIP's pixel normalisation for (B, 3, H, W) in [0, 1]."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean = torch.tensor(OPENAI_DATASET_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(OPENAI_DATASET_STD, device=device).view(1, 3, 1, 1)
    return lambda pixels: (pixels - mean) / std


def train_robust(model, data, vocabulary, args) -> float:
    """Stage 2; return the seconds it took."""
    model.requires_grad_(False)
    model.visual.requires_grad_(True)
    steps, parameters = args.robust_steps, list(model.visual.parameters())
    warmup = min(50, steps // 5)
    stage = Stage(
        "tiny-robust", model, parameters, args, steps=steps, peak=ROBUST_PEAK, warmup=warmup
    )
    normalise = pixel_normaliser(args.device)
    with torch.no_grad():
        texts = {
            k: encode_text(model, vocabulary(p).to(args.device)) for k, p in data.classes().items()
        }
        scale = model.logit_scale.exp()

    def loss_of(pixels, groups):
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            features = model.encode_image(normalise(pixels))
        features, start, losses, right = F.normalize(features.float(), dim=-1), 0, [], 0
        for kind, labels in groups:
            logits = scale * features[start : start + len(labels)] @ texts[kind].t()
            losses.append(F.cross_entropy(logits, labels, reduction="sum"))
            right += (logits.argmax(1) == labels).sum()
            start += len(labels)
        return torch.stack(losses).sum() / start, right / start

    def step_fn(step):
        drawings, attributes = data.shapes(10_000_000 + step)  # drawings stage 1 never saw
        pixels, groups = [drawings], [("shapes", pair_labels(attributes).to(args.device))]
        for photos in data.real:
            images, labels = data.photos(photos, 10_000_000 + step)
            pixels.append(images)
            groups.append((photos.kind, torch.from_numpy(labels).to(args.device)))
        pixels = torch.cat(pixels).to(args.device)
        eps = args.robust_eps / 255 * min(1.0, (step + 1) / (0.3 * args.robust_steps))
        noise = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        delta = (torch.rand(pixels.shape, generator=noise) * 2 - 1).to(args.device) * eps
        for _ in range(3):  # PGD-3, step 2/3 eps
            delta.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss_of(pixels + delta, groups)[0], delta)
            delta = (delta.detach() + 2 / 3 * eps * gradient.sign()).clamp(-eps, eps)
            delta = (pixels + delta).clamp(0, 1) - pixels
        loss, accuracy = loss_of(pixels + delta, groups)
        return loss, f"robust {accuracy:.2f}"

    stage.run(step_fn)
    return stage.seconds


def recipe(args, data: CaptionedImages, seconds: tuple[float, float]) -> dict[str, str]:
    """Return in words what the weights are made of, for the model card."""
    vision, text = ARCHITECTURE["vision_cfg"], ARCHITECTURE["text_cfg"]
    mix = ", ".join(f"{n} {kind}" for kind, n in COUNTS.items() if kind in data.kinds)
    real = ", ".join(f"{len(d.images)} of {d.kind}" for d in data.real) or "none"
    device = records.environment(args.device)["device"]
    precision = "bf16 autocast of the image tower" if args.bf16 else "fp32"
    return {
        "image tower": f"ViT, {vision['image_size']}x{vision['image_size']} pixels, patch "
        f"{vision['patch_size']}, width {vision['width']}, {vision['layers']} blocks",
        "text tower": f"causal, CLIP's byte-pair tokens, width {text['width']}, "
        f"{text['layers']} blocks; joint width {ARCHITECTURE['embed_dim']}",
        "tiny": f"{args.steps} steps of batches of {mix}; symmetric contrastive loss, uniform "
        "over all captions that fit; drawings easy at first and ordinary from half-way; "
        f"AdamW {PEAK}, warm-up and cosine, weight decay 0.05; "
        f"{precision}; {seconds[0] / 60:.0f} minutes on {device}",
        "tiny-robust": f"image tower only, {args.robust_steps} steps of half as large batches, "
        "cross-entropy on PGD-3 images over the class prompts (TeCoA), eps rising to "
        f"{args.robust_eps:g}/255 over the first 30 %, step 2/3 eps; AdamW {ROBUST_PEAK}; "
        f"{seconds[1] / 60:.0f} minutes on {device}",
        "real training images": real,
        "left out of all captions": ", ".join(f"{c} {s}" for c, s in sorted(drawing.HELD_OUT)),
        "seed": str(args.seed),
        "command": f"python -m advprompt.experiments.tiny.pretrain --steps {args.steps} "
        f"--robust-steps {args.robust_steps} --seed {args.seed}"
        + (" --data $DATA" if data.real else ""),
    }


def export(model, vocabulary, output: Path) -> None:
    """Write ``tiny.safetensors`` (or ``tiny-robust``, image tower only) in fp16."""
    state = {k: v.half() for k, v in model.state_dict().items() if k != "attn_mask"}
    robust = {k: v for k, v in state.items() if k.startswith("visual.")}
    if vocabulary is None:
        io.save_tensors(output / "tiny-robust.safetensors", robust, {"model": "tiny-robust"})
    else:
        state["token_rows"] = vocabulary.rows
        io.save_tensors(output / "tiny.safetensors", state, {"model": "tiny"})


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
    real = []
    if args.data is not None:
        sizes = {"eurosat": 64, "caltech": 80}
        real = [s for kind, size in sizes.items() if (s := load_real(args.data, kind, size))]
        if not real:
            raise UserError(
                f"no eurosat/ or caltech-101/ with CoOp's split file in '{args.data}'; "
                "give CoOp's data root or leave --data out"
            )
    torch.manual_seed(args.seed)
    data = CaptionedImages(real, COUNTS, args.seed, args.steps // 2)
    vocabulary = Vocabulary(data.words())
    model = build_model(len(vocabulary.rows)).to(args.device)
    first = train_contrastive(model, data, vocabulary, args)
    export(model, vocabulary, args.output)
    halves = CaptionedImages(real, {k: v // 2 for k, v in COUNTS.items()}, args.seed)
    second = train_robust(model, halves, vocabulary, args)
    export(model, None, args.output)
    io.write_json(args.output / "recipe.json", recipe(args, data, (first, second)))
    print(f"wrote tiny.safetensors, tiny-robust.safetensors and recipe.json to {args.output}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
