"""The attack loop against toy models: the ball, the range, the starts, and what must not leak."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from yacs.config import CfgNode

from advprompt import losses
from advprompt.attacks import (
    AttackChecks,
    AttackResult,
    AttackSpec,
    GradientAttack,
    objective_for,
    parse_255,
    specs_from_cfg,
    summarise,
    verify,
)
from advprompt.utils.errors import UserError

CFG = {
    "NAME": "PGD",
    "EPS": "8/255",
    "ALPHA": 2,
    "STEPS": 5,
    "RESTARTS": 1,
    "START": "uniform",
    "OBJECTIVE": "ce",
    "TARGET": "end_to_end",
}


def spec(**changes) -> AttackSpec:
    return AttackSpec.from_cfg({**CFG, **{k.upper(): v for k, v in changes.items()}})


def net(seed: int = 0) -> nn.Module:
    """A convolutional classifier in double precision, so that batch size moves no sign."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.Flatten(), nn.Linear(6 * 36, 4)
        )
    return model.double().eval()


def pixels(n: int, seed: int = 0) -> torch.Tensor:
    """Images with many pixels exactly at 0 and 1, where clipping matters."""
    noise = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (1.4 * noise - 0.2).clamp(0, 1)


def attack(model, labels, threat: AttackSpec) -> GradientAttack:
    def forward(x):
        return 3 * model(x.double())

    return GradientAttack(objective_for(threat, forward, labels=labels), threat)


# --- the specification ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [4, "4", 4.0, "4/255", " 4 / 255 ", "4.0"])
def test_sizes_in_255_mean_the_same(value):
    assert parse_255(value, "EPS") == 4 / 255


@pytest.mark.parametrize(
    "value, expected", [(0, 0), ("0.5/255", 0.5 / 255), (255, 1), ("0.01/255", 0.01 / 255)]
)
def test_sizes_at_the_edges(value, expected):
    assert parse_255(value, "EPS") == expected


@pytest.mark.parametrize(
    "value, words",
    [
        (0.0157, "write 4 or 4/255"),
        ("0.0157", "write 4 or 4/255"),
        (256, "outside 0..255"),
        (-1, "outside 0..255"),
        ("four", "no size in 1/255"),
        ("4/256", "no size in 1/255"),
        ("4/", "no size in 1/255"),
        ("nan", "no size in 1/255"),
        ("inf", "no size in 1/255"),
        (True, "no size in 1/255"),
        (None, "no size in 1/255"),
    ],
)
def test_wrong_sizes_are_refused_with_the_key(value, words):
    with pytest.raises(UserError, match=words) as error:
        parse_255(value, "ATTACK.TEST.EPS")
    assert "ATTACK.TEST.EPS" in str(error.value)


def test_spec_from_yacs_and_back():
    made = AttackSpec.from_cfg(CfgNode({**CFG, "LIST": []}), key="ATTACK.TEST")
    assert (made.name, made.eps, made.alpha, made.norm) == ("pgd", 8 / 255, 2 / 255, "linf")
    told = made.describe()
    assert (told["eps"], told["alpha"], told["steps"]) == ("8/255", "2/255", 5)
    assert AttackSpec.from_cfg(json.loads(json.dumps(told))) == made


def test_list_entries_override_the_node():
    node = CfgNode({**CFG, "LIST": [{"EPS": 16, "STEPS": 40}, {"OBJECTIVE": "margin"}]})
    first, second = specs_from_cfg(node, key="ATTACK.TEST")
    assert (first.eps, first.steps, first.objective) == (16 / 255, 40, "ce")
    assert (second.eps, second.steps, second.objective) == (8 / 255, 5, "margin")
    assert specs_from_cfg(CfgNode(CFG)) == [spec()]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"name": "pgdd"}, "Did you mean pgd"),
        ({"objective": "embeding_kl"}, "Did you mean embedding_kl"),
        ({"target": "prompt"}, "is unknown"),
        ({"start": "zer"}, "Did you mean zero"),
        ({"norm": "l7"}, "is unknown"),
        ({"steps": -1}, "integer >= 0"),
        ({"steps": 2.5}, "integer >= 0"),
        ({"restarts": 0}, "integer >= 1"),
        ({"alpha": 0}, "no step moves"),
        ({"eps": 0.03}, "fraction of 1"),
        ({"stepz": 3}, "Did you mean STEPS"),
        ({"start": "zero", "restarts": 2}, "restarts the same"),
        ({"start": "zero", "objective": "kl"}, "exactly 0"),
        ({"start": "zero", "objective": "embedding_kl"}, "exactly 0"),
    ],
)
def test_wrong_settings_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        spec(**changes)


def test_missing_setting_is_named():
    with pytest.raises(UserError, match="ATTACK.TEST.STEPS"):
        AttackSpec.from_cfg({k: v for k, v in CFG.items() if k != "STEPS"}, key="ATTACK.TEST")


