"""The self-checks: the ball, the range, and a masked gradient told from a robust model."""

from dataclasses import replace

import pytest
import torch

from advprompt.attacks import (
    AttackChecks,
    AttackResult,
    AttackSpec,
    GradientAttack,
    compare,
    judge,
    objective_for,
    probe,
    verify,
)

SPEC = AttackSpec("pgd", 8 / 255, 2 / 255, 20, 1, "uniform", "ce", "end_to_end")
SEEDS = range(24)


def summary_of(*results) -> dict:
    checks = AttackChecks()
    for result in results:
        checks.add(result)
    return checks.summary()


# --- what the attack did ----------------------------------------------------------------------


def fake(n=4, max_linf=8 / 255, value=0.5, zero=0, first=0.0, last=1.0) -> AttackResult:
    return AttackResult(
        images=torch.full((n, 3, 2, 2), value),
        max_linf=max_linf,
        zero_grad=torch.arange(n) < zero,
        loss_first=torch.full((n,), first),
        loss_last=torch.full((n,), last),
    )


def test_checks_add_up_over_batches():
    assert summary_of(fake(4), fake(2, max_linf=0.01, zero=1, last=3.0)) == {
        "max_linf": 8 / 255,
        "in_range": True,
        "zero_grad_share": 1 / 6,
        "loss_rises": True,
    }
    together, apart = AttackChecks(), AttackChecks()
    together.add(fake(4), torch.full((4, 3, 2, 2), 0.4))
    apart.add(fake(2, zero=2, value=1.5))
    together.merge(apart)
    assert (together.n, together.zero_grad, together.in_range) == (6, 2, False)
    assert together.max_l2 == pytest.approx(0.1 * 12**0.5)


def test_distances_are_means_over_the_broken():
    result = fake(3)
    result.right = torch.tensor([True, False, False])
    result.reached = {"l2": torch.tensor([0.0, 1.0, 2.0])}
    assert summary_of(result, result)["reached"] == {"l2": 1.5}


def test_leaving_the_ball_or_the_range_is_an_error():
    with pytest.raises(RuntimeError, match=r"8.1/255, outside the ball of 8/255 in linf"):
        verify(SPEC, summary_of(fake(max_linf=8.1 / 255)))
    with pytest.raises(RuntimeError, match="outside the ball of 0.0313725 in l2"):
        verify(replace(SPEC, norm="l2"), summary_of(fake()) | {"max_l2": 0.04})
    for value in (1.01, float("nan")):
        with pytest.raises(RuntimeError, match="in_range"):
            verify(SPEC, summary_of(fake(value=value)))


@pytest.mark.parametrize(
    "changes, result, accuracies, word",
    [
        ({}, {"zero": 1}, (0.9, 0.5), "zero_grad_share"),
        ({}, {"first": 2.0}, (0.9, 0.5), "loss_rises"),
        ({}, {}, (0.5, 0.6), "order"),
        ({"alpha": 17 / 255}, {}, (0.9, 0.5), "step_size"),
        ({"alpha": 1 / 255, "steps": 7}, {}, (0.9, 0.5), "short_walk"),
        ({"alpha": 1 / 255, "steps": 7, "norm": "l2"}, {}, (0.9, 0.5), "short_walk"),
    ],
)
def test_warnings_bear_the_name_of_the_check(changes, result, accuracies, word):
    warnings = verify(replace(SPEC, **changes), summary_of(fake(**result)), *accuracies)
    assert [w.split(":")[0] for w in warnings] == [word]
    assert verify(SPEC, summary_of(fake()), 0.9, 0.5) == []
    just = replace(SPEC, alpha=1 / 255, steps=8)  # as far as eps
    assert verify(just, summary_of(fake()), 0.9, 0.5) == []


# --- what the model answers -------------------------------------------------------------------


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


class Drowned(Shattered):
    """Hands back the gradient drowned in noise twenty times as large."""

    @staticmethod
    def backward(ctx, grad):
        noise = torch.randn(grad.shape, generator=torch.Generator().manual_seed(0))
        return grad + 20 * grad.abs().mean() * noise


def drowned(x):
    return network()(Drowned.apply(x))


def staircase(x):
    """Soft rounding to 64 levels: flat almost everywhere, steep in between."""
    low = (x * 64).floor()
    return network()((low + torch.sigmoid(40 * (x * 64 - low - 0.5))) / 64)


def leaking(x):
    """Detached, but for a hundredth of the gradient."""
    return network()(x.detach() + 0.01 * (x - x.detach()))


def examine(logits, spec=SPEC):
    """Attack a model and return the names of all warnings."""
    torch.manual_seed(0)
    pixels = torch.rand(24, 3, 6, 6)
    with torch.no_grad():
        labels = logits(pixels).argmax(1)
    result = GradientAttack(objective_for(spec, logits, labels=labels), spec).run(pixels, SEEDS)
    summary = summary_of(result)
    with torch.no_grad():
        right = (logits(result.images).argmax(1) == labels).float().mean().item()
    figures = probe(logits, pixels, labels, spec, SEEDS)
    warnings = verify(spec, summary, 1.0, right) + judge(figures, spec, right)
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
        (drowned, {"rise_small", "rise_step"}),
        (leaking, {"rise_small", "rise_step"}),
    ],
)
def test_a_masked_model_trips_its_check(model, names):
    warnings, _ = examine(model)
    assert names <= warnings


def test_a_staircase_is_seen_on_images_with_areas_of_one_colour():
    """Among pixels of all values its steps average out."""
    pixels = torch.rand(24, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    pixels = ((pixels * 255).round() / 255).expand(24, 3, 6, 6).contiguous()
    found = {}
    for model in (network(), staircase):
        figures = probe(model, pixels, model(pixels).argmax(1), SPEC, SEEDS)
        found[model] = judge(figures, SPEC, 0)
    honest, masked = found.values()
    assert not honest and {text.partition(":")[0] for text in masked} & {"rise_small", "rise_step"}


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_a_temperature_changes_no_promise(scale):
    _, figures = examine(network(scale))
    for name in ("rise_small", "rise_step"):
        assert figures[name] == pytest.approx(examine(network())[1][name], rel=0.02)


@pytest.mark.parametrize(
    ("rise", "warned"), [(0.69, True), (0.71, False), (1.39, False), (1.41, True), (-1.0, True)]
)
def test_bounds_of_the_promise_hold_from_both_sides(rise, warned):
    honest = {"noise_right": 1.0, "large_eps_right": 0, "step_rises": 1, "batch_logits": 0}
    for name in ("rise_small", "rise_step"):
        found = judge(honest | {"rise_small": 1.0, "rise_step": 1.0} | {name: rise}, SPEC, 0.5)
        assert [text.partition(":")[0] for text in found] == [name] * warned


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
