"""What every attack keeps to, whatever its algorithm: one set of rules, one row per attack."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advprompt import losses
from advprompt.attacks import AttackResult, NotFinite
from advprompt.attacks.base import check_pixels
from advprompt.records.threats import ADAPTIVE, ALGORITHMS, PGD_FAMILY
from advprompt.utils.errors import UserError

from .toy_problem import EPS, NORMS, attack, distance, is_right, net, pixels, problem, spec

PARTS = [name for name in ADAPTIVE if name not in ("autoattack", "apgd")]
RAP = {"surrogate": "clip", "late_start": 2, "inner_steps": 2, "inner_eps": "2/255"}
LIBRARY = ("PGD", "CW", "APGD", "DeepFool", "Pixle")

# (name, norm, settings); of AutoAttack its parts stand for it
OURS = [(name, norm, {}) for name in [*PGD_FAMILY, *PARTS] for norm in NORMS]
OURS += [(name, norm, {"drop": True}) for name in PGD_FAMILY for norm in NORMS]
OURS += [("pgd", "linf", {"objective": name}) for name in ("margin", "kl", "embedding_kl")]
OURS += [("rap", "linf", {"steps": 6, "kwargs": RAP}), ("fgsm", "linf", {"start": "uniform"})]
ALL = OURS + [(f"torchattacks:{name}", "linf", {}) for name in LIBRARY]

every = pytest.mark.parametrize("case", ALL, ids=lambda c: f"{c[0]}-{c[1]}-{c[2] or ''}")
ours = pytest.mark.parametrize("case", OURS, ids=lambda c: f"{c[0]}-{c[1]}-{c[2] or ''}")


def made(case, **changes):
    name, norm, fields = case
    if name.startswith("torchattacks:"):
        pytest.importorskip("torchattacks")
        changes.pop("steps", None)
    if name == "square" and "steps" not in changes:
        changes["steps"] = 30
    return spec(name, norm, **fields | changes)


def labelled(threat) -> bool:
    return threat.adaptive or threat.library


def test_every_name_has_a_row():
    assert {case[0] for case in OURS} == set(ALGORITHMS) - {"autoattack", "apgd"}


@ours
@settings(max_examples=8, deadline=None)
@given(
    size=st.sampled_from([0.0, 0.2, 1.0, 20.0]),
    steps=st.integers(0, 5),
    restarts=st.integers(1, 2),
    n=st.integers(1, 6),
    classes=st.integers(4, 6),
    seed=st.integers(0, 2**62),
)
def test_the_ball_the_range_and_the_truth(case, size, steps, restarts, n, classes, seed):
    if case[0] == "rap":
        steps += 3
    eps = min(size * EPS[case[1]], 1)
    restarts = 1 if case[0] == "fgsm" and not case[2].get("start") else restarts
    threat = made(case, eps=eps, alpha=eps / 3 or 0.01, steps=steps, restarts=restarts)
    logits, clean, labels = problem(n, classes)

    def watched(x):
        if "probability" in threat.kwargs:  # input diversity shows copies
            return logits(x)
        assert x.min() >= 0 and x.max() <= 1
        if threat.name != "fab-t":  # which comes from outside
            order = torch.inf if threat.norm == "linf" else 2
            gaps = (x.detach()[:, None] - clean[None]).flatten(2).norm(p=order, dim=2)  # (b, B)
            assert (gaps.amin(dim=1) <= eps + 1e-6).all()
        return logits(x)

    result = attack(threat, watched, clean, labels, [seed + i for i in range(n)])
    images, was_right = result.images, is_right(logits, clean, labels)
    assert images.dtype == torch.float32 and images.shape == clean.shape
    assert not images.requires_grad and images.min() >= 0 and images.max() <= 1
    assert (distance(images, clean, threat.norm) <= eps + 1e-6).all()
    assert result.max_linf == pytest.approx(float((images - clean).abs().max()))
    if result.right is not None:
        assert torch.equal(result.right, is_right(logits, images, labels))
    if labelled(threat):
        assert torch.equal(images[~was_right], clean[~was_right])
    if threat.name in ("square", "fab-t"):
        with torch.no_grad():
            torch.testing.assert_close(result.loss_first, losses.margin(logits(clean), labels))
            torch.testing.assert_close(result.loss_last, losses.margin(logits(images), labels))


@ours
@settings(max_examples=4, deadline=None)
@given(order=st.permutations(range(8)), cut=st.integers(1, 7), restarts=st.integers(1, 2))
def test_neither_the_size_nor_the_order_of_the_batch_matters(case, order, cut, restarts):
    restarts = 1 if case[0] == "fgsm" and not case[2].get("start") else restarts
    logits, clean, labels = problem(8)
    threat, seeds = made(case, restarts=restarts), [101 * i + 7 for i in range(8)]
    whole = attack(threat, logits, clean, labels, seeds)
    for part in (order[:cut], order[cut:]):
        again = attack(threat, logits, clean[part], labels[part], [seeds[i] for i in part])
        torch.testing.assert_close(again.images, whole.images[part], atol=1e-6, rtol=0)
        torch.testing.assert_close(again.loss_last, whole.loss_last[part], atol=1e-4, rtol=1e-4)
        assert whole.right is None or torch.equal(again.right, whole.right[part])


@every
def test_the_seeds_decide_alone(case):
    logits, clean, labels = problem(6)
    threat = made(case)
    first = attack(threat, logits, clean, labels).images
    torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(attack(threat, logits, clean, labels).images, first)
    other = attack(threat, logits, clean, labels, range(1, 7)).images
    draws = threat.start in ("uniform", "one_sided") or threat.name[:4] in ("apgd", "squa")
    draws |= "probability" in threat.kwargs
    if not threat.library:
        assert torch.equal(other, first) is not draws


@every
@pytest.mark.parametrize("training", [False, True])
def test_nothing_leaks(case, training):
    """Flags, modes, gradients, values, global generators and inputs are as before."""
    model = net().train(training)
    model[0].bias.requires_grad_(False)
    model[1].momentum = 0.0  # running statistics are the model's own affair
    model[4].weight.grad = marker = torch.ones_like(model[4].weight)
    flags = [p.requires_grad for p in model.parameters()]
    values = [p.clone() for p in model.parameters()]
    logits, clean, labels = problem(5, model=model)
    given_, states = clean.clone().requires_grad_(True), (random.getstate(), np.random.get_state())
    state = torch.random.get_rng_state()
    attack(made(case), logits, given_, labels)
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(map(torch.equal, values, model.parameters()))
    assert all(m.training is training for m in model.modules())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) == 1 and grads[0] is marker and (marker == 1).all()
    assert given_.grad is None and torch.equal(given_, clean)
    assert torch.equal(state, torch.random.get_rng_state()) and states[0] == random.getstate()
    assert all(map(np.array_equal, states[1], np.random.get_state()))


@every
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_ambient_modes_do_not_matter(case, context):
    logits, clean, labels = problem(5)
    plain, seen = attack(made(case), logits, clean, labels), set()

    def watched(x):
        seen.add(torch.is_autocast_enabled("cpu"))
        return logits(x)

    with context(), torch.autocast("cpu", dtype=torch.bfloat16):
        again = attack(made(case), watched, clean + 0, labels + 0)
    assert torch.equal(again.images, plain.images)
    # what compares with the clean output asks for it beforehand
    assert seen == {False} or case[2].get("objective") in ("kl", "embedding_kl")


@every
def test_wrong_input_is_named(case):
    logits, clean, labels = problem(4)
    threat = made(case)
    for bad, words in ((clean * 2, "range from 0 to 2"), (clean * torch.nan, "nan")):
        with pytest.raises(UserError, match=words):
            attack(threat, logits, bad, labels)
    with pytest.raises((ValueError, RuntimeError), match="4 images but 3 seeds|size"):
        attack(threat, logits, clean, labels, range(3))
    with pytest.raises(NotFinite):
        attack(threat, lambda x: logits(x) / 0, clean, labels)
    if threat.objective in ("ce", "margin") or labelled(threat):
        with pytest.raises(UserError, match="returns probabilities .* leave the softmax out"):
            attack(threat, lambda x: logits(x).softmax(1), clean, labels)
        for label in (-1, 5):
            with pytest.raises(UserError, match=rf"label {label} is outside 0..4"):
                attack(threat, logits, clean, torch.tensor([0, 1, label, 2]))


@every
def test_an_empty_batch_and_one_with_nothing_right_are_no_mistake(case):
    logits, clean, labels = problem(4, wrong=False)
    threat = made(case)
    assert len(attack(threat, logits, clean[:0], labels[:0]).images) == 0
    if labelled(threat):
        result = attack(threat, logits, clean, (labels + 1) % 5)
        assert torch.equal(result.images, clean) and not result.right.any()


@ours
def test_a_model_without_gradient_is_named_and_a_flat_one_counted(case):
    logits, clean, labels = problem(6, wrong=False)
    threat = made(case)
    if threat.name == "square":  # needs none
        return
    if "kl" not in str(threat.objective):
        with pytest.raises(UserError, match="does not depend on the images"):
            attack(threat, lambda x: logits(x).detach(), clean, labels)
    clean[1] = 0

    def masked(x):  # the logits of a black image are cut off from its pixels
        lit = (x.flatten(1).amax(1, keepdim=True) > 0.5).float()
        return lit * logits(x) + 5 * torch.eye(5)[labels[0]]

    labels = masked(clean).argmax(1).detach()
    flat = attack(threat, masked, clean, labels).zero_grad
    assert flat[1] and (flat.sum() == 1 or "kl" in str(threat.objective))


@ours
def test_restarts_break_no_fewer(case):
    if case[0] == "fgsm" and not case[2].get("start"):
        return
    logits, clean, labels = problem(30)
    eps = 2 * EPS[case[1]]
    one, four = (
        attack(made(case, eps=eps, alpha=eps / 9, restarts=n), logits, clean, labels)
        for n in (1, 4)
    )
    if one.right is not None:
        assert not (four.right & ~one.right).any()
        both = four.right
        assert (four.loss_last >= one.loss_last - 1e-6)[both].all()
    else:
        assert (four.loss_last >= one.loss_last - 1e-6).all()


@pytest.mark.parametrize(
    "bad, words",
    [
        (torch.full((1, 3, 8, 8), 1.1), r"range from 1.1 to 1.1"),
        (torch.full((1, 3, 8, 8), -2.0), r"range from -2 to -2.*normalize"),
        (torch.full((1, 3, 8, 8), torch.inf), "inf"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floats"),
        (torch.zeros(3, 8, 8), "shape"),
        *((torch.full((1, 3, 8, 8), v), "range") for v in (-2e-6, 1.000002)),  # not by rounding
    ],
)
def test_pixels_out_of_range_are_refused_with_what_was_seen(bad, words):
    with pytest.raises(UserError, match=words):
        check_pixels(bad)
    check_pixels(pixels(2))
    check_pixels(torch.tensor([-9e-7, 1 + 9e-7]).view(2, 1, 1, 1).expand(2, 3, 8, 8))


def test_of_equally_bad_images_the_first_is_kept():
    first, again = (
        AttackResult.untouched(
            torch.full((2, 3, 1, 1), v), torch.tensor([1.0, 1.0]), torch.ones(2) > 0
        )
        for v in (0.1, 0.2)
    )
    again.loss_last = torch.tensor([1.0, 1.1])
    first.keep_worst(again, torch.arange(2))
    assert first.images[:, 0, 0, 0].tolist() == pytest.approx([0.1, 0.2])
