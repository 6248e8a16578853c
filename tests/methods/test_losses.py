"""Losses against values computed by hand, and their gradients where a term is held fixed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from advprompt import losses

LABELS = torch.tensor([0, 1])
EVEN = torch.zeros(2, 2)  # softmax (1/2, 1/2)
ODD = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])  # softmax (3/4, 1/4)
KL_EVEN_ODD = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
KL_ODD_EVEN = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)


def close(value, expected):
    torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(expected).float())


def test_cross_entropy_is_the_mean_over_samples():
    close(losses.cross_entropy(ODD, LABELS), [math.log(4 / 3), math.log(4)])
    close(losses.mean_ce(ODD, LABELS), (math.log(4 / 3) + math.log(4)) / 2)


def test_dlr_is_the_margin_over_the_spread_of_the_logits():
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0, -4.0], [1.0, 9.0, 4.0, 3.0, 7.0]])
    labels, targets = torch.tensor([0, 2]), torch.tensor([3, 1])
    close(losses.dlr(logits, labels), [-(5 - 3) / (5 - 2), -(4 - 9) / (9 - 4)])
    close(
        losses.dlr_targeted(logits, labels, targets),
        [-(5 - 2) / (5 - (2 + 1) / 2), -(4 - 9) / (9 - (4 + 3) / 2)],
    )
    close(losses.dlr(50 * logits - 7, labels), losses.dlr(logits, labels))
    for loss, least in ((losses.dlr, 3), (losses.dlr_targeted, 4)):
        more = (labels, targets)[: least - 2]
        with pytest.raises(ValueError, match=f"at least {least} classes"):
            loss(logits[:, : least - 1], *more)


def test_kl_puts_the_target_first():
    close(losses.kl(EVEN, ODD), [KL_EVEN_ODD] * 2)
    close(losses.kl(ODD, EVEN), [KL_ODD_EVEN] * 2)


def test_block_consistency_flattens_all_tokens_and_sums_over_blocks():
    one = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # (B, N, d) = (1, 2, 2)
    other = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    close(losses.cosine(one, other), [1 / math.sqrt(2)])
    close(losses.block_consistency([one, one, one], [other, one, -one]), [3 - 1 / math.sqrt(2)])


def test_nap_moves_from_clean_to_adversarial():
    clean, adv, gap = torch.tensor(2.0), torch.tensor(5.0), torch.tensor(0.5)
    close(losses.nap(clean, adv, gap, 0.0, 1.0), 2.0)
    close(losses.nap(clean, adv, gap, 0.25, 2.0), 0.75 * 2 + 0.25 * 5 + 0.25 * 2 * 0.5)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("conf", [0.5 / (0.5 + 0.75), 0.5 / (0.5 + 0.25)]),
        ("acc", [0.5, 0.5]),  # each gets one of two right
        ("const", [0.3, 0.3]),
        ("ramp", [0.75, 0.75]),
    ],
)
def test_capt_alpha(rule, expected):
    alpha = losses.capt_alpha(rule, EVEN, ODD, LABELS, constant=0.3, progress=0.25)
    close(alpha, expected)
    assert not losses.capt_alpha(rule, EVEN, ODD.requires_grad_(), LABELS).requires_grad
    ODD.requires_grad_(False)


def test_capt_alpha_by_entropy_leans_on_the_surer_model():
    odd = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    close(losses.capt_alpha("entropy", EVEN, ODD, LABELS), [odd / (odd + math.log(2))] * 2)


def test_capt_consistency_mixes_its_two_terms():
    alpha = torch.tensor([0.25, 1.0])
    mix, train, frozen = losses.capt_consistency(ODD, ODD, EVEN, alpha)
    close(train, [0.0, 0.0])
    close(frozen, [KL_EVEN_ODD] * 2)
    close(mix, [0.25 * KL_EVEN_ODD, KL_EVEN_ODD])
    other = losses.capt_consistency(ODD, ODD, EVEN, alpha, target_first=False)[2]
    close(other, [KL_ODD_EVEN] * 2)


@pytest.mark.parametrize("detach", [False, True])
def test_capt_detaches_its_target_only_on_request(detach):
    clean, adv = EVEN.clone().requires_grad_(), ODD.clone().requires_grad_()
    frozen = EVEN.clone().requires_grad_()
    alpha = torch.tensor([0.5, 0.5])
    losses.capt_consistency(adv, clean, frozen, alpha, detach_target=detach)[0].sum().backward()
    assert adv.grad.abs().sum() > 0 and frozen.grad is None
    assert (clean.grad is None) == detach


def test_distillation_scales_with_the_temperature_squared():
    close(losses.distillation(EVEN, ODD), [KL_EVEN_ODD] * 2)
    softer = torch.tensor([[math.sqrt(3), 1.0]])
    p = float(softer[0, 0] / softer.sum())
    by_hand = 4 * (0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)))
    close(losses.distillation(EVEN[:1], ODD[:1], 2.0), [by_hand])


def test_apd_student_and_teacher():
    student, teacher = ODD.clone().requires_grad_(), EVEN.clone().requires_grad_()
    loss = losses.apd_student(student, teacher, LABELS, beta=0.25)
    ce = torch.tensor([math.log(4 / 3), math.log(4)])
    close(loss.detach(), 0.75 * ce + 0.25 * KL_EVEN_ODD)
    loss.sum().backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None

    student.grad = None
    loss = losses.apd_teacher(teacher, student, LABELS, feedback=2.0)
    close(loss.detach(), [math.log(2) + 2 * KL_ODD_EVEN] * 2)
    loss.sum().backward()
    assert teacher.grad.abs().sum() > 0 and student.grad is None
    close(losses.apd_teacher(EVEN, ODD, LABELS, feedback=0.0), [math.log(2)] * 2)


def test_fap_weighs_the_divergence_by_the_features_likeness():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    attacked = torch.tensor([[3.0, 0.0], [0.0, 2.0]])  # the same direction; a right angle
    value = losses.fap_consistency(EVEN, ODD, features, attacked)
    close(value, [2 * KL_EVEN_ODD, KL_EVEN_ODD])


def test_attention_maps_against_numpy():
    tokens = np.random.default_rng(0).normal(size=(3, 5, 4))  # [CLS] and 2 x 2 patches
    texts = np.random.default_rng(1).normal(size=(3, 4))
    maps = losses.attention_maps(torch.tensor(tokens), torch.tensor(texts), 4)
    enlarge = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])  # bilinear, 2 -> 4
    for i, text in enumerate(texts):
        scores = (tokens[i] / np.linalg.norm(tokens[i], axis=0))[1:] @ text  # over the tokens
        scores = ((scores - scores.min()) / np.ptp(scores)).reshape(2, 2)
        close(maps[i], (enlarge @ scores @ enlarge.T).ravel())
    assert not losses.attention_maps(torch.ones(1, 5, 4), torch.ones(1, 4), 2).any()  # nor NaN


def test_half_precision_logits_are_computed_in_float32():
    big = torch.tensor([[80.0, 0.0]], dtype=torch.float16)
    assert losses.cross_entropy(big, torch.tensor([1])).dtype == torch.float32
    close(losses.kl(big, big), [0.0])