# --- losses -----------------------------------------------------------------------------------


def test_losses_against_their_definitions():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    labels = torch.tensor([0, 0, 2, 3, 2, 4])  # some right, some wrong
    p, q = a.softmax(1), b.softmax(1)
    torch.testing.assert_close(losses.kl(a, b), (p * (p / q).log()).sum(1))
    torch.testing.assert_close(losses.embedding_kl(a, b), losses.kl(a, b))
    assert losses.kl(a, b).sub(losses.kl(b, a)).abs().max() > 0.1  # the direction matters
    torch.testing.assert_close(losses.cross_entropy(a, labels), -p[range(6), labels].log())
    wrong = a.argmax(1) != labels
    assert torch.equal(losses.margin(a, labels) > 0, wrong) and wrong.any() and (~wrong).any()
    others = torch.stack([torch.cat([a[i, :y], a[i, y + 1 :]]).max() for i, y in enumerate(labels)])
    torch.testing.assert_close(losses.margin(a, labels), others - a[range(6), labels])
    with pytest.raises(ValueError, match="two classes"):
        losses.margin(a[:, :1], labels)


def test_kl_is_flat_at_the_clean_image():
    """The reason why zero starts are refused."""
    x = torch.randn(3, 7, requires_grad=True)
    (grad,) = torch.autograd.grad(losses.embedding_kl(x.detach(), x).sum(), x)
    assert grad.abs().max() < 1e-6


# --- the loop ---------------------------------------------------------------------------------

threats = st.builds(
    lambda eps, alpha, steps, start, objective: spec(
        eps=f"{eps}/255", alpha=f"{alpha}/255", steps=steps, start=start, objective=objective
    ),
    eps=st.floats(0, 255).map(lambda v: round(v, 3)),
    alpha=st.floats(0.01, 255).map(lambda v: round(v, 3)),
    steps=st.integers(0, 4),
    start=st.sampled_from(["uniform", "one_sided", "zero"]),
    objective=st.sampled_from(["ce", "margin"]),
)


@settings(max_examples=40, deadline=None)
@given(threat=threats, n=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_every_iterate_stays_in_the_ball_and_in_range(threat, n, seed):
    model, clean = net(), pixels(n, seed)
    labels = torch.arange(n) % 4
    loss = objective_for(threat, lambda x: model(x.double()), labels=labels)

    def watched(x):
        assert x.min() >= 0 and x.max() <= 1
        assert (x - clean).abs().max() <= threat.eps + 1e-6
        return loss(x)

    result = GradientAttack(watched, threat).run(clean, range(seed, seed + n))
    assert result.images.dtype == torch.float32 and result.images.shape == clean.shape
    assert not result.images.requires_grad
    assert result.max_linf == pytest.approx(float((result.images - clean).abs().max()))
    assert verify(threat, summarise([result])) is not None  # raises outside the ball


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(range(6)),
    cut=st.integers(1, 5),
    restarts=st.integers(1, 2),
    objective=st.sampled_from(["ce", "margin"]),
)
def test_batch_size_and_order_do_not_matter(order, cut, restarts, objective):
    model, clean, labels = net(), pixels(6), torch.arange(6) % 4
    threat = spec(objective=objective, restarts=restarts, steps=3)
    seeds = [101 * i + 7 for i in range(6)]
    whole = attack(model, labels, threat).run(clean, seeds)
    for part in (order[:cut], order[cut:]):
        again = attack(model, labels[part], threat).run(clean[part], [seeds[i] for i in part])
        assert torch.equal(again.images, whole.images[part])
        torch.testing.assert_close(again.loss_last, whole.loss_last[part])


def test_starts_depend_on_the_seed_alone():
    clean = torch.full((3, 3, 8, 8), 0.5)
    start = GradientAttack(None, spec(eps=16)).start(clean, [5, 6, 5])
    assert torch.equal(start[0], start[2]) and not torch.equal(start[0], start[1])
    state = torch.random.get_rng_state()
    GradientAttack(None, spec()).start(clean, [1, 2, 3])
    assert torch.equal(state, torch.random.get_rng_state())


def test_starts_fill_their_range():
    clean, eps = torch.full((4, 3, 32, 32), 0.5), 16 / 255
    uniform = GradientAttack(None, spec(eps=16)).start(clean, range(4)) - clean
    one_sided = GradientAttack(None, spec(eps=16, start="one_sided")).start(clean, range(4)) - clean
    zero = GradientAttack(None, spec(eps=16, start="zero")).start(clean, range(4)) - clean
    assert uniform.min() < -0.99 * eps and uniform.max() > 0.99 * eps
    assert uniform.mean().abs() < 0.03 * eps
    assert one_sided.min() >= 0 and one_sided.max() > 0.99 * eps
    assert (one_sided.mean() - eps / 2).abs() < 0.03 * eps
    assert not zero.any()


