"""The jobs of the ratio table: the same work done plainly and by this project."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advprompt import attacks
from advprompt.attacks import dispatch
from advprompt.backbone import cosine_logits, load_clip, make_adapter, text_features
from advprompt.datasets import drawing
from advprompt.prompting import prompted, templates

from . import plain

RANDOM = {"ViT-B/32", "ViT-B/16", "ViT-L/14"}
CHUNK = 64  # classes per text pass where there are many
# the public code whose work the plain side does
ADVPT = "jiamingzhang94/Adversarial-Prompt-Tuning@95d43a8"
ADVIVLP = "xinwong/Multimodal-Adversarial-Prompt-Tuning@926889f"  # its attacks are torchattacks'
FAP = "lionel-w2/FAP@761a895"
SYLLABLES = ("ba", "co", "di", "fu", "ga", "he", "ji", "ko", "lu", "mo")


def backbone(name: str, device: str):
    """Return a backbone; OpenAI's names come with random weights, whose speed is the same."""
    if name not in RANDOM:
        return load_clip(name, device=device)
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(name.replace("/", "-"), force_quick_gelu=True)
    return make_adapter(model.state_dict(), name=name, provider="open_clip").to(device)


@dataclass
class Job:
    """One row of the table; ``plain`` and ``ours`` do the job once."""

    name: str
    plain: Callable[[], object]
    ours: Callable[[], object]
    difference: Callable[[], float]  # the largest relative one between the two results
    at_least: float  # the ratio to reach on a CPU
    code: str  # the public code whose work ``plain`` does


