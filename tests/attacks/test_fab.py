"""FAB-T: its projections, models whose nearest boundary is known, its conduct, the original."""

from __future__ import annotations

import pytest
import torch
import victim
from hypothesis import given, settings
from hypothesis import strategies as st
from victim import EPS, NORMS, distance, is_right, problem, threat

from advprompt.attacks.fab import FAB
from advprompt.attacks.geometry import into_ball, length, to_hyperplane

both_norms = pytest.mark.parametrize("norm", NORMS)

# --- the projection ----------------------------------------------------------------------------


def hyperplanes(n: int, dims: int, seed: int):
    """Return points with coordinates at the edges, normals with zeros, and gaps of both signs."""
    generator = torch.Generator().manual_seed(seed)
    points = (1.4 * torch.rand(n, dims, generator=generator) - 0.2).clamp(0, 1)
    normal = torch.randn(n, dims, generator=generator)
    normal[torch.rand(n, dims, generator=generator) < 0.2] = 0
    return points, normal, torch.randn(n, generator=generator) * dims / 6


def reachable(points, normal, gap):
    """Return the nearest that <normal, x> comes to its aim inside the box, as a gap (n,)."""
    low = (normal.clamp(max=0) - normal * points).sum(1) + gap
    high = (normal.clamp(min=0) - normal * points).sum(1) + gap
    return torch.where(gap > 0, low.clamp(min=0), high.clamp(max=0))


@both_norms
@settings(max_examples=60, deadline=None)
@given(dims=st.integers(1, 40), seed=st.integers(0, 10**6), scale=st.sampled_from([1e-12, 1, 1e6]))
def test_moves_end_on_the_hyperplane_and_in_the_box(norm, dims, seed, scale):
    points, normal, gap = hyperplanes(8, dims, seed)
    move = to_hyperplane(points, normal * scale, gap * scale, norm)
    assert ((points + move) > -1e-6).all() and ((points + move) < 1 + 1e-6).all()
    ends = gap + (normal * move).sum(1)
    torch.testing.assert_close(ends, reachable(points, normal, gap), atol=3e-5, rtol=1e-5)
    assert not move[normal == 0].any()


def test_moves_are_as_short_as_scipys():
    optimize = pytest.importorskip("scipy.optimize")
    points, normal, gap = hyperplanes(30, 6, 0)
    inside = reachable(points, normal, gap).abs() < 1e-6
    assert 5 < inside.sum() < 30
    points, normal, gap = points[inside], normal[inside], gap[inside]
    moves = {norm: to_hyperplane(points, normal, gap, norm).double() for norm in NORMS}
    for i, (x, w, g) in enumerate(zip(points.double(), normal.double(), gap.double(), strict=True)):
        box = [(-float(v), 1 - float(v)) for v in x]
        # L_inf: minimise t subject to -t <= d_i <= t, with the variables (d, t)
        above = torch.cat([torch.eye(6), -torch.ones(6, 1)], dim=1)
        below = torch.cat([-torch.eye(6), -torch.ones(6, 1)], dim=1)
        shortest = optimize.linprog(
            [0] * 6 + [1],
            A_ub=torch.cat([above, below]).numpy(),
            b_ub=[0] * 12,
            A_eq=[[*w.tolist(), 0]],
            b_eq=[-float(g)],
            bounds=[*box, (0, None)],
        ).fun
        assert float(moves["linf"][i].abs().max()) == pytest.approx(shortest, abs=1e-5)
        on_plane = {"type": "eq", "fun": lambda d, w=w, g=g: float(g) + d @ w.numpy()}
        found = optimize.minimize(
            lambda d: d @ d, [0.0] * 6, jac=lambda d: 2 * d, bounds=box, constraints=[on_plane]
        )
        assert found.success
        assert float(moves["l2"][i].norm()) == pytest.approx(found.fun**0.5, abs=1e-4)