@pytest.mark.parametrize("objective", ["ce", "margin", "kl", "embedding_kl"])
def test_the_loss_rises_beyond_noise(objective):
    model, clean = net(), pixels(16)
    threat, noise = spec(objective=objective), spec(objective=objective, steps=0)
    forward = lambda x: model(x.double())  # noqa: E731
    reference = forward(clean).detach()
    results = [
        GradientAttack(
            objective_for(t, forward, labels=reference.argmax(1), reference=reference), t
        ).run(clean, range(16))
        for t in (threat, noise)
    ]
    assert (results[0].loss_last > results[0].loss_first).all()
    assert results[0].loss_last.mean() > 2 * results[1].loss_last.mean() or objective != "kl"
    assert results[0].loss_last.mean() > results[1].loss_last.mean()
    summary = summarise(results[:1])
    assert summary["loss_rises"] and summary["in_range"] and summary["zero_grad_share"] == 0
    assert verify(threat, summary, 1.0, 0.1) == []


def test_one_step_on_a_linear_model_is_the_sign_of_its_weights():
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(3))
    threat = spec(start="zero", steps=1, alpha=8)
    clean = torch.full((2, 3, 8, 8), 0.5)
    result = GradientAttack(lambda x: (x * weight).flatten(1).sum(1), threat).run(clean, [0, 1])
    torch.testing.assert_close(result.images, clean + 8 / 255 * weight.sign())
    torch.testing.assert_close(result.loss_first, (clean * weight).flatten(1).sum(1))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_leaks_into_the_model(training):
    model = net().train(training)
    model[0].bias.requires_grad_(False)
    model[4].weight.grad = marker = torch.ones_like(model[4].weight)
    flags = [p.requires_grad for p in model.parameters()]
    values = [p.clone() for p in model.parameters()]
    clean = pixels(4).requires_grad_(True)
    attack(model, torch.arange(4), spec()).run(clean, range(4))
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(map(torch.equal, values, model.parameters()))
    assert all(m.training is training for m in model.modules())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) == 1 and grads[0] is marker and (marker == 1).all()
    assert clean.grad is None and torch.equal(clean, pixels(4))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_ambient_modes_do_not_matter(context):
    model, threat = net(), spec(objective="kl")
    forward = lambda x: model(x.double())  # noqa: E731
    plain_reference = forward(pixels(3)).detach()
    plain = GradientAttack(objective_for(threat, forward, reference=plain_reference), threat).run(
        pixels(3), range(3)
    )
    with context():
        clean = pixels(3)
        loss = objective_for(threat, forward, reference=forward(clean))
        result = GradientAttack(loss, threat).run(clean, range(3))
    assert torch.equal(result.images, plain.images)


def test_labels_made_in_inference_mode_will_do():
    model = net()
    with torch.inference_mode():
        result = attack(model, torch.arange(3), spec()).run(pixels(3), range(3))
    assert torch.equal(
        result.images, attack(model, torch.arange(3), spec()).run(pixels(3), range(3)).images
    )


def test_autocast_does_not_reach_the_attack():
    model, clean, labels = net().float(), pixels(3), torch.arange(3)
    seen = []

    def forward(x):
        out = model(x)
        seen.append(out.dtype)
        return out

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(clean).dtype == torch.bfloat16
        GradientAttack(objective_for(spec(), forward, labels=labels), spec()).run(clean, range(3))
    assert set(seen) == {torch.float32}


def test_restarts_are_no_worse_and_keep_the_worst():
    model, clean, labels = net(), pixels(24), torch.arange(24) % 4

    def right(x):
        return model(x.double()).argmax(1) == labels

    previous = None
    for restarts in (1, 2, 4):
        threat = spec(steps=1, alpha=1, eps=16, restarts=restarts)
        result = attack(model, labels, threat).run(clean, range(24), right)
        assert torch.equal(result.right, right(result.images))
        scored = attack(model, labels, threat).run(clean, range(24))
        assert scored.right is None
        if previous is not None:
            assert not (result.right & ~previous[0]).any()
            assert (scored.loss_last >= previous[1]).all()
        previous = result.right, scored.loss_last