def names(count: int) -> list[str]:
    """Return ``count`` different class names of a few tokens."""
    digits = ((i // 100 % 10, i // 10 % 10, i % 10) for i in range(count))
    return [" ".join(SYLLABLES[d] for d in three) for three in digits]


def images_for(clip, batch: int) -> Tensor:
    """Return random images (batch, 3, H, W) in [0, 1], the same every time."""
    size = (batch, 3, clip.resolution, clip.resolution)
    return torch.rand(size, generator=torch.Generator().manual_seed(0)).to(clip.device)


def drawn(names: list[str], begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Return drawings (B, 3, 64, 64) that the built-in CLIP never saw, and their labels (B,)."""
    labels = torch.arange(begin, end) % len(names)
    pixels = [drawing.sample("check", begin + i, names[y]) for i, y in enumerate(labels)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255, labels


def classifier(clip, names: list[str]) -> Callable[[Tensor], Tensor]:
    """Return drawings -> logits (B, K) for the hand-made prompt."""
    with torch.no_grad():
        template = templates.template_for("Shapes")
        texts = text_features(clip, templates.fill(template, names))  # (K, D)
    return lambda pixels: cosine_logits(clip.encode_image(pixels), texts, clip.logit_scale)


def apart(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((a - b).abs().max() / a.abs().max())


def _batch(clip, batch: int, classes: int) -> tuple[Tensor, Tensor]:
    return images_for(clip, batch), (torch.arange(batch) % classes).to(clip.device)


def _attacked(loss, spec, pixels: Tensor) -> Tensor:
    run = attacks.GradientAttack(loss, spec).run(pixels, range(len(pixels)), scored=False)
    return run.images


def threat(steps: int, objective: str = "ce"):
    """Return PGD at eps 4/255 with a random start."""
    target = "end_to_end" if objective == "ce" else "embedding"
    return attacks.AttackSpec("pgd", 4 / 255, 1 / 255, steps, 1, "uniform", objective, target)


def tuning(clip, classes: int, vectors: int = 32, batch: int = 32, *, graph=False) -> Job:
    """AdvPT's step: text features of the learned context, loss on stored image features."""
    model = prompted.PromptedCLIP(clip, names(classes), prompted.PromptSpec(text=vectors))
    context = list(model.parameters())
    texts = model.graphed_texts() if graph else model.text_features
    seed = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(batch, clip.embed_dim, generator=seed), dim=-1).to(clip.device)
    labels = (torch.arange(batch) % classes).to(clip.device)

    def step(texts: Tensor) -> Tensor:
        loss = F.cross_entropy(cosine_logits(rows, texts, clip.logit_scale), labels)
        return torch.autograd.grad(loss, context)[0]

    def ours():
        return step(texts())

    def plainly():
        return step(plain.text_features(model))

    name = f"AdvPT tuning step, {classes} classes, {vectors} vectors"
    return Job(name, plainly, ours, lambda: apart(plainly(), ours()), 8, ADVPT)


def deep(clip, classes: int, depth: int):
    """Return a CLIP with two prompts in each of the first ``depth`` layers of both towers."""
    depth = min(depth, clip.text_layers, clip.vision_layers)
    spec = prompted.PromptSpec(text=2, vision=2, text_depth=depth, vision_depth=depth)
    return prompted.PromptedCLIP(clip, names(classes), spec)


def _attacked_plainly(model, pixels: Tensor, labels: Tensor, spec, code: str) -> Tensor:
    """PGD that runs the text tower again in every step, as ``code`` does."""

    def loss(x):
        return F.cross_entropy(model.logits(x, plain.text_features(model)), labels)

    found = plain.pgd(loss, pixels, _start(spec, pixels), spec, fills=code == FAP)
    model.zero_grad()
    return found


def training(
    clip,
    classes: int,
    batch: int,
    at_least: float,
    depth: int = 9,
    *,
    prec="fp32",
    chunk=0,
    code=ADVIVLP,
) -> Job:
    """One adversarial step of independent prompts in both towers, PGD-2.

    ``prec`` is that of our attack, ``chunk`` the classes per text pass of our side (0: all).
    """
    model, spec = deep(clip, classes, depth), threat(2)
    pixels, labels = _batch(clip, batch, classes)
    parameters = list(model.parameters())

    def gradients(images: Tensor, texts: Tensor) -> Tensor:
        loss = F.cross_entropy(model.logits(images, texts), labels)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    def ours():
        texts = model.text_features(chunk)
        logits = _inside(prec, model, texts.detach())
        loss = attacks.objective_for(spec, logits, labels=labels)
        return gradients(_attacked(loss, spec, pixels), texts)

    def plainly():
        adversarial = _attacked_plainly(model, pixels, labels, spec, code)
        return gradients(adversarial, plain.text_features(model))

    def difference():  # at the same images: a sign decides about a pixel whose gradient is 0
        start = _start(spec, pixels)
        a = gradients(start, plain.text_features(model))
        return apart(a, gradients(start, model.text_features()))

    name = f"adversarial training step, {classes} classes, batch {batch}, PGD-2"
    return Job(name, plainly, ours, difference, at_least, code)


def evaluation(
    clip, classes: int, batch: int = 4, steps: int = 10, *, prec="fp32", code=ADVIVLP
) -> Job:
    """Steps of a PGD test of deep prompts, whose text features are known before it starts."""
    model, spec = deep(clip, classes, 9), threat(steps)
    pixels, labels = _batch(clip, batch, classes)
    with torch.no_grad():
        texts = model.text_features()

    def ours():
        loss = attacks.objective_for(spec, _inside(prec, model, texts), labels=labels)
        return _attacked(loss, spec, pixels)

    def plainly():
        return _attacked_plainly(model, pixels, labels, spec, code)

    def difference():
        x = _start(spec, pixels).requires_grad_()
        ways = (texts, plain.text_features(model).detach())
        losses = (F.cross_entropy(model.logits(x, t), labels, reduction="sum") for t in ways)
        return apart(*(torch.autograd.grad(loss, x)[0] for loss in losses))

    name = f"PGD test, {steps} steps, {classes} classes, batch {batch}"
    return Job(name, plainly, ours, difference, 3.3, code)


def autoattack(clip, classes: int, batch: int) -> Callable[[], None]:
    """Return a 50th of AutoAttack in a ball so small that nothing breaks: the dearest case."""
    model, (pixels, _) = deep(clip, classes, 9), _batch(clip, batch, classes)
    with torch.no_grad():
        forward = _inside("fp32", model, model.text_features())
        labels = forward(pixels).argmax(1)
    steps = {"fab-t": 2, "square": 99}  # of 100 and 5000; APGD's start and 1 of its 100

    def ours():
        for name in dispatch.COMPOSED["autoattack"]:
            own = 1e-6, None, steps.get(name, 1), 1, None, None, "end_to_end"
            part = attacks.AttackSpec(name, *own)
            dispatch.run_attack(part, pixels, range(batch), forward=forward, labels=labels)

    return ours


def bank(clip, batch: int = 4, steps: int = 10, *, prec="fp32") -> Job:
    """AdvPT's bank: PGD on the image tower alone; public code asks for all weights' gradients."""
    spec, pixels = threat(steps, "embedding_kl"), images_for(clip, batch)
    start = _start(spec, pixels)
    with torch.no_grad():
        reference = clip.encode_image(pixels)

    def divergence(x: Tensor) -> Tensor:
        found = clip.provider_image(x).log_softmax(dim=-1)
        target = reference.log_softmax(dim=-1)
        return F.kl_div(found, target, log_target=True, reduction="sum")

    def ours():
        tower = dispatch.tower_in(prec, clip.encode_image)
        loss = attacks.objective_for(spec, tower, reference=reference)
        return _attacked(loss, spec, pixels)

    def plainly():
        clip.model.visual.requires_grad_(True)
        try:
            return plain.pgd(divergence, pixels, start, spec, fills=True)
        finally:
            clip.model.visual.requires_grad_(False).zero_grad()

    def difference():
        loss = attacks.objective_for(spec, clip.encode_image, reference=reference)
        x, y = (start.clone().requires_grad_() for _ in range(2))
        mine = torch.autograd.grad(loss(x).sum(), x)[0]
        return apart(mine, torch.autograd.grad(divergence(y), y)[0])

    return Job(f"AdvPT bank, PGD-{steps}, batch {batch}", plainly, ours, difference, 1.4, ADVPT)


def _inside(prec: str, model, texts: Tensor) -> Callable[[Tensor], Tensor]:
    """Return images -> logits (B, K) as an attack sees them, the image tower in ``prec``."""
    tower = dispatch.tower_in(prec, model.image_features)
    return lambda x: cosine_logits(tower(x), texts, model.clip.logit_scale)


def _start(spec, pixels: Tensor) -> Tensor:
    """Return the random start that the attack itself takes for seeds 0, 1, ..."""
    attack = attacks.GradientAttack(lambda x: x, spec)
    return attack.project(pixels, attack.start(pixels, range(len(pixels))))


def ratio_table(clip, *, quick: bool, many: int) -> list[Callable[[], Job]]:
    """Return the makers of all jobs; one is built when its turn comes, so that memory is its own.

    ``quick`` takes small batches; ``many`` are the classes of the job with many.
    """
    large = 8 if quick else 32
    return [
        lambda: tuning(clip, 37),
        lambda: training(clip, 37, large, 1.8),
        lambda: training(clip, 37, 4, 4),
        lambda: training(clip, many, 4, 10, chunk=CHUNK),
        lambda: evaluation(clip, 37),
        lambda: bank(clip),
        lambda: training(clip, 37, 4, 4, code=FAP),
        lambda: evaluation(clip, 37, code=FAP),
    ]