@both_norms
def test_no_gap_and_no_normal_move_nothing(norm):
    points, normal, gap = hyperplanes(4, 5, 1)
    assert not to_hyperplane(points, normal, gap * 0, norm).any()
    assert not to_hyperplane(points, normal * 0, gap, norm).any()


# --- known boundaries --------------------------------------------------------------------------


def linear(classes: int, n: int = 12):
    """Return a linear model on images far from black and white, and the labels it gives them."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(classes, 3 * 8 * 8, generator=generator)
    clean = 0.5 + 0.05 * torch.randn(n, 3, 8, 8, generator=generator)

    def logits(x):
        return (x - 0.5).flatten(1) @ weight.t()

    return logits, clean, logits(clean).argmax(1), weight


@both_norms
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_finds_the_known_distance_on_a_linear_model(norm, classes):
    logits, clean, labels, weight = linear(classes)
    gaps = logits(clean).gather(1, labels[:, None]) - logits(clean)  # (B, K)
    slopes = (weight[labels][:, None] - weight).norm(p=1 if norm == "linf" else 2, dim=2)
    known = (gaps / slopes.clamp_min(1e-9)).scatter(1, labels[:, None], torch.inf).amin(1)
    result = FAB(logits, labels, threat(norm, eps=0.0, steps=30)).run(clean, range(12))
    assert (result.norms >= known * 0.9999).all()
    assert (result.norms <= known * 1.01).all()
    eps = float(known.median())
    result = FAB(logits, labels, threat(norm, eps=eps, steps=30)).run(clean, range(12))
    clear = (known / eps - 1).abs() > 0.02
    assert torch.equal(result.right[clear], (known > eps)[clear])
    assert result.right.any() and not result.right.all()


def test_aims_at_no_more_classes_than_told():
    logits, clean, labels, _ = linear(12, n=4)
    calls = []

    def counted(x):
        calls.append(len(x))
        return logits(x)

    for targets, aimed in ((1, 1), (3, 3), (9, 9), (20, 11)):
        calls.clear()
        FAB(counted, labels, threat(eps=0.0, steps=2), targets=targets).run(clean, range(4))
        assert calls == [4] * (2 + 2 * 2 * aimed)  # clean and final image; two forwards a step


def test_broken_samples_are_left_alone():
    logits, clean, labels = problem(20)
    calls = []

    def counted(x):
        calls.append(len(x))
        return logits(x)

    result = FAB(counted, labels, threat(steps=10)).run(clean, range(20))
    robust = int(result.right.sum())
    assert 0 < robust < 16 == calls[-1] and calls[1] == 16
    assert min(calls) == calls[-2] == robust
    assert calls[1:-1] == sorted(calls[1:-1], reverse=True)


def test_stops_once_all_are_broken():
    logits, clean, labels, _ = linear(3)
    calls = []
    wide = threat(eps=1.0, steps=1000)
    result = FAB(lambda x: calls.append(1) or logits(x), labels, wide).run(clean, range(12))
    assert not result.right.any() and len(calls) < 30


# --- conduct -----------------------------------------------------------------------------------


@both_norms
@settings(max_examples=25, deadline=None)
@given(
    eps=st.sampled_from([0.0, 0.2, 1.0, 20.0]),
    steps=st.integers(0, 6),
    restarts=st.integers(1, 3),
    n=st.integers(1, 7),
    classes=st.integers(2, 6),
)
def test_stays_in_the_ball_and_tells_the_truth(norm, eps, steps, restarts, n, classes):
    logits, clean, labels = problem(n, classes)
    spec = threat(norm, eps=eps * EPS[norm], steps=steps, restarts=restarts)
    result = FAB(logits, labels, spec).run(clean, range(n))
    victim.check_result(logits, clean, labels, spec, result)
    assert (result.norms == 0).equal(~is_right(logits, clean, labels))
    broken = result.right.logical_not() & (result.norms > 0)
    moved = distance(result.images, clean, norm)
    expected = result.norms.clamp(max=spec.eps).where(result.norms.isfinite(), 0)
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=1e-5)
    assert not result.zero_grad.any() and (result.loss_last > result.loss_first)[broken].all()


@both_norms
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(8)), cut=st.integers(1, 7), restarts=st.integers(1, 2))
def test_batch_size_and_order_do_not_matter(norm, order, cut, restarts):
    victim.check_batches(FAB, threat(norm, restarts=restarts), order, cut)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_leaks(training):
    victim.check_nothing_leaks(FAB, threat(restarts=2, steps=3), training)


@both_norms
def test_ambient_modes_do_not_matter(norm):
    victim.check_ambient_modes(FAB, threat(norm))


def test_wrong_input_is_refused():
    victim.check_refusals(FAB, threat())
    logits, clean, labels = problem(4)
    with pytest.raises(RuntimeError, match="does not depend"):
        FAB(lambda x: logits(x).detach(), labels, threat()).run(clean, range(4))


def test_flat_gradients_are_counted():
    """The logits of a black image are cut off from its pixels."""
    logits, clean, labels, _ = linear(3, n=3)
    clean[1] = 0

    def masked(x):
        return logits(x) * (x.flatten(1).amax(1, keepdim=True) > 0) + torch.eye(3)[0]

    labels = masked(clean).argmax(1)
    assert FAB(masked, labels, threat()).run(clean, range(3)).zero_grad.tolist() == [0, 1, 0]


@both_norms
def test_restarts_start_at_half_the_radius_elsewhere(norm):
    clean = torch.full((3, 3, 8, 8), 0.5)
    attack = FAB(None, None, threat(norm, eps=0.1))
    first, second = attack.start(clean, [1, 2, 3]), attack.start(clean, [4, 2, 6])
    torch.testing.assert_close(length(first - clean, norm).flatten(), torch.full((3,), 0.05))
    same = (first == second).flatten(1).all(1)
    assert same.tolist() == [False, True, False]


@both_norms
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([0.0, 0.01, 1.0, 100.0]))
def test_into_ball_keeps_what_is_inside(norm, seed, eps):
    clean = victim.pixels(4, seed)
    images = clean + 0.1 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    held = into_ball(clean, images, eps, norm)
    assert held.min() >= 0 and held.max() <= 1
    assert (distance(held, clean, norm) <= eps + 1e-6).all()
    torch.testing.assert_close(into_ball(clean, held, eps, norm), held)


# --- the original ------------------------------------------------------------------------------


@both_norms
@pytest.mark.parametrize("classes", [2, 5])
def test_agrees_with_the_original(norm, classes):
    original = pytest.importorskip("pyautoattack.fab_pt").FABAttack_PT
    logits, clean, labels = problem(40, classes)
    single = lambda x: logits(x).float()  # noqa: E731

    def reference(eps):
        return original(
            single,
            norm={"linf": "Linf", "l2": "L2"}[norm],
            n_iter=20,
            eps=eps,
            targeted=True,
            device="cpu",
            n_target_classes=classes - 1,
        )

    norms = torch.full((40,), torch.inf)
    theirs = reference(0.1)
    for theirs.target_class in range(2, classes + 1):
        images = theirs.attack_single_run(clean, labels, is_targeted=True)
        far = distance(images, clean, norm)
        norms = torch.where(is_right(logits, images, labels), norms, norms.minimum(far))
    ours = FAB(single, labels, threat(norm, eps=0.0, steps=20)).run(clean, range(40)).norms
    torch.testing.assert_close(ours, norms, rtol=2e-3, atol=1e-6)

    eps = float(norms[norms > 0].median()) * 1.001
    robust = is_right(logits, reference(eps).perturb(clean, labels), labels)
    result = FAB(single, labels, threat(norm, eps=eps, steps=20)).run(clean, range(40))
    assert 8 < robust.sum() < 30 and (result.right != robust).sum() <= 1
