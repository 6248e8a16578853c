"""Transfer between models: images made against one, tested on all."""

import time

import torch

from ..attacks import AttackChecks, AttackSpec, parts_of, verify
from .evaluator import Evaluation
from .victim import answers


@torch.no_grad()
def clean_answers(test: Evaluation) -> torch.Tensor:
    """Return which clean images (N,) a model gets right."""
    right = []
    for where, pixels in test.pixels(list(range(len(test.images))), "clean"):
        found = answers(test.logits(pixels), test.victim.name)
        right.append((found == test.labels[where]).cpu())
    return torch.cat(right)


def make_row(
    source: int, tests: list[Evaluation], clean: torch.Tensor, spec: AttackSpec, title: str
) -> dict:
    """Make images against model ``source`` and show them to all; nothing is kept.

    ``tests`` are of R models on the same N images, ``clean`` (R, N) says which are right clean; a
    sample counts that is right on both. Returns ``correct`` (R counts), ``seconds``, and the
    attack's ``checks`` and ``warnings``.
    """
    test, checks, clock = tests[source], AttackChecks(), time.perf_counter()
    correct = [0] * len(tests)
    for where, pixels in test.pixels(list(range(len(test.images))), title):
        images, alive = _attack(test, spec, where, pixels, checks)
        for i, other in enumerate(tests):
            right = alive.cpu()  # as the model's own record counts it
            if i != source:
                with torch.no_grad():
                    found = answers(other.logits(images), other.victim.name)
                    right = (found == other.labels[where]).cpu()
            correct[i] += int((right & clean[i, where]).sum())
    summary, n = checks.summary(), len(test.images)
    shares = float(clean[source].float().mean()), correct[source] / n
    return {
        "correct": correct,
        "seconds": round(time.perf_counter() - clock, 3),
        "checks": summary,
        "warnings": verify(spec, summary, *shares),
    }


def _attack(test: Evaluation, spec: AttackSpec, where: list[int], pixels, checks: AttackChecks):
    """Attack all images of a batch; a composed attack's parts each take what is still right.

    Returns images (B, 3, H, W), and whether the attacked model is right on them (B,).
    """
    images, alive = pixels.clone(), torch.ones(len(where), dtype=torch.bool, device=pixels.device)
    for part in parts_of(spec, len(test.victim.classnames)):
        rows = alive.nonzero().flatten()
        if not len(rows):
            break
        chosen = [where[i] for i in rows.tolist()]
        result = test.run_attack(part, chosen, pixels[rows])
        checks.add(result, pixels[rows])
        images[rows] = result.images.to(images)
        alive[rows] = test.right_on(part, result, chosen)
    return images, alive


def order_warnings(names: list[str], rows: list[dict]) -> list[str]:
    """Warn where images made against another model are worse for one than its own white box."""
    warnings = []
    for j, tested in enumerate(names):
        own = rows[j]["correct"][j]
        for made, row in zip(names, rows, strict=True):
            if row["correct"][j] < own:
                warnings.append(
                    f"transfer_order: {tested} gets {row['correct'][j]} right on images made "
                    f"against {made}, but {own} on those made against itself: its gradients may "
                    "be masked, or the attack is too short"
                )
    return warnings
