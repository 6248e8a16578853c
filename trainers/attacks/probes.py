"""Probes of the model itself, which may look robust only because its gradient is useless.

:func:`probe_model` runs once per model, :func:`probe_attack` checks after each attack whether
something simpler is stronger. Together they take about 70 forward and 40 backward passes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..utils.statistics import unlikely
from .base import gradient_of, likeliest_wrong
from .family import gradient_attack
from .gradient import objective_for
from .spec import AttackSpec

Model = Callable[[Tensor], Tensor]  # pixels (B, 3, H, W) in [0, 1] -> logits (B, K)

DISTANCES = (0.25 / 255, 1 / 255)  # of finite differences: rounding hides one, kinks the other
DIRECTIONS = 4
DIFFERS = 0.15  # relative squared error of a finite difference; honest models: under 0.05
RISE = (0.5, 2.0)  # realised over promised rise of the margin; honest models: 0.8 to 1.2
SHORTEST, LONGEST = 0.02 / 255, 1 / 255  # steps of `rise_small`
FURTHER = 4  # times that step: `rise_large`
LARGE = AttackSpec("pgd", 64 / 255, 16 / 255, 20, 1, "uniform", "margin", "end_to_end", drop=True)
MARGIN_STEPS = 20
STRONG = ("pgd", "apgd", "apgd-ce", "apgd-dlr", "apgd-t", "autoattack")  # should beat `margin`
LOGITS = 0.01  # change of a logit over their spread; float32 gives 1e-5, float16 about 0.003
ENOUGH = 5  # images per class, from which clean accuracy can be distinguished from a guess
NOISES = 5  # draws of noise, each of which has to break an image of a random model
FLAT = 1e-3  # spread of the logits below which float32 blurs their cross-entropy
# figure -> share of the probed images that an honest model may have; more than chance is reported
SHARES = {
    "large_eps_right": 0.01,
    "noise_stronger": 0.01,
    "margin_stronger": 0.08,
    "gradient_differs": 0.1,
    "rise_small": 0.1,
    "rise_large": 0.2,
}
WORDS = {
    "large_eps_right": "are right under eps 64/255, where nothing should be: the attack is too "
    "weak or gradients are masked",
    "noise_stronger": "are broken by noise of the same eps and left by the attack: it is weaker "
    "than chance",
    "margin_stronger": "are broken by PGD on the margin and left by this attack: its own loss "
    "misleads it, so trust AutoAttack",
    "gradient_differs": "have a gradient that finite differences contradict: it is not that of the "
    "model, so gradient attacks on it are too weak",
    "rise_small": "have a margin that a small step along the gradient's sign raises by less than "
    "half or more than twice what the gradient promises: gradients are masked",
    "rise_large": "have a margin that a step of up to 4/255 along the gradient's sign raises by "
    "less than half or more than twice what the gradient promises: gradients are masked",
}


@torch.enable_grad()
def probe_model(
    logits: Model, pixels: Tensor, labels: Tensor, seeds: Sequence[int], *, exact: bool = True
) -> dict[str, float]:
    """Return figures of a model on B images (B, 3, H, W) in [0, 1] that it gets right.

    * ``probed``: B;
    * ``repeat_logits``: largest change of a logit when the same images are shown again;
    * ``batch_logits``: the same when an image is shown alone; both relative to the spread;
    * ``logit_spread``: median distance between an image's largest and smallest logit;
    * ``large_eps_right``: share still right under PGD-20 on the margin with eps 64/255;
    * ``gradient_differs``: share whose margin changes otherwise along random directions than the
      gradient says, at both of two distances;
    * ``rise_small``: share whose margin rises by less than half or more than twice what the
      gradient promises, both for a step along its sign that should just break the image and for
      one of 1/255, which is never shorter;
    * ``rise_large``: the same for four times the step that should just break the image.

    The last two need ``exact``: a gradient of the model itself, not an approximation for a defence.
    """
    images = pixels.detach().clone().requires_grad_()
    answer = logits(images)  # (B, K)
    wrong = likeliest_wrong(answer.detach(), labels)[0]  # (B,), fixed: a change of it is a kink

    def gap(x: Tensor) -> Tensor:
        values = logits(x)
        return _pick(values, wrong) - _pick(values, labels)

    figures = _answers(logits, pixels, answer.detach())
    if exact:
        before = _pick(answer, wrong) - _pick(answer, labels)  # (B,), negative: all are right
        slope, _ = gradient_of(before, images)
        with torch.no_grad():
            figures |= _promises(gap, pixels, before.detach(), slope, labels)
    large = gradient_attack(objective_for(LARGE, logits, labels=labels), LARGE).run(pixels, seeds)
    return figures | {"large_eps_right": large.right.float().mean().item()}


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0].float()


@torch.no_grad()
def _answers(logits: Model, pixels: Tensor, answer: Tensor) -> dict[str, float]:
    spread = (answer.amax(1) - answer.amin(1)).median().item()
    alone = torch.cat([logits(x[None]) for x in pixels[:4]])
    changes = {"repeat_logits": logits(pixels) - answer, "batch_logits": alone - answer[:4]}
    sizes = {
        name: change.abs().max().item() / max(spread, 1e-30) for name, change in changes.items()
    }
    return {"probed": len(pixels), "logit_spread": spread, **sizes}


def _promises(gap, pixels: Tensor, before: Tensor, slope: Tensor, labels: Tensor) -> dict:
    """Compare the rises of the margin with what the gradient ``slope`` (B, 3, H, W) promises."""
    generator = torch.Generator().manual_seed(0)
    errors = []
    for distance in DISTANCES:
        off, size = torch.zeros_like(before), torch.zeros_like(before)
        for _ in range(DIRECTIONS):
            signs = torch.rand(pixels.shape[1:], generator=generator) < 0.5
            move = distance * (2 * signs.to(pixels) - 1)
            high, low = (pixels + move).clamp(0, 1), (pixels - move).clamp(0, 1)
            found, promised = gap(high) - gap(low), (slope * (high - low)).flatten(1).sum(1)
            off += (found - promised) ** 2
            size += found**2 + promised**2
        flat = slope.abs().flatten(1).amax(1) == 0
        errors.append(torch.where(flat, torch.ones_like(off), off / size.clamp_min(1e-30)))
    differs = ~(torch.stack(errors).amin(0) <= DIFFERS)  # NaN differs too
    figures = {"gradient_differs": differs.float().mean().item()}

    def is_off(step: Tensor) -> Tensor:
        move = (pixels + step[:, None, None, None] * slope.sign()).clamp(0, 1) - pixels
        rise = (gap(pixels + move) - before) / (slope * move).flatten(1).sum(1)
        return ~((rise >= RISE[0]) & (rise <= RISE[1]))  # (B,)

    just = (-before / slope.abs().flatten(1).sum(1)).nan_to_num(LONGEST).clamp(SHORTEST, LONGEST)
    small = is_off(just) & is_off(torch.full_like(just, LONGEST))
    figures["rise_small"] = small.float().mean().item()
    figures["rise_large"] = is_off(FURTHER * just).float().mean().item()
    return figures


def probe_attack(
    logits: Model,
    pixels: Tensor,
    labels: Tensor,
    spec: AttackSpec,
    seeds: Sequence[int],
    left: Tensor,
    *,
    random: bool = False,
) -> dict[str, float]:
    """Return the shares of images that something simpler breaks and the attack has left.

    * ``noise_stronger``: the attack's random start alone breaks them;
    * ``margin_stronger``: PGD on the margin does, with at most 20 of the attack's steps; images
      that only the attack breaks are counted against it. Only for the attacks in ``STRONG``.

    The model gets ``pixels`` (B, 3, H, W) right, and under the attack those in ``left`` (B,).
    A ``random`` one errs at times on any image: there, noise has to break an image in each of
    several draws, and the last step of PGD on the margin is used.
    """
    steps = min(spec.steps, MARGIN_STEPS)
    alpha = spec.alpha if spec.alpha and steps == spec.steps else spec.eps / 4
    own = {"name": "pgd", "kwargs": {}, "prec": "fp32", "start": "uniform", "objective": "margin"}
    margin = replace(spec, **own, alpha=alpha, steps=steps, restarts=1, drop=not random)

    def right_under(threat: AttackSpec, draw: int = 0) -> Tensor:
        attack = gradient_attack(objective_for(threat, logits, labels=labels), threat)
        found = attack.run(pixels, [seed + draw for seed in seeds])
        with torch.no_grad():
            return found.right if threat.drop else logits(found.images).argmax(1) == labels

    noise = [right_under(replace(margin, steps=0), n) for n in range(NOISES if random else 1)]
    figures = {"noise_stronger": (left & ~torch.stack(noise).any(0)).float().mean().item()}
    if spec.name in STRONG:
        right = right_under(margin)
        gain = (left & ~right).float().mean() - (right & ~left).float().mean()
        figures["margin_stronger"] = max(gain.item(), 0.0)
    return figures


def judge(
    figures: Mapping[str, float], clean: tuple[int, int] = (0, 0), classes: int = 2
) -> list[str]:
    """Return warnings in words, each headed by the name of its figure.

    ``figures`` are of :func:`probe_model` and :func:`probe_attack`, ``clean`` the number of test
    images and of those that are right clean.
    """
    found, probed = [], figures["probed"]
    for name, words in WORDS.items():
        count = round(figures.get(name, 0) * probed)
        if unlikely(count, probed, SHARES[name]):
            found.append(f"{name}: {count} of {probed} probed images {words}")
    again, alone = figures["repeat_logits"], figures["batch_logits"]
    if not again <= LOGITS:
        found.append(
            f"repeat_logits: a logit changes by {again:.1%} of the logits' spread when the same "
            "images are shown again: the model is random, or answers otherwise under gradients"
        )
    elif not alone <= LOGITS:
        found.append(
            f"batch_logits: a logit changes by {alone:.1%} of the logits' spread when its image is "
            "shown alone: the result depends on the test batch size"
        )
    n, correct = clean
    if n >= ENOUGH * classes and not unlikely(correct, n, 1 / classes):
        found.append(
            f"chance: {correct} of {n} clean images are right, no better than a guess among "
            f"{classes} classes: check normalisation, class order and prompts; what survives an "
            "attack here says nothing"
        )
    if figures["logit_spread"] < FLAT:
        found.append(
            f"logit_spread: the logits of an image differ by {figures['logit_spread']:.2g} at "
            "most, which the cross-entropy cannot resolve in float32: divide them by a temperature"
        )
    return found
