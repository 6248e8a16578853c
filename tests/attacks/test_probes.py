"""The self-checks tell a masked gradient from a robust model."""

import pytest
import torch

from advprompt.attacks import (
    AttackChecks,
    AttackSpec,
    GradientAttack,
    compare,
    judge,
    probe,
    verify,
)
from advprompt.attacks.gradient import objective_for

SPEC = AttackSpec(
    name="pgd",
    eps=8 / 255,
    alpha=2 / 255,
    steps=20,
    restarts=1,
    start="uniform",
    objective="ce",
    target="end_to_end",
)
SEEDS = range(24)


def network(scale=1.0):
    """Logits (b, 5) of images (b, 3, 6, 6): smooth, and about as steep as an undefended model."""
    torch.manual_seed(3)
    first, second = torch.randn(108, 32) * 0.6, torch.randn(32, 5) * scale
    return lambda x: ((x.flatten(1) - 0.5) @ first).tanh() @ second


def quantised(x):
    """Rounds its input: the gradient is exactly 0."""
    return network()((x * 8).round() / 8)


def saturated(x):
    """Logits so large that the cross-entropy of a right sample, and its gradient, round to 0."""
    return network(300.0)(x)


class Shattered(torch.autograd.Function):
    """Passes values through and hands back noise for a gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.randn(grad.shape, generator=torch.Generator().manual_seed(0)) * grad.norm()


def shattered(x):
    return network()(Shattered.apply(x))


def batch_dependent(x):
    return network()((x - x.mean(0, keepdim=True)) * 2 + 0.5)


def examine(logits, spec=SPEC):
    """Attack a model and return the names of all warnings."""
    torch.manual_seed(0)
    pixels = torch.rand(24, 3, 6, 6)
    with torch.no_grad():
        labels = logits(pixels).argmax(1)
    result = GradientAttack(objective_for(spec, logits, labels=labels), spec).run(pixels, SEEDS)
    checks = AttackChecks()
    checks.add(result)
    with torch.no_grad():
        right = (logits(result.images).argmax(1) == labels).float().mean().item()
    figures = probe(logits, pixels, labels, spec, SEEDS)
    warnings = verify(spec, checks.summary(), 1.0, right) + judge(figures, spec, right)
    return {warning.partition(":")[0] for warning in warnings}, figures


def test_an_honest_model_trips_nothing():
    warnings, figures = examine(network())
    assert not warnings
    assert figures["large_eps_right"] == 0 and figures["step_rises"] == 1
    assert figures["batch_logits"] < 1e-4 and 0 < figures["noise_right"] <= 1


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (quantised, {"zero_grad_share", "large_eps_right", "step_rises"}),
        (saturated, {"zero_grad_share"}),
        (shattered, {"step_rises", "large_eps_right"}),
        (batch_dependent, {"batch_logits"}),
    ],
)
def test_a_masked_model_trips_its_check(model, names):
    warnings, _ = examine(model)
    assert names <= warnings


def test_noise_that_beats_the_attack_is_reported():
    figures = {"noise_right": 0.4, "large_eps_right": 0, "step_rises": 1, "batch_logits": 0}
    (warning,) = judge(figures, SPEC, 0.5)
    assert warning.startswith("noise_right:") and "40.0%" in warning
    assert judge(figures, SPEC, 0.4) == []


def entry(correct, eps="4/255", target="end_to_end", **changes):
    return {
        "name": "pgd",
        "objective": "ce",
        "target": target,
        "eps": eps,
        "steps": 20,
        "restarts": 1,
        "start": "uniform",
        "norm": "linf",
        "drop": False,
        "n": 100,
        "correct": correct,
    } | changes


@pytest.mark.parametrize(
    ("attacks", "expected"),
    [
        ([entry(50, "1/255"), entry(40, "2/255")], {}),
        ([entry(50, "1/255"), entry(51, "2/255")], {1: "eps_order"}),
        ([entry(51, "16/255"), entry(50, "2/255")], {0: "eps_order"}),
        ([entry(50, "1/255"), entry(51, "2/255", steps=5)], {}),  # another attack
        ([entry(30, target="frozen_prompt"), entry(31)], {1: "transfer_order"}),
        ([entry(30, target="embedding", objective="embedding_kl"), entry(30)], {}),
        ([entry(30, "8/255", target="embedding"), entry(60)], {}),  # a larger ball may be stronger
        ([entry(30, target="frozen_prompt"), entry(80, steps=0)], {}),  # noise is no white box
    ],
)
def test_attacks_are_held_against_one_another(attacks, expected):
    found = compare(attacks)
    assert {i: w[0].partition(":")[0] for i, w in found.items()} == expected


def test_a_gap_to_autoattack_is_told_with_the_part_that_found_it():
    left = {"apgd-ce": 11, "apgd-t": 9, "fab-t": 9, "square": 9}
    auto = entry(9, name="autoattack", objective=None, start=None, n=60, checks={"left": left})
    near, far = (entry(correct, n=60, checks={}, steps=100) for correct in (10, 11))
    other, short = entry(30, n=60, checks={}, eps="2/255", steps=100), entry(20, n=60, checks={})
    ((position, (warning,)),) = compare([near, far, other, auto, short]).items()
    assert position == 1 and warning.startswith("autoattack_gap: 11 of 60 are right")
    assert "11 after apgd-ce, 9 after apgd-t" in warning
    assert not compare([far | {"defence": "jpeg"}, auto])


@pytest.mark.parametrize("probes", [0, 3])
def test_the_record_holds_the_figures(run, white_box, tmp_path, probes):
    from advprompt.records import read_record

    code, out, err = run(white_box("AdvIVLP", TEST__PROBES=probes))
    assert code == 0, err
    checks = read_record(tmp_path / "run" / "record.json")["attacks"][0]["checks"]
    names = {"noise_right", "large_eps_right", "step_rises", "batch_logits"}
    assert (names & set(checks)) == (names if probes else set())
