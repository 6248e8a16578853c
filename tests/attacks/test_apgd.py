"""Auto-PGD: its ball, its independence of the batch, models whose answer is known, the original."""

from __future__ import annotations

import pytest
import torch
import victim
from hypothesis import given, settings
from hypothesis import strategies as st
from victim import NORMS, distance, is_right, pixels, threat

from advprompt import losses
from advprompt.attacks import NotFinite
from advprompt.attacks.apgd import APGD, TargetedAPGD, checkpoints
from advprompt.attacks.geometry import into_ball
from advprompt.utils.errors import UserError

both = pytest.mark.parametrize("kind", [APGD, TargetedAPGD])
both_norms = pytest.mark.parametrize("norm", NORMS)

LOGITS = torch.tensor([3.0, 2.0, 1.0, 0.0])


def problem(n: int, classes: int = 10):
    """The victim's logits in float32, in which the losses are taken."""
    logits, clean, labels = victim.problem(n, classes)
    return lambda x: logits(x).float(), clean, labels


# --- properties -------------------------------------------------------------------------------


@both
@settings(max_examples=20, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    eps=st.floats(0, 1),
    steps=st.integers(0, 7),
    restarts=st.integers(1, 2),
    n=st.integers(1, 6),
    seed=st.integers(0, 2**62),
)
def test_every_image_stays_in_the_ball_and_in_range(kind, norm, eps, steps, restarts, n, seed):
    logits, clean, labels = problem(n)

    def watched(x):
        assert x.min() >= 0 and x.max() <= 1
        gaps = (x[:, None] - clean[None]).flatten(2)  # (b, B, 3 H W); dropping hides who is who
        order = torch.inf if norm == "linf" else 2
        assert (gaps.norm(p=order, dim=2).amin(dim=1) <= eps + 1e-6).all()
        return logits(x)

    result = kind(watched, labels, threat(norm, eps=eps, steps=steps, restarts=restarts)).run(
        clean, [seed] * n
    )
    assert result.images.dtype == torch.float32 and result.images.shape == clean.shape
    assert not result.images.requires_grad
    assert (distance(result.images, clean, norm) <= eps + 1e-6).all()
    assert result.max_linf == float((result.images - clean).abs().max())
    assert torch.equal(result.right, is_right(logits, result.images, labels))
    was_right = is_right(logits, clean, labels)
    assert torch.equal(result.images[~was_right], clean[~was_right])
    unbroken = result.right
    assert (result.loss_last >= result.loss_first)[unbroken].all()
    assert not (result.right & ~was_right).any()


@both
@settings(max_examples=10, deadline=None)
@given(
    order=st.permutations(range(8)),
    cut=st.integers(1, 7),
    norm=st.sampled_from(NORMS),
    restarts=st.integers(1, 2),
)
def test_batch_size_and_order_do_not_matter(kind, order, cut, norm, restarts):
    victim.check_batches(kind, threat(norm, restarts=restarts), order, cut)


@both
@both_norms
def test_conduct(kind, norm):
    victim.check_nothing_leaks(kind, threat(norm), training=norm == "l2")
    victim.check_ambient_modes(kind, threat(norm))
    victim.check_refusals(kind, threat(norm))


@both
@both_norms
def test_a_sample_stops_at_its_first_misclassified_image(kind, norm):
    """Alone it sees every iterate until then; in a batch it costs as many forwards."""
    logits, clean, labels = problem(20)
    spec = threat(norm, steps=8)
    runs = 9 if kind is TargetedAPGD else 1
    seen = []

    def watched(x):
        seen.extend(x.detach())
        return logits(x)

    counts = []
    for i in range(20):
        seen.clear()
        result = kind(watched, labels[i : i + 1], spec).run(clean[i : i + 1], [i])
        right = is_right(logits, torch.stack(seen), labels[i])
        assert right[:-1].all() and right[-1] == result.right[0]
        if result.right:
            assert len(seen) == 1 + runs * (spec.steps + 1)
        else:
            assert torch.equal(seen[-1], result.images[0])
        counts.append(len(seen))
    assert len(set(counts)) >= 3
    seen.clear()
    kind(watched, labels, spec).run(clean, range(20))
    assert len(seen) == sum(counts)


@both
def test_more_restarts_break_no_fewer(kind):
    logits, clean, labels = problem(60)
    weak = [
        kind(logits, labels, threat(eps=16 / 255, steps=0, restarts=r)).run(clean, range(60))
        for r in (1, 4)
    ]
    assert not (weak[1].right & ~weak[0].right).any()
    assert weak[1].right.sum() < weak[0].right.sum()
    both = weak[1].right
    assert (weak[1].loss_last >= weak[0].loss_last)[both].all()
    assert (weak[1].loss_last > weak[0].loss_last)[both].any()


