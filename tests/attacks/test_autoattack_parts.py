"""AutoAttack's parts: starts, searches, models whose answer is known, and the authors' own code."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advprompt import losses
from advprompt.attacks import dispatch, parts_of, run_attack, square
from advprompt.attacks.apgd import APGD, TargetedAPGD, UntargetedDLR, checkpoints
from advprompt.attacks.base import likeliest_wrong
from advprompt.attacks.fab import FAB
from advprompt.attacks.geometry import into_ball, length, to_hyperplane
from advprompt.attacks.square import Square

from .toy_problem import EPS, NORMS, distance, is_right, pixels, problem, shapes, spec

NAMES = {APGD: "apgd-ce", UntargetedDLR: "apgd-dlr", TargetedAPGD: "apgd-t"}
both = pytest.mark.parametrize("kind", [APGD, TargetedAPGD])
both_norms = pytest.mark.parametrize("norm", NORMS)


def apgd(kind, logits, labels, norm="linf", **changes):
    return kind(logits, labels, spec(NAMES[kind], norm, **changes))


def fab(logits, labels, norm="linf", **changes) -> FAB:
    return FAB(logits, labels, spec("fab-t", norm, **changes))


def shortest(logits, clean, labels, norm, steps):
    """Return the shortest perturbations (B,) that FAB finds; inf where it finds none."""
    own = fab(logits, labels, norm, eps=0.0, steps=steps)
    with torch.no_grad():
        aims = likeliest_wrong(logits(clean), labels, 9)
        return own.nearest(clean, labels, aims, list(range(len(clean))))[1]


def search(logits, labels, norm="linf", **changes) -> Square:
    return Square(logits, labels, spec("square", norm, **changes))


# --- Auto-PGD ---------------------------------------------------------------------------------


@both
@both_norms
def test_a_sample_stops_at_its_first_misclassified_image(kind, norm):
    """Alone it sees every iterate until then; in a batch it costs as many forwards."""
    logits, clean, labels = problem(20, 10)
    runs = 9 if kind is TargetedAPGD else 1
    seen = []

    def watched(x):
        seen.extend(x.detach())
        return logits(x)

    counts = []
    for i in range(20):
        seen.clear()
        result = apgd(kind, watched, labels[i : i + 1], norm, steps=8).run(clean[i : i + 1], [i])
        right = is_right(logits, torch.stack(seen), labels[i])
        assert right[:-1].all() and right[-1] == result.right[0]
        if result.right:
            assert len(seen) == 1 + runs * (8 + 1)
        else:
            assert torch.equal(seen[-1], result.images[0])
        counts.append(len(seen))
    assert len(set(counts)) >= 3
    seen.clear()
    apgd(kind, watched, labels, norm, steps=8).run(clean, range(20))
    assert len(seen) == sum(counts)


def test_a_misclassified_image_beats_a_higher_loss():
    """Restart 1 is right but unsure (loss 1.2), restart 2 wrong by little (loss 0.7)."""
    answers = iter([[9.0, 0, 0, 0], [0.2, 0, 0, 0], [0, 0.1, -9, -9]])
    seen = []

    def logits(x):
        seen.append(x.detach())
        return torch.tensor([next(answers)]) + 0 * x.sum()

    attack = apgd(APGD, logits, torch.tensor([0]), steps=0, restarts=2)
    result = attack.run(pixels(1), [0])
    assert not result.right.any() and torch.equal(result.images, seen[2])
    assert result.loss_last.item() == pytest.approx(0.744, abs=0.001)


@both_norms
def test_starts_lie_on_the_edge_and_depend_on_the_seed_alone(norm):
    clean = torch.full((3, 3, 8, 8), 0.5)
    state = torch.random.get_rng_state()
    start = apgd(APGD, None, None, norm, eps=0.1).start(clean, [5, 6, 5])
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(start[0], start[2]) and not torch.equal(start[0], start[1])
    torch.testing.assert_close(distance(start, clean, norm), torch.full((3,), 0.1))
    moved = (start - clean).flatten()
    assert 0.4 < (moved > 0).float().mean() < 0.6  # as often up as down


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
    eps = float(needed.median())
    result = apgd(kind, logits, labels, norm, eps=eps, steps=30).run(clean, range(200))
    clear = (needed / eps - 1).abs() > 0.02
    if kind is APGD:  # the cross-entropy may climb towards another class than the nearest
        assert not (~result.right & (needed > eps))[clear].any()
        assert (result.right != (needed > eps))[clear].float().mean() < 0.03
    else:
        assert torch.equal(result.right[clear], (needed > eps)[clear])
    assert 80 < result.right.sum() < 120


@both_norms
def test_the_loss_reaches_its_maximum(norm):
    """Two classes, linear: the best image is one corner, or one point, of the ball."""
    weight = torch.randn(3 * 64, generator=torch.Generator().manual_seed(2))
    clean, eps = torch.full((4, 3, 8, 8), 0.5), 0.1
    scores = lambda x: x.flatten(1) @ weight  # noqa: E731
    logits = lambda x: torch.stack([200 + scores(x), -scores(x)], 1) / 40  # noqa: E731
    labels = torch.zeros(4, dtype=torch.long)
    result = apgd(APGD, logits, labels, norm, eps=eps, steps=40).run(clean, range(4))
    step = weight.sign() if norm == "linf" else weight / weight.norm()
    best = clean - eps * step.view(3, 8, 8)
    assert result.right.all()
    torch.testing.assert_close(result.loss_last, losses.cross_entropy(logits(best), labels))
    torch.testing.assert_close(result.images, best, rtol=0, atol=1e-3)
    assert torch.equal(result.loss_first, losses.cross_entropy(logits(clean), labels))


def test_a_gradient_of_zero_is_counted_against_its_own_sample():
    def logits(x):
        dark = (x.detach().flatten(1).mean(1) < 0.7).float()[:, None]  # all others: constant
        return torch.cat([9 + dark * x.flatten(1).mean(1, keepdim=True), 0 * x[:, 0, 0, :1]], 1)

    clean = torch.tensor([0.5, 0.9, 0.5])[:, None, None, None].expand(3, 3, 8, 8)
    made = apgd(APGD, logits, torch.zeros(3, dtype=torch.long), eps=0.05, steps=3)
    assert made.run(clean, range(3)).zero_grad.tolist() == [False, True, False]


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 12])
def test_the_number_of_classes(classes):
    logits, clean, labels = problem(40, classes)
    for kind, fewest in ((APGD, 2), (UntargetedDLR, 3), (TargetedAPGD, 4)):
        made = apgd(kind, logits, labels, steps=5)
        if classes >= fewest:
            result = made.run(clean, range(40))
            assert result.right.float().mean() < 0.8
    if classes > 3:  # samples that are wrong already have the loss of the first run
        wrong, first = labels.eq(logits(clean).argmax(1)).logical_not(), result.loss_first
        expected = made.loss(logits(clean), labels, made.aims(logits(clean), labels, 0))
        torch.testing.assert_close(first[wrong], expected[wrong])
    scores, turns = logits(clean), made.turns(classes)
    assert turns == min(classes - 1, 9)
    aims = torch.stack([made.aims(scores, labels, turn) for turn in range(turns)])  # (T, B)
    assert not (aims == labels).any()
    ranked = scores.gather(1, aims.t())
    assert (ranked.diff(dim=1) <= 0).all()


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


def original(kind, logits, norm, steps):
    """The attack as the AutoAttack authors wrote it."""
    package = pytest.importorskip("pyautoattack.autopgd_base")
    made = {APGD: package.APGDAttack, TargetedAPGD: package.APGDAttack_targeted}[kind]
    name = {"linf": "Linf", "l2": "L2"}[norm]
    return made(logits, n_iter=steps, norm=name, eps=EPS[norm], seed=0, device="cpu")


@both
@both_norms
@pytest.mark.parametrize("steps", [3, 100])
def test_from_the_same_start_the_original_walks_the_same_way(kind, norm, steps):
    """It keeps broken samples in its batch, so dropping them changes nothing either."""
    logits, clean, labels = problem(60, 10)
    theirs, seeds = original(kind, logits, norm, steps), range(60)
    ours = apgd(kind, logits, labels, norm, steps=steps)
    aims = ours.aims(logits(clean), labels, 0)
    theirs.init_hyperparam(clean)
    theirs.y_target = aims
    start = into_ball(clean, ours.start(clean, seeds), EPS[norm], norm)
    best, right, loss, _ = theirs.attack_single_run(clean, labels, x_init=start)
    found = ours.ascend(clean, labels, aims, seeds)
    right = right.bool()
    assert torch.equal(found.right, right) and 5 < right.sum() < 55
    slack = 1e-6 if norm == "linf" else 5e-3  # lengths round otherwise; it shows on plateaus
    torch.testing.assert_close(found.images[right], best[right], rtol=0, atol=slack)
    torch.testing.assert_close(found.loss_last[right], loss[right], rtol=1e-4, atol=1e-6)


# --- FAB-T ------------------------------------------------------------------------------------


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
    norms = shortest(logits, clean, labels, norm, steps=30)
    assert (norms >= known * 0.9999).all() and (norms <= known * 1.01).all()
    eps = float(known.median())
    result = fab(logits, labels, norm, eps=eps, steps=30).run(clean, range(12))
    clear = (known / eps - 1).abs() > 0.02
    assert torch.equal(result.right[clear], (known > eps)[clear])
    assert result.right.any() and not result.right.all()


@pytest.mark.parametrize(("classes", "aimed"), [(2, 1), (4, 3), (12, 9)])
def test_it_aims_at_nine_classes_or_all(classes, aimed):
    logits, clean, labels, _ = linear(classes, n=4)
    calls = []
    fab(lambda x: calls.append(len(x)) or logits(x), labels, eps=0.0, steps=2).run(clean, range(4))
    assert calls == [4] * (2 + 2 * 2 * aimed)  # clean and final image; two forwards a step


def test_broken_samples_are_left_alone():
    logits, clean, labels = problem(20)
    calls = []

    def counted(x):
        calls.append(len(x))
        return logits(x)

    result = fab(counted, labels, steps=10).run(clean, range(20))
    robust = int(result.right.sum())
    assert 0 < robust < 16 == calls[-1] and calls[1] == 16
    assert min(calls) == calls[-2] == robust
    assert calls[1:-1] == sorted(calls[1:-1], reverse=True)


def test_stops_once_all_are_broken():
    logits, clean, labels, _ = linear(3)
    calls = []
    wide = fab(lambda x: calls.append(1) or logits(x), labels, eps=1.0, steps=1000)
    result = wide.run(clean, range(12))
    assert not result.right.any() and len(calls) < 30


@both_norms
def test_restarts_start_at_half_the_radius_elsewhere(norm):
    clean = torch.full((3, 3, 8, 8), 0.5)
    attack = fab(None, None, norm, eps=0.1)
    first, second = attack.start(clean, [1, 2, 3]), attack.start(clean, [4, 2, 6])
    torch.testing.assert_close(length(first - clean, norm).flatten(), torch.full((3,), 0.05))
    same = (first == second).flatten(1).all(1)
    assert same.tolist() == [False, True, False]


@both_norms
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([0.0, 0.01, 1.0, 100.0]))
def test_into_ball_keeps_what_is_inside(norm, seed, eps):
    clean = pixels(4, seed)
    images = clean + 0.1 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    held = into_ball(clean, images, eps, norm)
    assert held.min() >= 0 and held.max() <= 1
    assert (distance(held, clean, norm) <= eps + 1e-6).all()
    torch.testing.assert_close(into_ball(clean, held, eps, norm), held)


@both_norms
@pytest.mark.parametrize("classes", [2, 5])
def test_agrees_with_the_original(norm, classes):
    original = pytest.importorskip("pyautoattack.fab_pt").FABAttack_PT
    logits, clean, labels = problem(40, classes)

    def reference(eps):
        return original(
            logits,
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
    ours = torch.where(norms > 0, shortest(logits, clean, labels, norm, steps=20), 0)
    torch.testing.assert_close(ours, norms, rtol=2e-3, atol=1e-6)

    eps = float(norms[norms > 0].median()) * 1.001
    robust = is_right(logits, reference(eps).perturb(clean, labels), labels)
    result = fab(logits, labels, norm, eps=eps, steps=20).run(clean, range(40))
    assert 8 < robust.sum() < 30 and (result.right != robust).sum() <= 1


# --- Square -----------------------------------------------------------------------------------


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_squares_shrink_as_in_the_paper():
    assert square.covered_share(0) == 0.8
    for k, last in enumerate((10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)):
        shares = square.covered_share(last), square.covered_share(last + 1)
        assert shares == (0.8 / 2**k, 0.4 / 2**k)
    sides = [[square.side_of(q, norm, 224, 224) for q in (0, 11, 5000)] for norm in NORMS]
    assert sides == [[200, 142, 18], [201, 143, 19]]
    assert square.side_of(4999, "linf", 8, 8) == 1  # never less than a pixel
    assert square.side_of(4999, "l2", 8, 8) == 3
    assert square.side_of(0, "l2", 8, 4) == 4  # never more than the image


@both_norms
@settings(max_examples=30, deadline=None)
@given(
    eps=st.sampled_from([0.0, 0.01, 0.3, 5.0]),
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    seed=st.integers(0, 10**6),
)
def test_every_proposal_stays_in_the_ball_and_in_range(norm, eps, height, width, seed):
    linf = norm == "linf"
    own = generators(seed, seed + 1, seed + 2)
    clean = (1.4 * torch.rand(3, 3, height, width, generator=own[0]) - 0.2).clamp(0, 1)
    images = (square.stripes if linf else square.tiles)(clean, eps, own)
    for side in {1, min(3, height, width), min(height, width)}:
        assert images.min() >= 0 and images.max() <= 1
        assert (distance(images, clean, norm) <= eps + 1e-6).all()
        change = square.recolour if linf else square.move_mass
        images = change(clean, images, side, eps, own)


def test_linf_starts_with_stripes_and_changes_squares():
    clean, eps = torch.full((2, 3, 16, 16), 0.5), 0.1
    own = generators(1, 2)
    start = square.stripes(clean, eps, own)
    torch.testing.assert_close((start - clean).abs(), torch.full_like(clean, eps))
    assert (start == start[:, :, :1]).all() and not (start == start[..., :1]).all()
    corners = set()
    for _ in range(300):
        changed = square.recolour(clean, start, 5, eps, own) - start
        for moved in changed[changed.flatten(1).any(1)]:  # (3, 16, 16)
            rows, columns = moved.any(0).nonzero().unbind(1)
            assert rows.max() - rows.min() < 5 and columns.max() - columns.min() < 5
            assert rows.max() < 15 and columns.max() < 15
            corners.add(int(rows.min()))
        sizes = changed[changed != 0].abs()
        torch.testing.assert_close(sizes, torch.full_like(sizes, 2 * eps))
    assert corners >= set(range(11))


def test_linf_squares_have_one_colour_by_channel():
    clean, eps = torch.full((1, 3, 9, 9), 0.5), 0.1
    new = square.recolour(clean, clean, 4, eps, generators(1))[0] - clean[0]
    for channel in new:
        assert len(channel[channel != 0]) == 16 and len(set(channel[channel != 0].tolist())) == 1
    torch.testing.assert_close(new.abs().amax((1, 2)), torch.full((3,), eps))


def test_l2_hills_have_length_one():
    for side in range(1, 12):
        hill = square.double_pyramid(side)
        assert hill.shape == (side, side) and float(hill.norm()) == pytest.approx(1)
    hill = square.double_pyramid(7)
    assert (hill[:3] > 0).all() and (hill[3:] < 0).all() and hill[1].argmax() == 3
    assert torch.allclose(hill, hill.flip(1))


def test_l2_moves_use_the_whole_ball():
    clean, eps = torch.full((4, 3, 16, 16), 0.5), 0.7
    own = generators(*range(4))
    images = square.tiles(clean, eps, own)
    for _ in range(20):
        torch.testing.assert_close(distance(images, clean, "l2"), torch.full((4,), eps))
        assert not torch.equal(images[0], images[1])
        before, images = images, square.move_mass(clean, images, 5, eps, own)
        changed = (images - before).abs().amax(1) > 1e-5
        assert (changed.flatten(1).sum(1) <= 2 * 25).all() and changed.any()


def test_l2_moves_fill_what_the_ball_leaves_unused():
    clean = torch.full((1, 3, 16, 16), 0.5)
    images = square.tiles(clean, 0.2, generators(1))  # a fifth of the radius below
    moved = square.move_mass(clean, images, 5, 1.0, generators(2))
    assert float(distance(moved, clean, "l2")) == pytest.approx(1.0, abs=1e-5)
    mass = (moved - clean).square().sum(dim=1)[0]  # (16, 16)
    assert float(mass.unfold(0, 5, 1).unfold(1, 5, 1).sum(dim=(2, 3)).max()) > 0.96


def test_l2_moves_empty_one_window_and_mix_a_hill_into_the_other():
    """Where the window is the whole image, its place leaves nothing open."""
    clean = torch.full((1, 3, 9, 9), 0.5)
    images = square.tiles(clean, 0.2, generators(3))
    moved = square.move_mass(clean, images, 9, 0.2, generators(4))[0] - 0.5
    old, hill = images[0] - 0.5, square.double_pyramid(9)
    for channel, before in zip(moved, old, strict=True):
        mixed = [before / before.norm() + h for h in (hill, -hill, hill.t(), -hill.t())]
        expected = torch.stack([m / m.norm() * before.norm() for m in mixed])
        assert (channel - expected).abs().flatten(1).amax(1).min() < 1e-6
    even = torch.full((20, 3, 16, 16), 0.5 + 0.2 / 768**0.5)  # all pixels moved, at the edge
    moved = square.move_mass(even * 0 + 0.5, even, 5, 0.2, generators(*range(20)))
    emptied = (moved == 0.5).all(1).flatten(1).sum(1)
    assert (emptied <= 25).all() and (emptied > 0).sum() > 15


def test_more_queries_and_restarts_break_more():
    logits, clean, labels = problem(60)
    robust = []
    for queries, restarts in ((0, 1), (20, 1), (200, 1), (200, 2)):
        own = search(logits, labels, steps=queries, restarts=restarts)
        robust.append(own.run(clean, range(60)).right)
    assert not (robust[3] & ~robust[2]).any()  # the first restart is the same
    left = [int(right.sum()) for right in robust]
    assert left[0] > left[1] > left[2] >= left[3] > 0


@both_norms
def test_breaks_a_model_whose_gradient_is_masked(norm):
    """Rounded logits have no gradient at all, which hardly hinders this attack."""
    logits, clean, labels = problem(40)
    rounded = lambda x: (100 * logits(x)).round() / 100  # noqa: E731
    masked, smooth = (
        search(model, labels, norm, eps=4 * EPS[norm], steps=200).run(clean, range(40)).right
        for model in (rounded, logits)
    )
    assert is_right(rounded, clean, labels).sum() > 25 and smooth.sum() < 20
    assert masked.sum() <= smooth.sum() + 4


def test_memory_does_not_grow_with_queries():
    """As many tensor elements are alive in the 200th query as in the 10th."""
    logits, clean, labels = problem(3)
    alive = []

    def watched(x):
        everything = gc.get_objects() if len(alive) in (10, 200) else []
        alive.append(sum(o.numel() for o in everything if type(o) is torch.Tensor))
        return logits(x)

    search(watched, labels, eps=0.0, steps=200).run(clean, range(3))
    assert len(alive) == 202 and alive[10] == alive[200] > 0


def original_square(logits, norm, queries, **options):
    module = pytest.importorskip("pyautoattack.square")
    name = {"linf": "Linf", "l2": "L2"}[norm]
    options |= {"norm": name, "n_queries": queries, "device": "cpu", "resc_schedule": False}
    return module.SquareAttack(logits, **options)


def test_the_schedule_of_the_original():
    theirs = original_square(None, "linf", 5000)
    for query in range(0, 10000, 97):
        assert square.covered_share(query) == pytest.approx(theirs.p_selection(query))


@pytest.mark.parametrize("side", [2, 3, 5, 8, 13, 44])
def test_hills_of_the_original(side):
    theirs = original_square(None, "l2", 1)
    theirs.norm, theirs.device = "L2", "cpu"
    state = torch.random.get_rng_state()
    hill = theirs.eta(side)
    torch.random.set_rng_state(state)
    ours = square.double_pyramid(side)
    assert torch.allclose(hill, ours) or torch.allclose(hill, ours.t())


@both_norms
@pytest.mark.parametrize("factor", [1, 2])
def test_breaks_as_many_as_the_original(norm, factor):
    logits, clean, labels = problem(100)
    eps = factor * EPS[norm]
    theirs, ours = [], []
    for seed in range(3):
        images = original_square(logits, norm, 120, eps=eps, seed=seed).perturb(clean, labels)
        theirs.append(is_right(logits, images, labels).float().mean())
        seeds = range(1000 * seed, 1000 * seed + 100)
        result = search(logits, labels, norm, eps=eps, steps=120).run(clean, seeds)
        ours.append(result.right.float().mean())
    assert 0.02 < sum(theirs) / 3 < 0.78  # 0.8 is the clean accuracy
    assert float(sum(ours) / 3) == pytest.approx(float(sum(theirs) / 3), abs=0.035)


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, norm, eps, steps, broken",
    [
        ("CNN", "linf", EPS["linf"], 10, (50, 70)),
        ("CNN", "l2", EPS["l2"], 10, (40, 60)),
        pytest.param("tiny", "linf", 0.012, 5, (14, 20), marks=pytest.mark.slow),
    ],
)
def test_autoattack_leaves_the_samples_that_the_original_leaves(
    name, norm, eps, steps, broken, monkeypatch
):
    original = pytest.importorskip("pyautoattack").AutoAttack
    logits, clean, labels = problem(150, 10) if name == "CNN" else shapes(name, 24)
    whole = original(logits, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=0)
    whole.apgd.n_iter = whole.apgd_targeted.n_iter = whole.fab.n_iter = steps
    whole.square.n_queries = 40
    theirs = is_right(logits, whole.run_standard_evaluation(clean, labels)[0], labels)
    monkeypatch.setitem(dispatch.STEPS, "square", 40)
    right = able = is_right(logits, clean, labels)
    for part in parts_of(spec("autoattack", norm, eps=eps, steps=steps), 10):
        rows = right.nonzero().flatten()
        result = run_attack(part, clean[rows], rows.tolist(), forward=logits, labels=labels[rows])
        right = right.index_put((rows,), is_right(logits, result.images, labels[rows]))
    assert torch.equal(right, theirs) and broken[0] < (able & ~right).sum() < broken[1]
