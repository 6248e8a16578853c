"""The self-checks of attacks: the ball, the range, chance, and one attack against another."""

from dataclasses import replace

import pytest
import torch

from advprompt.attacks import AttackChecks, AttackResult, AttackSpec, compare, verify
from advprompt.utils.statistics import unlikely

SPEC = AttackSpec("pgd", 8 / 255, 2 / 255, 20, 1, "uniform", "ce", "end_to_end")


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
        "attacked": 6,
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
        ({}, {"zero": 4}, (0.9, 0.5), "zero_grad_share"),
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
    flat = summary_of(fake(zero=4, first=2.0, max_linf=0.0))
    assert verify(replace(SPEC, eps=0.0), flat) == []  # where nothing can move
    for steps, found in ((0, ["zero_grad_share"]), (1, ["zero_grad_share", "loss_rises"])):
        warnings = verify(replace(SPEC, steps=steps, alpha=8 / 255), flat)
        assert [w.split(":")[0] for w in warnings] == found  # noise ascends nothing


# --- attacks against one another ----------------------------------------------------------------


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
    ("count", "samples", "share", "expected"),
    [
        (0, 10, 0.01, False),
        (1, 1, 0.01, False),  # exactly 1 of 100
        (1, 1, 0.0099, True),
        (2, 32, 0.01, False),  # 4.1 %
        (3, 32, 0.01, True),  # 0.4 %
        (10, 32, 0.2, False),  # 8.5 %
        (13, 32, 0.2, True),  # 0.5 %
        (1000, 50000, 0.02, False),
        (1100, 50000, 0.02, True),
    ],
)
def test_a_count_is_reported_where_chance_explains_less_than_one_of_100(
    count, samples, share, expected
):
    assert unlikely(count, samples, share) is expected


@pytest.mark.parametrize(("zero", "warned"), [(1, False), (2, False), (3, True)])
def test_few_zero_gradients_are_chance(zero, warned):
    found = verify(SPEC, summary_of(fake(32, zero=zero)), 0.9, 0.5)
    assert [text.partition(":")[0] for text in found] == ["zero_grad_share"] * warned


@pytest.mark.parametrize(
    ("changes", "word", "warned"),
    [
        ({"alpha": 16 / 255}, "step_size", False),
        ({"alpha": 16.1 / 255}, "step_size", True),
        ({"alpha": 0.4 / 255, "steps": 20}, "short_walk", False),
        ({"alpha": 0.399 / 255, "steps": 20}, "short_walk", True),
    ],
)
def test_bounds_of_the_step_hold_from_both_sides(changes, word, warned):
    found = verify(replace(SPEC, **changes), summary_of(fake()), 0.9, 0.5)
    assert [text.partition(":")[0] for text in found] == [word] * warned
    for text in found:
        assert f"alpha {changes['alpha'] * 255:g}/255" in text and "eps 8/255" in text


@pytest.mark.parametrize(
    ("norm", "size", "slack", "refused"),
    [("linf", "max_linf", 0.9e-6, False), ("linf", "max_linf", 1.1e-6, True)]
    + [("l2", "max_l2", 0.9e-5, False), ("l2", "max_l2", 1.1e-5, True)],
)
def test_the_ball_is_as_large_as_rounding_allows(norm, size, slack, refused):
    summary = summary_of(fake()) | {size: SPEC.eps + slack}
    if not refused:
        assert verify(replace(SPEC, norm=norm), summary) == []
        return
    with pytest.raises(RuntimeError, match=size):
        verify(replace(SPEC, norm=norm), summary)


@pytest.mark.parametrize(("left", "warned"), [(0.05, False), (0.051, True)])
def test_an_attack_without_a_ball_leaves_nothing(left, warned):
    spec = AttackSpec("torchattacks:CW", None, None, 50, 1, None, None, "end_to_end", norm="l2")
    found = verify(spec, summary_of(fake()), 1.0, left)
    assert [text.partition(":")[0] for text in found] == ["no_ball"] * warned


@pytest.mark.parametrize(("after", "warned"), [(6, False), (5, False), (4, True)])
def test_square_may_hardly_break_more_than_gradients(after, warned):
    left = {"left": {"apgd-ce": 9, "apgd-t": 7, "fab-t": 6, "square": after}}
    found = verify(SPEC, summary_of(fake()) | left, 0.9, 0.5)
    assert [text.partition(":")[0] for text in found] == ["square_stronger"] * warned
    gradient, square = entry(6, n=60, steps=100), entry(after, n=60, name="square", steps=5000)
    square |= {"start": None, "objective": None}
    found = compare([gradient, square])
    assert [text.partition(":")[0] for text in found.get(0, [])] == ["square_stronger"] * warned
    assert not compare([gradient | {"steps": 5}, square])


@pytest.mark.parametrize(
    ("attacks", "expected"),
    [
        ([entry(50, "1/255"), entry(40, "2/255")], {}),
        ([entry(50, "1/255"), entry(54, "2/255")], {}),  # chance
        ([entry(50, "1/255"), entry(55, "2/255")], {1: "eps_order"}),
        ([entry(55, "16/255"), entry(50, "2/255")], {0: "eps_order"}),
        ([entry(50, "1/255"), entry(55, "2/255", steps=5)], {}),  # another attack
        ([entry(30, target="frozen_prompt"), entry(34)], {}),
        ([entry(30, target="frozen_prompt"), entry(35)], {1: "transfer_order"}),
        ([entry(30, target="embedding", objective="embedding_kl"), entry(30)], {}),
        ([entry(30, "8/255", target="embedding"), entry(60)], {}),  # a larger ball may be stronger
        ([entry(30, target="frozen_prompt"), entry(80, steps=0)], {}),  # noise is no white box
    ],
)
def test_attacks_are_held_against_one_another(attacks, expected):
    found = compare(attacks)
    assert {i: w[0].partition(":")[0] for i, w in found.items()} == expected


def test_a_gap_to_autoattack_is_told_with_the_part_that_found_it():
    left = {"apgd-ce": 14, "apgd-t": 9, "fab-t": 9, "square": 9}
    auto = entry(9, name="autoattack", objective=None, start=None, n=60, checks={"left": left})
    near, far = (entry(correct, n=60, checks={}, steps=100) for correct in (16, 17))
    other, short = entry(30, n=60, checks={}, eps="2/255", steps=100), entry(20, n=60, checks={})
    ((position, (warning,)),) = compare([near, far, other, auto, short]).items()
    assert position == 1 and warning.startswith("autoattack_gap: 17 of 60 are right")
    assert "14 after apgd-ce, 9 after apgd-t" in warning
    assert not compare([far | {"defence": "jpeg"}, auto])
    assert not compare([entry(4, n=24, steps=100), auto | {"n": 24, "correct": 3}])  # one image