def test_a_misclassified_image_beats_a_higher_loss():
    """Restart 1 is right but unsure (loss 1.2), restart 2 wrong by little (loss 0.7)."""
    answers = iter([[9.0, 0, 0, 0], [0.2, 0, 0, 0], [0, 0.1, -9, -9]])
    seen = []

    def logits(x):
        seen.append(x.detach())
        return torch.tensor([next(answers)]) + 0 * x.sum()

    attack = APGD(logits, torch.tensor([0]), threat(steps=0, restarts=2))
    result = attack.run(pixels(1), [0])
    assert not result.right.any() and torch.equal(result.images, seen[2])
    assert result.loss_last.item() == pytest.approx(0.744, abs=0.001)


@both_norms
def test_starts_lie_on_the_edge_and_depend_on_the_seed_alone(norm):
    clean = torch.full((3, 3, 8, 8), 0.5)
    state = torch.random.get_rng_state()
    start = APGD(None, None, threat(norm, eps=0.1)).start(clean, [5, 6, 5])
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(start[0], start[2]) and not torch.equal(start[0], start[1])
    torch.testing.assert_close(distance(start, clean, norm), torch.full((3,), 0.1))


# --- models whose answer is known ---------------------------------------------------------------


@both
@both_norms
def test_a_linear_model_is_broken_exactly_where_it_can_be(kind, norm):
    """Class k takes over within eps iff s_y - s_k < eps |w_y - w_k| in the dual norm."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 3 * 64, generator=generator)
    clean = 0.4 + 0.2 * torch.rand(200, 3, 8, 8, generator=generator)  # no pixel can clip
    logits = lambda x: x.flatten(1) @ weight.t()  # noqa: E731
    scores = logits(clean)
    labels = scores.argmax(1)
    gaps = scores.gather(1, labels[:, None]) - scores  # (B, K)
    dual = (weight[labels][:, None] - weight[None]).norm(p=1 if norm == "linf" else 2, dim=2)
    needed = (gaps / dual.clamp(min=1e-9)).scatter(1, labels[:, None], torch.inf).amin(dim=1)
    spec = threat(norm, eps=float(needed.median()), steps=30)
    result = kind(logits, labels, spec).run(clean, range(200))
    clear = (needed / spec.eps - 1).abs() > 0.02
    if kind is APGD:  # the cross-entropy may climb towards another class than the nearest
        assert not (~result.right & (needed > spec.eps))[clear].any()
        assert (result.right != (needed > spec.eps))[clear].float().mean() < 0.03
    else:
        assert torch.equal(result.right[clear], (needed > spec.eps)[clear])
    assert 80 < result.right.sum() < 120


@both_norms
def test_the_loss_reaches_its_maximum(norm):
    """Two classes, linear: the best image is one corner, or one point, of the ball."""
    weight = torch.randn(3 * 64, generator=torch.Generator().manual_seed(2))
    clean, eps = torch.full((4, 3, 8, 8), 0.5), 0.1
    scores = lambda x: x.flatten(1) @ weight  # noqa: E731
    logits = lambda x: torch.stack([200 + scores(x), -scores(x)], 1) / 40  # noqa: E731
    labels = torch.zeros(4, dtype=torch.long)
    result = APGD(logits, labels, threat(norm, eps=eps, steps=40)).run(clean, range(4))
    step = weight.sign() if norm == "linf" else weight / weight.norm()
    best = clean - eps * step.view(3, 8, 8)
    assert result.right.all()
    torch.testing.assert_close(result.loss_last, losses.cross_entropy(logits(best), labels))
    torch.testing.assert_close(result.images, best, rtol=0, atol=1e-3)
    assert torch.equal(result.loss_first, losses.cross_entropy(logits(clean), labels))


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 12])
def test_the_number_of_classes(classes):
    logits, clean, labels = problem(40, classes)
    spec = threat(steps=5)
    assert APGD(logits, labels, spec).run(clean, range(40)).right.float().mean() < 0.8
    targeted = TargetedAPGD(logits, labels, spec)
    if classes < 4:
        with pytest.raises(UserError, match=f"4 classes but the model has {classes};"):
            targeted.run(clean, range(40))
        return
    assert targeted.run(clean, range(40)).right.float().mean() < 0.8
    scores = logits(clean)
    aims = targeted.aims(scores, labels)  # (T, B)
    assert aims.shape == (min(classes - 1, 9), 40) and not (aims == labels).any()
    ranked = scores.gather(1, aims.t())
    assert (ranked.diff(dim=1) <= 0).all()
    twice = TargetedAPGD(logits, labels, threat(restarts=2)).aims(scores, labels)
    assert torch.equal(twice, torch.cat([aims, aims]))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),  # the paper's 0.22, 0.41, 0.57, 0.70, ...
        (50, [11, 21, 30, 38, 45]),
        (5, [1, 2, 3, 4, 5]),
        (0, []),
    ],
)
def test_checkpoints(steps, expected):
    assert list(checkpoints(steps)) == expected
    assert list(checkpoints(steps).values()) == [
        b - a for a, b in zip([0, *expected], expected, strict=False)
    ]


# --- what is refused, what is noticed -----------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("logits", "kind_of_error", "words"),
    [
        (lambda x: x.flatten(1)[:, :4].detach() * 1.0, RuntimeError, "does not depend"),
        (lambda x: x.flatten(1)[:, :4] * torch.nan, NotFinite, "not finite"),
        (lambda x: (x.flatten(1)[:, :4] * 0).sqrt() + LOGITS, NotFinite, "gradient is not finite"),
    ],
)
def test_broken_models_are_named(kind, logits, kind_of_error, words):
    clean = torch.full((2, 3, 8, 8), 0.5)
    clean[:, 0, 0, 0] = 0.9
    with pytest.raises(kind_of_error, match=words):
        kind(logits, torch.zeros(2, dtype=torch.long), threat(eps=0.01)).run(clean, [0, 1])


@both
@both_norms
def test_zero_gradients_are_counted_per_sample(kind, norm):
    clean = torch.full((2, 3, 8, 8), 0.5)
    clean[1] = 0.2
    gate = lambda x: (x.mean(dim=(1, 2, 3)) > 0.4).float()[:, None]  # noqa: E731
    logits = lambda x: LOGITS + 0.01 * gate(x) * x.flatten(1)[:, :4]  # noqa: E731
    result = kind(logits, torch.zeros(2, dtype=torch.long), threat(norm, eps=0.05)).run(
        clean, [0, 1]
    )
    assert result.zero_grad.tolist() == [False, True]


# --- the original -------------------------------------------------------------------------------


def original(kind, logits, spec):
    """The attack as the AutoAttack authors wrote it."""
    package = pytest.importorskip("pyautoattack.autopgd_base")
    made = {APGD: package.APGDAttack, TargetedAPGD: package.APGDAttack_targeted}[kind]
    name = {"linf": "Linf", "l2": "L2"}[spec.norm]
    return made(logits, n_iter=spec.steps, norm=name, eps=spec.eps, seed=0, device="cpu")


@both
@both_norms
@pytest.mark.parametrize("steps", [3, 100])
def test_from_the_same_start_the_original_walks_the_same_way(kind, norm, steps):
    """It keeps broken samples in its batch, so dropping them changes nothing either."""
    logits, clean, labels = problem(60)
    spec = threat(norm, steps=steps)
    theirs, ours, seeds = original(kind, logits, spec), kind(logits, labels, spec), range(60)
    aims = ours.aims(logits(clean), labels)[0]
    theirs.init_hyperparam(clean)
    theirs.y_target = aims
    start = into_ball(clean, ours.start(clean, seeds), spec.eps, norm)
    best, right, loss, _ = theirs.attack_single_run(clean, labels, x_init=start)
    found = ours.ascend(clean, labels, aims, seeds)
    right = right.bool()
    assert torch.equal(found.right, right) and 5 < right.sum() < 55
    slack = 1e-6 if norm == "linf" else 5e-3  # lengths round otherwise; it shows on plateaus
    torch.testing.assert_close(found.images[right], best[right], rtol=0, atol=slack)
    torch.testing.assert_close(found.loss_last[right], loss[right], rtol=1e-4, atol=1e-6)


@both
@both_norms
def test_the_original_breaks_the_same_samples(kind, norm):
    """With starts of its own; 200 samples, of which at most 2 may differ."""
    logits, clean, labels = problem(200)
    spec = threat(norm, steps=30)
    found = kind(logits, labels, spec).run(clean, range(200))
    with torch.random.fork_rng():
        images = original(kind, logits, spec).perturb(clean.clone(), labels.clone())
    right = is_right(logits, images, labels)
    assert 50 < right.sum() < 150
    assert (found.right != right).sum() <= 2