def test_every_restart_starts_elsewhere():
    seen = []

    def loss(x):
        seen.append(x.clone())
        return x.flatten(1).sum(1)

    GradientAttack(loss, spec(steps=0, restarts=3)).run(pixels(1), [7])
    assert len(seen) == 3
    assert not any(torch.equal(seen[i], seen[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


def test_a_misclassified_image_beats_a_higher_loss():
    """Restart 1 of sample 0 is wrong at low loss; the later ones right at higher loss."""
    calls = iter([1.0, 5.0, 9.0])
    answers = iter([False, True, True])
    threat = spec(steps=0, restarts=3)
    result = GradientAttack(lambda x: x.flatten(1).sum(1) * 0 + next(calls), threat).run(
        pixels(1), [0], lambda x: torch.tensor([next(answers)])
    )
    assert not result.right.any() and result.loss_last.tolist() == [1.0]
    calls = iter([1.0, 9.0, 5.0])
    result = GradientAttack(lambda x: x.flatten(1).sum(1) * 0 + next(calls), threat).run(
        pixels(1), [0]
    )
    assert result.loss_last.tolist() == [9.0]


def test_zero_gradients_are_counted_per_sample():
    mask = torch.tensor([1.0, 0.0, 1.0])
    result = GradientAttack(lambda x: x.flatten(1).sum(1) * mask, spec()).run(pixels(3), range(3))
    assert result.zero_grad.tolist() == [False, True, False]
    summary = summarise([result])
    assert summary["zero_grad_share"] == pytest.approx(1 / 3)
    assert any(w.startswith("zero_grad_share") for w in verify(spec(), summary))


@pytest.mark.parametrize(
    "bad, words",
    [
        (torch.full((1, 3, 8, 8), 1.1), r"range from 1.1 to 1.1"),
        (torch.full((1, 3, 8, 8), -2.0), r"range from -2 to -2.*normalize"),
        (torch.full((1, 3, 8, 8), float("nan")), "nan"),
        (torch.full((1, 3, 8, 8), float("inf")), "inf"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floats"),
        (torch.zeros(3, 8, 8), "shape"),
    ],
)
def test_input_out_of_range_is_refused_with_what_was_seen(bad, words):
    with pytest.raises(UserError, match=words):
        GradientAttack(lambda x: x.flatten(1).sum(1), spec()).run(bad, [0])


@pytest.mark.parametrize(
    "loss, kind, words",
    [
        (lambda x: x.sum(), ValueError, "loss per sample"),
        (lambda x: x.detach().flatten(1).sum(1), RuntimeError, "does not depend"),
        (lambda x: x.flatten(1).sum(1) / 0, RuntimeError, "loss is not finite"),
        (lambda x: (x - x).flatten(1).sum(1).sqrt(), RuntimeError, "gradient is not finite"),
    ],
)
def test_broken_losses_are_named(loss, kind, words):
    with pytest.raises(kind, match=words):
        GradientAttack(loss, spec()).run(pixels(2) + 0, [0, 1])
    with pytest.raises(ValueError, match="2 images but 1 seeds"):
        GradientAttack(loss, spec()).run(pixels(2), [0])


# --- self-checks ------------------------------------------------------------------------------


def fake(n=4, max_linf=8 / 255, value=0.5, zero=0, first=0.0, last=1.0) -> AttackResult:
    return AttackResult(
        images=torch.full((n, 3, 2, 2), value),
        max_linf=max_linf,
        zero_grad=torch.arange(n) < zero,
        loss_first=torch.full((n,), first),
        loss_last=torch.full((n,), last),
    )


def test_checks_add_up_over_batches():
    summary = summarise([fake(4), fake(2, max_linf=0.01, zero=1, last=3.0)])
    assert summary == {
        "max_linf": 8 / 255,
        "in_range": True,
        "zero_grad_share": 1 / 6,
        "loss_rises": True,
    }
    together, apart = AttackChecks(), AttackChecks()
    together.add(fake(4))
    apart.add(fake(2, zero=2, value=1.5))
    together.merge(apart)
    assert (together.n, together.zero_grad, together.in_range) == (6, 2, False)


def test_leaving_the_ball_or_the_range_is_an_error():
    with pytest.raises(RuntimeError, match="outside the ball"):
        verify(spec(), summarise([fake(max_linf=8.1 / 255)]))
    with pytest.raises(RuntimeError, match="in_range"):
        verify(spec(), summarise([fake(value=1.01)]))
    with pytest.raises(RuntimeError, match="in_range"):
        verify(spec(), summarise([fake(value=float("nan"))]))


@pytest.mark.parametrize(
    "changes, result, accuracies, word",
    [
        ({}, {"zero": 1}, (0.9, 0.5), "zero_grad_share"),
        ({}, {"first": 2.0}, (0.9, 0.5), "loss_rises"),
        ({}, {}, (0.5, 0.6), "order"),
        ({"alpha": 17}, {}, (0.9, 0.5), "step_size"),
    ],
)
def test_warnings_bear_the_name_of_the_check(changes, result, accuracies, word):
    warnings = verify(spec(**changes), summarise([fake(**result)]), *accuracies)
    assert [w.split(":")[0] for w in warnings] == [word]
    assert verify(spec(), summarise([fake()]), 0.9, 0.5) == []
