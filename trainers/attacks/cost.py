"""How many forward passes an attack takes: an upper bound that needs neither model nor image.

Samples that are wrong clean are not attacked and broken ones leave attacks that drop them, so that
a run takes fewer.
"""

from __future__ import annotations

from .autoattack import COMPOSED, FEWEST
from .spec import ADAPTIVE, LABELLED, AttackSpec

MOST_TARGETS = 9  # wrong classes that apgd-t and fab-t aim at
PROBE = 26  # of one image in the probes after an attack


def attack_forwards(spec: AttackSpec, classes: int = 1000, *, scored: bool = True) -> int:
    """Return the most forward passes of one image in one run of the attack.

    Args:
        classes: of the model; some attacks aim at each of several classes.
        scored: the final images' loss is computed too (in training it is not).
    """
    if spec.name in COMPOSED:
        parts = [name for name in COMPOSED[spec.name] if classes >= FEWEST.get(name, 0)]
        return sum(_part(name, spec, ADAPTIVE["square"], classes) for name in parts)
    if spec.adaptive:
        return _part(spec.name, spec, spec.steps, classes)
    steps = spec.steps
    if spec.name == "rap":
        steps += max(spec.steps - spec.kwargs["late_start"], 0) * spec.kwargs["inner_steps"]
    compared = spec.objective not in (*LABELLED, None) or "aim" in spec.kwargs
    varied = "probability" in spec.kwargs  # di: steps are taken on a varied copy
    if spec.drop:  # every iterate is judged; what looks wrong in bf16 is asked again in fp32
        judged = (1 + varied) * (1 if spec.prec == "fp32" else 2)
        return spec.restarts * (steps + 1) * judged + compared
    last = spec.library or scored or spec.restarts > 1
    return spec.restarts * (steps + (varied and steps > 0) + last) + compared


def _part(name: str, spec: AttackSpec, queries: int, classes: int) -> int:
    """Return the passes of a part of AutoAttack: the clean image, then its searches."""
    targets = min(MOST_TARGETS, classes - 1)
    search = {
        "apgd-t": targets * (spec.steps + 1),
        "fab-t": targets * 2 * spec.steps + 1,  # a gradient and a look at each iterate
        "square": queries + 1,
    }.get(name, spec.steps + 1)
    return 1 + spec.restarts * search


def bank_forwards(spec: AttackSpec | None, views: int = 1) -> int:
    """Return the passes of one image in an embedding bank; None: of clean features."""
    if spec is None:
        return 1
    # the clean features are the attack's reference; in exchange its result is encoded
    return 1 + views * attack_forwards(spec)


def test_forwards(spec: AttackSpec, classes: int, *, draws: int = 1) -> int:
    """Return the most passes of one clean-right image in the evaluation of one test attack.

    Args:
        draws: of a random defence at each step of an attack that goes through it.
    """
    if spec.target == "surrogate":
        return attack_forwards(spec, classes) + 1
    white_box = spec.target == "end_to_end" and not (spec.drop or spec.adaptive or spec.library)
    decides = spec.restarts if white_box else 0  # is the model wrong on a restart's result?
    parts = COMPOSED.get(spec.name, (spec.name,))
    scores = sum(classes >= FEWEST.get(name, 0) for name in parts)  # on what each part returns
    return attack_forwards(spec, classes) * draws + decides * draws + scores
